//! The vision transformer of DINOv2 (Oquab et al., arXiv 2304.07193), with registers (Darcet et al., arXiv 2309.16588) or
//! without: scaled branches (LayerScale, arXiv 2103.17239) and positions that are interpolated to the picture's grid.
//!
//! ```text
//! x = [class; patches W + b] + positions of the grid;  registers go in behind the class token
//! for each layer: x = x + l1 * attention(norm1(x));  x = x + l2 * mlp(norm2(x))
//! y = norm(x)
//! ```

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::ops::silu_glu;
use moesaic_kernels::{Activation, Init, Linear, Modality, Params, Probe, Tokens};

use crate::blocks::{Mlp, Norm, Patches, SelfAttention};
use crate::config::{self, Object};
use crate::interpolate::bicubic;
use crate::tower::{Features, Select, Tower};

/// Sizes of a DINOv2 tower.
#[derive(Clone, Debug, PartialEq)]
pub struct DinoConfig {
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside the networks.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Pixels a side of the pictures whose positions are stored.
    pub image_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Between the two maps of a network.
    pub activation: Activation,
    /// Gated networks (the giant model).
    pub gated: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Added to variances.
    pub eps: f64,
    /// Tokens behind the class token that are of no patch.
    pub registers: usize,
}

impl DinoConfig {
    /// Translates a `config.json` of DINOv2.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::of(&Object(&config::parse(text)?))
    }

    fn of(object: &Object<'_>) -> Result<Self> {
        let hidden_size = object.size("hidden_size", Some(768))?;
        let registers = object.name("model_type", "dinov2")? == "dinov2_with_registers";
        let wide = (hidden_size as f64 * object.positive("mlp_ratio", 4.0)?) as usize;
        let gated = object.flag("use_swiglu_ffn", false)?;
        let config = Self {
            hidden_size,
            // Two thirds, rounded up to a multiple of eight.
            intermediate_size: if gated { (wide * 2 / 3).div_ceil(8) * 8 } else { wide }.max(1),
            layers: object.size("num_hidden_layers", Some(12))?,
            heads: config::heads(object.size("num_attention_heads", Some(12))?, hidden_size)?,
            image_size: object.size("image_size", Some(224))?,
            patch_size: object.size("patch_size", Some(if registers { 16 } else { 14 }))?,
            activation: Activation::from_name(&object.name("hidden_act", "gelu")?)?,
            gated,
            qkv_bias: object.flag("qkv_bias", true)?,
            eps: object.positive("layer_norm_eps", 1e-6)?,
            registers: if registers { object.size("num_register_tokens", Some(4))? } else { 0 },
        };
        if config.intermediate_size > 1 << 20 {
            bail!("config.json: mlp_ratio makes networks {} wide", config.intermediate_size);
        }
        config::patches(config.image_size, config.patch_size)?;
        Ok(config)
    }
}

/// The network of a layer.
#[derive(Debug)]
enum Network {
    Plain(Mlp),
    /// `weights_in [2i, h]`, gate first, and `weights_out [h, i]`.
    Gated(Linear, Linear),
}

/// A layer.
#[derive(Debug)]
struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    scale1: Tensor,
    norm2: Norm,
    network: Network,
    scale2: Tensor,
}

impl Layer {
    fn load(cfg: &DinoConfig, p: &Params) -> Result<Self> {
        let (h, i, init) = (cfg.hidden_size, cfg.intermediate_size, Init::Normal(0.02));
        let names = ["attention.query", "attention.key", "attention.value", "output.dense"];
        let scale = |name: &str| p.tensor(&format!("{name}.lambda1"), [h], Init::Ones)?.to_dtype(DType::F32);
        let mlp = p.pp("mlp");
        let network = match cfg.gated {
            false => Network::Plain(Mlp::load(&mlp, ["fc1", "fc2"], (h, i), cfg.activation)?),
            true => Network::Gated(
                Linear::load(&mlp, "weights_in", (2 * i, h), true, init)?,
                Linear::load(&mlp, "weights_out", (h, i), true, init)?,
            ),
        };
        Ok(Self {
            norm1: Norm::load(p, "norm1", h, cfg.eps)?,
            attention: SelfAttention::load(&p.pp("attention"), names, h, cfg.heads, cfg.qkv_bias)?,
            scale1: scale("layer_scale1")?,
            norm2: Norm::load(p, "norm2", h, cfg.eps)?,
            network,
            scale2: scale("layer_scale2")?,
        })
    }

    /// `x [b * t, h]` to the same
    fn forward(&self, x: &Tensor, b: usize) -> Result<Tensor> {
        let scaled = |y: Tensor, scale: &Tensor| y.broadcast_mul(&scale.to_dtype(x.dtype())?);
        let x = (x + scaled(self.attention.forward(&self.norm1.forward(x)?, b)?, &self.scale1)?)?;
        let n = self.norm2.forward(&x)?;
        let y = match &self.network {
            Network::Plain(mlp) => mlp.forward(&n)?,
            Network::Gated(wide, narrow) => narrow.forward(&silu_glu(&wide.forward(&n)?)?)?,
        };
        &x + scaled(y, &self.scale2)?
    }
}

/// What the whole tower gives.
#[derive(Clone, Debug)]
pub struct DinoOutput {
    /// All tokens, normed: the class token, registers, patches, `[b, 1 + registers + patches, h]`.
    pub tokens: Tokens,
    /// The normed class token, `[b, h]`.
    pub pooled: Tensor,
}

/// The vision tower of DINOv2. Takes pictures of any size.
#[derive(Debug)]
pub struct DinoVision {
    config: DinoConfig,
    patches: Patches,
    class: Tensor,
    registers: Option<Tensor>,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
}

impl DinoVision {
    /// Loads the tower of a folder.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let cfg = DinoConfig::of(&Object(&config::read(dir)?))?;
        Self::new(cfg, &Params::load(&Checkpoint::open(dir)?, dtype, device))
    }

    /// A tower of tensors `embeddings.*`, `encoder.layer.*` and `layernorm` of `p`.
    pub fn new(config: DinoConfig, p: &Params) -> Result<Self> {
        let (h, init) = (config.hidden_size, Init::Normal(0.02));
        let side = config::patches(config.image_size, config.patch_size)?;
        let embeddings = p.pp("embeddings");
        let tokens = |name: &str, n: usize, init| embeddings.tensor(name, [1, n, h], init)?.to_dtype(DType::F32);
        let layers = (0..config.layers).map(|i| Layer::load(&config, &p.pp("encoder.layer").pp(i)));
        Ok(Self {
            patches: Patches::load(&embeddings, "patch_embeddings.projection", h, config.patch_size, true)?,
            class: tokens("cls_token", 1, init)?,
            registers: match config.registers {
                0 => None,
                n => Some(tokens("register_tokens", n, init)?),
            },
            positions: tokens("position_embeddings", 1 + side * side, Init::Grid { lead: 1, side })?,
            layers: layers.collect::<Result<_>>()?,
            norm: Norm::load(p, "layernorm", h, config.eps)?,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &DinoConfig {
        &self.config
    }

    /// The stored positions, or those of another grid by bicubic interpolation, `[1, 1 + rows * columns, h]`.
    fn positions(&self, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let side = self.config.image_size / self.config.patch_size;
        if (rows, columns) == (side, side) {
            return Ok(self.positions.clone());
        }
        let h = self.config.hidden_size;
        let grid = self.positions.narrow(1, 1, side * side)?.reshape((1, side, side, h))?.permute((0, 3, 1, 2))?;
        let grid = bicubic(&grid, (rows, columns))?.permute((0, 2, 3, 1))?.reshape((1, rows * columns, h))?;
        Tensor::cat(&[&self.positions.narrow(1, 0, 1)?, &grid], 1)
    }

    /// The hidden states `wanted`, from 0 on; only as many layers run as those need.
    fn pass(&self, pixels: &Tensor, wanted: &[usize], probe: Option<&Probe>) -> Result<Vec<Tensor>> {
        let (x, grid) = self.patches.forward(pixels)?;
        let (b, _, h) = x.dims3()?;
        let dtype = x.dtype();
        let each = |token: &Tensor| -> Result<Tensor> {
            token.to_dtype(dtype)?.broadcast_as((b, token.dim(1)?, h))?.contiguous()
        };
        let x = Tensor::cat(&[each(&self.class)?, x], 1)?.broadcast_add(&self.positions(grid)?.to_dtype(dtype)?)?;
        let x = match &self.registers {
            None => x,
            Some(registers) => {
                let n = x.dim(1)? - 1;
                Tensor::cat(&[x.narrow(1, 0, 1)?, each(registers)?, x.narrow(1, 1, n)?], 1)?
            }
        };
        let t = x.dim(1)?;
        let mut x = x.reshape((b * t, h))?;
        let last = wanted.iter().copied().max().unwrap_or(0);
        let mut states = Vec::new();
        for i in 0..=last {
            let state = x.reshape((b, t, h))?;
            if let Some(probe) = probe {
                probe.tensor(format!("hidden.{i}"), &state);
            }
            states.push(wanted.contains(&i).then_some(state));
            let Some(layer) = self.layers.get(i).filter(|_| i < last) else { break };
            x = layer.forward(&x, b)?;
        }
        let state = |&i: &usize| {
            states.get(i).cloned().flatten().ok_or_else(|| Error::msg(format!("hidden state {i} was not computed")))
        };
        wanted.iter().map(state).collect()
    }

    /// All layers and the norm.
    ///
    /// # Shapes
    /// `pixels [b, 3, h, w]`
    pub fn forward(&self, pixels: &Tensor, probe: Option<&Probe>) -> Result<DinoOutput> {
        let Some(x) = self.pass(pixels, &[self.layers.len()], probe)?.pop() else { bail!("the tower has no output") };
        let x = self.norm.forward(&x)?;
        Ok(DinoOutput { pooled: x.narrow(1, 0, 1)?.squeeze(1)?, tokens: Tokens::new(x, Modality::Image) })
    }
}

impl Tower for DinoVision {
    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn image_size(&self) -> (usize, usize) {
        (self.config.image_size, self.config.image_size)
    }

    /// Of the last hidden state the normed one, as the model gives it. [`Select::Patch`] leaves the registers out too.
    fn encode(&self, pixels: &Tensor, features: &Features, probe: Option<&Probe>) -> Result<Tokens> {
        let wanted = features.states(self.layers.len())?;
        let mut states = self.pass(pixels, &wanted, probe)?;
        for (state, i) in states.iter_mut().zip(&wanted) {
            if *i == self.layers.len() {
                *state = self.norm.forward(state)?;
            }
            let (n, extra) = (state.dim(1)?, self.config.registers);
            if extra > 0 && features.select == Select::Patch {
                *state = Tensor::cat(&[state.narrow(1, 0, 1)?, state.narrow(1, 1 + extra, n - 1 - extra)?], 1)?;
            }
        }
        features.join(&states)
    }
}
