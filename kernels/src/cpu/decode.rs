//! Attention of a few queries over many keys, read where a cache holds them.
//!
//! Packing keys and values pays when many queries share them. Here every key and value is read once for a group of query
//! heads, in the cache's own type: the work of a decoding step is the reading.

use half::{bf16, f16};

use super::attention::{Places, Shape};
use super::pack::Elem;
use super::{Scratch, SendPtr, isa, math, parallel};

/// Keys that are widened to f32 at once.
const KEYS: usize = 64;
/// Query heads of one task: fixed, so that results do not depend on the number of threads.
const HEADS: usize = 8;

/// Rows of a cache as f32.
pub(crate) trait Stored: Elem {
    /// `n` rows of `width` values, the first at `start`, `stride` apart, and the distance of rows in the result: the cache
    /// itself where it holds f32, else `buffer`.
    fn rows<'a>(
        data: &'a [Self],
        start: usize,
        stride: usize,
        n: usize,
        width: usize,
        buffer: &'a mut [f32],
    ) -> (&'a [f32], usize);
}

impl Stored for f32 {
    fn rows<'a>(
        data: &'a [Self],
        start: usize,
        stride: usize,
        _: usize,
        _: usize,
        _: &'a mut [f32],
    ) -> (&'a [f32], usize) {
        (&data[start..], stride)
    }
}

macro_rules! widened {
    ($t:ty) => {
        impl Stored for $t {
            fn rows<'a>(
                data: &'a [Self],
                start: usize,
                stride: usize,
                n: usize,
                width: usize,
                buffer: &'a mut [f32],
            ) -> (&'a [f32], usize) {
                for (i, row) in buffer.chunks_exact_mut(width).take(n).enumerate() {
                    let stored = &data[start + i * stride..][..width];
                    row.iter_mut().zip(stored).for_each(|(r, v)| *r = v.to_f32());
                }
                (buffer, width)
            }
        }
    };
}
widened!(bf16);
widened!(f16);

/// What [`super::attention::forward`] computes, for few queries. Queries in the padding give zeros.
pub(crate) fn decode<T: Stored>(s: &Shape, at: &Places, q: &[f32], k: &[T], v: &[T], out: &mut [f32]) {
    let (isa, group) = (isa(), s.heads / s.kv_heads);
    let parts = group.div_ceil(HEADS);
    let shared = SendPtr::new(out);
    parallel(s.batch * s.kv_heads * parts, s.worth(), |task| {
        let (b, kv, part) = (task / parts / s.kv_heads, task / parts % s.kv_heads, task % parts);
        let heads = kv * group + part * HEADS..kv * group + ((part + 1) * HEADS).min(group);
        // Row r of the scores belongs to query `i` of head `h`.
        let rows: Vec<_> = (0..s.queries).flat_map(|i| heads.clone().map(move |h| (i, h))).collect();
        // SAFETY (both uses): the heads of this task are written by it alone.
        let write = |i, h| unsafe { shared.slice(at.out.at(b, i, h), s.dv) };
        rows.iter().for_each(|&(i, h)| write(i, h).fill(0.0));
        let seen: Vec<_> = (0..s.queries).map(|i| s.seen(b, i)).collect();
        let lowest = seen.iter().filter(|r| !r.is_empty()).map(|r| r.start).min();
        let (Some(first), Some(last)) = (lowest, seen.iter().map(|r| r.end).max()) else { return };

        let width = last - first;
        let mut scores = Scratch::new(rows.len() * width);
        let mut buffer = Scratch::new(KEYS * s.d.max(s.dv));
        for block in (first..last).step_by(KEYS) {
            let n = KEYS.min(last - block);
            let (keys, stride) = T::rows(k, at.k.at(b, block, kv), at.k.stride, n, s.d, &mut buffer);
            for (r, &(i, h)) in rows.iter().enumerate() {
                let query = &q[at.q.at(b, i, h)..][..s.d];
                math::dots(isa, query, keys, stride, &mut scores[r * width + block - first..][..n]);
            }
        }
        for (r, &(i, _)) in rows.iter().enumerate() {
            let seen = &seen[i];
            if !seen.is_empty() {
                math::softmax(isa, &mut scores[r * width..][seen.start - first..seen.end - first], s.scale);
            }
        }
        for block in (first..last).step_by(KEYS) {
            let n = KEYS.min(last - block);
            let (values, stride) = T::rows(v, at.v.at(b, block, kv), at.v.stride, n, s.dv, &mut buffer);
            for (r, &(i, h)) in rows.iter().enumerate() {
                let (from, to) = (seen[i].start.max(block), seen[i].end.min(block + n));
                if from < to {
                    let p = &scores[r * width..][from - first..to - first];
                    math::weighted_sum(isa, p, &values[(from - block) * stride..], stride, write(i, h));
                }
            }
        }
    });
}
