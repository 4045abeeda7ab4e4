//! The encoder of Whisper (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", arXiv 2212.04356).
//!
//! ```text
//! log-mel [b, mels, 3000] ─ conv 3, GELU ─ conv 3 / 2, GELU ─ + positions ─▶ layers: h += attention(LN h); h += mlp(LN h) ─ LN ─▶ [b, 1500, d]
//! ```

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Activation, ExpertBank, Init, Linear, Modality, Params, Probe, Tokens};
use serde::Deserialize;

use super::blocks::{self, Convolution, Kernel, MOST, Norm, WIDEST, activate, attend, dense, mlp, size};

/// LayerNorm's, which no config names.
const EPS: f64 = 1e-5;

/// The keys of `config.json` that the encoder needs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WhisperConfig {
    /// Width of a frame.
    pub d_model: usize,
    /// Layers.
    pub encoder_layers: usize,
    /// Heads of a layer's attention.
    pub encoder_attention_heads: usize,
    /// Width inside a feed-forward part.
    pub encoder_ffn_dim: usize,
    /// Bands of the spectrogram.
    pub num_mel_bins: usize,
    /// Frames that come out; the spectrogram has twice as many.
    pub max_source_positions: usize,
    /// Activation everywhere.
    #[serde(default = "gelu")]
    pub activation_function: String,
    /// Standard deviation of initial weights.
    #[serde(default = "std")]
    pub init_std: f64,
}

fn gelu() -> String {
    "gelu".to_string()
}

fn std() -> f64 {
    0.02
}

impl WhisperConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read, or a value makes no sense.
    pub fn load(dir: &Path) -> Result<Self> {
        let config: Self = blocks::read_config(dir)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<Activation> {
        size("d_model", self.d_model, WIDEST)?;
        size("encoder_layers", self.encoder_layers, MOST)?;
        size("encoder_attention_heads", self.encoder_attention_heads, MOST)?;
        size("encoder_ffn_dim", self.encoder_ffn_dim, WIDEST)?;
        size("num_mel_bins", self.num_mel_bins, MOST)?;
        size("max_source_positions", self.max_source_positions, WIDEST)?;
        if !self.d_model.is_multiple_of(self.encoder_attention_heads) {
            bail!("d_model {} is not a multiple of the {} heads", self.d_model, self.encoder_attention_heads);
        }
        Activation::from_name(&self.activation_function)
    }
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    ffn_norm: Norm,
    ffn: ExpertBank,
}

impl Layer {
    fn load(cfg: &WhisperConfig, activation: Activation, p: &Params) -> Result<Self> {
        let (h, init) = (cfg.d_model, Init::Normal(cfg.init_std));
        let map =
            |name: &str, bias| Linear::load(p, &format!("self_attn.{name}"), (h, h), bias, init).map(Linear::narrow);
        Ok(Self {
            attention_norm: Norm::load(p, "self_attn_layer_norm", h, EPS)?,
            q: map("q_proj", true)?,
            k: map("k_proj", false)?, // a bias would add the same to all scores of a query
            v: map("v_proj", true)?,
            out: map("out_proj", true)?,
            ffn_norm: Norm::load(p, "final_layer_norm", h, EPS)?,
            ffn: mlp(p, ["fc1", "fc2"], (h, cfg.encoder_ffn_dim), activation, init)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let n = self.attention_norm.forward(x)?;
        let (q, k, v) = (self.q.forward(&n)?, self.k.forward(&n)?, self.v.forward(&n)?);
        let x = (x + self.out.forward(&attend([&q, &k, &v], heads, None, None)?)?)?;
        let n = self.ffn_norm.forward(&x)?;
        x + dense(&self.ffn, &n)?
    }
}

/// The encoder of Whisper. Weights are of the dtype that they are loaded in, activations are f32 on the CPU, but for those that meet
/// bf16 in products of the processor's own ([`Linear::narrow`]).
#[derive(Debug)]
pub struct WhisperEncoder {
    config: WhisperConfig,
    activation: Activation,
    conv1: Convolution,
    conv2: Convolution,
    /// `[max_source_positions, d]`
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    dtype: DType,
}

impl WhisperEncoder {
    /// Loads a folder in the Hugging Face layout. The decoder's tensors are left alone; the encoder's may stand under
    /// `model.encoder.`, `encoder.`, `audio_encoder.` or no prefix.
    ///
    /// # Errors
    /// `config.json` or the weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, checkpoint) = (WhisperConfig::load(dir)?, Checkpoint::open(dir)?);
        let prefixes = ["model.encoder.", "encoder.", "audio_encoder.", ""];
        let prefix = blocks::prefix(&checkpoint, &prefixes, "conv1.weight", "Whisper")?;
        let params = Params::load(&checkpoint, dtype, device);
        let model = Self::new(config, &blocks::under(&params, prefix))?;
        blocks::all_used(&checkpoint, &params, "Whisper", |name| name.starts_with(prefix))?;
        Ok(model)
    }

    /// The encoder with tensors from `params`, whose prefix the caller has set.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn new(config: WhisperConfig, params: &Params) -> Result<Self> {
        let activation = config.validate()?;
        let d = config.d_model;
        let kernel = |inputs, stride| Kernel { inputs, outputs: d, size: 3, stride, pad: (1, 1) };
        let layers = params.pp("layers");
        let dtype = params.activations();
        let shape = [config.max_source_positions, d];
        let positions = params.pp("embed_positions").tensor("weight", shape, Init::Normal(config.init_std))?;
        Ok(Self {
            activation,
            conv1: Convolution::load(params, "conv1", kernel(config.num_mel_bins, 1), true)?,
            conv2: Convolution::load(params, "conv2", kernel(d, 2), true)?,
            positions: positions.to_dtype(dtype)?,
            layers: (0..config.encoder_layers)
                .map(|i| Layer::load(&config, activation, &layers.pp(i)))
                .collect::<Result<_>>()?,
            norm: Norm::load(params, "layer_norm", d, EPS)?,
            dtype,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &WhisperConfig {
        &self.config
    }

    /// Encodes spectrograms of one window each ([`WhisperFeatures`](crate::audio::WhisperFeatures)).
    ///
    /// # Shapes
    /// `features [b, num_mel_bins, 2 max_source_positions]` to tokens `[b, max_source_positions, d_model]`
    ///
    /// # Errors
    /// The features have another shape.
    pub fn forward(&self, features: &Tensor, probe: Option<&Probe>) -> Result<Tokens> {
        let (mels, frames) = (self.config.num_mel_bins, 2 * self.config.max_source_positions);
        match features.dims() {
            [_, m, t] if (*m, *t) == (mels, frames) => {}
            other => bail!(
                "the Whisper encoder takes features of shape [batch, {mels}, {frames}], found {other:?}; make them with \
                 WhisperFeatures::with_window({mels}, {})",
                frames * 160
            ),
        }
        let x = features.to_dtype(self.dtype)?.transpose(1, 2)?.contiguous()?;
        let x = activate(self.activation, &self.conv1.forward(&x)?)?;
        let x = activate(self.activation, &self.conv2.forward(&x)?)?;
        let mut x = x.broadcast_add(&self.positions)?;
        let record = |i: usize, x: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(format!("hidden_state_{i}"), x);
            }
        };
        for (i, layer) in self.layers.iter().enumerate() {
            record(i, &x);
            x = layer.forward(&x, self.config.encoder_attention_heads)?;
        }
        let x = self.norm.forward(&x)?;
        record(self.layers.len(), &x);
        if let Some(probe) = probe {
            probe.tensor("last_hidden_state", &x);
        }
        Ok(Tokens::new(x, Modality::Audio))
    }
}
