//! Fused causal attention with gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu::attention as kernel;
use crate::host::{as_f32, storage_of, tensor, tracked, with_f32};

/// Causal attention of queries that stand at the end of the keys: `softmax(scale * Q K^T) V` in f32, each query seeing
/// the keys up to its own position. Key-value heads are repeated for grouped-query attention.
///
/// Scores never become a tensor. A row has the same bits alone and in a left-padded batch, on any number of threads.
/// Outputs at padding are zeros, or what `uniform_padding` says.
#[derive(Clone, Debug)]
pub struct CausalAttention {
    /// Multiplies the scores; usually `1 / sqrt(d)`.
    pub scale: f64,
    /// Number of padding tokens at the left of each batch row; empty for none.
    pub start: Vec<usize>,
    /// Keys that a query sees at most, itself included: sliding window attention.
    pub window: Option<usize>,
    /// Queries in the padding average the values of all keys, those after them too: what a softmax over scores that are
    /// all masked with the dtype's minimum does in `transformers`. Such outputs mean nothing, but a loss that counts them
    /// (Time-MoE's, when a head looks from the padding into the series) differs with them.
    pub uniform_padding: bool,
}

impl CausalAttention {
    /// Plain causal attention.
    pub fn new(scale: f64) -> Self {
        Self { scale, start: Vec::new(), window: None, uniform_padding: false }
    }

    /// Attention with gradients for all three inputs.
    ///
    /// # Shapes
    /// `q [b, t, heads, d]`, `k [b, s, kv_heads, d]`, `v [b, s, kv_heads, dv]` with `s >= t` to `[b, t, heads, dv]`
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    fn shape(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<kernel::Shape> {
        let (&[batch, queries, heads, d], &[kb, keys, kv_heads, kd], &[vb, vt, vh, dv]) = (q, k, v) else {
            bail!("attention: expected four dimensions each, got {q:?}, {k:?}, {v:?}");
        };
        if (kb, kd) != (batch, d) || (vb, vt, vh) != (kb, keys, kv_heads) || kv_heads == 0 || heads % kv_heads != 0 {
            bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit");
        }
        if keys < queries {
            bail!("attention: {queries} queries but only {keys} keys");
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) || self.window == Some(0) {
            bail!("attention: the scale must be positive and the window at least 1");
        }
        let start = match self.start.len() {
            0 => vec![0; batch],
            n if n == batch => self.start.clone(),
            n => bail!("attention: padding of {n} rows for a batch of {batch}"),
        };
        let window = self.window.unwrap_or(usize::MAX);
        let (scale, uniform_padding) = (self.scale as f32, self.uniform_padding);
        Ok(kernel::Shape { batch, queries, keys, heads, kv_heads, d, dv, scale, start, window, uniform_padding })
    }
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "moesaic-causal-attention"
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
        let shape = self.shape(l1.dims(), l2.dims(), l3.dims())?;
        let (q, k, v) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?, as_f32(s3, l3, self.name())?);
        let mut out = vec![0f32; shape.batch * shape.queries * shape.heads * shape.dv];
        kernel::forward(&shape, &q, &k, &v, &mut out);
        let dims = (shape.batch, shape.queries, shape.heads, shape.dv);
        Ok((storage_of(out, s1.dtype(), self.name())?, dims.into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let shape = self.shape(q.dims(), k.dims(), v.dims())?;
        let zeros = |t: &Tensor| vec![0f32; t.elem_count()];
        let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
        with_f32(q, self.name(), |q| {
            with_f32(k, self.name(), |k| {
                with_f32(v, self.name(), |v| {
                    with_f32(out, self.name(), |out| {
                        with_f32(dout, self.name(), |dout| {
                            kernel::backward(&shape, q, k, v, out, dout, &mut dq, &mut dk, &mut dv);
                            Ok(())
                        })
                    })
                })
            })
        })?;
        let grad = |t: &Tensor, g: Vec<f32>| tracked(t).then(|| tensor(g, t.shape(), t.dtype())).transpose();
        Ok((grad(q, dq)?, grad(k, dk)?, grad(v, dv)?))
    }
}
