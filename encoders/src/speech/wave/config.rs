//! `config.json` of wav2vec 2.0 and the models that share its layout.

use std::path::Path;

use candle_core::{Result, bail};
use moesaic_kernels::Activation;
use moesaic_kernels::checkpoint::Checkpoint;
use serde::Deserialize;

use crate::speech::blocks::{MOST, WIDEST, read_config, size};

/// How the convolutions over samples are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StemNorm {
    /// Each channel of the first one over time: base models.
    Group,
    /// Each frame of each: large models.
    Layer,
}

/// How the weight of the positional convolution is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightNorm {
    /// Length and direction as `weight_g` and `weight_v`.
    #[default]
    Plain,
    /// The same as `parametrizations.weight.original0` and `original1`.
    Parametrised,
    /// Already multiplied, as `weight`.
    Folded,
}

/// The keys of `config.json` that the encoders need.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WaveConfig {
    /// Width of a frame.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of a layer's attention.
    pub num_attention_heads: usize,
    /// Width inside a feed-forward part.
    pub intermediate_size: usize,
    /// Activation of feed-forward parts.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Added to variances of the transformer's norms.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Norms before attention and feed-forward parts instead of after them.
    #[serde(default)]
    pub do_stable_layer_norm: bool,
    /// Channels of the convolutions over samples.
    pub conv_dim: Vec<usize>,
    /// Their sizes.
    pub conv_kernel: Vec<usize>,
    /// Their strides.
    pub conv_stride: Vec<usize>,
    /// They have biases.
    #[serde(default)]
    pub conv_bias: bool,
    /// Their norms.
    #[serde(default = "group")]
    pub feat_extract_norm: StemNorm,
    /// Their activation, and that of the positional convolution.
    #[serde(default = "gelu")]
    pub feat_extract_activation: String,
    /// Convolved frames are normed before they are projected; only HuBERT's config can say no.
    #[serde(default = "yes")]
    pub feat_proj_layer_norm: bool,
    /// Taps of the positional convolution.
    pub num_conv_pos_embeddings: usize,
    /// Its groups.
    pub num_conv_pos_embedding_groups: usize,
    /// A batch norm in it, which is not supported.
    #[serde(default)]
    pub conv_pos_batch_norm: bool,
    /// Further convolutions after the encoder, which are not supported.
    #[serde(default)]
    pub add_adapter: bool,
    /// Labels of the CTC head, where the checkpoint has one.
    #[serde(default)]
    pub vocab_size: usize,
    /// Standard deviation of initial weights.
    #[serde(default = "std")]
    pub initializer_range: f64,
    /// Buckets of relative positions: WavLM.
    #[serde(default = "buckets")]
    pub num_buckets: usize,
    /// Offset from which on all share a bucket: WavLM.
    #[serde(default = "distance")]
    pub max_bucket_distance: usize,
    /// Not in `config.json`: follows from the checkpoint.
    #[serde(skip)]
    pub weight_norm: WeightNorm,
}

fn gelu() -> String {
    "gelu".to_string()
}

fn eps() -> f64 {
    1e-5
}

fn group() -> StemNorm {
    StemNorm::Group
}

fn yes() -> bool {
    true
}

fn std() -> f64 {
    0.02
}

fn buckets() -> usize {
    320
}

fn distance() -> usize {
    800
}

/// Convolutions over samples, at most.
const MOST_CONVOLUTIONS: usize = 64;

impl WaveConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read, a value makes no sense, or something is asked for that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let config: Self = read_config(dir)?;
        config.validate()?;
        Ok(config)
    }

    /// The same config with the names under which a checkpoint holds the positional convolution, and the prefix of all names
    /// there (`prefix`, such as `wavlm.`, or none).
    pub fn named_as(mut self, checkpoint: &Checkpoint, prefix: &str) -> Self {
        let has = |name: &str| {
            let name = format!("encoder.pos_conv_embed.conv.{name}");
            checkpoint.info(&name).is_some() || checkpoint.info(&format!("{prefix}{name}")).is_some()
        };
        self.weight_norm = match () {
            () if has("parametrizations.weight.original0") => WeightNorm::Parametrised,
            () if has("weight") => WeightNorm::Folded,
            () => WeightNorm::Plain,
        };
        self
    }

    /// The activations of convolutions and of feed-forward parts.
    pub(super) fn validate(&self) -> Result<(Activation, Activation)> {
        size("hidden_size", self.hidden_size, WIDEST)?;
        size("num_hidden_layers", self.num_hidden_layers, MOST)?;
        size("num_attention_heads", self.num_attention_heads, MOST)?;
        size("intermediate_size", self.intermediate_size, WIDEST)?;
        size("num_conv_pos_embeddings", self.num_conv_pos_embeddings, MOST)?;
        size("num_conv_pos_embedding_groups", self.num_conv_pos_embedding_groups, MOST)?;
        size("the number of convolutions", self.conv_dim.len(), MOST_CONVOLUTIONS)?;
        if self.conv_kernel.len() != self.conv_dim.len() || self.conv_stride.len() != self.conv_dim.len() {
            bail!("conv_dim, conv_kernel and conv_stride must have one value for each convolution; check config.json");
        }
        for ((&dim, &kernel), &stride) in self.conv_dim.iter().zip(&self.conv_kernel).zip(&self.conv_stride) {
            size("a value of conv_dim", dim, WIDEST)?;
            size("a value of conv_kernel", kernel, MOST)?;
            size("a value of conv_stride", stride, MOST)?;
        }
        for (what, parts) in [("heads", self.num_attention_heads), ("groups", self.num_conv_pos_embedding_groups)] {
            if !self.hidden_size.is_multiple_of(parts) {
                bail!("hidden_size {} is not a multiple of the {parts} {what}; check config.json", self.hidden_size);
            }
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            bail!("layer_norm_eps is {}, expected a positive number", self.layer_norm_eps);
        }
        if self.conv_pos_batch_norm {
            bail!("conv_pos_batch_norm is not supported; the published models but one do without it");
        }
        if self.add_adapter {
            bail!("add_adapter is not supported; take a model without adapter layers after its encoder");
        }
        Ok((Activation::from_name(&self.feat_extract_activation)?, Activation::from_name(&self.hidden_act)?))
    }

    /// Frames that come of `n` samples.
    pub fn frames(&self, n: usize) -> usize {
        let step =
            |n: usize, (&kernel, &stride): (&usize, &usize)| n.checked_sub(kernel).map_or(0, |n| n / stride.max(1) + 1);
        self.conv_kernel.iter().zip(&self.conv_stride).fold(n, step)
    }

    /// Samples that give one frame: the shortest clip there can be (400 in all published models, 25 ms).
    pub fn shortest(&self) -> usize {
        let step =
            |n: usize, (&kernel, &stride): (&usize, &usize)| (n - 1).saturating_mul(stride).saturating_add(kernel);
        self.conv_kernel.iter().zip(&self.conv_stride).rev().fold(1, step)
    }
}
