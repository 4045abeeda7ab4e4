//! Aria's projector (arXiv 2410.05993, section 2.1): learned queries look at the patches of a picture, more of them at a
//! larger picture.
//!
//! ```text
//! q = queries, as many as the number of patches says;  x' = norm_kv(x);  q' = norm(q)
//! a = attention(Wq q', Wk x', Wv x') Wl;  y = W2 gelu_tanh(W1 norm(a))
//! ```

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::ops::layer_norm;
use moesaic_kernels::{Activation, CausalAttention, Init, Linear, Modality, Params, Probe, Tokens};

use crate::{Projected, Projector, ProjectorInput, checked};

/// Sizes of the projector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueriesConfig {
    /// Width of the features.
    pub inputs: usize,
    /// Width of the backbone.
    pub outputs: usize,
    /// Attention heads.
    pub heads: usize,
    /// `projector_patch_to_query_dict`: queries for each number of patches.
    pub queries: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Norm(Tensor, Tensor);

impl Norm {
    fn load(p: &Params, h: usize) -> Result<Self> {
        let weight = p.tensor("weight", [h], Init::Ones)?.to_dtype(DType::F32)?;
        Ok(Self(weight, p.tensor("bias", [h], Init::Zeros)?.to_dtype(DType::F32)?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.0, Some(&self.1), 1e-5)
    }
}

/// Aria's projector.
#[derive(Debug)]
pub struct Queries {
    config: QueriesConfig,
    queries: Tensor,
    norm_q: Norm,
    norm_kv: Norm,
    /// The maps outside and inside torch's attention, of queries, keys and values.
    outer: [Linear; 3],
    inner: [Linear; 3],
    attended: Linear,
    linear: Linear,
    norm: Norm,
    feed_in: Linear,
    feed_out: Linear,
}

impl Queries {
    /// Tensors `query`, `cross_attn.*`, `layer_norm`, `feed_forward.*` of `p`.
    pub fn load(config: QueriesConfig, p: &Params) -> Result<Self> {
        let (h, out, init) = (config.inputs, config.outputs, Init::Normal(0.02));
        let Some(&most) = config.queries.values().max() else { bail!("the projector has no queries") };
        if config.heads == 0 || !h.is_multiple_of(config.heads) {
            bail!("a width of {h} does not divide into {} heads", config.heads);
        }
        let cross = p.pp("cross_attn");
        let inner = cross.pp("multihead_attn");
        let weight = inner.tensor("in_proj_weight", [3 * h, h], init)?;
        let bias = inner.tensor("in_proj_bias", [3 * h], Init::Zeros)?;
        let part = |i: usize| -> Result<Linear> {
            let plain = Linear::new(weight.narrow(0, i * h, h)?, Some(bias.narrow(0, i * h, h)?))?;
            if p.packs() { plain.pack() } else { Ok(plain) }
        };
        let outer = |name: &str| Linear::load(&cross, name, (h, h), false, init);
        let feed = p.pp("feed_forward");
        Ok(Self {
            queries: p.tensor("query", [most, h], init)?.to_dtype(DType::F32)?,
            norm_q: Norm::load(&cross.pp("layer_norm"), h)?,
            norm_kv: Norm::load(&cross.pp("layer_norm_kv"), h)?,
            outer: [outer("q_proj")?, outer("k_proj")?, outer("v_proj")?],
            inner: [part(0)?, part(1)?, part(2)?],
            attended: Linear::load(&inner, "out_proj", (h, h), true, init)?,
            linear: Linear::load(&cross, "linear", (h, h), true, init)?,
            norm: Norm::load(&p.pp("layer_norm"), h)?,
            feed_in: Linear::load(&feed, "linear_in", (out, h), false, init)?,
            feed_out: Linear::load(&feed, "linear_out", (out, out), false, init)?,
            config,
        })
    }

    /// `x [b, t, inputs]` of pictures with so many patches, seen or not, to `[b, queries, outputs]`
    fn forward(&self, x: &Tensor, patches: usize) -> Result<Tensor> {
        let (b, t, h) = x.dims3()?;
        let Some(&n) = self.config.queries.get(&patches) else {
            let known: Vec<_> = self.config.queries.keys().collect();
            bail!("the projector has no queries for {patches} patches; it has them for {known:?}");
        };
        let (heads, d) = (self.config.heads, h / self.config.heads);
        let q =
            self.queries.narrow(0, 0, n)?.to_dtype(x.dtype())?.unsqueeze(0)?.broadcast_as((b, n, h))?.contiguous()?;
        let (q, x) = (self.norm_q.forward(&q)?, self.norm_kv.forward(x)?);
        let map = |i: usize, x: &Tensor, t: usize| -> Result<Tensor> {
            self.inner[i].forward(&self.outer[i].forward(x)?)?.reshape((b, t, heads, d))
        };
        let attention = CausalAttention::everywhere(1.0 / (d as f64).sqrt());
        let a = attention.forward(&map(0, &q, n)?, &map(1, &x, t)?, &map(2, &x, t)?)?.reshape((b, n, h))?;
        let a = self.norm.forward(&self.linear.forward(&self.attended.forward(&a)?)?)?;
        self.feed_out.forward(&Activation::GeluTanh.apply(&self.feed_in.forward(&a)?)?)
    }
}

impl Projector for Queries {
    fn input_width(&self, modality: Modality) -> Option<usize> {
        matches!(modality, Modality::Image | Modality::Video).then_some(self.config.inputs)
    }

    fn output_width(&self) -> usize {
        self.config.outputs
    }

    /// All patches of a picture choose the queries; those that a mask leaves out are not looked at.
    fn project(&self, input: &ProjectorInput<'_>, _: Option<&Probe>) -> Result<Projected> {
        let one = |tokens: &Tokens| {
            let (b, t, _) = checked(self, tokens)?;
            let Some(mask) = &tokens.mask else {
                return Ok(Tokens::new(self.forward(&tokens.embeds, t)?, tokens.modality));
            };
            if mask.dims() != [b, t] {
                bail!("a mask of shape {:?} for tokens [{b}, {t}]", mask.dims());
            }
            let rows = mask.to_dtype(DType::F32)?.to_vec2::<f32>()?.into_iter().enumerate().map(|(row, mask)| {
                let seen: Vec<u32> = (0u32..).zip(&mask).filter(|(_, m)| **m != 0.0).map(|(i, _)| i).collect();
                if seen.is_empty() {
                    bail!("picture {row} has no patch that is not padding");
                }
                let seen = Tensor::from_vec(seen.clone(), seen.len(), tokens.embeds.device())?;
                self.forward(&tokens.embeds.narrow(0, row, 1)?.contiguous()?.index_select(&seen, 1)?, t)
            });
            Ok(Tokens::new(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?, tokens.modality))
        };
        Ok(Projected { tokens: input.tokens.iter().map(one).collect::<Result<_>>()?, routes: Vec::new() })
    }
}
