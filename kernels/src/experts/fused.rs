//! The inference path of packed experts: one parallel region a layer, and nothing between the projections becomes a tensor.
//!
//! ```text
//! pack     rows of x, gathered by expert, into blocks, as many rows as a tile takes
//! up       a panel of gates and its panel of ups, activation, product: straight into packed rows for the next
//! down     a panel of outputs
//! norm     each expert's norm of its outputs, where it has one
//! combine  each token's weighted sum, in slot order
//! ```
//!
//! Between the stages stands a barrier of the region. Buffers belong to the thread and are kept, so a call allocates its
//! output and nothing that grows with its input.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use super::bank::{Activation, BankKind, ExpertBank, OutputNorm, Storage};
use crate::cpu::gemm::{CHUNK, WIDEN, WORTH, block};
use crate::cpu::pack::{Elem, Form, Packed, View, lanes, pair, rows_of};
use crate::cpu::quant;
use crate::cpu::scratch::bits_mut;
use crate::cpu::tile::{NR, Out, Panel, most_rows, tiles};
use crate::cpu::{Isa, Scratch, SendPtr, Stage, isa, math, stages};
use crate::host::{Values, as_f32, slice};
use crate::routes::{Lists, Routes};

/// Tokens and columns of the output that a task of the last stage sums.
const SUM: (usize, usize) = (16, 1024);

/// [`ExpertBank::forward`] of a packed bank.
pub(super) fn forward(bank: &ExpertBank, x: &Tensor, routes: &Routes) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(routes.weight(), &Fused { bank, plan: routes.lists()? })
}

/// [`ExpertBank::forward_dense`] of a packed bank.
pub(super) fn forward_dense(bank: &ExpertBank, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&FusedDense { bank })
}

struct Fused<'a> {
    bank: &'a ExpertBank,
    plan: &'a Lists,
}

impl CustomOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "moesaic-experts-fused"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let plan = self.plan;
        let weight = as_f32(s2, l2, self.name())?;
        let routes = plan.token.len();
        if weight.len() != routes {
            bail!("experts: {} weights for {routes} routes", weight.len());
        }
        let operands = Operands::of(self.bank)?;
        Layer::new(self.bank, &operands, plan.tokens(), &plan.offsets, Some((plan, &weight)), l1)?.forward(s1, l1)
    }
}

struct FusedDense<'a> {
    bank: &'a ExpertBank,
}

impl CustomOp1 for FusedDense<'_> {
    fn name(&self) -> &'static str {
        "moesaic-dense-fused"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = l.dims().first().copied().unwrap_or(0);
        let operands = Operands::of(self.bank)?;
        Layer::new(self.bank, &operands, tokens, &[0, tokens], None, l)?.forward(s, l)
    }
}

/// Rows of one expert, at most as many as a tile takes; the packed rows of a block start at `start` times the lanes of a row.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    rows: usize,
}

/// Blocks of one expert that share a visit to each panel.
#[derive(Clone)]
struct Chunk {
    expert: usize,
    blocks: Range<usize>,
}

thread_local! {
    /// Lists that are kept between calls.
    static LISTS: RefCell<(Vec<Block>, Vec<Chunk>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The small tensors of a bank, as values.
struct Operands<'a> {
    up_bias: Option<Values<'a>>,
    down_bias: Option<Values<'a>>,
    norm: Option<(Values<'a>, Values<'a>)>,
}

impl<'a> Operands<'a> {
    fn of(bank: &'a ExpertBank) -> Result<Self> {
        let values = |t: &'a Tensor| Values::of(t, "experts");
        let norm = |n: &'a OutputNorm| Ok::<_, candle_core::Error>((values(&n.weight)?, values(&n.bias)?));
        Ok(Self {
            up_bias: bank.up_bias.as_ref().map(values).transpose()?,
            down_bias: bank.down_bias.as_ref().map(values).transpose()?,
            norm: bank.output_norm.as_ref().map(norm).transpose()?,
        })
    }
}

/// One call.
struct Layer<'a> {
    gated: bool,
    activation: Activation,
    up: &'a Packed,
    down: Option<&'a Packed>,
    /// `[E, N]`
    up_bias: Option<&'a [f32]>,
    /// `[E, O]`
    down_bias: Option<&'a [f32]>,
    /// Weight and bias `[E, O]`, and what is added to the variance.
    norm: Option<(&'a [f32], &'a [f32], f32)>,
    tokens: usize,
    offsets: &'a [usize],
    /// Absent for a dense layer: every token is a row of the one expert.
    routed: Option<(&'a Lists, &'a [f32])>,
    /// Width of the output.
    out: usize,
}

impl<'a> Layer<'a> {
    fn new(
        bank: &'a ExpertBank,
        operands: &'a Operands<'_>,
        tokens: usize,
        offsets: &'a [usize],
        routed: Option<(&'a Lists, &'a [f32])>,
        layout: &Layout,
    ) -> Result<Self> {
        let (Storage::Packed(up), None | Some(Storage::Packed(_))) = (&bank.up, &bank.down) else {
            bail!("experts: the fused path takes packed weights");
        };
        let down = match &bank.down {
            Some(Storage::Packed(down)) => Some(down),
            _ => None,
        };
        let (experts, _, width) = up.dims();
        if layout.dims() != [tokens, width] || offsets.len() != experts + 1 {
            bail!("experts: input of shape {:?}, expected [{tokens}, {width}]", layout.dims());
        }
        let eps = bank.output_norm.as_ref().map_or(0.0, |n| n.eps as f32);
        Ok(Self {
            gated: bank.kind == BankKind::Gated,
            activation: bank.activation,
            up,
            down,
            up_bias: operands.up_bias.as_deref(),
            down_bias: operands.down_bias.as_deref(),
            norm: operands.norm.as_ref().map(|(weight, bias)| (&weight[..], &bias[..], eps)),
            tokens,
            offsets,
            routed,
            out: bank.output_width(),
        })
    }

    fn forward(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        const OP: &str = "experts";
        let out = match s.dtype() {
            DType::F32 => CpuStorage::F32(self.run(slice::<f32>(s, l, OP)?, 0.0)),
            DType::BF16 => CpuStorage::BF16(self.run(slice::<bf16>(s, l, OP)?, bf16::ZERO)),
            DType::F16 => CpuStorage::F16(self.run(slice::<f16>(s, l, OP)?, f16::ZERO)),
            other => bail!("experts: input of dtype {other:?}, expected f32, bf16 or f16"),
        };
        Ok((out, (self.tokens, self.out).into()))
    }

    fn run<T: Elem>(&self, x: &[T], zero: T) -> Vec<T> {
        let mut out = vec![zero; self.tokens * self.out];
        let rows = self.offsets[self.offsets.len() - 1];
        if rows == 0 || out.is_empty() {
            return out;
        }
        let mut lists = LISTS.take();
        self.split(&mut lists);
        self.stages(x, rows, &lists, &mut out);
        LISTS.set(lists);
        out
    }

    /// Lists the blocks and chunks of all experts that have rows.
    fn split(&self, (blocks, chunks): &mut (Vec<Block>, Vec<Chunk>)) {
        let most = most_rows(isa());
        blocks.clear();
        chunks.clear();
        for (expert, range) in self.offsets.windows(2).enumerate() {
            let (rows, count) = (range[1] - range[0], (range[1] - range[0]).div_ceil(most));
            for i in 0..count {
                let (start, rows) = block(rows, count, i);
                if i % CHUNK == 0 {
                    let first = blocks.len();
                    chunks.push(Chunk { expert, blocks: first..first + CHUNK.min(count - i) });
                }
                blocks.push(Block { start: range[0] + start, rows });
            }
        }
    }

    fn stages<T: Elem>(&self, x: &[T], rows: usize, lists: &(Vec<Block>, Vec<Chunk>), out: &mut [T]) {
        let (isa, (blocks, chunks)) = (isa(), lists);
        let (_, n, k) = self.up.dims();
        let inner = self.down.map_or(0, |down| down.dims().2);
        let up_form = self.up.form::<T>(isa);
        let down_form = self.down.map_or(Form::F32, |down| down.form::<T>(isa));
        let mut a = Scratch::new(rows * lanes(k, up_form));
        let mut h = Scratch::new(rows * lanes(inner, down_form));
        let mut y = Scratch::new(rows * self.out);
        let (a, h, y, out) = (SendPtr::new(&mut a), SendPtr::new(&mut h), SendPtr::new(&mut y), SendPtr::new(out));
        let x = View { gather: self.routed.map(|(plan, _)| &plan.token[..]), ..View::rows(x, 0, k) };

        let pack = |i: usize| {
            let Block { start, rows } = blocks[i];
            let depth = lanes(k, up_form);
            // SAFETY: blocks do not overlap, and one task writes each.
            let dst = unsafe { a.slice(start * depth, rows * depth) };
            x.pack(isa, up_form, (start, rows), k, dst);
        };
        let up_panels = if self.gated { self.up.panels() / 2 } else { self.up.panels() };
        let up = |t: usize| {
            let (chunk, j) = (&chunks[t / up_panels], t % up_panels);
            let blocks = &blocks[chunk.blocks.clone()];
            let product = Product { isa, weights: self.up, expert: chunk.expert, bias: self.up_bias, blocks };
            if self.down.is_none() {
                // SAFETY: the stage before has written all rows; this task alone writes these rows and columns of `y`.
                return unsafe { product.run(j, (&a, up_form), &y, self.out, true) };
            }
            let count: usize = blocks.iter().map(|b| b.rows).sum();
            let mut act = Scratch::new(count * NR);
            // SAFETY: the stage before has written all rows; `act` belongs to this task.
            unsafe { product.run(j, (&a, up_form), &SendPtr::new(&mut act), NR, false) };
            activate(isa, self.activation, &mut act);
            if self.gated {
                let mut ups = Scratch::new(count * NR);
                // SAFETY: as above.
                unsafe { product.run(up_panels + j, (&a, up_form), &SendPtr::new(&mut ups), NR, false) };
                math::multiply(isa, &mut act, &ups);
            }
            if T::BF16 && down_form == Form::F32 {
                // As a bf16 tensor between the projections would be.
                math::round_bf16(isa, &mut act);
            }
            let depth = lanes(inner, down_form);
            let mut act = &act[..];
            for Block { start, rows } in blocks {
                let values;
                (values, act) = act.split_at(rows * NR);
                if down_form == Form::Ints {
                    // A panel is as wide as a group of whole numbers, so a row of it is a group of a packed row.
                    let (numbers, meta) = quant::group_places(inner, j);
                    for (row, values) in values.as_chunks::<NR>().0.iter().enumerate() {
                        let at = (start + row) * depth;
                        // SAFETY: this task alone writes group `j` of these rows.
                        let (numbers, meta) = unsafe {
                            (h.slice(at + numbers.start, numbers.len()), h.slice(at + meta.start, meta.len()))
                        };
                        quant::quantise_part(isa, values, bits_mut(numbers), bits_mut(meta));
                    }
                    continue;
                }
                // Columns `j * NR..` of a block: a run of its packed rows.
                let (first, last) = (lanes(j * NR, down_form), lanes((j * NR + NR).min(inner), down_form));
                // SAFETY: this task alone writes these columns of these rows.
                let dst = unsafe { h.slice(start * depth + first * rows, (last - first) * rows) };
                repack(values, *rows, dst, down_form == Form::Pairs);
            }
        };
        let down = |t: usize| {
            if let Some(weights) = self.down {
                let (chunk, j) = (&chunks[t / weights.panels()], t % weights.panels());
                let blocks = &blocks[chunk.blocks.clone()];
                let product = Product { isa, weights, expert: chunk.expert, bias: self.down_bias, blocks };
                // SAFETY: the stage before has written all rows; this task alone writes these rows and columns of `y`.
                unsafe { product.run(j, (&h, down_form), &y, self.out, true) }
            }
        };
        let norm = |i: usize| {
            if let Some((weight, bias, eps)) = self.norm {
                let chunk = &chunks[i];
                for Block { start, rows } in &blocks[chunk.blocks.clone()] {
                    // SAFETY: one task has the rows of a chunk.
                    let y = unsafe { y.slice(start * self.out, rows * self.out) };
                    let of = chunk.expert * self.out..(chunk.expert + 1) * self.out;
                    y.chunks_exact_mut(self.out)
                        .for_each(|row| normalise(row, &weight[of.clone()], &bias[of.clone()], eps));
                }
            }
        };
        let parts = self.out.div_ceil(SUM.1);
        let combine = |t: usize| {
            let (first, columns) = (t / parts * SUM.0, t % parts * SUM.1);
            let columns = columns..(columns + SUM.1).min(self.out);
            let mut sum = Scratch::new(columns.len());
            for token in first..(first + SUM.0).min(self.tokens) {
                // SAFETY: the stage before has written all rows of `y`; this task alone writes these columns of the token.
                let (of_route, dst) = unsafe {
                    let of_route = |r: usize| y.shared(r * self.out + columns.start, columns.len());
                    (of_route, out.slice(token * self.out + columns.start, columns.len()))
                };
                match self.routed {
                    None => T::store(isa, of_route(token), dst),
                    Some((plan, weight)) => {
                        sum.fill(0.0);
                        for &r in plan.of_token(token) {
                            math::axpy(isa, weight[r as usize], of_route(r as usize), &mut sum);
                        }
                        T::store(isa, &sum, dst);
                    }
                }
            }
        };
        let (up_tasks, down_tasks) = (chunks.len() * up_panels, chunks.len() * self.down.map_or(0, Packed::panels));
        let list: [(usize, &(dyn Fn(usize) + Sync)); 5] = [
            (blocks.len(), &pack),
            (up_tasks, &up),
            (down_tasks, &down),
            (if self.norm.is_some() { chunks.len() } else { 0 }, &norm),
            (self.tokens.div_ceil(SUM.0) * parts, &combine),
        ];
        stages(rows * (n * k + inner * self.out) > WORTH, &list.map(|(count, task)| Stage { count, task }));
    }
}

/// The rows of some blocks times one panel of an expert's weights.
struct Product<'a> {
    isa: Isa,
    weights: &'a Packed,
    expert: usize,
    /// `[E, N]`
    bias: Option<&'a [f32]>,
    blocks: &'a [Block],
}

impl Product<'_> {
    /// Panel `j` for the packed rows `a`, in their form. The result of row `r` goes to columns of row `r` of `c`, or, if not
    /// `placed`, to the next row of `c`, from its first column and as wide as a panel.
    ///
    /// # Safety
    /// `a` holds all rows of the blocks, packed, and is not written meanwhile; `c` holds the rows and columns named above, `ld`
    /// values apart, and nobody else uses them.
    unsafe fn run(&self, j: usize, (a, form): (&SendPtr<f32>, Form), c: &SendPtr<f32>, ld: usize, placed: bool) {
        let (_, n, k) = self.weights.dims();
        let (columns, depth) = (self.weights.columns(j), lanes(k, form));
        let bias = self.bias.map(|b| &b[self.expert * n..][columns.clone()]);
        let mut panel = self.weights.panel(self.expert, j);
        let mut wide = Scratch::new(0);
        if matches!(panel, Panel::Bf16(_))
            && form == Form::F32
            && self.blocks.iter().map(|b| b.rows).sum::<usize>() > WIDEN
        {
            wide = Scratch::new(k * NR);
            panel = panel.widen(self.isa, k, &mut wide);
        }
        let first = self.blocks[0].start;
        let at = |b: &Block| if placed { b.start * ld + columns.start } else { (b.start - first) * ld };
        let each = |i: usize| {
            let block = &self.blocks[i];
            // SAFETY: the caller's promise.
            let (a, ptr) = unsafe { (a.shared(block.start * depth, block.rows * depth), c.at(at(block))) };
            (
                block.rows,
                rows_of(a, form),
                Out { ptr, ld, n: if placed { columns.len() } else { NR }, accumulate: false },
            )
        };
        // SAFETY: the caller's promise.
        unsafe { tiles(self.isa, k, panel, self.blocks.len(), each) };
        if let Some(bias) = bias {
            for block in self.blocks {
                for row in 0..block.rows {
                    // SAFETY: the caller's promise.
                    let c = unsafe { c.slice(at(block) + row * ld, bias.len()) };
                    c.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
                }
            }
        }
        drop(wide);
    }
}

fn activate(isa: Isa, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => math::silu(isa, x),
        Activation::GeluTanh => math::gelu_tanh(isa, x),
        Activation::Gelu => math::gelu(isa, x),
        Activation::Relu => math::relu(isa, x),
        Activation::QuickGelu => math::quick_gelu(isa, x),
    }
}

/// Values `[rows][NR]` as packed rows `[columns][rows]`, or in pairs `[columns / 2][rows]`, as many as `dst` holds.
fn repack(values: &[f32], rows: usize, dst: &mut [f32], pairs: bool) {
    if pairs {
        for (c, dst) in bits_mut(dst).chunks_exact_mut(rows).enumerate() {
            for (d, row) in dst.iter_mut().zip(values.chunks_exact(NR)) {
                *d = pair(row[2 * c], row[2 * c + 1]);
            }
        }
    } else {
        for (c, dst) in dst.chunks_exact_mut(rows).enumerate() {
            for (d, row) in dst.iter_mut().zip(values.chunks_exact(NR)) {
                *d = row[c];
            }
        }
    }
}

/// LayerNorm of a row.
fn normalise(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = row.len() as f32;
    let mean = row.iter().sum::<f32>() / n;
    let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let r = 1.0 / (var + eps).sqrt();
    for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *v = (*v - mean) * r * w + b;
    }
}
