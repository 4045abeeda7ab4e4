//! Weights in blocks as tiles, and the products of whole numbers that they take part in.
//!
//! A half panel is 16 columns. Of every 32 values of the depth it holds, side by side, the scales of the 16 columns in f16,
//! what the format has beside them (offsets, or the scales of the other 16 values), and the whole numbers: two of one
//! column, then two of the next, so that one instruction multiplies them with two numbers of a row.
//!
//! A row of the other operand becomes whole numbers of 16 bits when it is packed, 32 of them with one scale: that is off by 2^-16 of
//! the largest of them, so results are those of the weights' values in f32. (8 bits would be faster with AVX2 and 4-bit
//! weights, but a text then differs from the float model's: where one of 32 values is large, as in the residual stream of
//! small models, the others lose most of their digits.) What is left to do for 32 values of the depth is an exact sum of products of
//! whole numbers, and one multiply-add in f32 (two with offsets). Sums of whole numbers are the same on every instruction
//! set, and those in f32 are done in one order, so a row has the same bits in any batch.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use half::f16;

use super::Isa;
use super::math::for_isa;
use super::tile::{HALF, Out};
use crate::blocks::{BlockFormat, Blocks};

/// Values of the depth that a row has one scale for.
pub(crate) const GROUP: usize = 32;
/// Words of 32 bits that a group of a row takes: those of whole numbers, and, behind all of these, what stands beside them.
const WORDS: usize = NUMBERS + META;
/// Words of whole numbers, two in each.
const NUMBERS: usize = GROUP / 2;
/// Words beside them: the scale, and scale times sum.
const META: usize = 2;

/// What tiles hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 4 bits, scale and offset: `q4_0`, `q4_1`, `q4_k`.
    Four,
    /// 8 bits and a scale: `q8_0`.
    Eight,
    /// 8 bits, scale and offset: `q5_k`.
    EightOffset,
    /// 8 bits and a scale for each 16: `q6_k`.
    EightHalves,
}

impl Kind {
    pub(crate) fn of(format: BlockFormat) -> Self {
        match format {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K => Self::Four,
            BlockFormat::Q8_0 => Self::Eight,
            BlockFormat::Q5K => Self::EightOffset,
            BlockFormat::Q6K => Self::EightHalves,
        }
    }

    /// Bytes of scales and what is beside them, of a group of 16 columns.
    const fn scale_bytes(self) -> usize {
        if matches!(self, Self::Eight) { 2 * HALF } else { 4 * HALF }
    }

    /// Bytes of the whole numbers of a group of 16 columns.
    const fn number_bytes(self) -> usize {
        if matches!(self, Self::Four) { GROUP * HALF / 2 } else { GROUP * HALF }
    }

    /// Bytes of all scales of a half panel, whole cache lines.
    fn scales(self, groups: usize) -> usize {
        (groups * self.scale_bytes()).next_multiple_of(64)
    }

    /// Words of 32 bits of half a panel that is `k` deep.
    pub(crate) fn half_words(self, k: usize) -> usize {
        let groups = k / GROUP;
        (self.scales(groups) + groups * self.number_bytes()) / 4
    }
}

/// One panel of weights in blocks.
#[derive(Clone, Copy)]
pub(crate) struct QuantPanel<'a> {
    kind: Kind,
    groups: usize,
    halves: [&'a [u8]; 2],
}

impl<'a> QuantPanel<'a> {
    /// A panel `k` deep in `words`, which are as many as two halves take.
    pub(crate) fn of(kind: Kind, k: usize, words: &'a [f32]) -> Self {
        assert_eq!(words.len(), 2 * kind.half_words(k), "a panel of blocks");
        let (left, right) = words.split_at(kind.half_words(k));
        Self { kind, groups: k / GROUP, halves: [left, right].map(bytemuck::cast_slice) }
    }

    fn scales(&self, side: usize) -> &'a [u8] {
        &self.halves[side][..self.kind.scales(self.groups)]
    }

    fn numbers(&self, side: usize) -> &'a [u8] {
        &self.halves[side][self.kind.scales(self.groups)..]
    }

    /// The `i`-th f16 of group `g`: 0..16 are scales, 16..32 what is beside them.
    fn scale(&self, side: usize, g: usize, i: usize) -> f32 {
        let at = g * self.kind.scale_bytes() + 2 * i;
        f16::from_le_bytes([self.scales(side)[at], self.scales(side)[at + 1]]).to_f32()
    }

    /// Number `l` of group `g` of a column.
    fn number(&self, side: usize, g: usize, column: usize, l: usize) -> i32 {
        let group = &self.numbers(side)[g * self.kind.number_bytes()..];
        let at = |step: usize| group[step * 2 * HALF + 2 * column + l % 2];
        match self.kind {
            // The low nibbles are the first 16 values, the high ones the others.
            Kind::Four => i32::from(at(l % 16 / 2) >> (l / 16 * 4) & 15),
            _ => i32::from(at(l / 2) as i8),
        }
    }

    /// Scale and offset of the 16 values from `l` of group `g` of a column.
    fn affine(&self, side: usize, g: usize, column: usize, l: usize) -> (f32, f32) {
        match self.kind {
            Kind::Four | Kind::EightOffset => (self.scale(side, g, column), self.scale(side, g, HALF + column)),
            Kind::Eight => (self.scale(side, g, column), 0.0),
            Kind::EightHalves => (self.scale(side, g, l / 16 * HALF + column), 0.0),
        }
    }

    /// The values of a column of 32.
    pub(crate) fn column(&self, column: usize, out: &mut [f32]) {
        let (side, column) = (column / HALF, column % HALF);
        for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
            for (l, out) in out.iter_mut().enumerate() {
                let (scale, offset) = self.affine(side, g, column, l);
                *out = scale * self.number(side, g, column, l) as f32 + offset;
            }
        }
    }
}

/// Writes rows `rows` of blocks, at most 32, into the panel at `words`, zero beyond them.
pub(crate) fn pack_panel(blocks: &Blocks, rows: Range<usize>, k: usize, words: &mut [f32]) {
    let (format, kind) = (blocks.format(), Kind::of(blocks.format()));
    let (mut q, mut scales) = ([0i8; 256], [(0f32, 0f32); 16]);
    let q = &mut q[..format.values()];
    let half = kind.half_words(k);
    words.fill(0.0);
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    for (j, row) in rows.enumerate() {
        let (side, column) = (j / HALF, j % HALF);
        let (all_scales, numbers) = bytes[side * 4 * half..][..4 * half].split_at_mut(kind.scales(k / GROUP));
        for (b, block) in blocks.row(row).chunks_exact(format.bytes()).enumerate() {
            format.unpack(block, q, &mut scales);
            for (part, q) in q.chunks_exact(GROUP).enumerate() {
                let g = b * (format.values() / GROUP) + part;
                let mut put = |i: usize, v: f32| {
                    let at = g * kind.scale_bytes() + 2 * i;
                    all_scales[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
                };
                match kind {
                    Kind::Eight => put(column, scales[part].0),
                    Kind::Four | Kind::EightOffset => {
                        put(column, scales[part].0);
                        put(HALF + column, scales[part].1);
                    }
                    Kind::EightHalves => {
                        put(column, scales[2 * part].0);
                        put(HALF + column, scales[2 * part + 1].0);
                    }
                }
                let group = &mut numbers[g * kind.number_bytes()..];
                for (l, &v) in q.iter().enumerate() {
                    match kind {
                        Kind::Four => {
                            group[l % 16 / 2 * 2 * HALF + 2 * column + l % 2] |= (v as u8 & 15) << (l / 16 * 4);
                        }
                        _ => group[l / 2 * 2 * HALF + 2 * column + l % 2] = v as u8,
                    }
                }
            }
        }
    }
}

/// Words of 32 bits of a row of `k` values as whole numbers.
pub(crate) fn row_words(k: usize) -> usize {
    k / GROUP * WORDS
}

/// Writes the numbers of one group, its scale, and scale times sum.
#[inline(always)]
fn quantise_group<const FMA: bool>(x: &[f32; GROUP], numbers: &mut [u32], meta: &mut [u32]) {
    // Adding it rounds to a whole number, to the nearest and from half to even, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const MOST: f32 = 32767.0;
    let (mut largest, mut probe) = (0f32, 0f32);
    for &v in x {
        largest = largest.max(v.abs());
        probe += v * 0.0; // NaN where a value is not finite, so that it shows in the result
    }
    let inverse = if largest > 0.0 { MOST / largest } else { 0.0 };
    // A tiny group would divide to infinity.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut q = [0i16; GROUP];
    for (q, v) in q.iter_mut().zip(x) {
        *q = (v * inverse + ROUND).to_bits() as i16;
    }
    let sum = q.iter().map(|v| i32::from(*v)).sum::<i32>();
    let scale = largest / MOST + probe;
    for (word, q) in numbers.iter_mut().zip(q.as_chunks::<2>().0) {
        *word = u32::from(q[0] as u16) | u32::from(q[1] as u16) << 16;
    }
    meta.copy_from_slice(&[scale.to_bits(), (scale * sum as f32).to_bits()]);
}

#[inline(always)]
fn quantise_body<const FMA: bool>(x: &[f32], row: &mut [u32]) {
    let groups = x.len() / GROUP;
    let (numbers, meta) = row.split_at_mut(groups * NUMBERS);
    let parts = numbers.chunks_exact_mut(NUMBERS).zip(meta.chunks_exact_mut(META));
    for (x, (numbers, meta)) in x.as_chunks::<GROUP>().0.iter().zip(parts) {
        quantise_group::<FMA>(x, numbers, meta);
    }
}

for_isa! {
    /// A row as whole numbers: those of all groups, then for each group what stands beside them ([`row_words`] in all).
    pub(crate) fn quantise_row(x: &[f32], row: &mut [u32]) = quantise_body
}

#[inline(always)]
fn quantise_one_body<const FMA: bool>(x: &[f32; GROUP], numbers: &mut [u32], meta: &mut [u32]) {
    quantise_group::<FMA>(x, numbers, meta);
}

for_isa! {
    /// One group of a row: its numbers and what stands beside them.
    pub(crate) fn quantise_part(x: &[f32; GROUP], numbers: &mut [u32], meta: &mut [u32]) = quantise_one_body
}

/// Where group `g` of a row of `k` values has its numbers and its other words, both relative to the row.
pub(crate) fn group_places(k: usize, g: usize) -> (Range<usize>, Range<usize>) {
    let (numbers, meta) = (g * NUMBERS, k / GROUP * NUMBERS + g * META);
    (numbers..numbers + NUMBERS, meta..meta + META)
}

/// Computes the columns of one half panel for `mr` rows of whole numbers that follow each other.
///
/// # Safety
/// As [`super::tile::tile`]: `out` must be valid for writing what the half has of its `n` columns in each of `mr` rows.
pub(crate) unsafe fn half(isa: Isa, mr: usize, rows: &[u32], panel: QuantPanel<'_>, side: usize, out: Out) {
    let n = out.n.saturating_sub(side * HALF).min(HALF);
    let words = panel.groups * WORDS;
    assert!(rows.len() >= mr * words && !out.accumulate, "rows of whole numbers");
    let (scales, numbers) = (panel.scales(side), panel.numbers(side));
    assert!(
        scales.len() >= panel.groups * panel.kind.scale_bytes()
            && numbers.len() >= panel.groups * panel.kind.number_bytes()
    );
    if n == 0 {
        return;
    }
    // SAFETY: the half has columns in the tile.
    let target = unsafe { out.ptr.add(side * HALF) };
    let most = most_rows(isa);
    let parts = mr.div_ceil(most);
    let mut row = 0;
    for part in 0..parts {
        let count = (mr - row).div_ceil(parts - part);
        let a = &rows[row * words..][..count * words];
        let mut full = [0f32; 8 * HALF];
        let (ptr, ld) = match n {
            // SAFETY: the row is one of the tile's.
            HALF => (unsafe { target.add(row * out.ld) }, out.ld),
            // The last half of a matrix is computed in full beside the output, then its real columns are copied.
            _ => (full.as_mut_ptr(), HALF),
        };
        // SAFETY: lengths are checked above, `count` is at most `most`, and `ptr` has 16 columns in as many rows.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 if vnni::present() => vnni::rows(panel, side, count, a, ptr, ld),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => avx2::rows(panel, side, count, a, ptr, ld),
                _ => portable::rows(panel, side, count, a, ptr, ld),
            }
        }
        if n < HALF {
            for (i, full) in full.chunks_exact(HALF).take(count).enumerate() {
                // SAFETY: the first `n` values of each row of the output are valid.
                unsafe { std::ptr::copy_nonoverlapping(full.as_ptr(), target.add((row + i) * out.ld), n) };
            }
        }
        row += count;
    }
}

/// Rows that one call of a kernel takes.
fn most_rows(isa: Isa) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && vnni::present() {
        return 8;
    }
    let _ = isa;
    4
}

#[cfg(test)]
mod tests;
