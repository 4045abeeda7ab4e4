//! AVX2 tiles. Sixteen registers hold three rows of 32 columns or six rows of 16: few rows take whole panels, so that weights
//! are read in one run; more rows go through half a panel at a time, in parts of equal size.

use std::arch::x86_64::*;

use super::{MR, NR, Out, Panel};

/// One row or a few, `C` registers of eight columns each.
type Kernel = unsafe fn(usize, *const f32, usize, Panel<'_>, usize, *mut f32, usize, bool);

/// Kernels by rows, for whole panels and for halves.
static WHOLE: [Kernel; 3] = [rows::<1, 4>, rows::<2, 4>, rows::<3, 4>];
static HALF: [Kernel; 6] = [rows::<1, 2>, rows::<2, 2>, rows::<3, 2>, rows::<4, 2>, rows::<5, 2>, rows::<6, 2>];

/// # Safety
/// As [`super::tile`], on a CPU with AVX2 and FMA; lengths are checked by the caller.
pub(super) unsafe fn tile(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    if out.n == NR {
        // SAFETY: the caller's promise.
        return unsafe { whole(k, mr, a, panel, out) };
    }
    // The last panel of a matrix is computed in full beside the output, then its real columns are copied.
    let mut full = [0f32; MR * NR];
    for row in 0..mr {
        // SAFETY: the caller's promise on `out`, whose first `n` values of each row are valid.
        unsafe {
            if out.accumulate {
                std::ptr::copy_nonoverlapping(out.ptr.add(row * out.ld), full[row * NR..].as_mut_ptr(), out.n);
            }
        }
    }
    // SAFETY: `full` holds `MR` rows of a whole panel; the rest is the caller's promise.
    unsafe {
        whole(k, mr, a, panel, Out { ptr: full.as_mut_ptr(), ld: NR, n: NR, accumulate: out.accumulate });
        for row in 0..mr {
            std::ptr::copy_nonoverlapping(full[row * NR..].as_ptr(), out.ptr.add(row * out.ld), out.n);
        }
    }
}

/// A tile of all `NR` columns.
///
/// # Safety
/// As [`tile`].
unsafe fn whole(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    // SAFETY: rows and columns lie inside the tile, the rest is the caller's promise.
    unsafe {
        if let Some(kernel) = WHOLE.get(mr - 1) {
            return kernel(k, a.as_ptr(), mr, panel, 0, out.ptr, out.ld, out.accumulate);
        }
        let parts = mr.div_ceil(HALF.len());
        for half in [0, 16] {
            let mut row = 0;
            for part in 0..parts {
                let rows = (mr - row).div_ceil(parts - part);
                let c = out.ptr.add(row * out.ld + half);
                HALF[rows - 1](k, a.as_ptr().add(row), mr, panel, half, c, out.ld, out.accumulate);
                row += rows;
            }
        }
    }
}

/// `R` rows by `8 C` columns from column `first` of the panel.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const R: usize, const C: usize>(
    k: usize,
    a: *const f32,
    mr: usize,
    panel: Panel<'_>,
    first: usize,
    c: *mut f32,
    ld: usize,
    accumulate: bool,
) {
    // SAFETY: `tile` of the parent module asserted the lengths; `whole` passes rows and columns inside the tile.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); C]; R];
        if accumulate {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_loadu_ps(c.add(i * ld + j * 8));
                }
            }
        }
        match panel {
            Panel::F32(b) => {
                let b = b.as_ptr().add(first);
                let mut w = [_mm256_setzero_ps(); C];
                for p in 0..k {
                    for (j, w) in w.iter_mut().enumerate() {
                        *w = _mm256_loadu_ps(b.add(p * NR + j * 8));
                    }
                    step(&mut acc, a.add(p * mr), w);
                }
            }
            Panel::Bf16(b) => {
                let b = b.as_ptr().add(first);
                let odd_bits = _mm256_set1_epi32(0xffff_0000u32 as i32);
                let (mut even, mut odd) = ([_mm256_setzero_ps(); C], [_mm256_setzero_ps(); C]);
                for pair in 0..k.div_ceil(2) {
                    for j in 0..C {
                        // The low half of each 32-bit lane is the even k, the high half the odd one.
                        let v = _mm256_loadu_si256(b.add(pair * NR + j * 8).cast());
                        even[j] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
                        odd[j] = _mm256_castsi256_ps(_mm256_and_si256(v, odd_bits));
                    }
                    step(&mut acc, a.add(2 * pair * mr), even);
                    if 2 * pair + 1 < k {
                        step(&mut acc, a.add((2 * pair + 1) * mr), odd);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(c.add(i * ld + j * 8), *acc);
            }
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
