//! The micro-kernels: `C[mr, n] (+)= A[mr, k] · B[k, n]` for at most [`MR`] rows and one panel of [`NR`] columns.
//!
//! `A` is packed `[k][mr]` in f32, or `[ceil(k/2)][mr]` in pairs of bf16; a panel of `B` is `[k][NR]` in f32, or
//! `[ceil(k/2)][NR]` in pairs (two k side by side). Sums are f32. f32 rows meet bf16 weights by widening them in
//! registers, which is exact, so an f32 input keeps its precision and the weights cost half the memory traffic; pairs meet
//! pairs in the processor's own bf16 product, at twice the rate of f32.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::Isa;

/// Rows of a tile: 14 x 2 accumulators, 2 of `B` and a broadcast fill the 32 AVX-512 registers.
pub(crate) const MR: usize = 14;
/// Columns of a panel.
pub(crate) const NR: usize = 32;

/// Packed rows of `A`.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// `[k][mr]`
    F32(&'a [f32]),
    /// `[ceil(k/2)][mr]`, the even k in the low half, zero beyond an odd k; only for [`Isa::Avx512Bf16`].
    Pairs(&'a [u32]),
}

/// One panel of packed weights.
#[derive(Clone, Copy)]
pub(crate) enum Panel<'a> {
    /// `[k][NR]`
    F32(&'a [f32]),
    /// `[ceil(k/2)][NR]` pairs of bf16, the even k in the low half, zero beyond an odd k.
    Bf16(&'a [u32]),
}

impl<'a> Panel<'a> {
    /// A bf16 panel in f32, written to `wide` (`k * NR` values): pays when several tiles of f32 rows read it.
    pub(crate) fn widen(self, isa: Isa, k: usize, wide: &'a mut [f32]) -> Self {
        match self {
            Panel::Bf16(b) => {
                super::math::widen_pairs(isa, &b[..k.div_ceil(2) * NR], &mut wide[..k * NR]);
                Panel::F32(wide)
            }
            panel => panel,
        }
    }
}

/// Where a tile's result goes: row `i` starts at `i * ld`; the first `n` columns of the panel are written.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub ptr: *mut f32,
    pub ld: usize,
    pub n: usize,
    /// Continue the chains from what stands there instead of from zero.
    pub accumulate: bool,
}

/// Computes one tile.
///
/// # Safety
/// `out` must be valid for writing (and reading, to accumulate) `n` values in each of `mr` rows.
pub(crate) unsafe fn tile(isa: Isa, k: usize, mr: usize, a: Rows<'_>, panel: Panel<'_>, out: Out) {
    assert!((1..=MR).contains(&mr) && out.n <= NR);
    match a {
        Rows::F32(a) => assert!(a.len() >= k * mr),
        Rows::Pairs(a) => assert!(a.len() >= k.div_ceil(2) * mr && isa == Isa::Avx512Bf16),
    }
    match panel {
        Panel::F32(b) => assert!(b.len() >= k * NR),
        Panel::Bf16(b) => assert!(b.len() >= k.div_ceil(2) * NR),
    }
    // SAFETY: slices are as long as the kernels read (asserted), `out` is the caller's promise, and `isa` is never above
    // what the CPU was found to have.
    unsafe {
        match (isa, a) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, a) => avx512::tile(k, mr, a, panel, out),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Rows::F32(a)) => avx2::tile(k, mr, a, panel, out),
            (_, Rows::F32(a)) => portable(k, mr, a, panel, out),
            (_, Rows::Pairs(_)) => unreachable!("asserted above: pairs only with their instruction set"),
        }
    }
}

/// A row at a time in plain Rust; the compiler vectorises over the columns.
///
/// # Safety
/// As [`tile`].
unsafe fn portable(k: usize, mr: usize, a: &[f32], panel: Panel<'_>, out: Out) {
    for row in 0..mr {
        let mut acc = [0f32; NR];
        if out.accumulate {
            for (j, v) in acc[..out.n].iter_mut().enumerate() {
                // SAFETY: the caller's promise on `out`.
                *v = unsafe { *out.ptr.add(row * out.ld + j) };
            }
        }
        match panel {
            Panel::F32(b) => {
                for (p, b) in b.chunks_exact(NR).take(k).enumerate() {
                    let x = a[p * mr + row];
                    for (v, b) in acc.iter_mut().zip(b) {
                        *v += x * b;
                    }
                }
            }
            Panel::Bf16(b) => {
                for p in 0..k {
                    let x = a[p * mr + row];
                    for (v, b) in acc.iter_mut().zip(&b[p / 2 * NR..][..NR]) {
                        *v += x * f32::from_bits(b >> (16 * (p % 2)) << 16);
                    }
                }
            }
        }
        for (j, v) in acc[..out.n].iter().enumerate() {
            // SAFETY: the caller's promise on `out`.
            unsafe { *out.ptr.add(row * out.ld + j) = *v };
        }
    }
}
