//! Attention of a few queries over many keys, read where a cache holds them.
//!
//! Packing keys and values pays when many queries share them. Here the work is the reading, so every key and value is read
//! once, in the cache's own type and in the order of memory, for all heads of all queries: a task takes some keys, and what it
//! finds is put together afterwards by the largest score of each task (Flash-Decoding, Dao et al. 2023). Which keys make a task
//! depends on the row alone, so a row has the same bits on any number of threads and in any batch.

use half::{bf16, f16};

use super::attention::{Places, Shape};
use super::pack::Elem;
use super::pool::{Stage, stages};
use super::{Isa, Scratch, SendPtr, isa, math};

/// Keys of one task.
const KEYS: usize = 32;
/// Values of keys that all heads go over before the next: a part of what a first-level cache holds.
const CACHED: usize = 4096;

/// Rows of a cache as f32.
pub(crate) trait Stored: Elem {
    /// `n` rows of `width` values, the first at `start`, `stride` apart, and the distance of rows in the result: the cache
    /// itself where it holds f32, else `buffer`.
    fn rows<'a>(
        isa: Isa,
        data: &'a [Self],
        at: (usize, usize),
        n: usize,
        width: usize,
        buffer: &'a mut [f32],
    ) -> (&'a [f32], usize);
}

impl Stored for f32 {
    fn rows<'a>(
        _: Isa,
        data: &'a [Self],
        (start, stride): (usize, usize),
        _: usize,
        _: usize,
        _: &'a mut [f32],
    ) -> (&'a [f32], usize) {
        (&data[start..], stride)
    }
}

macro_rules! widened {
    ($t:ty, $widen:path) => {
        impl Stored for $t {
            fn rows<'a>(
                isa: Isa,
                data: &'a [Self],
                (start, stride): (usize, usize),
                n: usize,
                width: usize,
                buffer: &'a mut [f32],
            ) -> (&'a [f32], usize) {
                for (i, row) in buffer.chunks_exact_mut(width).take(n).enumerate() {
                    $widen(isa, &data[start + i * stride..][..width], row);
                }
                (buffer, width)
            }
        }
    };
}
widened!(bf16, math::widen_bf16);
widened!(f16, math::widen_f16);

/// Asks for rows before they are needed.
fn prefetch<T>(rows: &[T], (start, stride): (usize, usize), n: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    for row in 0..n {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for at in (0..width).step_by(64 / size_of::<T>()) {
            // SAFETY: a prefetch reads nothing and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(rows.as_ptr().wrapping_add(start + row * stride + at).cast()) };
        }
    }
    let _ = (rows, start, stride, n, width);
}

/// What [`super::attention::forward`] computes, for few queries. Queries in the padding give zeros.
pub(crate) fn decode<T: Stored>(s: &Shape, at: &Places, q: &[f32], k: &[T], v: &[T], out: &mut [f32]) {
    let (isa, group) = (isa(), s.heads / s.kv_heads);
    // Row r of a batch row is query `r / heads` of head `r % heads`.
    let rows = s.queries * s.heads;
    let seen: Vec<_> = (0..s.batch).flat_map(|b| (0..s.queries).map(move |i| s.seen(b, i))).collect();
    let seen = |b: usize, i: usize| &seen[b * s.queries + i];
    // Keys that any query of a batch row sees.
    let spans: Vec<_> = (0..s.batch)
        .map(|b| {
            let all = || (0..s.queries).map(|i| seen(b, i)).filter(|r| !r.is_empty());
            all().map(|r| r.start).min().unwrap_or(0)..all().map(|r| r.end).max().unwrap_or(0)
        })
        .collect();
    let blocks = spans.iter().map(|span| span.len().div_ceil(KEYS)).max().unwrap_or(0);
    // Of each task and row: the sum of values, not yet divided; the largest score and the sum of exponentials.
    let (mut sums, mut stats) =
        (Scratch::new(s.batch * blocks * rows * s.dv), Scratch::new(s.batch * blocks * rows * 2));
    let (sums, stats, out) = (SendPtr::new(&mut sums), SendPtr::new(&mut stats), SendPtr::new(out));
    // SAFETY (both, and their uses): the task of a block writes what is the block's; later all read.
    let sum = |b: usize, block: usize, r: usize| unsafe { sums.slice(((b * blocks + block) * rows + r) * s.dv, s.dv) };
    let stat = |b: usize, block: usize, r: usize| unsafe { stats.slice(((b * blocks + block) * rows + r) * 2, 2) };

    // Heads of a token stand side by side, each `width` from the last.
    let (wide_k, wide_v) = ((s.kv_heads - 1) * at.k.width + s.d, (s.kv_heads - 1) * at.v.width + s.dv);
    let step = |wide: usize| (CACHED / wide.max(1) / 4 * 4).clamp(4, KEYS);
    let (step_k, step_v) = (step(wide_k), step(wide_v));
    let part = |task: usize| {
        let (b, block) = (task / blocks, task % blocks);
        let first = spans[b].start + block * KEYS;
        let last = spans[b].end.min(first + KEYS);
        if first >= last {
            return;
        }
        let mut scores = Scratch::new(rows * KEYS);
        let mut buffer = Scratch::new((step_k * wide_k).max(step_v * wide_v));
        let place_k = |t: usize| (at.k.at(b, t, 0), at.k.stride);
        let place_v = |t: usize| (at.v.at(b, t, 0), at.v.stride);
        for from in (first..last).step_by(step_k) {
            let n = step_k.min(last - from);
            match last - from - n {
                0 => prefetch(v, place_v(first), step_v.min(last - first), wide_v),
                left => prefetch(k, place_k(from + n), step_k.min(left), wide_k),
            }
            let (keys, stride) = T::rows(isa, k, place_k(from), n, wide_k, &mut buffer);
            for r in 0..rows {
                let (i, h) = (r / s.heads, r % s.heads);
                let (query, keys) = (&q[at.q.at(b, i, h)..][..s.d], &keys[h / group * at.k.width..]);
                math::dots(isa, query, keys, stride, &mut scores[r * KEYS + from - first..][..n]);
            }
        }
        // What a query does not see of the block weighs nothing.
        for r in 0..rows {
            let (seen, row) = (seen(b, r / s.heads), &mut scores[r * KEYS..][..last - first]);
            let (start, end) = (seen.start.clamp(first, last) - first, seen.end.clamp(first, last) - first);
            row[..start].fill(0.0);
            row[end.max(start)..].fill(0.0);
            let (largest, total) = match start < end {
                true => math::exponentials(isa, &mut row[start..end], s.scale),
                false => (f32::NEG_INFINITY, 0.0),
            };
            stat(b, block, r).copy_from_slice(&[largest, total]);
            sum(b, block, r).fill(0.0);
        }
        for from in (first..last).step_by(step_v) {
            let n = step_v.min(last - from);
            prefetch(v, place_v(from + n), step_v.min(last - from - n), wide_v);
            let (values, stride) = T::rows(isa, v, place_v(from), n, wide_v, &mut buffer);
            for r in 0..rows {
                let values = &values[r % s.heads / group * at.v.width..];
                math::weighted_sum(isa, &scores[r * KEYS + from - first..][..n], values, stride, sum(b, block, r));
            }
        }
    };
    let join = |task: usize| {
        let (b, r) = (task / rows, task % rows);
        // SAFETY: the heads of this task are written by it alone.
        let out = unsafe { out.slice(at.out.at(b, r / s.heads, r % s.heads), s.dv) };
        out.fill(0.0);
        let blocks = 0..spans[b].len().div_ceil(KEYS);
        if blocks.clone().all(|block| stat(b, block, r)[1] == 0.0) {
            return; // a query in the padding
        }
        let largest = blocks.clone().map(|block| stat(b, block, r)[0]).fold(f32::NEG_INFINITY, f32::max);
        let weight = |block: usize| (stat(b, block, r)[0] - largest).exp();
        let total: f32 = blocks.clone().map(|block| weight(block) * stat(b, block, r)[1]).sum();
        for block in blocks {
            math::axpy(isa, weight(block) / total, sum(b, block, r), out);
        }
    };
    stages(s.worth(), &[Stage { count: s.batch * blocks, task: &part }, Stage { count: s.batch * rows, task: &join }]);
}
