//! Attention on the CPU, causal or not: a block of queries at a time, its scores never leave the cache.
//!
//! Per (batch row, key-value head) one task packs K and V once, then takes [`QUERIES`] queries at a time through
//! S = Q K^T, softmax and P V with the tiles of [`super::tile`]. Columns of S start at the first key that a query block may
//! see, so a left-padded row runs exactly the arithmetic of the row alone.

use std::ops::Range;

use super::pack::{Elem, View};
use super::tile::{Halves, MR, NR, Out, Panel, Rows, tile};
use super::{Isa, Scratch, SendPtr, isa, math, parallel};

/// Queries whose scores are held at once.
const QUERIES: usize = 4 * MR;

/// Sizes of one call. Query `i` stands at position `offset + i` among the keys.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of queries and keys.
    pub d: usize,
    /// Width of values.
    pub dv: usize,
    pub scale: f32,
    /// First real key of each batch row: what stands before is padding.
    pub start: Vec<usize>,
    /// End of the real keys of each batch row: what stands behind is padding.
    pub end: Vec<usize>,
    /// Keys a query sees at most, itself included.
    pub window: usize,
    /// Queries in the padding average the values of all keys; otherwise they give zeros.
    pub uniform_padding: bool,
    /// Queries see all real keys.
    pub everywhere: bool,
}

impl Shape {
    pub(super) fn offset(&self) -> usize {
        self.keys.saturating_sub(self.queries)
    }

    /// Keys that query `i` of batch row `b` sees; empty for padding.
    pub(crate) fn seen(&self, b: usize, i: usize) -> Range<usize> {
        if self.everywhere {
            return self.start[b].min(self.keys)..self.keys;
        }
        let end = (self.offset() + i + 1).min(self.end[b]);
        let first = self.start[b].max(end.saturating_sub(self.window));
        first.min(end)..end
    }

    /// Blocks of queries of batch row `b`, aligned to its first real query so that padding does not shift them.
    fn blocks(&self, b: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let first = match self.everywhere {
            // Without any key there is nothing to compute.
            true if self.start[b] >= self.keys => self.queries,
            true => 0,
            false => self.start[b].saturating_sub(self.offset()).min(self.queries),
        };
        let queries = self.queries;
        (first..queries).step_by(QUERIES).map(move |i| (i, QUERIES.min(queries - i)))
    }

    pub(super) fn worth(&self) -> bool {
        self.batch * self.heads * self.queries * self.keys * self.d > 1 << 16
    }
}

/// Heads of a batch of tokens in a buffer that may hold more beside them, as a joint projection of queries, keys and
/// values does.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// Tokens of a batch row.
    pub tokens: usize,
    /// Values from one token to the next.
    pub stride: usize,
    /// Where head 0 of a token starts.
    pub first: usize,
    /// Values of a head.
    pub width: usize,
}

impl Heads {
    /// Where head `h` of token `t` of batch row `b` starts.
    pub(super) fn at(&self, b: usize, t: usize, h: usize) -> usize {
        (b * self.tokens + t) * self.stride + self.first + h * self.width
    }

    /// Head `h` of batch row `b` as a matrix `[tokens, width]`.
    fn view<'a, T: Elem>(&self, data: &'a [T], b: usize, h: usize) -> View<'a, T> {
        View { data, offset: self.at(b, 0, h), rs: self.stride, cs: 1, gather: None }
    }
}

/// Where queries, keys, values and the output stand in their buffers.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub q: Heads,
    pub k: Heads,
    pub v: Heads,
    pub out: Heads,
}

/// Where a product goes: row `i` starts at `i * ld`.
struct Target<'a> {
    c: &'a mut [f32],
    ld: usize,
    /// Add to what stands there.
    accumulate: bool,
}

/// All panels of a `[k, n]` matrix, packed.
struct Panels {
    data: Scratch,
    k: usize,
}

impl Panels {
    fn new<T: Elem>(view: View<'_, T>, k: usize, n: usize) -> Self {
        let panels = n.div_ceil(NR);
        let mut data = Scratch::new(panels * k * NR);
        for j in 0..panels {
            view.pack_panel(j * NR, n, k, &mut data[j * k * NR..][..k * NR]);
        }
        Self { data, k }
    }

    /// `C (+)= A · B[depth, columns]` for rows packed by [`pack`]. `columns` must start at a multiple of `NR`.
    fn product(&self, isa: Isa, a: &Packed, depth: Range<usize>, columns: Range<usize>, to: Target<'_>) {
        let Target { c, ld, accumulate } = to;
        let (first, columns) = (columns.start, columns.len());
        if columns == 0 || a.rows == 0 {
            return;
        }
        assert!(ld >= columns && (a.rows - 1) * ld + columns <= c.len());
        assert!(a.k == depth.len() && first.is_multiple_of(NR));
        for j in 0..columns.div_ceil(NR) {
            let panel = Halves::of(&self.data[(first / NR + j) * self.k * NR..][..self.k * NR]).lanes(depth.clone());
            let mut row = 0;
            while row < a.rows {
                let mr = MR.min(a.rows - row);
                let out = Out { ptr: c[row * ld + j * NR..].as_mut_ptr(), ld, n: NR.min(columns - j * NR), accumulate };
                // SAFETY: the assertion above covers the last row and column of `c`.
                unsafe { tile(isa, a.k, mr, Rows::F32(&a.data[row * a.k..][..mr * a.k]), Panel::F32(panel), out) };
                row += mr;
            }
        }
    }
}

/// Rows packed in blocks of `MR`.
struct Packed {
    data: Scratch,
    rows: usize,
    k: usize,
}

/// Rows `i0..i0 + rows` of a view, columns `0..k`.
fn pack(view: View<'_, f32>, i0: usize, rows: usize, k: usize) -> Packed {
    let mut data = Scratch::new(rows * k);
    let mut row = 0;
    while row < rows {
        let mr = MR.min(rows - row);
        view.pack_rows(i0 + row, mr, k, &mut data[row * k..][..mr * k]);
        row += mr;
    }
    Packed { data, rows, k }
}

/// Scores of a block of queries, softmaxed: row `i` holds the probabilities of keys `first..last`, zero where not seen.
struct Block {
    p: Scratch,
    first: usize,
    last: usize,
    ld: usize,
}

fn probabilities(isa: Isa, s: &Shape, b: usize, q: &Packed, i0: usize, keys: &Panels, base: usize) -> Block {
    let rows = q.rows;
    // Columns start at a whole panel counted from `base`, the first real key of the row.
    let lowest = (0..rows).map(|i| s.seen(b, i0 + i).start).min().unwrap_or(base).max(base);
    let first = base + (lowest - base) / NR * NR;
    let last = s.seen(b, i0 + rows - 1).end;
    let ld = (last - first).next_multiple_of(16);
    let mut p = Scratch::new(rows * ld);
    keys.product(isa, q, 0..q.k, first - base..last - base, Target { c: &mut p, ld, accumulate: false });
    for i in 0..rows {
        let seen = s.seen(b, i0 + i);
        let row = &mut p[i * ld..][..ld];
        row[..seen.start.max(first) - first].fill(0.0);
        row[seen.end - first..].fill(0.0);
        math::softmax(isa, &mut row[seen.start.max(first) - first..seen.end - first], s.scale);
    }
    Block { p, first, last, ld }
}

/// Attention of `q` to `k` and `v`, which may be one buffer; the places must lie inside them.
pub(crate) fn forward<T: Elem>(s: &Shape, at: &Places, q: &[f32], k: &[T], v: &[T], out: &mut [f32]) {
    let (isa, group) = (isa(), s.heads / s.kv_heads);
    let shared = SendPtr::new(out);
    parallel(s.batch * s.kv_heads, s.worth(), |task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let base = s.start[b].min(s.keys);
        let real = s.keys - base;
        let keys = at.k.view(k, b, kv).skip(base);
        let keys = Panels::new(keys.transposed(), s.d, real);
        let values = at.v.view(v, b, kv).skip(base);
        let values = Panels::new(values, real, s.dv);
        let mut rows = Scratch::new(QUERIES * s.dv);
        for head in kv * group..(kv + 1) * group {
            let queries = at.q.view(q, b, head);
            // SAFETY (both): head `head` of batch row `b` is written by this task alone.
            let write = |i: usize| unsafe { shared.slice(at.out.at(b, i, head), s.dv) };
            let first_real = s.blocks(b).next().map_or(s.queries, |(i, _)| i);
            (0..first_real).for_each(|i| write(i).fill(0.0));
            if s.uniform_padding && first_real > 0 {
                let (mut mean, mut row) = (vec![0f32; s.dv], vec![0f32; s.dv]);
                for t in 0..s.keys {
                    row.iter_mut().zip(&v[at.v.at(b, t, kv)..]).for_each(|(r, v)| *r = v.to_f32());
                    math::axpy(isa, 1.0 / s.keys as f32, &row, &mut mean);
                }
                (0..first_real).for_each(|i| write(i).copy_from_slice(&mean));
            }
            for (i0, n) in s.blocks(b) {
                let block = probabilities(isa, s, b, &pack(queries, i0, n, s.d), i0, &keys, base);
                let width = block.last - block.first;
                let p = pack(View::rows(&block.p, 0, block.ld), 0, n, width);
                let depth = block.first - base..block.last - base;
                values.product(isa, &p, depth, 0..s.dv, Target { c: &mut rows, ld: s.dv, accumulate: false });
                (0..n).for_each(|i| write(i0 + i).copy_from_slice(&rows[i * s.dv..][..s.dv]));
            }
        }
    });
}

/// What a backward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub dout: &'a [f32],
}

/// Gradients of [`forward`] for queries, keys and values, written at their places in `to`: three buffers, or one thrice.
///
/// # Safety
/// The places must lie inside the buffers and not overlap, and nobody else may use the buffers meanwhile.
pub(crate) unsafe fn backward(s: &Shape, at: &Places, saved: Saved<'_>, to: [SendPtr<f32>; 3]) {
    let Saved { q, k, v, out, dout } = saved;
    let (isa, group) = (isa(), s.heads / s.kv_heads);
    let [dq_out, dk_out, dv_out] = to;
    parallel(s.batch * s.kv_heads, s.worth(), |task| {
        let (b, kv) = (task / s.kv_heads, task % s.kv_heads);
        let base = s.start[b].min(s.keys);
        let real = s.keys - base;
        let key_rows = at.k.view(k, b, kv).skip(base);
        let value_rows = at.v.view(v, b, kv).skip(base);
        let keys_t = Panels::new(key_rows.transposed(), s.d, real); // (d, keys): scores
        let keys = Panels::new(key_rows, real, s.d); // (keys, d): dq
        let values_t = Panels::new(value_rows.transposed(), s.dv, real); // (dv, keys): dP
        // Gradients of this key-value head, summed over its query heads and blocks in order.
        let (mut dk_sum, mut dv_sum) = (Scratch::zeroed(real * s.d), Scratch::zeroed(real * s.dv));
        let mut rows = Scratch::new(QUERIES * s.d);
        for head in kv * group..(kv + 1) * group {
            let queries = at.q.view(q, b, head);
            let douts = at.out.view(dout, b, head);
            for (i0, n) in s.blocks(b) {
                let block = probabilities(isa, s, b, &pack(queries, i0, n, s.d), i0, &keys_t, base);
                let (first, last, ld) = (block.first - base, block.last - base, block.ld);
                let width = last - first;
                let mut ds = Scratch::new(n * ld);
                let dout_rows = pack(douts, i0, n, s.dv);
                values_t.product(isa, &dout_rows, 0..s.dv, first..last, Target { c: &mut ds, ld, accumulate: false });
                for i in 0..n {
                    let row = at.out.at(b, i0 + i, head);
                    let inner = math::dot(isa, &out[row..][..s.dv], &dout[row..][..s.dv]);
                    math::softmax_grad(isa, &block.p[i * ld..][..width], &mut ds[i * ld..][..width], inner, s.scale);
                }
                // dq = dS · K
                let ds_rows = pack(View::rows(&ds, 0, ld), 0, n, width);
                keys.product(isa, &ds_rows, first..last, 0..s.d, Target { c: &mut rows, ld: s.d, accumulate: false });
                for i in 0..n {
                    // SAFETY: head `head` of batch row `b` is written by this task alone.
                    let dq = unsafe { dq_out.slice(at.q.at(b, i0 + i, head), s.d) };
                    dq.copy_from_slice(&rows[i * s.d..][..s.d]);
                }
                // dk += dS^T · Q and dv += P^T · dO
                let queries = Panels::new(queries.skip(i0), n, s.d);
                let ds_t = pack(View::rows(&ds, 0, ld).transposed(), 0, width, n);
                queries.product(
                    isa,
                    &ds_t,
                    0..n,
                    0..s.d,
                    Target { c: &mut dk_sum[first * s.d..], ld: s.d, accumulate: true },
                );
                let douts = Panels::new(douts.skip(i0), n, s.dv);
                let p_t = pack(View::rows(&block.p, 0, ld).transposed(), 0, width, n);
                douts.product(
                    isa,
                    &p_t,
                    0..n,
                    0..s.dv,
                    Target { c: &mut dv_sum[first * s.dv..], ld: s.dv, accumulate: true },
                );
            }
        }
        for t in 0..real {
            // SAFETY: key-value head `kv` of batch row `b` is written by this task alone.
            let (dk, dv) =
                unsafe { (dk_out.slice(at.k.at(b, base + t, kv), s.d), dv_out.slice(at.v.at(b, base + t, kv), s.dv)) };
            dk.copy_from_slice(&dk_sum[t * s.d..][..s.d]);
            dv.copy_from_slice(&dv_sum[t * s.dv..][..s.dv]);
        }
        let first_real = s.blocks(b).next().map_or(s.queries, |(i, _)| i);
        if s.uniform_padding && first_real > 0 {
            // Every score is masked with the same value there, so the softmax is flat; its gradient still goes on to them.
            let flat = vec![1.0 / s.keys as f32; s.keys];
            let mut ds = vec![0f32; s.keys];
            for head in kv * group..(kv + 1) * group {
                for i in 0..first_real {
                    let row = at.out.at(b, i, head);
                    let (out, dout) = (&out[row..][..s.dv], &dout[row..][..s.dv]);
                    for (t, ds) in ds.iter_mut().enumerate() {
                        *ds = math::dot(isa, &v[at.v.at(b, t, kv)..][..s.dv], dout);
                    }
                    math::softmax_grad(isa, &flat, &mut ds, math::dot(isa, out, dout), s.scale);
                    // SAFETY: head `head` of batch row `b` is written by this task alone.
                    let dq = unsafe { dq_out.slice(at.q.at(b, i, head), s.d) };
                    for (t, &ds) in ds.iter().enumerate() {
                        math::axpy(isa, ds, &k[at.k.at(b, t, kv)..][..s.d], dq);
                        // SAFETY: key-value head `kv` of batch row `b` is written by this task alone, and `dq` is another place.
                        let (dk, dv) =
                            unsafe { (dk_out.slice(at.k.at(b, t, kv), s.d), dv_out.slice(at.v.at(b, t, kv), s.dv)) };
                        math::axpy(isa, ds, &q[at.q.at(b, i, head)..][..s.d], dk);
                        math::axpy(isa, 1.0 / s.keys as f32, dout, dv);
                    }
                }
            }
        }
    });
}
