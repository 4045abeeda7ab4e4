//! Loops over the rows of a cache: products with one vector, weighted sums, and widening.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{axpy_body, dot_body, fma};
use crate::cpu::Isa;

/// `out[i] = sum x * row i`, rows `stride` apart.
pub(crate) fn dots(isa: Isa, x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    assert!(out.is_empty() || rows.len() >= (out.len() - 1) * stride + x.len(), "rows of {} values", x.len());
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: `Isa` is never above what the CPU was found to have, and the rows are as long as asserted.
        return unsafe { dots_avx2(x, rows, stride, out) };
    }
    let _ = isa;
    for (i, out) in out.iter_mut().enumerate() {
        *out = dot_body::<false>(x, &rows[i * stride..][..x.len()]);
    }
}

/// Four rows at once: their sums are independent, and are folded together. (Left to the compiler, the folding makes it use a quarter of
/// each register.)
///
/// # Safety
/// On a CPU with AVX2 and FMA; the last row ends inside `rows`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_avx2(x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    use std::arch::x86_64::*;
    let whole = x.len() / 8 * 8;
    for (block, out) in out.chunks_mut(4).enumerate() {
        // Beyond the end the last row is taken again.
        let row = |i: usize| (block * 4 + i.min(out.len() - 1)) * stride;
        let mut sums = [_mm256_setzero_ps(); 4];
        for at in (0..whole).step_by(8) {
            // SAFETY (all reads): rows are as long as `x`, which holds `at + 8` values.
            let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(at)) };
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_fmadd_ps(x, unsafe { _mm256_loadu_ps(rows.as_ptr().add(row(i) + at)) }, *sum);
            }
        }
        let [a, b, c, d] = sums;
        let folded = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let four = _mm_add_ps(_mm256_castps256_ps128(folded), _mm256_extractf128_ps::<1>(folded));
        let mut results = [0f32; 4];
        // SAFETY: four values.
        unsafe { _mm_storeu_ps(results.as_mut_ptr(), four) };
        for (i, (out, result)) in out.iter_mut().zip(results).enumerate() {
            let row = &rows[(block * 4 + i) * stride..][..x.len()];
            *out = x[whole..].iter().zip(&row[whole..]).fold(result, |sum, (x, row)| x.mul_add(*row, sum));
        }
    }
}

#[inline(always)]
fn weighted_sum_body<const FMA: bool>(p: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    // As many columns as registers hold while all rows go by.
    const COLUMNS: usize = 32;
    let whole = out.len() / COLUMNS * COLUMNS;
    let (blocks, rest) = out.split_at_mut(whole);
    for (block, out) in blocks.chunks_exact_mut(COLUMNS).enumerate() {
        let mut sum = [0f32; COLUMNS];
        sum.copy_from_slice(out);
        for (i, p) in p.iter().enumerate() {
            let row = &rows[i * stride + block * COLUMNS..][..COLUMNS];
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum = fma::<FMA>(*p, *x, *sum);
            }
        }
        out.copy_from_slice(&sum);
    }
    for (i, p) in p.iter().enumerate() {
        axpy_body::<FMA>(*p, &rows[i * stride + whole..][..rest.len()], rest);
    }
}

for_isa! {
    /// `out += sum over i of p[i] * row i`, rows `stride` apart.
    pub(crate) fn weighted_sum(p: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) = weighted_sum_body
}

#[inline(always)]
fn widen_bf16_body<const FMA: bool>(x: &[bf16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

for_isa! {
    /// The same values in f32.
    pub(crate) fn widen_bf16(x: &[bf16], out: &mut [f32]) = widen_bf16_body
}

/// The same values in f32; the library finds out by itself what the CPU has for it.
pub(crate) fn widen_f16(_: crate::cpu::Isa, x: &[f16], out: &mut [f32]) {
    x.convert_to_f32_slice(out);
}
