//! From samples to frames with positions: the parts before the transformer.

use candle_core::{DType, Result, Tensor};
use moesaic_kernels::conv::channel_norm;
use moesaic_kernels::{Activation, Init, Linear, Params};

use super::config::{StemNorm, WaveConfig, WeightNorm};
use crate::speech::blocks::{Convolution, Kernel, Norm, activate};

/// LayerNorm's and GroupNorm's in the stem, which no config names.
const EPS: f64 = 1e-5;

#[derive(Debug)]
enum After {
    Nothing,
    Channels { weight: Tensor, bias: Tensor },
    Frames(Norm),
}

/// The convolutions over samples (wav2vec 2.0, section 2): 16,000 samples become 49 frames in the published models.
#[derive(Debug)]
pub(super) struct Stem {
    convolutions: Vec<(Convolution, After)>,
    activation: Activation,
}

impl Stem {
    pub(super) fn load(cfg: &WaveConfig, activation: Activation, p: &Params) -> Result<Self> {
        let layers = p.pp("feature_extractor.conv_layers");
        let one = |i: usize| {
            let p = layers.pp(i);
            let inputs = if i == 0 { 1 } else { cfg.conv_dim[i - 1] };
            let outputs = cfg.conv_dim[i];
            let (size, stride) = (cfg.conv_kernel[i], cfg.conv_stride[i]);
            let kernel = Kernel { inputs, outputs, size, stride, pad: (0, 0) };
            let after = match (cfg.feat_extract_norm, i) {
                (StemNorm::Layer, _) => After::Frames(Norm::load(&p, "layer_norm", outputs, EPS)?),
                (StemNorm::Group, 0) => {
                    let p = p.pp("layer_norm");
                    After::Channels {
                        weight: p.tensor("weight", [outputs], Init::Ones)?.to_dtype(DType::F32)?,
                        bias: p.tensor("bias", [outputs], Init::Zeros)?.to_dtype(DType::F32)?,
                    }
                }
                (StemNorm::Group, _) => After::Nothing,
            };
            Ok((Convolution::load(&p, "conv", kernel, cfg.conv_bias)?, after))
        };
        Ok(Self { convolutions: (0..cfg.conv_dim.len()).map(one).collect::<Result<_>>()?, activation })
    }

    /// `samples [b, n]` to `[b, t, conv_dim]`
    pub(super) fn forward(&self, samples: &Tensor) -> Result<Tensor> {
        let mut x = samples.unsqueeze(2)?;
        for (convolution, after) in &self.convolutions {
            let y = convolution.forward(&x)?;
            let y = match after {
                After::Nothing => y,
                After::Channels { weight, bias } => channel_norm(&y, weight, bias, EPS)?,
                After::Frames(norm) => norm.forward(&y)?,
            };
            x = activate(self.activation, &y)?;
        }
        Ok(x)
    }
}

/// Norm and linear map from convolved frames to those of the transformer.
#[derive(Debug)]
pub(super) struct Projection {
    norm: Option<Norm>,
    map: Linear,
}

impl Projection {
    pub(super) fn load(cfg: &WaveConfig, p: &Params) -> Result<Self> {
        let (p, inputs) = (p.pp("feature_projection"), cfg.conv_dim.last().copied().unwrap_or(1));
        let norm = match cfg.feat_proj_layer_norm {
            true => Some(Norm::load(&p, "layer_norm", inputs, cfg.layer_norm_eps)?),
            false => None,
        };
        let init = Init::Normal(cfg.initializer_range);
        Ok(Self { norm, map: Linear::load(&p, "projection", (cfg.hidden_size, inputs), true, init)? })
    }

    /// The normed frames, and those projected.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let normed = self.norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))?;
        let projected = self.map.forward(&normed)?;
        Ok((normed, projected))
    }
}

/// Relative positions by a grouped convolution with weight normalisation over each tap (wav2vec 2.0, section 2).
#[derive(Debug)]
pub(in crate::speech) struct Positions {
    weight: Weight,
    groups: usize,
    width: usize,
    size: usize,
    activation: Activation,
}

#[derive(Debug)]
enum Weight {
    /// One convolution for each group, made at load.
    Ready(Vec<Convolution>),
    /// Length `[1, 1, size]` (absent where the weight is folded), direction `[h, h / groups, size]` and bias `[h]`, as variables.
    Trained { length: Option<Tensor>, direction: Tensor, bias: Tensor },
}

impl Positions {
    pub(super) fn load(cfg: &WaveConfig, activation: Activation, p: &Params) -> Result<Self> {
        let shape = (cfg.hidden_size, cfg.num_conv_pos_embedding_groups, cfg.num_conv_pos_embeddings);
        Self::at(&p.pp("encoder.pos_conv_embed.conv"), shape, cfg.weight_norm, activation)
    }

    /// Of width `h`, with so many groups and taps, at a prefix.
    pub(in crate::speech) fn at(
        p: &Params,
        (h, groups, size): (usize, usize, usize),
        norm: WeightNorm,
        activation: Activation,
    ) -> Result<Self> {
        let width = h / groups;
        let init = Init::Normal(2.0 / ((size * h) as f64).sqrt());
        let (length, direction) = match norm {
            WeightNorm::Plain => (Some("weight_g"), "weight_v"),
            WeightNorm::Parametrised => {
                (Some("parametrizations.weight.original0"), "parametrizations.weight.original1")
            }
            WeightNorm::Folded => (None, "weight"),
        };
        let direction = p.tensor(direction, [h, width, size], init)?;
        let length = length.map(|name| p.tensor(name, [1, 1, size], Init::Ones)).transpose()?;
        let bias = p.tensor("bias", [h], Init::Zeros)?;
        let mut this = Self { weight: Weight::Trained { length, direction, bias }, groups, width, size, activation };
        if !p.trains() {
            this.weight = Weight::Ready(this.convolutions(p.packs())?);
        }
        Ok(this)
    }

    fn convolutions(&self, packed: bool) -> Result<Vec<Convolution>> {
        let Weight::Trained { length, direction, bias } = &self.weight else { return Ok(Vec::new()) };
        let weight = match length {
            None => direction.clone(),
            Some(length) => {
                let dtype = direction.dtype();
                let (length, direction) = (length.to_dtype(DType::F32)?, direction.to_dtype(DType::F32)?);
                let norm = direction.sqr()?.sum_keepdim((0, 1))?.sqrt()?;
                direction.broadcast_mul(&(length / norm)?)?.to_dtype(dtype)?
            }
        };
        // With an even size the frame after the last one would come too: it is not padded for.
        let pad = (self.size / 2, self.size / 2 - usize::from(self.size.is_multiple_of(2)));
        let kernel = Kernel { inputs: self.width, outputs: self.width, size: self.size, stride: 1, pad };
        (0..self.groups)
            .map(|g| {
                let part = |t: &Tensor| t.narrow(0, g * self.width, self.width)?.contiguous();
                Convolution::new(packed, part(&weight)?, Some(part(bias)?), kernel)
            })
            .collect()
    }

    /// `x [b, t, h]` to the same
    pub(in crate::speech) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let made;
        let convolutions = match &self.weight {
            Weight::Ready(convolutions) => convolutions,
            Weight::Trained { .. } => {
                made = self.convolutions(false)?;
                &made
            }
        };
        let parts = convolutions.iter().enumerate();
        let parts = parts.map(|(g, c)| c.forward(&x.narrow(2, g * self.width, self.width)?.contiguous()?));
        activate(self.activation, &Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 2)?)
    }
}
