//! Fused attention with gradients: causal, of all queries to all keys, or over lists of keys.

mod biased;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::decode::{Stored, decode};
use crate::cpu::{SendPtr, attention as kernel};
use crate::host::{Values, as_f32, slice, storage_of, tensor, tracked};

pub use biased::{BiasedAttention, Sight};

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
    /// Number of real keys of each batch row, counted with the padding before them: what stands behind is padding, which no
    /// query sees. Queries behind see the real keys. Empty for none.
    pub end: Vec<usize>,
    /// Keys that a query sees at most, itself included: sliding window attention.
    pub window: Option<usize>,
    /// Queries in the padding average the values of all keys, those after them too: what a softmax over scores that are
    /// all masked with the dtype's minimum does in `transformers`. Such outputs mean nothing, but a loss that counts them
    /// (Time-MoE's, when a head looks from the padding into the series) differs with them.
    pub uniform_padding: bool,
    /// Every query sees all real keys, those after it too, and there may be more queries than keys: what encoders and cross
    /// attention do. Takes neither a window nor uniform padding; queries at padding are computed like the others.
    pub everywhere: bool,
}

impl CausalAttention {
    /// Plain causal attention.
    pub fn new(scale: f64) -> Self {
        Self { scale, start: Vec::new(), end: Vec::new(), window: None, uniform_padding: false, everywhere: false }
    }

    /// Attention of every query to every key: encoders and cross attention.
    pub fn everywhere(scale: f64) -> Self {
        Self { everywhere: true, ..Self::new(scale) }
    }

    /// Attention with gradients for all three inputs.
    ///
    /// # Shapes
    /// `q [b, t, heads, d]`, `k [b, s, kv_heads, d]`, `v [b, s, kv_heads, dv]` with `s >= t` (unless
    /// [`everywhere`](Self::everywhere)) to `[b, t, heads, dv]`
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if composed::wanted(q) {
            return composed::attention(&self.shape(q.dims(), k.dims(), v.dims())?, q, k, v);
        }
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    /// Attention on a joint projection: each token holds its query heads, then key heads, then value heads, all of width
    /// `d`. The same arithmetic as [`forward`](Self::forward) without taking the projection apart.
    ///
    /// # Shapes
    /// `qkv [b * t, (heads + 2 kv_heads) * d]` to `[b * t, heads * d]`
    pub fn forward_joint(&self, qkv: &Tensor, batch: usize, heads: usize, kv_heads: usize) -> Result<Tensor> {
        let joint = Joint { attention: self.clone(), batch, heads, kv_heads };
        if composed::wanted(qkv) {
            return composed::joint(&joint.shape(qkv.dims())?.0, qkv);
        }
        qkv.contiguous()?.apply_op1(joint)
    }

    /// Attention over the first `keys` tokens of a cache's buffers, which are read in place and may be f32, bf16 or f16
    /// whatever the queries are. The queries stand at the end of those tokens. Forward only.
    ///
    /// # Shapes
    /// `q [b, t, heads, d]`, `k [b, capacity, kv_heads, d]`, `v [b, capacity, kv_heads, dv]` to `[b, t, heads, dv]`
    pub fn forward_cached(&self, q: &Tensor, k: &Tensor, v: &Tensor, keys: usize) -> Result<Tensor> {
        let cached = Cached { attention: self.clone(), keys, dv: v.dim(3)? };
        if composed::wanted(q) {
            let (shape, _) = cached.places(q.dims(), k.dims4()?.into(), v.dims4()?.into())?;
            return composed::cached(&shape, q, k, v);
        }
        q.contiguous()?.apply_op3_no_bwd(k, v, &cached)
    }

    /// [`forward_cached`](Self::forward_cached) for one key-value head whose values are the first `dv` numbers of its keys,
    /// as in multi-head latent attention over the latents themselves.
    ///
    /// # Shapes
    /// `q [b, t, heads, d]`, `kv [b, capacity, d]` to `[b, t, heads, dv]`
    pub fn forward_latent(&self, q: &Tensor, kv: &Tensor, keys: usize, dv: usize) -> Result<Tensor> {
        let cached = Cached { attention: self.clone(), keys, dv };
        if composed::wanted(q) {
            let kv = kv.unsqueeze(2)?; // (b, capacity, 1, d)
            let dims = kv.dims4()?.into();
            let (shape, _) = cached.places(q.dims(), dims, dims)?;
            return composed::cached(&shape, q, &kv, &kv);
        }
        q.contiguous()?.apply_op2_no_bwd(kv, &cached)
    }

    pub(crate) fn shape(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<kernel::Shape> {
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
            end: self.end.clone(),
            window: self.window.unwrap_or(usize::MAX),
            uniform_padding: self.uniform_padding,
            everywhere: self.everywhere,
        })
    }

    fn checked(&self, mut shape: kernel::Shape) -> Result<kernel::Shape> {
        let kernel::Shape { batch, queries, keys, heads, kv_heads, .. } = shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("attention: {heads} query heads cannot share {kv_heads} key-value heads");
        }
        if self.everywhere && (self.window.is_some() || self.uniform_padding) {
            bail!("attention: queries that see all keys take neither a window nor uniform padding");
        }
        if keys < queries && !self.everywhere {
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
        match shape.end.len() {
            0 => shape.end = vec![keys; batch],
            n if n != batch => bail!("attention: ends of {n} rows for a batch of {batch}"),
            _ if self.everywhere => bail!("attention: queries that see all keys take no padding behind them"),
            _ => {
                if let Some(b) = (0..batch).find(|&b| shape.end[b] > keys || shape.end[b] <= shape.start[b]) {
                    bail!(
                        "attention: row {b} ends at key {} of {keys}, padding before it is {}",
                        shape.end[b],
                        shape.start[b]
                    );
                }
            }
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

/// Queries up to which keys and values are read in place instead of being packed.
const FEW: usize = 8;

/// Attention over the buffers of a cache.
struct Cached {
    attention: CausalAttention,
    /// Tokens that count.
    keys: usize,
    dv: usize,
}

impl Cached {
    /// Sizes of a call, and where things stand: `k` is `[b, capacity, kv_heads, d]`, and `v` too with a width of its own.
    fn places(&self, q: &[usize], k: [usize; 4], v: [usize; 4]) -> Result<(kernel::Shape, kernel::Places)> {
        let ([batch, capacity, kv_heads, _], keys) = (k, self.keys);
        if keys > capacity || v[..3] != k[..3] || v[3] < self.dv {
            bail!("attention: {keys} keys of a cache with keys {k:?} and values {v:?}");
        }
        if self.attention.uniform_padding {
            bail!("attention: padding is not computed over a cache");
        }
        let shape = self.attention.shape(q, &[batch, keys, kv_heads, k[3]], &[batch, keys, kv_heads, self.dv])?;
        let buffer =
            |dims: [usize; 4], width| kernel::Heads { tokens: dims[1], stride: dims[2] * dims[3], first: 0, width };
        let apart = apart(&shape);
        let places = kernel::Places { k: buffer(k, k[3]), v: buffer(v, v[3]), ..apart };
        Ok((shape, places))
    }

    fn run(
        &self,
        (s1, l1): (&CpuStorage, &Layout),
        (s2, l2, k): (&CpuStorage, &Layout, [usize; 4]),
        (s3, l3, v): (&CpuStorage, &Layout, [usize; 4]),
    ) -> Result<(CpuStorage, Shape)> {
        const NAME: &str = "moesaic-cached-attention";
        fn compute<T: Stored>(shape: &kernel::Shape, at: &kernel::Places, q: &[f32], k: &[T], v: &[T]) -> Vec<f32> {
            let mut out = vec![0f32; shape.batch * shape.queries * shape.heads * shape.dv];
            if shape.queries <= FEW {
                decode(shape, at, q, k, v, &mut out);
            } else {
                kernel::forward(shape, at, q, k, v, &mut out);
            }
            out
        }
        let (shape, places) = self.places(l1.dims(), k, v)?;
        let q = as_f32(s1, l1, NAME)?;
        macro_rules! stored {
            ($t:ty) => {
                compute(&shape, &places, &q, slice::<$t>(s2, l2, NAME)?, slice::<$t>(s3, l3, NAME)?)
            };
        }
        let out = match (s2.dtype(), s3.dtype()) {
            (DType::F32, DType::F32) => stored!(f32),
            (DType::BF16, DType::BF16) => stored!(half::bf16),
            (DType::F16, DType::F16) => stored!(half::f16),
            (k, v) => bail!("{NAME}: keys of dtype {k:?} and values of {v:?}, expected both f32, bf16 or f16"),
        };
        let dims = (shape.batch, shape.queries, shape.heads, shape.dv);
        Ok((storage_of(out, s1.dtype(), NAME)?, dims.into()))
    }
}

impl CustomOp3 for Cached {
    fn name(&self) -> &'static str {
        "moesaic-cached-attention"
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
        let (k, v) = (l2.shape().dims4()?.into(), l3.shape().dims4()?.into());
        self.run((s1, l1), (s2, l2, k), (s3, l3, v))
    }
}

impl CustomOp2 for Cached {
    fn name(&self) -> &'static str {
        "moesaic-latent-attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, capacity, d) = l2.shape().dims3()?;
        let dims = [b, capacity, 1, d];
        self.run((s1, l1), (s2, l2, dims), (s2, l2, dims))
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
            end: self.attention.end.clone(),
            window: self.attention.window.unwrap_or(usize::MAX),
            uniform_padding: self.attention.uniform_padding,
            everywhere: self.attention.everywhere,
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
