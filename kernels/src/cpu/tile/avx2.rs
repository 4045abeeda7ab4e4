//! AVX2 tiles. Sixteen registers hold two rows of 32 columns or six rows of 16, and what they are made of: few rows take both halves of a panel at once;
//! more rows go through one half and then the other, in parts of equal size.

use std::arch::x86_64::*;

use super::{HALF, Halves, MR, NR, Out, Panel};

/// Rows packed `mr` apart, both halves of a panel or one of them twice, and the output with its leading dimension; accumulates
/// if the last says so.
type Kernel<B> = unsafe fn(usize, *const f32, usize, [*const B; 2], *mut f32, usize, bool);

/// Kernels by rows: whole panels, and halves of them. A bf16 panel needs registers to widen in.
static F32_WHOLE: [Kernel<f32>; 2] = [f32_rows::<1, 4>, f32_rows::<2, 4>];
static F32_HALF: [Kernel<f32>; 6] =
    [f32_rows::<1, 2>, f32_rows::<2, 2>, f32_rows::<3, 2>, f32_rows::<4, 2>, f32_rows::<5, 2>, f32_rows::<6, 2>];
static BF16_WHOLE: [Kernel<u32>; 2] = [bf16_rows::<1, 4>, bf16_rows::<2, 4>];
static BF16_HALF: [Kernel<u32>; 5] =
    [bf16_rows::<1, 2>, bf16_rows::<2, 2>, bf16_rows::<3, 2>, bf16_rows::<4, 2>, bf16_rows::<5, 2>];

/// # Safety
/// As [`super::tile`], on a CPU with AVX2 and FMA; lengths are checked by the caller.
pub(super) unsafe fn tile(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    // SAFETY: the caller's promise, and `whole` kernels write all columns of a panel.
    unsafe {
        match panel {
            Panel::F32(b) if out.n == NR && mr <= F32_WHOLE.len() => whole(k, mr, a, b, out, &F32_WHOLE),
            Panel::Bf16(b) if out.n == NR && mr <= BF16_WHOLE.len() => whole(k, mr, a, b, out, &BF16_WHOLE),
            _ => (0..2).for_each(|side| half(k, mr, a, panel, side, out)),
        }
    }
}

/// A tile of both halves at once.
///
/// # Safety
/// As [`tile`].
unsafe fn whole<B>(k: usize, mr: usize, a: &[f32], b: Halves<'_, B>, out: Out, kernels: &[Kernel<B>]) {
    // SAFETY: the caller's promise.
    unsafe { kernels[mr - 1](k, a.as_ptr(), mr, [b.left.as_ptr(), b.right.as_ptr()], out.ptr, out.ld, out.accumulate) }
}

/// The columns of a tile that stand in the left half of the panel (`side` 0) or the right (1).
///
/// # Safety
/// As [`super::tile`], on a CPU with AVX2 and FMA; lengths are checked by the caller.
pub(super) unsafe fn half(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, side: usize, out: Out) {
    let n = out.n.saturating_sub(side * HALF).min(HALF);
    if n == 0 {
        return;
    }
    // SAFETY: the half has columns in the tile.
    let out = unsafe { Out { ptr: out.ptr.add(side * HALF), n, ..out } };
    if n == HALF {
        // SAFETY: the caller's promise.
        return unsafe { parts(k, mr, a, panel, side, out) };
    }
    // The last half of a matrix is computed in full beside the output, then its real columns are copied.
    let mut full = [0f32; MR * HALF];
    // SAFETY: the first `n` values of each row of `out` are valid, and `full` holds `MR` rows of a half.
    unsafe {
        if out.accumulate {
            for (row, full) in full.chunks_exact_mut(HALF).take(mr).enumerate() {
                std::ptr::copy_nonoverlapping(out.ptr.add(row * out.ld), full.as_mut_ptr(), n);
            }
        }
        parts(k, mr, a, panel, side, Out { ptr: full.as_mut_ptr(), ld: HALF, n: HALF, accumulate: out.accumulate });
        for (row, full) in full.chunks_exact(HALF).take(mr).enumerate() {
            std::ptr::copy_nonoverlapping(full.as_ptr(), out.ptr.add(row * out.ld), n);
        }
    }
}

/// A half with all of its columns, in parts of rows of equal size.
///
/// # Safety
/// As [`half`].
unsafe fn parts(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, side: usize, out: Out) {
    let most = if matches!(panel, Panel::F32(_)) { F32_HALF.len() } else { BF16_HALF.len() };
    let parts = mr.div_ceil(most);
    let mut row = 0;
    for part in 0..parts {
        let rows = (mr - row).div_ceil(parts - part);
        // SAFETY: rows and columns lie inside the tile, the rest is the caller's promise.
        unsafe {
            let (a, c) = (a.as_ptr().add(row), out.ptr.add(row * out.ld));
            match panel {
                Panel::F32(b) => F32_HALF[rows - 1](k, a, mr, [b.side(side); 2], c, out.ld, out.accumulate),
                Panel::Bf16(b) => BF16_HALF[rows - 1](k, a, mr, [b.side(side); 2], c, out.ld, out.accumulate),
                Panel::Quant(_) => {} // has tiles of its own
            }
        }
        row += rows;
    }
}

/// `R` rows by `8 C` columns.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_rows<const R: usize, const C: usize>(
    k: usize,
    a: *const f32,
    mr: usize,
    [left, right]: [*const f32; 2],
    c: *mut f32,
    ld: usize,
    accumulate: bool,
) {
    // SAFETY: `tile` of the parent module asserted the lengths; `parts` passes rows and columns inside the tile.
    unsafe {
        let mut acc = start::<R, C>(c, ld, accumulate);
        let (mut a, mut b) = (a, [left, right]);
        let mut w = [_mm256_setzero_ps(); C];
        for _ in 0..k {
            for (j, w) in w.iter_mut().enumerate() {
                *w = _mm256_loadu_ps(b[j / 2].add(j % 2 * 8));
            }
            step(&mut acc, a, w);
            (a, b) = (a.add(mr), b.map(|b| b.add(HALF)));
        }
        finish(acc, c, ld);
    }
}

/// As [`f32_rows`] for pairs of bf16, widened.
#[target_feature(enable = "avx2,fma")]
unsafe fn bf16_rows<const R: usize, const C: usize>(
    k: usize,
    a: *const f32,
    mr: usize,
    [left, right]: [*const u32; 2],
    c: *mut f32,
    ld: usize,
    accumulate: bool,
) {
    // SAFETY: as in `f32_rows`.
    unsafe {
        let mut acc = start::<R, C>(c, ld, accumulate);
        let (mut a, mut b) = (a, [left, right]);
        let odd_bits = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let mut w = [_mm256_setzero_ps(); C];
        for pair in 0..k.div_ceil(2) {
            // The low half of each 32-bit lane is the even k, the high half the odd one.
            for (j, w) in w.iter_mut().enumerate() {
                *w = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(b[j / 2].add(j % 2 * 8).cast()), 16));
            }
            step(&mut acc, a, w);
            if 2 * pair + 1 < k {
                for (j, w) in w.iter_mut().enumerate() {
                    *w = _mm256_castsi256_ps(_mm256_and_si256(
                        _mm256_loadu_si256(b[j / 2].add(j % 2 * 8).cast()),
                        odd_bits,
                    ));
                }
                step(&mut acc, a.add(mr), w);
            }
            (a, b) = (a.wrapping_add(2 * mr), b.map(|b| b.add(HALF)));
        }
        finish(acc, c, ld);
    }
}

/// Sums from zero, or from what stands in the output.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn start<const R: usize, const C: usize>(c: *const f32, ld: usize, accumulate: bool) -> [[__m256; C]; R] {
    let mut acc = [[_mm256_setzero_ps(); C]; R];
    if accumulate {
        for (i, acc) in acc.iter_mut().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller's tile has these rows and columns.
                *acc = unsafe { _mm256_loadu_ps(c.add(i * ld + j * 8)) };
            }
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<const R: usize, const C: usize>(acc: [[__m256; C]; R], c: *mut f32, ld: usize) {
    for (i, acc) in acc.iter().enumerate() {
        for (j, acc) in acc.iter().enumerate() {
            // SAFETY: the caller's tile has these rows and columns.
            unsafe { _mm256_storeu_ps(c.add(i * ld + j * 8), *acc) };
        }
    }
}

/// `acc[i] += a[i] * b`
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step<const R: usize, const C: usize>(acc: &mut [[__m256; C]; R], a: *const f32, b: [__m256; C]) {
    for (i, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's rows hold `R` values at `a`.
        let x = _mm256_set1_ps(unsafe { *a.add(i) });
        for (acc, b) in acc.iter_mut().zip(b) {
            *acc = _mm256_fmadd_ps(x, b, *acc);
        }
    }
}
