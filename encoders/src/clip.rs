//! The vision transformer of CLIP (Radford et al., arXiv 2103.00020; ViT: Dosovitskiy et al., arXiv 2010.11929).
//!
//! ```text
//! x = [class; patches W] + positions;  x = norm(x)
//! for each layer: x = x + attention(norm1(x));  x = x + mlp(norm2(x))
//! pooled = norm(x_class);  image embedding = pooled P
//! ```

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Activation, Init, Linear, Modality, Params, Probe, Routes, Tokens};
use serde_json::Value;

use crate::blocks::{Mlp, Norm, Patches, SelfAttention};
use crate::config::{self, Object};
use crate::cumo::SparseMlp;
use crate::tower::{Features, Tower};

/// Sizes of a CLIP tower.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
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
    /// Width of the image embedding.
    pub projection_dim: usize,
    /// `(experts, experts per token)` where each layer's network is a mixture (CuMo).
    pub experts: Option<(usize, usize)>,
}

/// What stands behind the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: a tower inside another model.
    None,
    /// The norm of the class token, or SigLIP's pooling: the tower alone.
    Pooled,
    /// And the projection into the space that pictures share with texts: a whole CLIP model.
    Projected,
}

impl ClipConfig {
    /// Translates a `config.json` of CLIP or of a model with such a `vision_config`.
    pub fn from_json(text: &str) -> Result<Self> {
        let map = config::parse(text)?;
        Self::of(&config::vision(&map))
    }

    pub(crate) fn of(object: &Object<'_>) -> Result<Self> {
        let hidden_size = object.size("hidden_size", Some(768))?;
        let config = Self {
            hidden_size,
            intermediate_size: object.size("intermediate_size", Some(3072))?,
            layers: object.size("num_hidden_layers", Some(12))?,
            heads: config::heads(object.size("num_attention_heads", Some(12))?, hidden_size)?,
            image_size: object.size("image_size", Some(224))?,
            patch_size: object.size("patch_size", Some(32))?,
            activation: Activation::from_name(&object.name("hidden_act", "quick_gelu")?)?,
            eps: object.positive("layer_norm_eps", 1e-5)?,
            projection_dim: object.size("projection_dim", Some(512))?,
            experts: None,
        };
        config::patches(config.image_size, config.patch_size)?;
        Ok(config)
    }
}

/// The network of a layer.
#[derive(Debug)]
enum Network {
    Dense(Mlp),
    Sparse(SparseMlp),
}

/// A layer.
#[derive(Debug)]
struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    norm2: Norm,
    network: Network,
}

impl Layer {
    fn load(cfg: &ClipConfig, p: &Params) -> Result<Self> {
        let h = cfg.hidden_size;
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let network = match cfg.experts {
            None => {
                let sizes = (h, cfg.intermediate_size);
                Network::Dense(Mlp::load(&p.pp("mlp"), ["fc1", "fc2"], sizes, cfg.activation)?)
            }
            Some(experts) => Network::Sparse(SparseMlp::load(cfg, experts, p)?),
        };
        Ok(Self {
            norm1: Norm::load(p, "layer_norm1", h, cfg.eps)?,
            attention: SelfAttention::load(&p.pp("self_attn"), names, h, cfg.heads, true)?,
            norm2: Norm::load(p, "layer_norm2", h, cfg.eps)?,
            network,
        })
    }

    /// `x [b * t, h]` to the same, with the routes of a mixture.
    fn forward(&self, x: &Tensor, b: usize, name: &str) -> Result<(Tensor, Option<Routes>)> {
        let x = (x + self.attention.forward(&self.norm1.forward(x)?, b)?)?;
        let n = self.norm2.forward(&x)?;
        let (y, routes) = match &self.network {
            Network::Dense(mlp) => (mlp.forward(&n)?, None),
            Network::Sparse(moe) => {
                let (y, routes) = moe.forward(&n, name)?;
                (y, Some(routes))
            }
        };
        Ok(((x + y)?, routes))
    }
}

/// What a pass through the layers gives.
pub(crate) struct Pass {
    /// The hidden states that were asked for, `[b, t, h]`, in that order.
    pub states: Vec<Tensor>,
    /// The routes of each sparse layer that was run.
    pub routes: Vec<Routes>,
}

/// What the whole tower gives.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// The last layer's output, not normed, `[b, 1 + patches, h]`.
    pub tokens: Tokens,
    /// The normed class token `[b, h]`, where the tower has its head.
    pub pooled: Option<Tensor>,
    /// The image embedding `[b, projection_dim]`, not scaled to length 1, where the tower has the projection.
    pub embedding: Option<Tensor>,
}

/// The vision tower of CLIP.
#[derive(Debug)]
pub struct ClipVision {
    config: ClipConfig,
    patches: Patches,
    class: Tensor,
    positions: Tensor,
    pre_norm: Norm,
    layers: Vec<Layer>,
    post_norm: Option<Norm>,
    projection: Option<Linear>,
}

impl ClipVision {
    /// Loads the tower of a folder: a whole CLIP model, or its vision part.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let map = config::read(dir)?;
        let projected = |v: &Value| v.as_str().is_some_and(|a| a == "CLIPModel" || a.ends_with("WithProjection"));
        let whole = map.get("architectures").and_then(Value::as_array).is_some_and(|a| a.iter().any(projected));
        let mut cfg = ClipConfig::of(&config::vision(&map))?;
        if map.contains_key("vision_config") {
            // The whole model's number counts; that of the part may be a default.
            cfg.projection_dim = Object(&map).size("projection_dim", Some(cfg.projection_dim))?;
        }
        let params = Params::load(&Checkpoint::open(dir)?, dtype, device);
        Self::new(cfg, &params, if whole { Head::Projected } else { Head::Pooled })
    }

    /// A tower of tensors `vision_model.*` (and `visual_projection`) of `p`.
    pub fn new(config: ClipConfig, p: &Params, head: Head) -> Result<Self> {
        let (h, init) = (config.hidden_size, Init::Normal(0.02));
        let side = config::patches(config.image_size, config.patch_size)?;
        let vision = p.pp("vision_model");
        let embeddings = vision.pp("embeddings");
        let layers = (0..config.layers).map(|i| Layer::load(&config, &vision.pp("encoder.layers").pp(i)));
        let post_norm = match head {
            Head::None => None,
            _ => Some(Norm::load(&vision, "post_layernorm", h, config.eps)?),
        };
        let projection = match head {
            Head::Projected => Some(Linear::load(p, "visual_projection", (config.projection_dim, h), false, init)?),
            _ => None,
        };
        Ok(Self {
            patches: Patches::load(&embeddings, "patch_embedding", h, config.patch_size, false)?,
            class: embeddings.tensor("class_embedding", [h], init)?.to_dtype(DType::F32)?,
            positions: embeddings
                .tensor("position_embedding.weight", [1 + side * side, h], Init::Grid { lead: 1, side })?
                .to_dtype(DType::F32)?,
            pre_norm: Norm::load(&vision, "pre_layrnorm", h, config.eps)?,
            layers: layers.collect::<Result<_>>()?,
            post_norm,
            projection,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The hidden states `wanted`, from 0 on. Without sparse layers only as many layers run as those need; `all` runs the
    /// rest too, for their losses.
    pub(crate) fn pass(&self, pixels: &Tensor, wanted: &[usize], all: bool, probe: Option<&Probe>) -> Result<Pass> {
        let side = self.config.image_size / self.config.patch_size;
        let (x, grid) = self.patches.forward(pixels)?;
        let (b, t, h) = x.dims3()?;
        if grid != (side, side) {
            let n = self.config.image_size;
            bail!("the tower takes pictures of {n} x {n} pixels, got {:?}", pixels.dims());
        }
        let dtype = x.dtype();
        let class = self.class.to_dtype(dtype)?.reshape((1, 1, h))?.broadcast_as((b, 1, h))?;
        let x = Tensor::cat(&[class, x], 1)?.broadcast_add(&self.positions.to_dtype(dtype)?)?;
        let mut x = self.pre_norm.forward(&x)?.reshape((b * (t + 1), h))?; // (b * t, h)
        let last = if all { self.layers.len() } else { wanted.iter().copied().max().unwrap_or(0) };
        let (mut states, mut routes) = (Vec::new(), Vec::new());
        for i in 0..=last {
            let state = x.reshape((b, t + 1, h))?;
            if let Some(probe) = probe {
                probe.tensor(format!("hidden.{i}"), &state);
            }
            states.push(wanted.contains(&i).then_some(state));
            let Some(layer) = self.layers.get(i).filter(|_| i < last) else { break };
            let (y, taken) = layer.forward(&x, b, &format!("layer {i}"))?;
            if let (Some(probe), Some(taken)) = (probe, &taken) {
                probe.routes(format!("layer.{i}"), taken);
            }
            routes.extend(taken);
            x = y;
        }
        let state = |&i: &usize| {
            states.get(i).cloned().flatten().ok_or_else(|| Error::msg(format!("hidden state {i} was not computed")))
        };
        Ok(Pass { states: wanted.iter().map(state).collect::<Result<_>>()?, routes })
    }

    /// All layers and the head.
    ///
    /// # Shapes
    /// `pixels [b, 3, image_size, image_size]`
    pub fn forward(&self, pixels: &Tensor, probe: Option<&Probe>) -> Result<ClipOutput> {
        let Pass { mut states, .. } = self.pass(pixels, &[self.layers.len()], true, probe)?;
        let Some(x) = states.pop() else { bail!("the tower has no output") };
        let pooled = match &self.post_norm {
            Some(norm) => Some(norm.forward(&x.narrow(1, 0, 1)?.squeeze(1)?)?), // (b, h)
            None => None,
        };
        let embedding = match (&self.projection, &pooled) {
            (Some(projection), Some(pooled)) => Some(projection.forward(pooled)?),
            _ => None,
        };
        Ok(ClipOutput { tokens: Tokens::new(x, Modality::Image), pooled, embedding })
    }
}

impl Tower for ClipVision {
    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn image_size(&self) -> (usize, usize) {
        (self.config.image_size, self.config.image_size)
    }

    fn encode(&self, pixels: &Tensor, features: &Features, probe: Option<&Probe>) -> Result<Tokens> {
        let wanted = features.states(self.layers.len())?;
        features.join(&self.pass(pixels, &wanted, false, probe)?.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tower::Select;

    const TINY: &str = r#"{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 8, "patch_size": 4, "projection_dim": 6}"#;

    fn pixels(n: usize) -> Result<Tensor> {
        let values: Vec<f32> = (0..n * 192).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, (n, 3, 8, 8), &Device::Cpu)
    }

    #[test]
    fn gradients_reach_every_variable() -> Result<()> {
        for experts in [None, Some((3, 2))] {
            let p = Params::init(4, &Device::Cpu);
            let tower = ClipVision::new(ClipConfig { experts, ..ClipConfig::from_json(TINY)? }, &p, Head::Projected)?;
            let embedding = tower.forward(&pixels(6)?, None)?.embedding.expect("a projection");
            let grads = (embedding.sqr()? + embedding)?.sum_all()?.backward()?;
            for (name, var) in p.variables() {
                let grad = grads.get(&var).map(|g| g.sqr()?.sum_all()?.to_scalar::<f32>()).transpose()?;
                assert!(grad.is_some_and(f32::is_finite), "{name} {grad:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_picture_has_the_same_bits_alone_and_in_a_batch() -> Result<()> {
        let p = Params::init(5, &Device::Cpu);
        let tower = ClipVision::new(ClipConfig::from_json(TINY)?, &p, Head::None)?;
        let features = Features { layers: vec![-2, -1], select: Select::Patch };
        let both = tower.encode(&pixels(2)?, &features, None)?.embeds;
        let alone = tower.encode(&pixels(2)?.narrow(0, 1, 1)?, &features, None)?.embeds;
        assert_eq!(alone.dims(), [1, 4, 32]);
        assert_eq!(both.narrow(0, 1, 1)?.flatten_all()?.to_vec1::<f32>()?, alone.flatten_all()?.to_vec1::<f32>()?);
        assert!(tower.encode(&pixels(2)?.narrow(2, 0, 4)?, &features, None).is_err());
        Ok(())
    }

    #[test]
    fn configs_that_make_no_tower() {
        for (from, to, words) in [
            ("\"num_attention_heads\": 2", "\"num_attention_heads\": 3", "3 heads"),
            ("\"patch_size\": 4", "\"patch_size\": 9", "no patch"),
            ("\"hidden_size\": 16", "\"hidden_size\": 0", "hidden_size is 0"),
            ("\"image_size\": 8", "\"image_size\": 1048576, \"hidden_act\": \"quick\"", "quick"),
        ] {
            let error = ClipConfig::from_json(&TINY.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
