//! The vision transformer of SigLIP (Zhai et al., arXiv 2303.15343): no class token, a norm behind the layers, and pooling
//! by attention (MAP head, arXiv 2106.04560).
//!
//! ```text
//! x = patches W + b + positions
//! for each layer: x = x + attention(norm1(x));  x = x + mlp(norm2(x))
//! y = norm(x);  a = attention(probe, y);  pooled = a + mlp(norm(a))
//! ```

mod spread;

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Activation, Init, Modality, Params, Probe, Tokens};

use crate::blocks::{CrossAttention, Mlp, Norm, Patches, SelfAttention};
use crate::clip::Head;
use crate::config::{self, Object};
use crate::tower::{Features, Tower};

/// Sizes of a SigLIP tower.
#[derive(Clone, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside the networks.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Pixels a side.
    pub image_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Between the two maps of a network.
    pub activation: Activation,
    /// Added to variances.
    pub eps: f64,
}

impl SiglipConfig {
    /// Translates a `config.json` of SigLIP or of a model with such a `vision_config`.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::of(&config::vision(&config::parse(text)?))
    }

    fn of(object: &Object<'_>) -> Result<Self> {
        let hidden_size = object.size("hidden_size", Some(768))?;
        let config = Self {
            hidden_size,
            intermediate_size: object.size("intermediate_size", Some(3072))?,
            layers: object.size("num_hidden_layers", Some(12))?,
            heads: config::heads(object.size("num_attention_heads", Some(12))?, hidden_size)?,
            image_size: object.size("image_size", Some(224))?,
            patch_size: object.size("patch_size", Some(16))?,
            activation: Activation::from_name(&object.name("hidden_act", "gelu_pytorch_tanh")?)?,
            eps: object.positive("layer_norm_eps", 1e-6)?,
        };
        config::patches(config.image_size, config.patch_size)?;
        Ok(config)
    }
}

/// A layer.
#[derive(Debug)]
struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    norm2: Norm,
    mlp: Mlp,
}

/// Pooling by attention.
#[derive(Debug)]
struct Pool {
    probe: Tensor,
    attention: CrossAttention,
    norm: Norm,
    mlp: Mlp,
}

impl Pool {
    fn load(cfg: &SiglipConfig, p: &Params) -> Result<Self> {
        let (h, init) = (cfg.hidden_size, Init::Normal(0.02));
        Ok(Self {
            probe: p.tensor("probe", [1, 1, h], init)?.to_dtype(DType::F32)?,
            attention: CrossAttention::load(&p.pp("attention"), h, cfg.heads, init)?,
            norm: Norm::load(p, "layernorm", h, cfg.eps)?,
            mlp: Mlp::load(&p.pp("mlp"), ["fc1", "fc2"], (h, cfg.intermediate_size), cfg.activation)?,
        })
    }

    /// `x [b, t, h]` to `[b, h]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, _, h) = x.dims3()?;
        let probe = self.probe.to_dtype(x.dtype())?.broadcast_as((b, 1, h))?.contiguous()?;
        let a = self.attention.forward(&probe, x)?.squeeze(1)?; // (b, h)
        &a + self.mlp.forward(&self.norm.forward(&a)?)?
    }
}

/// What the whole tower gives.
#[derive(Clone, Debug)]
pub struct SiglipOutput {
    /// All tokens, normed, `[b, patches, h]`.
    pub tokens: Tokens,
    /// `[b, h]`
    pub pooled: Tensor,
}

/// The vision tower of SigLIP.
#[derive(Debug)]
pub struct SiglipVision {
    config: SiglipConfig,
    patches: Patches,
    positions: Tensor,
    layers: Vec<Layer>,
    head: Option<(Norm, Pool)>,
}

impl SiglipVision {
    /// Loads the tower of a folder: a whole SigLIP model, or its vision part.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let cfg = SiglipConfig::of(&config::vision(&config::read(dir)?))?;
        Self::new(cfg, &Params::load(&Checkpoint::open(dir)?, dtype, device), Head::Pooled)
    }

    /// A tower of tensors `vision_model.*` of `p`. SigLIP has no projection: [`Head::Projected`] is taken as pooled.
    pub fn new(config: SiglipConfig, p: &Params, head: Head) -> Result<Self> {
        Self::bare(config, &p.pp("vision_model"), head)
    }

    /// A tower of tensors `embeddings.*`, `encoder.*` of `p` itself: Aria's (`idefics3_vision`), whose pictures may have any size
    /// ([`encode_any`](Self::encode_any)).
    pub fn bare(config: SiglipConfig, p: &Params, head: Head) -> Result<Self> {
        let h = config.hidden_size;
        let side = config::patches(config.image_size, config.patch_size)?;
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let layer = |i: usize| -> Result<Layer> {
            let p = p.pp("encoder.layers").pp(i);
            let sizes = (h, config.intermediate_size);
            Ok(Layer {
                norm1: Norm::load(&p, "layer_norm1", h, config.eps)?,
                attention: SelfAttention::load(&p.pp("self_attn"), names, h, config.heads, true)?,
                norm2: Norm::load(&p, "layer_norm2", h, config.eps)?,
                mlp: Mlp::load(&p.pp("mlp"), ["fc1", "fc2"], sizes, config.activation)?,
            })
        };
        let head = match head {
            Head::None => None,
            _ => Some((Norm::load(p, "post_layernorm", h, config.eps)?, Pool::load(&config, &p.pp("head"))?)),
        };
        let embeddings = p.pp("embeddings");
        Ok(Self {
            patches: Patches::load(&embeddings, "patch_embedding", h, config.patch_size, true)?,
            positions: embeddings
                .tensor("position_embedding.weight", [side * side, h], Init::Grid { lead: 0, side })?
                .to_dtype(DType::F32)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            head,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// The hidden states `wanted`, from 0 on, of pictures that fill the tower's square.
    fn pass(&self, pixels: &Tensor, wanted: &[usize], probe: Option<&Probe>) -> Result<Vec<Tensor>> {
        let side = self.config.image_size / self.config.patch_size;
        let (x, grid) = self.patches.forward(pixels)?;
        if grid != (side, side) {
            let n = self.config.image_size;
            bail!("the tower takes pictures of {n} x {n} pixels, got {:?}", pixels.dims());
        }
        let x = x.broadcast_add(&self.positions.to_dtype(x.dtype())?)?; // (b, t, h)
        self.states(&x, wanted, probe)
    }

    /// Features of pictures of any size as `idefics3_vision` gives them (Aria; NaViT, arXiv 2307.06304): the stored positions are
    /// spread over the picture, and patches without a real pixel are neither seen nor given. One batch row of tokens for each
    /// picture, with a mask where such patches are, which are zeros.
    ///
    /// Reference: [`modeling_idefics3.py`](https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/idefics3/modeling_idefics3.py);
    /// releases 4.x give patches the positions of their neighbours.
    ///
    /// # Shapes
    /// `pixels [b, 3, h, w]`, `mask [b, h, w]` (not zero = real) to `b` times `[1, rows * columns, width]`
    ///
    /// # Errors
    /// A mask of another shape, or one that leaves out the first row or column of patches.
    pub fn encode_any(
        &self,
        pixels: &Tensor,
        mask: Option<&Tensor>,
        features: &Features,
        probe: Option<&Probe>,
    ) -> Result<Vec<Tokens>> {
        let wanted = features.states(self.layers.len())?;
        let (x, grid) = self.patches.forward(pixels)?;
        let (b, t, _) = x.dims3()?;
        let real = match mask {
            None => vec![vec![true; t]; b],
            Some(mask) => spread::real_patches(mask, pixels.dims(), self.config.patch_size, grid)?,
        };
        let side = self.config.image_size / self.config.patch_size;
        let places = real.iter().map(|real| spread::places(real, grid, side)).collect::<Result<Vec<_>>>()?;
        let index = |values: &[u32]| Tensor::from_vec(values.to_vec(), values.len(), x.device());
        // Pictures that miss the same patches go through together.
        let together = real.windows(2).all(|two| two[0] == two[1]);
        let step = if together { b } else { 1 };
        let groups = (0..b).step_by(step.max(1)).map(|i| i..i + step);
        let mut all = Vec::with_capacity(b);
        for group in groups {
            let (Some(real), Some(places)) = (real.get(group.start), places.get(group.start)) else { continue };
            let shown: Vec<u32> = (0u32..).zip(real).filter(|(_, real)| **real).map(|(i, _)| i).collect();
            let (n, shown) = (shown.len(), index(&shown)?);
            let positions = self.positions.index_select(&index(places)?, 0)?.to_dtype(x.dtype())?; // (n, h)
            let seen = x.narrow(0, group.start, group.len())?.contiguous()?.index_select(&shown, 1)?;
            let states = self.states(&seen.broadcast_add(&positions)?, &wanted, probe)?;
            let given = features.join(&states)?.embeds;
            let width = given.dim(2)?;
            for i in 0..group.len() {
                let embeds = given.narrow(0, i, 1)?.contiguous()?;
                if n == t {
                    all.push(Tokens::new(embeds, Modality::Image));
                    continue;
                }
                if embeds.dim(1)? != n {
                    bail!("padded pictures give all their tokens or none");
                }
                let zeros = Tensor::zeros((1, t, width), embeds.dtype(), embeds.device())?;
                let mask: Vec<f32> = real.iter().map(|real| f32::from(u8::from(*real))).collect();
                let mask = Tensor::from_vec(mask, (1, t), embeds.device())?;
                let embeds = zeros.index_add(&shown, &embeds, 1)?;
                all.push(Tokens { mask: Some(mask), ..Tokens::new(embeds, Modality::Image) });
            }
        }
        Ok(all)
    }

    /// The hidden states `wanted` of embedded patches `x [b, t, h]`; only as many layers run as those need.
    fn states(&self, x: &Tensor, wanted: &[usize], probe: Option<&Probe>) -> Result<Vec<Tensor>> {
        let (b, t, h) = x.dims3()?;
        let mut x = x.reshape((b * t, h))?; // (b * t, h)
        let last = wanted.iter().copied().max().unwrap_or(0);
        let mut states = Vec::new();
        for i in 0..=last {
            let state = x.reshape((b, t, h))?;
            if let Some(probe) = probe {
                probe.tensor(format!("hidden.{i}"), &state);
            }
            states.push(wanted.contains(&i).then_some(state));
            let Some(layer) = self.layers.get(i).filter(|_| i < last) else { break };
            x = (&x + layer.attention.forward(&layer.norm1.forward(&x)?, b)?)?;
            x = (&x + layer.mlp.forward(&layer.norm2.forward(&x)?)?)?;
        }
        let state = |&i: &usize| {
            states.get(i).cloned().flatten().ok_or_else(|| Error::msg(format!("hidden state {i} was not computed")))
        };
        wanted.iter().map(state).collect()
    }

    /// All layers and the head.
    ///
    /// # Shapes
    /// `pixels [b, 3, image_size, image_size]`
    ///
    /// # Errors
    /// The tower was made without its head.
    pub fn forward(&self, pixels: &Tensor, probe: Option<&Probe>) -> Result<SiglipOutput> {
        let Some((norm, pool)) = &self.head else { bail!("this tower was made without its head") };
        let Some(x) = self.pass(pixels, &[self.layers.len()], probe)?.pop() else { bail!("the tower has no output") };
        let x = norm.forward(&x)?;
        Ok(SiglipOutput { pooled: pool.forward(&x)?, tokens: Tokens::new(x, Modality::Image) })
    }
}

impl Tower for SiglipVision {
    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn image_size(&self) -> (usize, usize) {
        (self.config.image_size, self.config.image_size)
    }

    fn encode(&self, pixels: &Tensor, features: &Features, probe: Option<&Probe>) -> Result<Tokens> {
        let wanted = features.states(self.layers.len())?;
        features.join(&self.pass(pixels, &wanted, probe)?)
    }
}
