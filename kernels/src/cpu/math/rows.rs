//! Loops over the rows of a cache: products with one vector, weighted sums, and widening.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{axpy_body, dot_body, fma};

#[inline(always)]
fn dots_body<const FMA: bool>(x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = dot_body::<FMA>(x, &rows[i * stride..][..x.len()]);
    }
}

for_isa! {
    /// `out[i] = sum x * row i`, rows `stride` apart.
    pub(crate) fn dots(x: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) = dots_body
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
