//! Fused causal attention with gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{SendPtr, attention as kernel};
use crate::host::{Values, as_f32, storage_of, tensor, tracked};

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

    /// Attention on a joint projection: each token holds its query heads, then key heads, then value heads, all of width
    /// `d`. The same arithmetic as [`forward`](Self::forward) without taking the projection apart.
    ///
    /// # Shapes
    /// `qkv [b * t, (heads + 2 kv_heads) * d]` to `[b * t, heads * d]`
    pub fn forward_joint(&self, qkv: &Tensor, batch: usize, heads: usize, kv_heads: usize) -> Result<Tensor> {
        qkv.contiguous()?.apply_op1(Joint { attention: self.clone(), batch, heads, kv_heads })
    }

    fn shape(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<kernel::Shape> {
        let (&[batch, queries, heads, d], &[kb, keys, kv_heads, kd], &[vb, vt, vh, dv]) = (q, k, v) else {
            bail!("attention: expected four dimensions each, got {q:?}, {k:?}, {v:?}");
        };
        if (kb, kd) != (batch, d) || (vb, vt, vh) != (kb, keys, kv_heads) {
            bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit");
        }
        self.checked(kernel::Shape {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            d,
            dv,
            scale: self.scale as f32,
            start: self.start.clone(),
            window: self.window.unwrap_or(usize::MAX),
            uniform_padding: self.uniform_padding,
        })
    }

    fn checked(&self, mut shape: kernel::Shape) -> Result<kernel::Shape> {
        let kernel::Shape { batch, queries, keys, heads, kv_heads, .. } = shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("attention: {heads} query heads cannot share {kv_heads} key-value heads");
        }
        if keys < queries {
            bail!("attention: {queries} queries but only {keys} keys");
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) || self.window == Some(0) {
            bail!("attention: the scale must be positive and the window at least 1");
        }
        match shape.start.len() {
            0 => shape.start = vec![0; batch],
            n if n == batch => {}
            n => bail!("attention: padding of {n} rows for a batch of {batch}"),
        }
        Ok(shape)
    }
}

/// Queries, keys and values in tensors of their own.
fn apart(s: &kernel::Shape) -> kernel::Places {
    let heads = |tokens, heads, width| kernel::Heads { tokens, stride: heads * width, first: 0, width };
    kernel::Places {
        q: heads(s.queries, s.heads, s.d),
        k: heads(s.keys, s.kv_heads, s.d),
        v: heads(s.keys, s.kv_heads, s.dv),
        out: heads(s.queries, s.heads, s.dv),
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
        kernel::forward(&shape, &apart(&shape), &q, &k, &v, &mut out);
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
        let to = [SendPtr::new(&mut dq), SendPtr::new(&mut dk), SendPtr::new(&mut dv)];
        let of = |t| Values::of(t, self.name());
        let (qs, ks, vs, outs, douts) = (of(q)?, of(k)?, of(v)?, of(out)?, of(dout)?);
        let saved = kernel::Saved { q: &qs, k: &ks, v: &vs, out: &outs, dout: &douts };
        // SAFETY: the buffers have the shapes that `shape` was checked against, and are this call's own.
        unsafe { kernel::backward(&shape, &apart(&shape), saved, to) };
        let grad = |t: &Tensor, g: Vec<f32>| tracked(t).then(|| tensor(g, t.shape(), t.dtype())).transpose();
        Ok((grad(q, dq)?, grad(k, dk)?, grad(v, dv)?))
    }
}

/// Attention on a joint projection.
struct Joint {
    attention: CausalAttention,
    batch: usize,
    heads: usize,
    kv_heads: usize,
}

impl Joint {
    fn shape(&self, dims: &[usize]) -> Result<(kernel::Shape, kernel::Places)> {
        let (batch, heads, kv_heads) = (self.batch, self.heads, self.kv_heads);
        let all = heads + 2 * kv_heads;
        let &[rows, width] = dims else { bail!("attention: expected [tokens, width], got {dims:?}") };
        if batch == 0 || heads == 0 || !rows.is_multiple_of(batch) || !width.is_multiple_of(all) {
            bail!("attention: {dims:?} does not hold {batch} rows with {heads} + 2 x {kv_heads} heads");
        }
        let (tokens, d) = (rows / batch, width / all);
        let shape = self.attention.checked(kernel::Shape {
            batch,
            queries: tokens,
            keys: tokens,
            heads,
            kv_heads,
            d,
            dv: d,
            scale: self.attention.scale as f32,
            start: self.attention.start.clone(),
            window: self.attention.window.unwrap_or(usize::MAX),
            uniform_padding: self.attention.uniform_padding,
        })?;
        let part = |first: usize| kernel::Heads { tokens, stride: width, first: first * d, width: d };
        let out = kernel::Heads { tokens, stride: heads * d, first: 0, width: d };
        Ok((shape, kernel::Places { q: part(0), k: part(heads), v: part(heads + kv_heads), out }))
    }
}

impl CustomOp1 for Joint {
    fn name(&self) -> &'static str {
        "moesaic-causal-attention-joint"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (shape, places) = self.shape(layout.dims())?;
        let x = as_f32(storage, layout, self.name())?;
        let dims = (shape.batch * shape.queries, shape.heads * shape.dv);
        let mut out = vec![0f32; dims.0 * dims.1];
        kernel::forward(&shape, &places, &x, &x, &x, &mut out);
        Ok((storage_of(out, storage.dtype(), self.name())?, dims.into()))
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (shape, places) = self.shape(x.dims())?;
        let mut dx = vec![0f32; x.elem_count()];
        let to = SendPtr::new(&mut dx);
        let (xs, outs, douts) =
            (Values::of(x, self.name())?, Values::of(out, self.name())?, Values::of(dout, self.name())?);
        let saved = kernel::Saved { q: &xs, k: &xs, v: &xs, out: &outs, dout: &douts };
        // SAFETY: the places are disjoint parts of each token, inside a buffer as large as the input.
        unsafe { kernel::backward(&shape, &places, saved, [to; 3]) };
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}
