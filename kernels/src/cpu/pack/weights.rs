//! Stacks of weights in tiles.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Result, Tensor, bail};

use super::{Elem, Form, View, lanes, pack_pairs, pair};
use crate::blocks::Blocks;
use crate::cpu::quant::{self, QuantPanel};
use crate::cpu::scratch::{Line, bits, bits_mut};
use crate::cpu::tile::{HALF, Halves, NR, Panel};
use crate::cpu::{Isa, SendPtr, parallel};

/// Weights `[E, N, K]` in tiles made once at load: f32 as `[E][N/16][K][16]`, bf16 as `[E][N/16][ceil(K/2)][16][2]`, with
/// zero columns up to a multiple of 32; or the whole numbers of blocks. Forward only: training keeps the plain
/// tensor.
#[derive(Clone, Debug)]
pub struct Packed {
    experts: usize,
    n: usize,
    k: usize,
    /// Columns that are padded together: all `n`, or half of them where gate and up are stacked.
    group: usize,
    tiles: Tiles,
    /// f32 rows are rounded to bf16 to meet bf16 in pairs.
    narrow: bool,
    data: Arc<Vec<Line>>,
}

/// What tiles hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tiles {
    F32,
    /// Two bf16 side by side.
    Pairs,
    Quant(quant::Kind),
}

impl Packed {
    /// Tiles of a weight in blocks, `[E, N, K]` or `[N, K]`; `gated` where gate and up are stacked as `[E, 2 I, K]`. The weight
    /// is never in memory as floats.
    ///
    /// # Errors
    /// Another shape, or an odd number of stacked rows.
    pub fn from_blocks(blocks: &Blocks, gated: bool) -> Result<Self> {
        let (experts, n, k, group) = Self::sizes(blocks.shape(), if gated { 2 } else { 1 })?;
        let tiles = Tiles::Quant(quant::Kind::of(blocks.format()));
        let mut packed = Self { experts, n, k, group, tiles, narrow: false, data: Arc::default() };
        let (panels, len) = (packed.panels(), packed.panel_len());
        let mut lines = vec![Line::ZERO; experts * panels * len / 16];
        if !lines.is_empty() {
            let shared = SendPtr::new(Line::floats_mut(&mut lines));
            parallel(experts * panels, n * k > 1 << 12, |i| {
                // SAFETY: panel `i` is written by this task alone.
                let dst = unsafe { shared.slice(i * len, len) };
                let (first, columns) = (i / panels * n, packed.columns(i % panels));
                quant::pack_panel(blocks, first + columns.start..first + columns.end, k, dst);
            });
        }
        packed.data = Arc::new(lines);
        Ok(packed)
    }

    /// Experts, rows, depth and rows that are padded together.
    fn sizes(dims: &[usize], groups: usize) -> Result<(usize, usize, usize, usize)> {
        let (experts, n, k) = match *dims {
            [n, k] => (1, n, k),
            [e, n, k] => (e, n, k),
            _ => bail!("weights to pack have shape {dims:?}, expected [experts, out, in] or [out, in]"),
        };
        if n % groups != 0 {
            bail!("gate and up stacked in {n} rows; expected an even number");
        }
        Ok((experts, n, k, n / groups))
    }

    /// The same weights; where they are bf16 and the processor multiplies pairs of those, rows of f32 are rounded to bf16 to meet them so.
    pub fn narrow(self) -> Self {
        Self { narrow: true, ..self }
    }

    /// What rows of `T` are packed as for these weights: bf16 meets bf16 in pairs where the processor multiplies those.
    pub(crate) fn form<T: Elem>(&self, isa: Isa) -> Form {
        match self.tiles {
            Tiles::Quant(_) => Form::Ints,
            Tiles::Pairs if (T::BF16 || self.narrow) && isa == Isa::Avx512Bf16 => Form::Pairs,
            _ => Form::F32,
        }
    }

    /// Packs `[E, N, K]`, or `[N, K]` as one expert. f16 is kept as f32, as its range does not fit bf16.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Self::grouped(weight, 1)
    }

    /// Packs gate and up projections that are stacked as `[E, 2 I, K]`: each half starts a panel of its own, so that a panel
    /// of gates and the panel of ups that belongs to it have the same columns.
    pub fn gated(weight: &Tensor) -> Result<Self> {
        Self::grouped(weight, 2)
    }

    fn grouped(weight: &Tensor, groups: usize) -> Result<Self> {
        let (experts, n, k, group) = Self::sizes(weight.dims(), groups)?;
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("only weights on the CPU are packed") };
        let all = layout.start_offset()..layout.start_offset() + experts * n * k;
        let tiles = if matches!(storage, CpuStorage::BF16(_)) { Tiles::Pairs } else { Tiles::F32 };
        let mut packed = Self { experts, n, k, group, tiles, narrow: false, data: Arc::default() };
        packed.data = Arc::new(match storage {
            CpuStorage::F32(w) => packed.fill(&w[all]),
            CpuStorage::F16(w) => packed.fill(&w[all]),
            CpuStorage::BF16(w) => packed.fill(&w[all]),
            other => {
                bail!("weights of dtype {:?} cannot be packed", candle_core::backend::BackendStorage::dtype(other))
            }
        });
        Ok(packed)
    }

    /// All panels of the weights `[E, N, K]`.
    fn fill<T: Elem>(&self, w: &[T]) -> Vec<Line> {
        let (panels, len, k) = (self.panels(), self.panel_len(), self.k);
        let mut lines = vec![Line::ZERO; self.experts * panels * len / 16];
        if lines.is_empty() {
            return lines;
        }
        let shared = SendPtr::new(Line::floats_mut(&mut lines));
        parallel(self.experts * panels, w.len() > 1 << 16, |i| {
            // SAFETY: panel `i` is written by this task alone.
            let dst = unsafe { shared.slice(i * len, len) };
            let columns = self.columns(i % panels);
            let first = (i / panels * self.n + columns.start) * k;
            if self.tiles == Tiles::Pairs {
                let (left, right) = bits_mut(dst).split_at_mut(len / 2);
                for (half, dst) in [left, right].into_iter().enumerate() {
                    let column = |j: usize| &w[first + (half * HALF + j) * k..][..k];
                    match columns.len().saturating_sub(half * HALF) {
                        HALF.. => pack_pairs(HALF, k, column, dst),
                        cols => {
                            for j in 0..cols {
                                for (d, v) in dst[j..].iter_mut().step_by(HALF).zip(column(j).chunks(2)) {
                                    *d = pair(v[0].to_f32(), v.get(1).map_or(0.0, |v| v.to_f32()));
                                }
                            }
                        }
                    }
                }
            } else {
                View::rows(w, first, k).transposed().pack_panel(0, columns.len(), k, dst);
            }
        });
        lines
    }

    /// True if gate and up are stacked in it, each with panels of its own ([`gated`](Self::gated)).
    pub(crate) fn is_gated(&self) -> bool {
        self.group != self.n
    }

    /// `(experts, out, in)`
    pub fn dims(&self) -> (usize, usize, usize) {
        (self.experts, self.n, self.k)
    }

    /// The dtype that the tiles hold; `F32` for blocks, which they stand for.
    pub fn dtype(&self) -> DType {
        if self.tiles == Tiles::Pairs { DType::BF16 } else { DType::F32 }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&**self.data)
    }

    /// Panels of an expert.
    pub(crate) fn panels(&self) -> usize {
        if self.n == 0 { 0 } else { self.n / self.group * self.group.div_ceil(NR) }
    }

    /// Values of 32 bits in a panel.
    fn panel_len(&self) -> usize {
        match self.tiles {
            Tiles::F32 => self.k * NR,
            Tiles::Pairs => lanes(self.k, Form::Pairs) * NR,
            Tiles::Quant(kind) => 2 * kind.half_words(self.k),
        }
    }

    /// The rows of the weight, columns of the product, in panel `j`.
    pub(crate) fn columns(&self, j: usize) -> Range<usize> {
        let each = self.group.div_ceil(NR);
        let (group, at) = (j / each, j % each * NR);
        group * self.group + at..group * self.group + (at + NR).min(self.group)
    }

    /// Row `i` of the weight of expert `e`, a column of its panel, in f32.
    pub(crate) fn row(&self, e: usize, i: usize, row: &mut [f32]) {
        let (group, at) = (i / self.group, i % self.group);
        let panel = self.panel(e, group * self.group.div_ceil(NR) + at / NR);
        let (side, column) = (at % NR / HALF, at % HALF);
        match panel {
            Panel::Quant(b) => b.column(at % NR, row),
            Panel::F32(b) => {
                let half = [b.left, b.right][side];
                row.iter_mut().zip(half.chunks_exact(HALF)).for_each(|(r, columns)| *r = columns[column]);
            }
            Panel::Bf16(b) => {
                let half = [b.left, b.right][side];
                for (r, columns) in row.chunks_mut(2).zip(half.chunks_exact(HALF)) {
                    let pair = columns[column];
                    for (r, bits) in r.iter_mut().zip([pair << 16, pair & 0xffff_0000]) {
                        *r = f32::from_bits(bits);
                    }
                }
            }
        }
    }

    /// Panel `j` of expert `e`.
    pub(crate) fn panel(&self, e: usize, j: usize) -> Panel<'_> {
        let len = self.panel_len();
        let panel = &Line::floats(&self.data)[(e * self.panels() + j) * len..][..len];
        match self.tiles {
            Tiles::F32 => Panel::F32(Halves::of(panel)),
            Tiles::Pairs => Panel::Bf16(Halves::of(bits(panel))),
            Tiles::Quant(kind) => Panel::Quant(QuantPanel::of(kind, self.k, panel)),
        }
    }
}
