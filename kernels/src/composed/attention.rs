//! Attention with its scores as a tensor.

use candle_core::{DType, Result, Tensor};

use super::softmax;
use crate::attention::Sight;
use crate::cpu::attention::Shape;

/// `[b, tokens, kv_heads, d]` as `[b, heads, tokens, d]` in f32, each head as often as queries share it.
fn heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let (b, t, h, d) = x.dims4()?;
    let x = x.to_dtype(DType::F32)?.transpose(1, 2)?; // (b, h, t, d)
    let x = if times == 1 { x } else { x.unsqueeze(2)?.expand((b, h, times, t, d))?.reshape((b, h * times, t, d))? };
    x.contiguous()
}

/// Unlike the fused form it multiplies what a query does not see, by 0: keys and values at padding must be numbers.
///
/// `q [b, t, heads, d]`, `k [b, s, kv_heads, d]`, `v [b, s, kv_heads, dv]` to `[b, t, heads, dv]`.
pub(crate) fn attention(s: &Shape, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    // What a query does not see, and queries that see nothing.
    let mut hidden = vec![0f32; s.batch * s.queries * s.keys];
    let mut sees = vec![1f32; s.batch * s.queries];
    for b in 0..s.batch {
        for i in 0..s.queries {
            let (seen, at) = (s.seen(b, i), b * s.queries + i);
            if seen.is_empty() {
                sees[at] = 0.0;
                continue;
            }
            let row = &mut hidden[at * s.keys..][..s.keys];
            row[..seen.start].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
        }
    }
    let all = sees.iter().all(|&sees| sees == 1.0);
    let sees = Tensor::from_vec(sees, (s.batch, 1, s.queries, 1), q.device())?;
    let hidden = match hidden.iter().all(|&h| h == 0.0) {
        true => None, // as one query at the end of its keys
        false => Some(Tensor::from_vec(hidden, (s.batch, 1, s.queries, s.keys), q.device())?),
    };
    let times = s.heads / s.kv_heads;
    let (k, v) = (heads(k, times)?, heads(v, times)?);
    let mut scores = (heads(q, 1)?.matmul(&k.t()?)? * f64::from(s.scale))?; // (b, heads, t, s)
    if !all {
        let seen = scores.broadcast_mul(&sees)?;
        // A score that a mask's minimum swallows keeps its gradient.
        scores = if s.uniform_padding {
            (seen + (&scores - scores.detach())?.broadcast_mul(&(1.0 - &sees)?)?)?
        } else {
            seen
        };
    }
    if let Some(hidden) = hidden {
        scores = scores.broadcast_add(&hidden)?;
    }
    let mut out = softmax(&scores)?.matmul(&v)?; // (b, heads, t, dv)
    if !all && !s.uniform_padding {
        out = out.broadcast_mul(&sees)?;
    }
    out.transpose(1, 2)?.to_dtype(q.dtype())?.contiguous()
}

/// Over the first `keys` tokens of the buffers of a cache.
pub(crate) fn cached(s: &Shape, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    attention(s, q, &k.narrow(1, 0, s.keys)?, &v.narrow(1, 0, s.keys)?.narrow(3, 0, s.dv)?)
}

/// On a joint projection, `qkv [b t, (heads + 2 kv_heads) d]` to `[b t, heads d]`.
pub(crate) fn joint(s: &Shape, qkv: &Tensor) -> Result<Tensor> {
    let apart = qkv.reshape((s.batch, s.queries, s.heads + 2 * s.kv_heads, s.d))?; // (b, t, heads, d)
    let part = |first, count| apart.narrow(2, first, count);
    let out = attention(s, &part(0, s.heads)?, &part(s.heads, s.kv_heads)?, &part(s.heads + s.kv_heads, s.kv_heads)?)?;
    out.reshape((s.batch * s.queries, s.heads * s.dv)) // (b t, heads d)
}

/// Over lists of keys: `q [n, heads, d]`, `kv [m, 2, heads, d]`, `bias [kinds, heads]` to `[n, heads, d]`.
pub(crate) fn biased(scale: f64, sight: &Sight, q: &Tensor, kv: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (n, m) = (q.dim(0)?, kv.dim(0)?);
    let (mut hidden, mut kinds, mut sees) = (vec![f32::NEG_INFINITY; n * m], vec![0u32; n * m], vec![0f32; n]);
    for i in 0..n {
        let row = &mut hidden[i * m..][..m];
        for (key, kind) in sight.pairs(i) {
            (row[key], kinds[i * m + key], sees[i]) = (0.0, kind as u32, 1.0);
        }
        if sees[i] == 0.0 {
            row.fill(0.0);
        }
    }
    let heads = |x: &Tensor| x.to_dtype(DType::F32)?.transpose(0, 1)?.contiguous();
    let part = |i| heads(&kv.narrow(1, i, 1)?.squeeze(1)?); // (heads, m, d)
    let kinds = Tensor::from_vec(kinds, n * m, q.device())?;
    let bias = bias.to_dtype(DType::F32)?.index_select(&kinds, 0)?.t()?.reshape(((), n, m))?; // (heads, n, m)
    let hidden = Tensor::from_vec(hidden, (1, n, m), q.device())?;
    let scores = ((heads(q)?.matmul(&part(0)?.t()?)? * scale)? + bias)?.broadcast_add(&hidden)?; // (heads, n, m)
    let sees = Tensor::from_vec(sees, (1, n, 1), q.device())?;
    let out = softmax(&scores)?.matmul(&part(1)?)?.broadcast_mul(&sees)?; // (heads, n, d)
    out.transpose(0, 1)?.to_dtype(q.dtype())?.contiguous()
}
