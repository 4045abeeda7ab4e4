//! The parts that vision transformers share.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use moesaic_kernels::ops::layer_norm;
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, Init, Linear, Params};

/// Initial values of a map of so many inputs, for towers that are trained from nothing: outputs as wide as inputs, as CLIP
/// starts its maps (`CLIPPreTrainedModel._init_weights`).
fn scaled(inputs: usize) -> Init {
    Init::Normal((inputs.max(1) as f64).powf(-0.5))
}

/// LayerNorm with weight and bias.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    /// `{name}.weight [h]` and `{name}.bias [h]`.
    pub fn load(p: &Params, name: &str, h: usize, eps: f64) -> Result<Self> {
        let p = p.pp(name);
        let weight = p.tensor("weight", [h], Init::Ones)?.to_dtype(DType::F32)?;
        let bias = p.tensor("bias", [h], Init::Zeros)?.to_dtype(DType::F32)?;
        Ok(Self { weight, bias, eps })
    }

    /// `x [.., h]` to the same
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, Some(&self.bias), self.eps)
    }
}

/// A linear map of tensors that were loaded by hand: packed unless it is to be trained.
pub(crate) fn linear(p: &Params, weight: Tensor, bias: Option<Tensor>) -> Result<Linear> {
    let plain = Linear::new(weight, bias)?;
    if p.packs() { plain.pack() } else { Ok(plain) }
}

/// Cuts pictures into patches and maps each to a token: a convolution whose stride is its width.
#[derive(Clone, Debug)]
pub(crate) struct Patches {
    map: Linear,
    patch: usize,
    dtype: DType,
    device: Device,
}

impl Patches {
    /// `{name}.weight [h, 3, patch, patch]` and, if `bias`, `{name}.bias [h]`.
    pub fn load(p: &Params, name: &str, h: usize, patch: usize, bias: bool) -> Result<Self> {
        let (parts, width) = ([(format!("{name}.weight"), vec![h, 3, patch, patch])], 3 * patch * patch);
        let weight = p.stack(&[h, width], &parts, scaled(width))?;
        let bias = if bias { Some(p.tensor(&format!("{name}.bias"), [h], Init::Zeros)?) } else { None };
        // As in the decoder: on the CPU activations stay in f32 whatever the weights are.
        let dtype = p.activations();
        Ok(Self { map: linear(p, weight, bias)?, patch, dtype, device: p.device().clone() })
    }

    /// `pixels [b, 3, h, w]` to tokens `[b, rows * columns, width]` and `(rows, columns)`; what is left of a patch at the right
    /// and at the bottom is not seen.
    pub fn forward(&self, pixels: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let &[b, 3, h, w] = pixels.dims() else {
            bail!("a vision tower takes pixels [b, 3, h, w], not {:?}", pixels.dims());
        };
        let p = self.patch;
        let (rows, columns) = (h / p, w / p);
        if b == 0 || rows == 0 || columns == 0 {
            bail!("{b} pictures of {w} x {h} pixels have no patch of {p} x {p}");
        }
        // Processors leave pictures on the CPU.
        let x =
            pixels.to_device(&self.device)?.to_dtype(self.dtype)?.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?;
        let x = x.reshape((b, 3, rows, p, columns, p))?.permute((0, 2, 4, 1, 3, 5))?; // (b, rows, columns, 3, p, p)
        let x = x.reshape((b, rows * columns, 3 * p * p))?;
        Ok((self.map.forward(&x)?, (rows, columns)))
    }
}

/// Self-attention of all tokens of a picture.
#[derive(Clone, Debug)]
pub(crate) struct SelfAttention {
    qkv: Linear,
    out: Linear,
    heads: usize,
}

impl SelfAttention {
    /// Queries, keys and values under the three names, the output under the fourth, all with biases (`bias` switches those
    /// of the three off).
    pub fn load(p: &Params, names: [&str; 4], h: usize, heads: usize, bias: bool) -> Result<Self> {
        let init = scaled(h);
        let qkv = Linear::load_joint(p, &[(names[0], h), (names[1], h), (names[2], h)], h, bias, init)?;
        let out = Linear::load(p, names[3], (h, h), true, init)?;
        Ok(Self { qkv, out, heads })
    }

    /// `x [b * t, h]` to the same
    pub fn forward(&self, x: &Tensor, b: usize) -> Result<Tensor> {
        let d = self.out.input_width() / self.heads;
        let attention = CausalAttention::everywhere(1.0 / (d as f64).sqrt());
        self.out.forward(&attention.forward_joint(&self.qkv.forward(x)?, b, self.heads, self.heads)?)
    }
}

/// Attention of queries of their own to the tokens of a picture: torch's `MultiheadAttention`.
#[derive(Clone, Debug)]
pub(crate) struct CrossAttention {
    q: Linear,
    kv: Linear,
    out: Linear,
    heads: usize,
}

impl CrossAttention {
    /// `in_proj_weight [3h, h]`, `in_proj_bias [3h]`, `out_proj`.
    pub fn load(p: &Params, h: usize, heads: usize, init: Init) -> Result<Self> {
        let weight = p.tensor("in_proj_weight", [3 * h, h], init)?;
        let bias = p.tensor("in_proj_bias", [3 * h], Init::Zeros)?;
        let part = |from: usize, n: usize| linear(p, weight.narrow(0, from, n)?, Some(bias.narrow(0, from, n)?));
        Ok(Self { q: part(0, h)?, kv: part(h, 2 * h)?, out: Linear::load(p, "out_proj", (h, h), true, init)?, heads })
    }

    /// `q [b, n, h]`, `x [b, t, h]` to `[b, n, h]`
    pub fn forward(&self, q: &Tensor, x: &Tensor) -> Result<Tensor> {
        let ((b, n, h), t) = (q.dims3()?, x.dim(1)?);
        let d = h / self.heads;
        let q = self.q.forward(q)?.reshape((b, n, self.heads, d))?;
        let kv = self.kv.forward(x)?.reshape((b, t, 2 * self.heads, d))?; // (b, t, 2 heads, d)
        let (k, v) = (kv.narrow(2, 0, self.heads)?, kv.narrow(2, self.heads, self.heads)?);
        let attention = CausalAttention::everywhere(1.0 / (d as f64).sqrt());
        self.out.forward(&attention.forward(&q, &k, &v)?.reshape((b, n, h))?)
    }
}

/// Two linear maps with a non-linearity between: a bank of one expert, whose inference path is one region of all threads.
#[derive(Clone, Debug)]
pub(crate) struct Mlp(ExpertBank);

impl Mlp {
    /// `{names[0]}` and `{names[1]}`, both with biases.
    pub fn load(p: &Params, names: [&str; 2], (h, i): (usize, usize), act: Activation) -> Result<Self> {
        let weight = |name: &str, out: usize, inputs: usize| {
            let part = [(format!("{name}.weight"), vec![out, inputs])];
            p.storage(&[1, out, inputs], &part, scaled(inputs), false)
        };
        // Variables of one axis, which do not decay.
        let bias = |name: &str, out: usize| p.tensor(&format!("{name}.bias"), [out], Init::Zeros)?.unsqueeze(0);
        let bank = ExpertBank::mlp(weight(names[0], i, h)?, weight(names[1], h, i)?, act)?
            .with_biases(Some(bias(names[0], i)?), Some(bias(names[1], h)?))?;
        Ok(Self(if p.packs() { bank.pack()? } else { bank }))
    }

    /// `x [.., h]` to the same
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = x.dim(D::Minus1)?;
        let rows = x.reshape((x.elem_count() / h.max(1), h))?; // (rows, h)
        self.0.forward_dense(&rows)?.reshape(x.shape())
    }
}
