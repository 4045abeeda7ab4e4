//! Packing operands into the layouts that the tiles read, and the packed form of a stack of weights.

mod weights;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::quant;
use super::scratch::{bits, bits_mut};
use super::tile::{HALF, Rows};
use super::{Isa, Scratch, math};

pub use weights::Packed;

/// Element types that kernels read; sums are always f32.
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    /// True for bf16, whose products may be computed in pairs.
    const BF16: bool = false;
    fn to_f32(self) -> f32;
    /// Rounds a row to this type.
    fn store(isa: Isa, row: &[f32], dst: &mut [Self]);
}

impl Elem for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn store(_: Isa, row: &[f32], dst: &mut [Self]) {
        dst.copy_from_slice(row);
    }
}

impl Elem for bf16 {
    const BF16: bool = true;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // Without the library's branch for signalling NaN, so that loops vectorise.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn store(isa: Isa, row: &[f32], dst: &mut [Self]) {
        math::to_bf16(isa, row, dst);
    }
}

impl Elem for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn store(_: Isa, row: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(row);
    }
}

/// What rows are packed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    F32,
    /// Two bf16 side by side.
    Pairs,
    /// Whole numbers with scales.
    Ints,
}

/// Values 32 bits wide that a row of `k` elements packs into.
#[inline(always)]
pub(crate) fn lanes(k: usize, form: Form) -> usize {
    match form {
        Form::F32 => k,
        Form::Pairs => k.div_ceil(2),
        Form::Ints => quant::row_words(k),
    }
}

/// Packed rows as tiles take them.
#[inline(always)]
pub(crate) fn rows_of(a: &[f32], form: Form) -> Rows<'_> {
    match form {
        Form::F32 => Rows::F32(a),
        Form::Pairs => Rows::Pairs(bits(a)),
        Form::Ints => Rows::Ints(bits(a)),
    }
}

/// bf16 values side by side, the first in the low half.
#[inline(always)]
pub(crate) fn pair<T: Elem>(low: T, high: T) -> u32 {
    u32::from(math::bf16_bits(low.to_f32())) | u32::from(math::bf16_bits(high.to_f32())) << 16
}

/// A matrix inside a buffer: element `(i, j)` stands at `offset + row(i) * rs + j * cs`, where `row(i)` is `i`, or
/// `gather[i]` if rows are picked by index.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub offset: usize,
    pub rs: usize,
    pub cs: usize,
    pub gather: Option<&'a [u32]>,
}

impl<'a, T: Elem> View<'a, T> {
    /// A row-major matrix with `cols` columns that starts at `offset`.
    pub(crate) fn rows(data: &'a [T], offset: usize, cols: usize) -> Self {
        Self { data, offset, rs: cols, cs: 1, gather: None }
    }

    /// The same matrix with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rs: self.cs, cs: self.rs, ..self }
    }

    /// The same matrix without its first `rows` rows.
    pub(crate) fn skip(self, rows: usize) -> Self {
        match self.gather {
            Some(gather) => Self { gather: Some(&gather[rows..]), ..self },
            None => Self { offset: self.offset + rows * self.rs, ..self },
        }
    }

    #[inline(always)]
    fn start(&self, i: usize) -> usize {
        let row = self.gather.map_or(i, |g| g[i] as usize);
        self.offset + row * self.rs
    }

    /// Packs rows `i0..i0 + mr` into `[k][mr]`.
    pub(crate) fn pack_rows(&self, i0: usize, mr: usize, k: usize, dst: &mut [f32]) {
        if self.cs == 1 {
            let row = |i: usize| &self.data[self.start(i0 + i)..][..k];
            pack_lanes(mr, k, row, |row, p| row[p].to_f32(), dst);
        } else if self.rs == 1 && self.gather.is_none() {
            for (p, d) in dst.chunks_exact_mut(mr).take(k).enumerate() {
                let src = &self.data[self.offset + i0 + p * self.cs..][..mr];
                for (d, s) in d.iter_mut().zip(src) {
                    *d = s.to_f32();
                }
            }
        } else {
            for i in 0..mr {
                let start = self.start(i0 + i);
                for p in 0..k {
                    dst[p * mr + i] = self.data[start + p * self.cs].to_f32();
                }
            }
        }
    }

    /// Packs rows `i0..i0 + mr` into what `form` says; other forms than f32 take a matrix with contiguous rows.
    pub(crate) fn pack(&self, isa: Isa, form: Form, (i0, mr): (usize, usize), k: usize, dst: &mut [f32]) {
        match form {
            Form::F32 => self.pack_rows(i0, mr, k, dst),
            Form::Pairs => self.pack_row_pairs(i0, mr, k, bits_mut(dst)),
            Form::Ints => {
                assert_eq!(self.cs, 1, "whole numbers are made of contiguous rows");
                let mut row = Scratch::new(k);
                for (i, dst) in bits_mut(dst).chunks_exact_mut(quant::row_words(k).max(1)).take(mr).enumerate() {
                    let values = &self.data[self.start(i0 + i)..][..k];
                    row.iter_mut().zip(values).for_each(|(r, v)| *r = v.to_f32());
                    quant::quantise_row(isa, &row, dst);
                }
            }
        }
    }

    /// Packs rows `i0..i0 + mr` of a matrix with contiguous rows into pairs `[ceil(k/2)][mr]`.
    pub(crate) fn pack_row_pairs(&self, i0: usize, mr: usize, k: usize, dst: &mut [u32]) {
        assert_eq!(self.cs, 1, "pairs are made of contiguous rows");
        pack_pairs(mr, k, |i| &self.data[self.start(i0 + i)..][..k], dst);
    }

    /// Packs columns `j0..min(j0 + 2 * HALF, n)` of this `[k, n]` matrix into a panel, two halves `[k][HALF]`, zero beyond `n`.
    pub(crate) fn pack_panel(&self, j0: usize, n: usize, k: usize, dst: &mut [f32]) {
        let (left, right) = dst.split_at_mut(k * HALF);
        self.pack_half(j0, (n - j0).min(HALF), k, left);
        self.pack_half(j0 + HALF, (n - j0).saturating_sub(HALF).min(HALF), k, right);
    }

    /// Packs `cols` columns from `j0` into `[k][HALF]`.
    fn pack_half(&self, j0: usize, cols: usize, k: usize, dst: &mut [f32]) {
        if cols == 0 {
            dst.fill(0.0);
        } else if self.rs == 1 && self.gather.is_none() {
            // Columns are contiguous, as those of a transposed weight: half a panel is `HALF` packed rows.
            let column = |j: usize| &self.data[self.offset + (j0 + j) * self.cs..][..k];
            if cols == HALF {
                pack_lanes(HALF, k, column, |column, p| column[p].to_f32(), dst);
            } else {
                dst.fill(0.0);
                for j in 0..cols {
                    for (d, s) in dst[j..].iter_mut().step_by(HALF).zip(column(j)) {
                        *d = s.to_f32();
                    }
                }
            }
        } else if self.cs == 1 {
            for (p, d) in dst.chunks_exact_mut(HALF).enumerate() {
                let src = &self.data[self.start(p) + j0..][..cols];
                for (d, s) in d.iter_mut().zip(src) {
                    *d = s.to_f32();
                }
                d[cols..].fill(0.0);
            }
        } else {
            dst.fill(0.0);
            for p in 0..k {
                for j in 0..cols {
                    dst[p * HALF + j] = self.data[self.start(p) + (j0 + j) * self.cs].to_f32();
                }
            }
        }
    }
}

/// Packs `m` rows of `n` lanes into `[n][m]`; `load(row, p)` is lane `p` of a row.
#[inline(always)]
pub(crate) fn pack_lanes<'a, T: Elem, L: Copy + Default>(
    m: usize,
    n: usize,
    row: impl Fn(usize) -> &'a [T],
    load: impl Fn(&[T], usize) -> L + Copy,
    dst: &mut [L],
) {
    match m {
        1 => {
            let row = row(0);
            for (p, d) in dst[..n].iter_mut().enumerate() {
                *d = load(row, p);
            }
        }
        // Halves of panels, full tiles, and the sizes that even splits of a few dozen rows make, get loops of constant width.
        16 => transpose::<T, L, 16>(n, row, load, dst),
        14 => transpose::<T, L, 14>(n, row, load, dst),
        13 => transpose::<T, L, 13>(n, row, load, dst),
        12 => transpose::<T, L, 12>(n, row, load, dst),
        11 => transpose::<T, L, 11>(n, row, load, dst),
        8 => transpose::<T, L, 8>(n, row, load, dst),
        _ => {
            for i in 0..m {
                let row = row(i);
                for (p, d) in dst[i..].iter_mut().step_by(m).take(n).enumerate() {
                    *d = load(row, p);
                }
            }
        }
    }
}

/// Packs `M` rows, sixteen lanes at a time through a block in registers and L1: reads and writes are both sequential.
fn transpose<'a, T: Elem, L: Copy + Default, const M: usize>(
    n: usize,
    row: impl Fn(usize) -> &'a [T],
    load: impl Fn(&[T], usize) -> L,
    dst: &mut [L],
) {
    let rows: [&[T]; M] = std::array::from_fn(row);
    let whole = n / 16 * 16;
    let mut block = [[L::default(); 16]; M];
    for (p, dst) in dst[..whole * M].chunks_exact_mut(16 * M).enumerate() {
        for (block, row) in block.iter_mut().zip(&rows) {
            for (q, b) in block.iter_mut().enumerate() {
                *b = load(row, p * 16 + q);
            }
        }
        for (q, dst) in dst.chunks_exact_mut(M).enumerate() {
            for (d, block) in dst.iter_mut().zip(&block) {
                *d = block[q];
            }
        }
    }
    for p in whole..n {
        for (i, row) in rows.iter().enumerate() {
            dst[p * M + i] = load(row, p);
        }
    }
}

/// Packs `m` rows of `k` elements into pairs `[ceil(k/2)][m]`, with zero for the other half of an odd end.
fn pack_pairs<'a, T: Elem>(m: usize, k: usize, row: impl Fn(usize) -> &'a [T], dst: &mut [u32]) {
    pack_lanes(m, k / 2, &row, |row, p| pair(row[2 * p], row[2 * p + 1]), dst);
    if k % 2 == 1 {
        for (i, d) in dst[k / 2 * m..][..m].iter_mut().enumerate() {
            *d = u32::from(math::bf16_bits(row(i)[k - 1].to_f32()));
        }
    }
}

#[cfg(test)]
mod tests;
