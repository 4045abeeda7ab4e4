//! AV-HuBERT (Shi et al., "Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction", arXiv 2201.02184):
//! lips and sound of speech, or one of them, at 25 frames a second.
//!
//! ```text
//! video [b, 1, t, 88, 88] ─ ResNet-18, linear ─┐
//!                                              ├─ concat, LN, linear ─ + GELU(convolution over frames) ─ layers ─▶ [b, t, d]
//! audio [b, 104, t] ─ linear ──────────────────┘
//! ```
//!
//! Tensor names are those of fairseq's checkpoints, alone, inside a model that was fine-tuned (`encoder.w2v_model.`) or inside
//! Llama-AVSR (`video_encoder.`, `audiovisual_encoder.`). The authors give their code and weights for non-commercial research
//! only; this file is written from the paper and from the layout of the tensors.

mod config;
mod resnet;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::LowRank;
use moesaic_kernels::{Activation, Init, Linear, Modality, Params, Probe, Tokens};

pub use config::{AvHubertConfig, Fusion, ResNetRelu};

use super::blocks::{self, Norm, mask, under};
use super::layer::{Layer, LayerConfig, LayerNames};
use super::wave::{Positions, WeightNorm};
use resnet::VideoFront;

/// LayerNorm's, which no config names.
const EPS: f64 = 1e-5;
/// Of BERT (Devlin et al., arXiv 1810.04805), whose initial values the paper takes.
const INIT: Init = Init::Normal(0.02);
/// Frames of a clip at most, ten minutes.
pub const MOST_FRAMES: usize = 600 * 25;
/// Rows and columns of a frame at most.
const MOST_PIXELS: usize = 1 << 10;
/// What Llama-AVSR's adapters of AV-HuBERT are scaled by.
const LORA_SCALE: f64 = 2.0;
/// Prefixes that the encoder may have.
const PREFIXES: [&str; 5] =
    ["", "encoder.w2v_model.", "video_encoder.", "audiovisual_encoder.", "w2v_encoder.w2v_model."];

/// What the parts of a layer are called.
const NAMES: LayerNames =
    LayerNames { attention: "self_attn", attention_norm: "self_attn_layer_norm", ffn: ["fc1", "fc2"] };

/// The encoder of AV-HuBERT. Weights are of the dtype that they are loaded in, those of convolutions f32; activations are f32
/// on the CPU.
#[derive(Debug)]
pub struct AvHubert {
    config: AvHubertConfig,
    video: VideoFront,
    video_proj: Linear,
    audio_proj: Linear,
    norm: Norm,
    /// Where the fused width is not that of the layers.
    project: Option<Linear>,
    positions: Positions,
    /// After the positions, or after the last layer where norms come first.
    encoder_norm: Norm,
    layers: Vec<Layer>,
    dtype: DType,
}

impl AvHubert {
    /// Loads a folder with `config.json` and safetensors weights, as `moesaic convert` makes it of a published checkpoint, or with
    /// `checkpoint.pt` itself. Heads,
    /// decoders and what only training needs are left alone; Llama-AVSR's adapters of queries and values, where they are there,
    /// are attached.
    ///
    /// # Errors
    /// `config.json` or the weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(AvHubertConfig::load(dir)?, &Checkpoint::open_any(dir)?, dtype, device)
    }

    /// The same from weights that are open already.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn from_checkpoint(
        config: AvHubertConfig,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let prefix = blocks::prefix(checkpoint, &PREFIXES, "feature_extractor_audio.proj.weight", "AV-HuBERT")?;
        let params = Params::load(checkpoint, dtype, device);
        let mut model = Self::new(config, &under(&params, prefix))?;
        let down = format!("{prefix}encoder.layers.0.self_attn.lora_down_Q.weight");
        if let Some(&[rank, _]) = checkpoint.info(&down).map(|info| info.shape.as_slice()) {
            model.attach_lora(&under(&params, prefix), rank, LORA_SCALE)?;
        }
        let parts =
            ["feature_extractor_video.", "feature_extractor_audio.", "layer_norm.", "post_extract_proj.", "encoder."];
        blocks::all_used(checkpoint, &params, "AV-HuBERT", |name| {
            name.strip_prefix(prefix).is_some_and(|name| {
                parts.iter().any(|part| name.starts_with(part)) && !name.ends_with(".num_batches_tracked")
            })
        })?;
        Ok(model)
    }

    /// The encoder with tensors from `params`, whose prefix the caller has set.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn new(config: AvHubertConfig, params: &Params) -> Result<Self> {
        let activation = config.validate()?;
        let (cfg, d, fused) = (&config, config.encoder_embed_dim, config.fused());
        let sizes = LayerConfig {
            hidden: d,
            inner: cfg.encoder_ffn_embed_dim,
            heads: cfg.encoder_attention_heads,
            eps: EPS,
            before: cfg.layer_norm_first,
            activation,
            init: INIT,
        };
        let video = params.pp("feature_extractor_video");
        let encoder = params.pp("encoder");
        let shape = (d, cfg.conv_pos_groups, cfg.conv_pos);
        let project = match fused != d {
            true => Some(Linear::load(params, "post_extract_proj", (d, fused), true, INIT)?),
            false => None,
        };
        Ok(Self {
            video: VideoFront::load(&video.pp("resnet"), cfg)?,
            video_proj: Linear::load(&video, "proj", (d, cfg.resnet_planes[3]), true, INIT)?,
            audio_proj: Linear::load(params, "feature_extractor_audio.proj", (d, cfg.audio_feat_dim), true, INIT)?,
            norm: Norm::load(params, "layer_norm", fused, EPS)?,
            project,
            positions: Positions::at(&encoder.pp("pos_conv.0"), shape, WeightNorm::Plain, Activation::Gelu)?,
            encoder_norm: Norm::load(&encoder, "layer_norm", d, EPS)?,
            layers: (0..cfg.encoder_layers)
                .map(|i| Layer::load(&NAMES, sizes, None, &encoder.pp(format!("layers.{i}"))))
                .collect::<Result<_>>()?,
            dtype: params.activations(),
            config,
        })
    }

    /// Attaches the adapters that Llama-AVSR trains in AV-HuBERT for video: queries and values of every layer,
    /// `encoder.layers.N.self_attn.lora_{down, up}_{Q, V}.weight` of `params`. Published ones have a rank of the width over 16,
    /// and a scale of 2.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn attach_lora(&mut self, params: &Params, rank: usize, scale: f64) -> Result<()> {
        let d = self.config.encoder_embed_dim;
        blocks::size("the rank of the adapters", rank, d)?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let p = params.pp(format!("encoder.layers.{i}.self_attn"));
            for (letter, map) in [("Q", &mut layer.q), ("V", &mut layer.v)] {
                // Where PEFT starts from a second map of zeros, here the first one is zero.
                let down = p.tensor(&format!("lora_down_{letter}.weight"), [rank, d], Init::Zeros)?;
                let init = Init::Uniform(1.0 / (rank as f64).sqrt());
                let up = p.tensor(&format!("lora_up_{letter}.weight"), [d, rank], init)?;
                map.attach(LowRank::new("av_hubert", down, up, scale)?)?;
            }
        }
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &AvHubertConfig {
        &self.config
    }

    /// Audio of exactly `frames` frames: cut, or filled up with zeros, as AV-HuBERT does where sound and video differ in length.
    ///
    /// # Shapes
    /// `audio [b, c, t]` to `[b, c, frames]`
    pub fn fit(audio: &Tensor, frames: usize) -> Result<Tensor> {
        match audio.dim(2)? {
            t if t < frames => audio.pad_with_zeros(2, 0, frames - t),
            _ => audio.narrow(2, 0, frames),
        }
    }

    /// Checks the inputs; batch and frames.
    fn sizes(&self, video: Option<&Tensor>, audio: Option<&Tensor>) -> Result<(usize, usize)> {
        let video = match video.map(Tensor::dims) {
            None => None,
            Some(&[b, 1, t, h, w]) if (1..=MOST_PIXELS).contains(&h) && (1..=MOST_PIXELS).contains(&w) => Some((b, t)),
            Some(other) => bail!("AV-HuBERT takes video of shape [batch, 1, frames, 88, 88], found {other:?}"),
        };
        let audio = match audio.map(Tensor::dims) {
            None => None,
            Some(&[b, c, t]) if c == self.config.audio_feat_dim => Some((b, t)),
            Some(other) => bail!(
                "AV-HuBERT takes audio of shape [batch, {}, frames], found {other:?}; make it with AvHubertFeatures",
                self.config.audio_feat_dim
            ),
        };
        let (b, t) = match (video, audio) {
            (Some(video), Some(audio)) if video != audio => bail!(
                "{} clips of {} video frames with {} of {} audio frames; cut or fill the audio up with AvHubert::fit",
                video.0,
                video.1,
                audio.0,
                audio.1
            ),
            (Some(sizes), _) | (None, Some(sizes)) => sizes,
            (None, None) => bail!("AV-HuBERT needs video, audio or both"),
        };
        if b == 0 || t == 0 || t > MOST_FRAMES {
            bail!("AV-HuBERT takes clips of 1 to {MOST_FRAMES} frames, found {b} of {t}; cut longer ones into windows");
        }
        Ok((b, t))
    }

    /// Encodes clips at 25 frames a second: pixels from [`LipFrames`](crate::video::LipFrames), sound from
    /// [`AvHubertFeatures`](crate::audio::AvHubertFeatures), or one of them; the place of the other is taken by zeros. Of padded
    /// clips `lengths` says how many frames of each row are real; tokens after them mean nothing, and the mask of the tokens is 0
    /// there.
    ///
    /// # Shapes
    /// `video [b, 1, t, 88, 88]`, `audio [b, 104, t]` to tokens `[b, t, encoder_embed_dim]`
    ///
    /// # Errors
    /// Other shapes, or more than ten minutes.
    pub fn forward(
        &self,
        video: Option<&Tensor>,
        audio: Option<&Tensor>,
        lengths: Option<&[usize]>,
        probe: Option<&Probe>,
    ) -> Result<Tokens> {
        let (b, t) = self.sizes(video, audio)?;
        if lengths.is_some_and(|l| l.len() != b || l.iter().any(|&l| l > t)) {
            bail!("AV-HuBERT got {b} clips of {t} frames with lengths {lengths:?}");
        }
        let record = |name: &str, x: Result<Tensor>| match probe {
            Some(probe) => x.map(|x| probe.tensor(name, &x)),
            None => Ok(()),
        };
        let modality = if video.is_some() { Modality::Video } else { Modality::Audio };
        let zeros = || {
            let device = video.or(audio).map_or(&Device::Cpu, Tensor::device);
            Tensor::zeros((b, t, self.config.encoder_embed_dim), self.dtype, device)
        };
        let audio = match audio {
            None => zeros()?,
            Some(audio) => {
                let x = audio.to_dtype(self.dtype)?.transpose(1, 2)?.contiguous()?;
                let x = self.audio_proj.forward(&x)?;
                record("audio_features", x.transpose(1, 2))?;
                x
            }
        };
        let video = match video {
            None => zeros()?,
            Some(video) => {
                let (x, stem) = self.video.forward(&video.squeeze(1)?.to_dtype(DType::F32)?, probe.is_some())?;
                if let Some(stem) = stem {
                    record("frontend3d", stem.permute((0, 4, 1, 2, 3)))?;
                }
                record("resnet", x.transpose(1, 2))?;
                let x = self.video_proj.forward(&x.to_dtype(self.dtype)?)?;
                record("video_features", x.transpose(1, 2))?;
                x
            }
        };
        let x = match self.config.modality_fuse {
            Fusion::Concat => Tensor::cat(&[audio, video], 2)?,
            Fusion::Add => (audio + video)?,
        };
        let x = self.norm.forward(&x)?;
        record("fused_layernorm", Ok(x.clone()))?;
        let mut x = self.project.as_ref().map_or_else(|| Ok(x.clone()), |project| project.forward(&x))?;
        record("post_extract_proj", Ok(x.clone()))?;

        let real = lengths.map(|l| mask(l, t, x.device())).transpose()?;
        if let Some(real) = &real {
            // Positions are convolved over frames, which must not see the padding.
            x = x.broadcast_mul(&real.to_dtype(x.dtype())?.unsqueeze(2)?)?;
        }
        x = (&x + self.positions.forward(&x)?)?;
        if !self.config.layer_norm_first {
            x = self.encoder_norm.forward(&x)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, lengths, None)?;
            record(&format!("layer_{i}"), Ok(x.clone()))?;
        }
        if self.config.layer_norm_first {
            x = self.encoder_norm.forward(&x)?;
        }
        record("last_hidden", Ok(x.clone()))?;
        Ok(Tokens { mask: real, ..Tokens::new(x, modality) })
    }
}
