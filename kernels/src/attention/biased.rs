//! Attention over lists of keys, with a bias for each kind of pair, and gradients for all inputs.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{Isa, Scratch, SendPtr, isa, math, parallel};
use crate::host::{Values, as_f32, storage_of, tensor, tracked};

/// Neighbouring keys that a query sees as the same kind of pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: usize,
    len: usize,
    kind: usize,
}

/// The keys that each query sees, each as one of a few kinds of pairs. Queries and keys are numbered through a whole batch: rows
/// of a batch are tokens that do not see each other, and tokens that many rows see, as a common context, stand there once.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    runs: Vec<Run>,
    /// The runs of query `i` are `offsets[i]..offsets[i + 1]`; one less than queries + 1 while it is empty.
    offsets: Vec<usize>,
    keys: usize,
    kinds: usize,
}

impl Sight {
    /// Nobody sees anything yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a query that sees these `(key, kind)`. Keys in ascending order make for few memory jumps.
    pub fn push(&mut self, seen: impl IntoIterator<Item = (usize, usize)>) {
        let first = self.runs.len();
        if self.offsets.is_empty() {
            self.offsets.push(first);
        }
        for (key, kind) in seen {
            self.keys = self.keys.max(key + 1);
            self.kinds = self.kinds.max(kind + 1);
            match self.runs[first..].last_mut() {
                Some(run) if run.start + run.len == key && run.kind == kind => run.len += 1,
                _ => self.runs.push(Run { start: key, len: 1, kind }),
            }
        }
        self.offsets.push(self.runs.len());
    }

    /// Number of queries.
    pub fn queries(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn runs(&self, query: usize) -> &[Run] {
        &self.runs[self.offsets[query]..self.offsets[query + 1]]
    }

    /// The `(key, kind)` that a query sees.
    pub(crate) fn pairs(&self, query: usize) -> impl Iterator<Item = (usize, usize)> {
        self.runs(query).iter().flat_map(|run| (run.start..run.start + run.len).map(|key| (key, run.kind)))
    }

    fn seen(&self, query: usize) -> usize {
        self.runs(query).iter().map(|run| run.len).sum()
    }
}

/// `softmax(scale * Q K^T + bias[kind]) V` over the keys that each query sees, in f32: the any-variate attention of Moirai (Woo
/// et al., arXiv 2402.02592, section 3.1.2), whose kinds are "another variate" and "the same variate".
///
/// A query's output depends on its own list alone, so it has the same bits in any batch and on any number of threads. A query
/// that sees nothing gives zeros.
#[derive(Clone, Debug)]
pub struct BiasedAttention {
    /// Multiplies the scores; usually `1 / sqrt(d)`.
    pub scale: f64,
    /// Who sees whom.
    pub sight: Arc<Sight>,
}

/// Queries that a task takes, for one head.
const QUERIES: usize = 16;

struct Sizes {
    queries: usize,
    heads: usize,
    d: usize,
    /// Of the calling thread, for all that work for it.
    isa: Isa,
}

impl Sizes {
    /// Values from one key to the next, and from a key to its value.
    fn strides(&self) -> (usize, usize) {
        (2 * self.heads * self.d, self.heads * self.d)
    }
}

impl BiasedAttention {
    /// # Shapes
    /// `q [n, heads, d]`, keys beside values `kv [m, 2, heads, d]`, `bias [kinds, heads]` to `[n, heads, d]`
    ///
    /// # Errors
    /// The shapes do not fit each other, or the lists name a key or a kind that is not there.
    pub fn forward(&self, q: &Tensor, kv: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if composed::wanted(q) {
            self.sizes(q.dims(), kv.dims(), bias.dims())?;
            return composed::biased(self.scale, &self.sight, q, kv, bias);
        }
        q.contiguous()?.apply_op3(&kv.contiguous()?, &bias.contiguous()?, self.clone())
    }

    fn sizes(&self, q: &[usize], kv: &[usize], bias: &[usize]) -> Result<Sizes> {
        let (&[queries, heads, d], &[keys, 2, kv_heads, kd], &[kinds, bias_heads]) = (q, kv, bias) else {
            bail!(
                "attention: expected [n, heads, d], [m, 2, heads, d] and [kinds, heads], got {q:?}, {kv:?}, {bias:?}"
            );
        };
        if (kv_heads, kd, bias_heads) != (heads, d, heads) || heads * d == 0 {
            bail!("attention: queries {q:?}, keys and values {kv:?} and biases {bias:?} do not fit");
        }
        let sight = &self.sight;
        if sight.queries() != queries || sight.keys > keys || sight.kinds > kinds {
            bail!(
                "attention: lists of {} queries, {} keys and {} kinds for {queries} queries, {keys} keys and {kinds} kinds",
                sight.queries(),
                sight.keys,
                sight.kinds
            );
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            bail!("attention: the scale must be positive");
        }
        Ok(Sizes { queries, heads, d, isa: isa() })
    }

    /// Fills `p`, as long as the list of the query, with its probabilities.
    fn probabilities(&self, s: &Sizes, (i, h): (usize, usize), q: &[f32], kv: &[f32], bias: &[f32], p: &mut [f32]) {
        let (stride, _) = s.strides();
        let (isa, query) = (s.isa, &q[(i * s.heads + h) * s.d..][..s.d]);
        let mut at = 0;
        for run in self.sight.runs(i) {
            let scores = &mut p[at..at + run.len];
            math::dots(isa, query, &kv[run.start * stride + h * s.d..], stride, scores);
            let bias = bias[run.kind * s.heads + h];
            scores.iter_mut().for_each(|score| *score = *score * self.scale as f32 + bias);
            at += run.len;
        }
        math::softmax(isa, p, 1.0);
    }

    fn worth(&self, s: &Sizes) -> bool {
        s.queries * s.heads * s.d * (self.sight.runs.len() + 1) > 1 << 14
    }
}

impl CustomOp3 for BiasedAttention {
    fn name(&self) -> &'static str {
        "moesaic-biased-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = self.sizes(l1.dims(), l2.dims(), l3.dims())?;
        let (q, kv) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        let bias = as_f32(s3, l3, self.name())?;
        let (stride, value) = s.strides();
        let mut out = vec![0f32; q.len()];
        let shared = SendPtr::new(&mut out);
        parallel(s.queries.div_ceil(QUERIES) * s.heads, self.worth(&s), |task| {
            let (block, h) = (task / s.heads, task % s.heads);
            for i in block * QUERIES..((block + 1) * QUERIES).min(s.queries) {
                let mut p = Scratch::new(self.sight.seen(i));
                if p.is_empty() {
                    continue;
                }
                self.probabilities(&s, (i, h), &q, &kv, &bias, &mut p);
                // SAFETY: this head of this query is written by this task alone.
                let out = unsafe { shared.slice((i * s.heads + h) * s.d, s.d) };
                let mut at = 0;
                for run in self.sight.runs(i) {
                    let values = &kv[run.start * stride + value + h * s.d..];
                    math::weighted_sum(s.isa, &p[at..at + run.len], values, stride, out);
                    at += run.len;
                }
            }
        });
        Ok((storage_of(out, s1.dtype(), self.name())?, l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        bias: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let s = self.sizes(q.dims(), kv.dims(), bias.dims())?;
        let (stride, value) = s.strides();
        let zeros = |t: &Tensor| vec![0f32; t.elem_count()];
        let (mut dq, mut dkv, mut dbias) = (zeros(q), zeros(kv), zeros(bias));
        let [to_q, to_kv, to_bias] = [&mut dq, &mut dkv, &mut dbias].map(|buffer| SendPtr::new(buffer));
        let of = |t| Values::of(t, self.name());
        let (qs, kvs, biases, outs, douts) = (of(q)?, of(kv)?, of(bias)?, of(out)?, of(dout)?);
        let (qs, kvs, biases, outs, douts) = (&qs[..], &kvs[..], &biases[..], &outs[..], &douts[..]);
        let (isa, scale) = (s.isa, self.scale as f32);
        // A task has one head, so that sums over queries have one order.
        parallel(s.heads, self.worth(&s), |h| {
            for i in 0..s.queries {
                let (mut p, mut dp) = (Scratch::new(self.sight.seen(i)), Scratch::new(self.sight.seen(i)));
                if p.is_empty() {
                    continue;
                }
                self.probabilities(&s, (i, h), qs, kvs, biases, &mut p);
                let row = (i * s.heads + h) * s.d;
                let (query, dout) = (&qs[row..][..s.d], &douts[row..][..s.d]);
                let mut at = 0;
                for run in self.sight.runs(i) {
                    let values = &kvs[run.start * stride + value + h * s.d..];
                    math::dots(isa, dout, values, stride, &mut dp[at..at + run.len]);
                    at += run.len;
                }
                let inner = math::dot(isa, &outs[row..][..s.d], dout);
                math::softmax_grad(isa, &p, &mut dp, inner, 1.0);
                // SAFETY (all): head `h` of every query, key, value and bias is written by this task alone, and the four lie
                // apart.
                let dq = unsafe { to_q.slice(row, s.d) };
                let mut at = 0;
                for run in self.sight.runs(i) {
                    let ds = &mut dp[at..at + run.len];
                    let dbias = unsafe { to_bias.slice(run.kind * s.heads + h, 1) };
                    dbias[0] += ds.iter().sum::<f32>();
                    ds.iter_mut().for_each(|ds| *ds *= scale);
                    math::weighted_sum(isa, ds, &kvs[run.start * stride + h * s.d..], stride, dq);
                    for (j, (ds, p)) in ds.iter().zip(&p[at..at + run.len]).enumerate() {
                        let key = (run.start + j) * stride + h * s.d;
                        math::axpy(isa, *ds, query, unsafe { to_kv.slice(key, s.d) });
                        math::axpy(isa, *p, dout, unsafe { to_kv.slice(key + value, s.d) });
                    }
                    at += run.len;
                }
            }
        });
        let grad = |t: &Tensor, g: Vec<f32>| tracked(t).then(|| tensor(g, t.shape(), t.dtype())).transpose();
        Ok((grad(q, dq)?, grad(kv, dkv)?, grad(bias, dbias)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use candle_core::Device;

    fn normal(rng: &mut Rng, shape: &[usize]) -> Vec<f32> {
        (0..shape.iter().product()).map(|_| rng.normal() as f32).collect()
    }

    #[test]
    fn it_is_the_softmax_over_what_is_seen() -> Result<()> {
        let (n, m, heads, d) = (5, 9, 2, 6);
        let mut rng = Rng::new(1);
        let (q, kv) = (normal(&mut rng, &[n, heads, d]), normal(&mut rng, &[m, 2, heads, d]));
        let bias = normal(&mut rng, &[2, heads]);
        let sees = |i: usize, j: usize| if i == 3 || (i + 2 * j).is_multiple_of(3) { None } else { Some((i + j) % 2) };
        let mut sight = Sight::new();
        (0..n).for_each(|i| sight.push((0..m).filter_map(|j| Some((j, sees(i, j)?)))));
        let tensor = |v: &[f32], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu);
        let attention = BiasedAttention { scale: 0.7, sight: Arc::new(sight) };
        let inputs = (tensor(&q, &[n, heads, d])?, tensor(&kv, &[m, 2, heads, d])?, tensor(&bias, &[2, heads])?);
        let got = attention.forward(&inputs.0, &inputs.1, &inputs.2)?.to_vec3::<f32>()?;
        for i in 0..n {
            for h in 0..heads {
                let at = |part: usize, j: usize, c: usize| f64::from(kv[((j * 2 + part) * heads + h) * d + c]);
                let weights: Vec<f64> = (0..m)
                    .map(|j| {
                        let Some(kind) = sees(i, j) else { return 0.0 };
                        let dot: f64 = (0..d).map(|c| f64::from(q[(i * heads + h) * d + c]) * at(0, j, c)).sum();
                        (0.7 * dot + f64::from(bias[kind * heads + h])).exp()
                    })
                    .collect();
                let sum = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
                for (c, got) in got[i][h].iter().enumerate() {
                    let want: f64 = (0..m).map(|j| weights[j] / sum * at(1, j, c)).sum();
                    assert!((f64::from(*got) - want).abs() < 1e-5, "{i} {h} {c}: {got} {want}");
                }
            }
        }
        assert_eq!(got[3], vec![vec![0f32; d]; heads]);
        // Lists that do not fit are refused.
        assert!(attention.forward(&inputs.0.narrow(0, 0, 4)?, &inputs.1, &inputs.2).is_err());
        assert!(attention.forward(&inputs.0, &inputs.1.narrow(0, 0, 8)?, &inputs.2).is_err());
        assert!(attention.forward(&inputs.0, &inputs.1, &inputs.2.narrow(0, 0, 1)?).is_err());
        Ok(())
    }
}
