//! The encoder that wav2vec 2.0, HuBERT and WavLM share: convolutions over samples, positions by a convolution over frames, and a
//! transformer.

mod config;
mod stem;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Init, Linear, Modality, Params, Probe, Tokens};

pub use config::{StemNorm, WaveConfig, WeightNorm};

use super::blocks::{Norm, all_used, mask, prefix, size, under};
use super::layer::{Layer, LayerConfig, LayerNames};
use super::wavlm::Gate;
use super::wavlm::RelativePositions;
pub(super) use stem::Positions;
use stem::{Projection, Stem};

/// What the parts of a layer are called.
const NAMES: LayerNames = LayerNames {
    attention: "attention",
    attention_norm: "layer_norm",
    ffn: ["feed_forward.intermediate_dense", "feed_forward.output_dense"],
};

/// Samples of a clip at most, ten minutes: frames of the first convolution take 400 bytes a sample. Speech recognition cuts at 30 s.
pub const MOST_SAMPLES: usize = 600 * 16_000;

/// What differs between the models that share this encoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Name in messages.
    pub(super) name: &'static str,
    /// Prefix of a model with a head.
    pub(super) prefix: &'static str,
    /// Attention has gated relative positions.
    pub(super) relative: bool,
}

/// The shared encoder.
#[derive(Debug)]
pub(super) struct WaveEncoder {
    config: WaveConfig,
    kind: Kind,
    stem: Stem,
    projection: Projection,
    positions: Positions,
    relative: Option<RelativePositions>,
    /// After the positions, or after the last layer where norms come first.
    norm: Norm,
    layers: Vec<Layer>,
    /// Labels of connectionist temporal classification (Graves et al., 2006).
    head: Option<Linear>,
    dtype: DType,
}

impl WaveEncoder {
    pub(super) fn load(kind: Kind, dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (config, checkpoint) = (WaveConfig::load(dir)?, Checkpoint::open(dir)?);
        let prefix = prefix(&checkpoint, &[kind.prefix, ""], "feature_projection.projection.weight", kind.name)?;
        let params = Params::load(&checkpoint, dtype, device);
        let mut model = Self::new(kind, config.named_as(&checkpoint, prefix), &under(&params, prefix))?;
        if checkpoint.info("lm_head.weight").is_some() {
            model.add_head(&params)?;
        }
        // Heads, quantisers and the mask embedding of training are left alone.
        let parts = ["feature_extractor.", "feature_projection.", "encoder."];
        all_used(&checkpoint, &params, kind.name, |name| {
            name.strip_prefix(prefix).is_some_and(|name| parts.iter().any(|part| name.starts_with(part)))
        })?;
        Ok(model)
    }

    pub(super) fn new(kind: Kind, config: WaveConfig, p: &Params) -> Result<Self> {
        let (conv_act, act) = config.validate()?;
        let (cfg, layers) = (&config, p.pp("encoder.layers"));
        let relative = match kind.relative {
            true => Some(RelativePositions::load(cfg, &layers.pp("0.attention"))?),
            false => None,
        };
        let sizes = LayerConfig {
            hidden: cfg.hidden_size,
            inner: cfg.intermediate_size,
            heads: cfg.num_attention_heads,
            eps: cfg.layer_norm_eps,
            before: cfg.do_stable_layer_norm,
            activation: act,
            init: Init::Normal(cfg.initializer_range),
        };
        Ok(Self {
            kind,
            stem: Stem::load(cfg, conv_act, p)?,
            projection: Projection::load(cfg, p)?,
            positions: Positions::load(cfg, conv_act, p)?,
            relative,
            norm: Norm::load(p, "encoder.layer_norm", cfg.hidden_size, cfg.layer_norm_eps)?,
            layers: (0..cfg.num_hidden_layers)
                .map(|i| {
                    let p = layers.pp(i);
                    let gate = if kind.relative { Some(Gate::load(cfg, &p.pp("attention"))?) } else { None };
                    Layer::load(&NAMES, sizes, gate, &p)
                })
                .collect::<Result<_>>()?,
            head: None,
            dtype: p.activations(),
            config,
        })
    }

    /// `lm_head` of `params`.
    pub(super) fn add_head(&mut self, params: &Params) -> Result<()> {
        size("vocab_size", self.config.vocab_size, 1 << 24)?;
        let shape = (self.config.vocab_size, self.config.hidden_size);
        self.head = Some(Linear::load(params, "lm_head", shape, true, Init::Normal(self.config.initializer_range))?);
        Ok(())
    }

    pub(super) fn config(&self) -> &WaveConfig {
        &self.config
    }

    /// `samples [b, n]`, and how many of each row are real, to tokens `[b, frames(n), h]`.
    pub(super) fn forward(&self, samples: &Tensor, lengths: Option<&[usize]>, probe: Option<&Probe>) -> Result<Tokens> {
        let name = self.kind.name;
        let Ok((b, n)) = samples.dims2() else {
            bail!("{name} takes samples of shape [batch, samples], found {:?}", samples.dims())
        };
        let shortest = self.config.shortest();
        if n < shortest || n > MOST_SAMPLES {
            bail!(
                "{name} takes clips of {shortest} to {MOST_SAMPLES} samples, found {n}; fill shorter ones up with zeros and \
                 cut longer ones into windows"
            );
        }
        if lengths.is_some_and(|l| l.len() != b || l.iter().any(|&l| l > n)) {
            bail!("{name} got {b} clips of {n} samples with lengths {lengths:?}");
        }
        // Frames of a row that rest on real samples.
        let lengths = lengths.map(|l| l.iter().map(|&n| self.config.frames(n)).collect::<Vec<_>>());
        let lengths = lengths.as_deref();
        let record = |what: &str, x: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(what, x);
            }
        };

        let x = self.stem.forward(&samples.to_dtype(self.dtype)?)?;
        record("conv_features", &x);
        let (normed, mut x) = self.projection.forward(&x)?;
        record("extract_features", &normed);
        let t = x.dim(1)?;
        let real = lengths.map(|l| mask(l, t, x.device())).transpose()?;
        if let Some(real) = &real {
            // Positions are convolved over frames, which must not see the padding.
            x = x.broadcast_mul(&real.to_dtype(x.dtype())?.unsqueeze(2)?)?;
        }
        x = (&x + self.positions.forward(&x)?)?;
        let before = self.config.do_stable_layer_norm;
        if !before {
            x = self.norm.forward(&x)?;
        }
        let relative = self.relative.as_ref().map(|r| r.forward(t)).transpose()?;
        for (i, layer) in self.layers.iter().enumerate() {
            record(&format!("hidden_state_{i}"), &x);
            x = layer.forward(&x, lengths, relative.as_ref())?;
        }
        if before {
            x = self.norm.forward(&x)?;
        }
        record(&format!("hidden_state_{}", self.layers.len()), &x);
        record("last_hidden_state", &x);
        Ok(Tokens { mask: real, ..Tokens::new(x, Modality::Audio) })
    }

    pub(super) fn ctc_logits(&self, tokens: &Tokens) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(&tokens.embeds),
            None => bail!("this {} checkpoint has no lm_head; give one that was fine-tuned with CTC", self.kind.name),
        }
    }

    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }
}

/// The public face of a model on the shared encoder.
macro_rules! wave_model {
    ($(#[$doc:meta])* $name:ident, $kind:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($crate::speech::wave::WaveEncoder);

        impl $name {
            /// Loads a folder in the Hugging Face layout: `config.json` and safetensors weights, with or without the prefix that
            /// models with a head have. A CTC head (`lm_head`) is loaded where there is one; quantisers and other heads are left
            /// alone.
            ///
            /// # Errors
            /// `config.json` or the weights cannot be read or do not fit: the message says which.
            pub fn load(
                dir: &std::path::Path,
                dtype: candle_core::DType,
                device: &candle_core::Device,
            ) -> candle_core::Result<Self> {
                Ok(Self($crate::speech::wave::WaveEncoder::load($kind, dir, dtype, device)?))
            }

            /// The encoder with tensors from `params`, whose prefix the caller has set.
            ///
            /// # Errors
            /// The config makes no sense, or a tensor is missing or has another shape.
            pub fn new(config: $crate::speech::WaveConfig, params: &moesaic_kernels::Params) -> candle_core::Result<Self> {
                Ok(Self($crate::speech::wave::WaveEncoder::new($kind, config, params)?))
            }

            /// The configuration.
            pub fn config(&self) -> &$crate::speech::WaveConfig {
                self.0.config()
            }

            /// Encodes clips at 16 kHz, scaled as the model wants it ([`WaveNorm::load`](crate::audio::WaveNorm::load)). Of padded clips
            /// `lengths` says how many samples of each row are real; tokens after them mean nothing, and the mask of the tokens
            /// is 0 there. Without `lengths` all samples are real.
            ///
            /// # Shapes
            /// `samples [b, n]` to tokens `[b, frames(n), hidden_size]`, about 49 for 16,000 samples
            ///
            /// # Errors
            /// There are fewer samples than one frame takes (25 ms), or more than ten minutes.
            pub fn forward(
                &self,
                samples: &candle_core::Tensor,
                lengths: Option<&[usize]>,
                probe: Option<&moesaic_kernels::Probe>,
            ) -> candle_core::Result<moesaic_kernels::Tokens> {
                self.0.forward(samples, lengths, probe)
            }

            /// True if the checkpoint has a CTC head.
            pub fn has_ctc(&self) -> bool {
                self.0.has_head()
            }

            /// Scores of the labels of connectionist temporal classification.
            ///
            /// # Shapes
            /// tokens `[b, t, hidden_size]` to `[b, t, vocab_size]`
            ///
            /// # Errors
            /// The checkpoint has no such head.
            pub fn ctc_logits(&self, tokens: &moesaic_kernels::Tokens) -> candle_core::Result<candle_core::Tensor> {
                self.0.ctc_logits(tokens)
            }
        }
    };
}

pub(super) use wave_model;
