//! The micro-kernels: `C[mr, n] (+)= A[mr, k] · B[k, n]` for at most [`MR`] rows and one panel of [`NR`] columns.
//!
//! `A` is packed `[k][mr]` in f32, or `[ceil(k/2)][mr]` in pairs of bf16. A panel of `B` is two halves `[k][16]` in f32, or
//! `[ceil(k/2)][16]` in pairs (two k side by side): a half is what AVX2 holds in the first-level cache, both are read side by
//! side by AVX-512. Sums are f32. f32 rows meet bf16 weights by widening them in registers, which is exact, so an f32 input
//! keeps its precision and the weights cost half the memory traffic; pairs meet pairs in the processor's own bf16 product, at
//! twice the rate of f32.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use super::Isa;
use super::quant::{self, QuantPanel};

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
    /// Rows of whole numbers, one after the other ([`quant::row_words`] each); for panels in blocks.
    Ints(&'a [u32]),
}

/// Columns of half a panel.
pub(crate) const HALF: usize = NR / 2;

/// The largest number of rows that a tile should get: a whole number of what the kernels take at once.
pub(crate) fn most_rows(isa: Isa) -> usize {
    if isa == Isa::Avx2 { 12 } else { MR }
}

/// The depth after which AVX2 goes on with the next rows: half a panel of it stays in the first level of the cache.
const DEPTH: usize = 256;

/// The two halves of a panel, `[lanes][HALF]` each.
#[derive(Clone, Copy)]
pub(crate) struct Halves<'a, T> {
    pub left: &'a [T],
    pub right: &'a [T],
}

impl<'a, T> Halves<'a, T> {
    /// A panel whose halves follow each other.
    pub(crate) fn of(panel: &'a [T]) -> Self {
        let (left, right) = panel.split_at(panel.len() / 2);
        Self { left, right }
    }

    /// The left half for 0, the right for 1.
    #[cfg(target_arch = "x86_64")]
    fn side(&self, side: usize) -> *const T {
        [self.left, self.right][side].as_ptr()
    }

    /// The lanes of a range.
    pub(crate) fn lanes(self, range: Range<usize>) -> Self {
        let range = range.start * HALF..range.end * HALF;
        Self { left: &self.left[range.clone()], right: &self.right[range] }
    }
}

/// One panel of packed weights.
#[derive(Clone, Copy)]
pub(crate) enum Panel<'a> {
    F32(Halves<'a, f32>),
    /// Pairs of bf16, the even k in the low half, zero beyond an odd k.
    Bf16(Halves<'a, u32>),
    /// Whole numbers in blocks with scales.
    Quant(QuantPanel<'a>),
}

impl<'a> Panel<'a> {
    /// A bf16 panel in f32, written to `wide` (`k * NR` values): pays when several tiles of f32 rows read it.
    pub(crate) fn widen(self, isa: Isa, k: usize, wide: &'a mut [f32]) -> Self {
        match self {
            Panel::Bf16(b) => {
                let (left, right) = wide[..k * NR].split_at_mut(k * HALF);
                super::math::widen_pairs(isa, b.left, left);
                super::math::widen_pairs(isa, b.right, right);
                Panel::F32(Halves { left, right })
            }
            panel => panel,
        }
    }

    /// Elements `k` of the depth; for bf16 they start at an even one.
    fn depth(self, k: Range<usize>) -> Self {
        match self {
            Panel::F32(b) => Panel::F32(b.lanes(k)),
            Panel::Bf16(b) => Panel::Bf16(b.lanes(k.start / 2..k.end.div_ceil(2))),
            // Multiplied over their whole depth at once.
            Panel::Quant(_) => self,
        }
    }
}

impl<'a> Rows<'a> {
    /// Elements `k` of the depth of `mr` rows; for pairs they start at an even one.
    fn depth(self, k: Range<usize>, mr: usize) -> Self {
        match self {
            Rows::F32(a) => Rows::F32(&a[k.start * mr..k.end * mr]),
            Rows::Pairs(a) => Rows::Pairs(&a[k.start / 2 * mr..k.end.div_ceil(2) * mr]),
            Rows::Ints(_) => self,
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

/// Computes the tiles of one panel: `each` names the rows of tile `i`, how many, and where its result goes.
///
/// # Safety
/// As [`tile`], for each.
pub(crate) unsafe fn tiles<'a>(
    isa: Isa,
    k: usize,
    panel: Panel<'_>,
    count: usize,
    each: impl Fn(usize) -> (usize, Rows<'a>, Out),
) {
    if let Panel::Quant(panel) = panel {
        // Half a panel stays in the first level of the cache while all rows go by.
        for side in 0..2 {
            for (mr, a, out) in (0..count).map(&each) {
                let Rows::Ints(a) = a else { unreachable!("panels in blocks meet rows of whole numbers") };
                // SAFETY: the caller's promise.
                unsafe { quant::half(isa, mr, a, panel, side, out) };
            }
        }
        return;
    }
    // A single tile reads the panel once, in whatever order.
    if isa != Isa::Avx2 || count <= 1 {
        for (mr, a, out) in (0..count).map(each) {
            // SAFETY: the caller's promise.
            unsafe { tile(isa, k, mr, a, panel, out) };
        }
        return;
    }
    let step = k.div_ceil(k.div_ceil(DEPTH).max(1)).next_multiple_of(2).max(2);
    for from in (0..k.max(1)).step_by(step) {
        let range = from..k.min(from + step);
        for side in 0..2 {
            for (mr, a, out) in (0..count).map(&each) {
                let out = Out { accumulate: out.accumulate || from > 0, ..out };
                // SAFETY: the caller's promise.
                unsafe {
                    side_of_tile(range.len(), mr, a.depth(range.clone(), mr), panel.depth(range.clone()), side, out)
                };
            }
        }
    }
}

/// The columns of an AVX2 tile in one half of the panel.
///
/// # Safety
/// As [`tile`], on a CPU with AVX2 and FMA.
unsafe fn side_of_tile(k: usize, mr: usize, a: Rows<'_>, panel: Panel<'_>, side: usize, out: Out) {
    check(Isa::Avx2, k, mr, a, panel, out);
    #[cfg(target_arch = "x86_64")]
    if let Rows::F32(a) = a {
        // SAFETY: lengths are checked, the rest is the caller's promise.
        unsafe { avx2::half(k, mr, a, panel, side, out) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = side;
}

/// Slices must be as long as kernels read.
fn check(isa: Isa, k: usize, mr: usize, a: Rows<'_>, panel: Panel<'_>, out: Out) {
    assert!((1..=MR).contains(&mr) && out.n <= NR);
    match a {
        Rows::F32(a) => assert!(a.len() >= k * mr),
        Rows::Pairs(a) => assert!(a.len() >= k.div_ceil(2) * mr && isa == Isa::Avx512Bf16),
        Rows::Ints(_) => unreachable!("rows of whole numbers have tiles of their own"),
    }
    match panel {
        Panel::F32(b) => assert!(b.left.len().min(b.right.len()) >= k * HALF),
        Panel::Bf16(b) => assert!(b.left.len().min(b.right.len()) >= k.div_ceil(2) * HALF),
        Panel::Quant(_) => unreachable!("panels in blocks have tiles of their own"),
    }
}

/// Computes one tile.
///
/// # Safety
/// `out` must be valid for writing (and reading, to accumulate) `n` values in each of `mr` rows.
pub(crate) unsafe fn tile(isa: Isa, k: usize, mr: usize, a: Rows<'_>, panel: Panel<'_>, out: Out) {
    check(isa, k, mr, a, panel, out);
    // SAFETY: slices are as long as the kernels read (asserted), `out` is the caller's promise, and `isa` is never above
    // what the CPU was found to have.
    unsafe {
        match (isa, a) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, a) => avx512::tile(k, mr, a, panel, out),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Rows::F32(a)) => avx2::tile(k, mr, a, panel, out),
            (_, Rows::F32(a)) => portable(k, mr, a, panel, out),
            (_, Rows::Pairs(_) | Rows::Ints(_)) => unreachable!("asserted above"),
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
        let (left, right) = acc.split_at_mut(HALF);
        for p in 0..k {
            let x = a[p * mr + row];
            match panel {
                Panel::F32(b) => {
                    for (acc, b) in [(&mut *left, b.left), (&mut *right, b.right)] {
                        acc.iter_mut().zip(&b[p * HALF..][..HALF]).for_each(|(v, b)| *v += x * b);
                    }
                }
                Panel::Bf16(b) => {
                    for (acc, b) in [(&mut *left, b.left), (&mut *right, b.right)] {
                        let wide = |b: u32| f32::from_bits(b >> (16 * (p % 2)) << 16);
                        acc.iter_mut().zip(&b[p / 2 * HALF..][..HALF]).for_each(|(v, b)| *v += x * wide(*b));
                    }
                }
                Panel::Quant(_) => {}
            }
        }
        for (j, v) in acc[..out.n].iter().enumerate() {
            // SAFETY: the caller's promise on `out`.
            unsafe { *out.ptr.add(row * out.ld + j) = *v };
        }
    }
}
