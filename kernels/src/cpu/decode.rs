//! Attention of a few queries over many keys, read where a cache holds them.
//!
//! Packing keys and values pays when many queries share them. Here every key and value is read once for a group of query
//! heads, in the cache's own type: the work of a decoding step is the reading. A cache holds the heads of a token side by
//! side, so a task takes several of them: memory gives long runs faster than short ones.

use half::{bf16, f16};

use super::attention::{Places, Shape};
use super::pack::Elem;
use super::{Isa, Scratch, SendPtr, isa, math, parallel};

/// Values that are widened to f32 at once: what a first-level cache holds.
const WIDENED: usize = 8192;
/// Query heads of one task that share a key-value head, at most.
const HEADS: usize = 8;
/// Values of a token that one task takes at most, unless a single head has more.
const SPAN: usize = 512;
/// Tasks that are wanted: a few for each of two to four threads.
const TASKS: usize = 8;

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

/// Key-value heads that one task takes, and of each how many query heads. Heads do not meet in any sum, so results do not
/// depend on it.
fn share(s: &Shape) -> (usize, usize) {
    let group = s.heads / s.kv_heads;
    let wanted = TASKS.div_ceil(s.batch.max(1)).max(1);
    if s.kv_heads < wanted {
        return (1, (s.heads / wanted).clamp(1, group.min(HEADS)));
    }
    match group {
        ..=HEADS => ((s.kv_heads / wanted).clamp(1, (SPAN / s.d.max(s.dv).max(1)).max(1)), group),
        _ => (1, HEADS),
    }
}

/// What [`super::attention::forward`] computes, for few queries. Queries in the padding give zeros.
pub(crate) fn decode<T: Stored>(s: &Shape, at: &Places, q: &[f32], k: &[T], v: &[T], out: &mut [f32]) {
    let (isa, group) = (isa(), s.heads / s.kv_heads);
    let (span, each) = share(s);
    let parts = group.div_ceil(each);
    let spans = s.kv_heads.div_ceil(span);
    let shared = SendPtr::new(out);
    parallel(s.batch * spans * parts, s.worth(), |task| {
        let (b, first_kv, part) = (task / parts / spans, task / parts % spans * span, task % parts);
        let kv_heads = first_kv..(first_kv + span).min(s.kv_heads);
        // Row r of the scores belongs to query `i` of head `h`, which looks at key-value head `kv`.
        let heads = |kv: usize| kv * group + part * each..kv * group + ((part + 1) * each).min(group);
        let rows: Vec<_> = (kv_heads.clone())
            .flat_map(|kv| (0..s.queries).flat_map(move |i| heads(kv).map(move |h| (i, h, kv))))
            .collect();
        // SAFETY (both uses): the heads of this task are written by it alone.
        let write = |i, h| unsafe { shared.slice(at.out.at(b, i, h), s.dv) };
        rows.iter().for_each(|&(i, h, _)| write(i, h).fill(0.0));
        let seen: Vec<_> = (0..s.queries).map(|i| s.seen(b, i)).collect();
        let lowest = seen.iter().filter(|r| !r.is_empty()).map(|r| r.start).min();
        let (Some(first), Some(last)) = (lowest, seen.iter().map(|r| r.end).max()) else { return };

        let width = last - first;
        let mut scores = Scratch::new(rows.len() * width);
        // Heads of a token stand side by side, each `at.k.width` from the last.
        let (wide_k, wide_v) = ((kv_heads.len() - 1) * at.k.width + s.d, (kv_heads.len() - 1) * at.v.width + s.dv);
        let keys_at_once = (WIDENED / wide_k.max(wide_v)).max(8);
        let mut buffer = Scratch::new(keys_at_once * wide_k.max(wide_v));
        for block in (first..last).step_by(keys_at_once) {
            let n = keys_at_once.min(last - block);
            let place = (at.k.at(b, block, first_kv), at.k.stride);
            let (keys, stride) = T::rows(isa, k, place, n, wide_k, &mut buffer);
            for (r, &(i, h, kv)) in rows.iter().enumerate() {
                let (query, keys) = (&q[at.q.at(b, i, h)..][..s.d], &keys[(kv - first_kv) * at.k.width..]);
                math::dots(isa, query, keys, stride, &mut scores[r * width + block - first..][..n]);
            }
        }
        for (r, &(i, ..)) in rows.iter().enumerate() {
            let seen = &seen[i];
            if !seen.is_empty() {
                math::softmax(isa, &mut scores[r * width..][seen.start - first..seen.end - first], s.scale);
            }
        }
        for block in (first..last).step_by(keys_at_once) {
            let n = keys_at_once.min(last - block);
            let place = (at.v.at(b, block, first_kv), at.v.stride);
            let (values, stride) = T::rows(isa, v, place, n, wide_v, &mut buffer);
            for (r, &(i, h, kv)) in rows.iter().enumerate() {
                let (from, to) = (seen[i].start.max(block), seen[i].end.min(block + n));
                if from < to {
                    let p = &scores[r * width..][from - first..to - first];
                    let values = &values[(from - block) * stride + (kv - first_kv) * at.v.width..];
                    math::weighted_sum(isa, p, values, stride, write(i, h));
                }
            }
        }
    });
}
