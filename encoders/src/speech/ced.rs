//! CED, a transformer for sounds of all kinds (Dinkel et al., "CED: Consistent ensemble distillation for audio tagging", arXiv
//! 2308.11957): an audio spectrogram transformer with positions for time and for frequency.
//!
//! ```text
//! mels in dB [b, 64, t] ─ BatchNorm of bands ─ chunks of 1012 frames ─ 16 x 16 patches, + time, + frequency ─▶ layers:
//!     h += attention(LN h); h += mlp(LN h) ─ LN ─▶ [b, chunks * 4 * 63, d]
//! ```
//!
//! The patches of a chunk stand by frequency, then by time. [`CedFeatures`](crate::audio::CedFeatures) makes the spectrogram.

mod config;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::LowRank;
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, Init, Linear, Modality, Params, Probe, Tokens};

use super::blocks::{self, Norm, dense, mlp};
pub use config::CedConfig;

/// BatchNorm's.
const NORM_EPS: f64 = 1e-5;
/// LayerNorm's.
const EPS: f64 = 1e-6;
/// As timm starts vision transformers.
const INIT: Init = Init::Normal(0.02);
/// Frames of a clip at most: ten minutes.
const MOST_FRAMES: usize = 60_001;

/// BatchNorm of each band with the statistics of training, which no gradient changes.
#[derive(Debug)]
struct BandNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl BandNorm {
    /// `init_bn.1.{weight, bias, running_mean, running_var} [bands]`
    fn load(p: &Params, bands: usize) -> Result<Self> {
        let p = p.pp("init_bn.1");
        let of = |name: &str, init| p.tensor(name, [bands], init)?.to_dtype(DType::F32)?.reshape((bands, 1));
        Ok(Self {
            weight: of("weight", Init::Ones)?,
            bias: of("bias", Init::Zeros)?,
            mean: of("running_mean", Init::Zeros)?.detach(),
            variance: of("running_var", Init::Ones)?.detach(),
        })
    }

    /// `x [b, bands, t]` to the same
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = (&self.weight / (&self.variance + NORM_EPS)?.sqrt()?)?; // (bands, 1)
        x.broadcast_sub(&self.mean)?.broadcast_mul(&scale)?.broadcast_add(&self.bias)
    }
}

#[derive(Debug)]
struct Layer {
    norm1: Norm,
    qkv: Linear,
    out: Linear,
    norm2: Norm,
    ffn: ExpertBank,
}

impl Layer {
    fn load(cfg: &CedConfig, p: &Params) -> Result<Self> {
        let (d, attention) = (cfg.embed_dim, p.pp("attn"));
        let qkv = match cfg.split {
            true => {
                let parts = [("q_proj", d), ("k_proj", d), ("v_proj", d)];
                Linear::load_joint(&attention, &parts, d, cfg.qkv_bias, INIT)?
            }
            false => Linear::load(&attention, "qkv", (3 * d, d), cfg.qkv_bias, INIT)?,
        };
        Ok(Self {
            norm1: Norm::load(p, "norm1", d, EPS)?,
            qkv: qkv.narrow(),
            out: Linear::load(&attention, "proj", (d, d), true, INIT)?.narrow(),
            norm2: Norm::load(p, "norm2", d, EPS)?,
            ffn: mlp(p, ["mlp.fc1", "mlp.fc2"], (d, cfg.inner()), Activation::Gelu, INIT)?,
        })
    }

    /// `x [n, t, d]` to the same
    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (n, t, d) = x.dims3()?;
        let attention = CausalAttention::everywhere(1.0 / ((d / heads) as f64).sqrt());
        let qkv = self.qkv.forward(&self.norm1.forward(x)?.reshape((n * t, d))?)?; // (n * t, 3 d)
        let attended = self.out.forward(&attention.forward_joint(&qkv, n, heads, heads)?)?;
        let x = (x + attended.reshape((n, t, d))?)?;
        let normed = self.norm2.forward(&x)?;
        x + dense(&self.ffn, &normed)?
    }
}

/// The encoder of CED. Weights are of the dtype that they are loaded in, activations are f32 on the CPU, but for those that meet
/// bf16 in products of the processor's own ([`Linear::narrow`]).
#[derive(Debug)]
pub struct Ced {
    config: CedConfig,
    norm_in: BandNorm,
    /// Of a patch's `patch_size * patch_size` values, band by band.
    patches: Linear,
    /// `[d, columns]`
    time: Tensor,
    /// `[d, rows]`
    frequency: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    dtype: DType,
}

impl Ced {
    /// Loads a folder: `config.json` ([`CedConfig`]) and weights under the names of the published `audiotransformer_*.pt`, or with
    /// queries, keys and values apart, as U-SAM has them. The head for sound events and the front end's buffers are left alone.
    ///
    /// # Errors
    /// `config.json` or the weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, checkpoint) = (CedConfig::load(dir)?, Checkpoint::open(dir)?);
        let prefix = blocks::prefix(&checkpoint, &["", "encoder.", "model."], "patch_embed.proj.weight", "CED")?;
        let params = Params::load(&checkpoint, dtype, device);
        let model = Self::new(config.named_as(&checkpoint, prefix), &blocks::under(&params, prefix))?;
        blocks::all_used(&checkpoint, &params, "CED", |name| {
            name.strip_prefix(prefix).is_some_and(|name| !Self::ignorable(name))
        })?;
        Ok(model)
    }

    /// Tensors that published files hold and no forward pass needs.
    pub fn ignorable(name: &str) -> bool {
        name.starts_with("front_end.") || name.starts_with("outputlayer.") || name.ends_with(".num_batches_tracked")
    }

    /// The encoder with tensors from `params`, whose prefix the caller has set.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn new(config: CedConfig, params: &Params) -> Result<Self> {
        config.validate()?;
        let (d, p) = (config.embed_dim, config.patch_size);
        let (rows, columns) = config.grid();
        let patch = params.pp("patch_embed.proj");
        let weight = patch.stack(&[d, p * p], &[("weight".to_string(), vec![d, 1, p, p])], INIT)?;
        let patches = Linear::new(weight, Some(patch.tensor("bias", [d], Init::Zeros)?))?;
        let dtype = params.activations();
        let positions = |name: &str, shape: [usize; 4]| -> Result<Tensor> {
            params.tensor(name, shape, INIT)?.to_dtype(dtype)?.reshape((d, ()))
        };
        let layers = params.pp("blocks");
        Ok(Self {
            norm_in: BandNorm::load(params, config.n_mels)?,
            patches: if params.packs() { patches.pack()? } else { patches },
            time: positions("time_pos_embed", [1, d, 1, columns])?,
            frequency: positions("freq_pos_embed", [1, d, rows, 1])?,
            layers: (0..config.depth).map(|i| Layer::load(&config, &layers.pp(i))).collect::<Result<_>>()?,
            norm: Norm::load(params, "norm", d, EPS)?,
            dtype,
            config,
        })
    }

    /// Attaches adapters to queries and values, `blocks.{i}.attn.{q_proj, v_proj}.lora_{A, B}.default.weight` of `params`: what PEFT
    /// writes for a model whose three maps stand apart. `dropout` is at work in training only.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or a number makes no sense.
    pub fn attach_lora(&mut self, params: &Params, rank: usize, scale: f64, dropout: f64) -> Result<()> {
        let d = self.config.embed_dim;
        blocks::size("the rank of the adapters", rank, d)?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (name, first) in [("q_proj", 0), ("v_proj", 2 * d)] {
                let place = format!("blocks.{i}.attn.{name}");
                let p = params.pp(&place);
                let init = Init::Uniform(1.0 / (d as f64).sqrt()); // PEFT's: Kaiming's uniform with a = sqrt(5)
                let a = p.tensor("lora_A.default.weight", [rank, d], init)?;
                let b = p.tensor("lora_B.default.weight", [d, rank], Init::Zeros)?;
                layer.qkv.attach(LowRank::new("ced", a, b, scale)?.at(first).with_dropout(dropout, &place)?)?;
            }
        }
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &CedConfig {
        &self.config
    }

    /// Encodes spectrograms. A probe gets `init_bn [b, bands, t]`, `patch_embed [chunks * b, d, rows, columns]` and `block_{i}
    /// [chunks * b, rows * columns, d]`, chunks outermost, and `tokens`.
    ///
    /// # Shapes
    /// `features [b, n_mels, t]` in decibels to tokens `[b, chunks * rows * columns, d]`: of a clip of up to `target_length` frames one
    /// chunk with the columns that are full, else [`CedConfig::chunks`] of `target_length` frames
    ///
    /// # Errors
    /// There are fewer frames than a patch has, or more than ten minutes.
    pub fn forward(&self, features: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let cfg = &self.config;
        let (b, t) = match *features.dims() {
            [b, bands, t] if b > 0 && bands == cfg.n_mels && (cfg.patch_size..=MOST_FRAMES).contains(&t) => (b, t),
            _ => bail!(
                "CED takes features of shape [batch, {}, frames] with {} to {MOST_FRAMES} frames, found {:?}; fill shorter \
                 clips up with zeros and cut longer ones into windows",
                cfg.n_mels,
                cfg.patch_size,
                features.dims()
            ),
        };
        let record = |name: &str, x: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(name, x);
            }
        };
        let x = self.norm_in.forward(&features.to_dtype(DType::F32)?)?.to_dtype(self.dtype)?;
        record("init_bn", &x);
        let (x, chunks) = self.chunks(&x, t)?; // (chunks * b, bands, frames)
        let (mut x, columns) = self.embed(&x)?;
        let (n, tokens, d) = x.dims3()?;
        if let Some(probe) = probe {
            let grid = x.transpose(1, 2)?.reshape((n, d, tokens / columns.max(1), columns))?;
            probe.tensor("patch_embed", &grid);
        }
        x = x.broadcast_add(&self.positions(columns)?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, cfg.num_heads)?;
            record(&format!("block_{i}"), &x);
        }
        let x = self.norm.forward(&x)?;
        let x = x.reshape((chunks, b, tokens, d))?.transpose(0, 1)?.reshape((b, chunks * tokens, d))?;
        record("tokens", &x);
        Ok(Tokens::new(x, Modality::Audio))
    }

    /// `x [b, bands, t]` in chunks, one after the other, and their number.
    fn chunks(&self, x: &Tensor, t: usize) -> Result<(Tensor, usize)> {
        let (length, count) = (self.config.target_length, self.config.chunks(t));
        if t <= length {
            return Ok((x.clone(), 1));
        }
        if count == 0 {
            bail!("{t} frames make no chunk of {length} without padding (pad_last)");
        }
        let chunk = |i: usize| {
            let real = length.min(t - i * length);
            let part = x.narrow(2, i * length, real)?;
            if real < length { part.pad_with_zeros(2, 0, length - real) } else { Ok(part) }
        };
        Ok((Tensor::cat(&(0..count).map(chunk).collect::<Result<Vec<_>>>()?, 0)?, count))
    }

    /// `x [n, bands, t]` to `[n, rows * columns, d]` and the number of columns; what is left of a patch is not seen.
    fn embed(&self, x: &Tensor) -> Result<(Tensor, usize)> {
        let ((n, _, t), p) = (x.dims3()?, self.config.patch_size);
        let (rows, columns) = (self.config.grid().0, t / p);
        let x = x.narrow(1, 0, rows * p)?.narrow(2, 0, columns * p)?;
        let x = x.reshape((n, rows, p, columns, p))?.transpose(2, 3)?; // (n, rows, columns, p, p)
        let x = x.contiguous()?.reshape((n, rows * columns, p * p))?;
        Ok((self.patches.forward(&x)?, columns))
    }

    /// `[rows * columns, d]`
    fn positions(&self, columns: usize) -> Result<Tensor> {
        let time = self.time.narrow(1, 0, columns)?.unsqueeze(1)?; // (d, 1, columns)
        let sum = self.frequency.unsqueeze(2)?.broadcast_add(&time)?; // (d, rows, columns)
        sum.flatten_from(1)?.t()?.contiguous()
    }
}
