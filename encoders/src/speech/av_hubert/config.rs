//! The hyper-parameters of a checkpoint, as fairseq keeps them.

use std::path::Path;

use candle_core::{Result, bail};
use moesaic_kernels::Activation;
use serde::Deserialize;
use serde_json::Value;

use crate::speech::blocks::{MOST, WIDEST, read_config, size};

/// Pixels of a side that become one at most.
const MOST_POOL: usize = 8;

/// How audio and video frames become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// Side by side, audio first: all published models.
    #[default]
    Concat,
    /// Their sum.
    Add,
}

/// The non-linearity of the convolutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResNetRelu {
    /// With a slope for each channel.
    #[default]
    Prelu,
    /// Without.
    Relu,
}

/// The keys of fairseq's `cfg.model` that the encoder needs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AvHubertConfig {
    /// Transformer layers.
    pub encoder_layers: usize,
    /// Width of a frame.
    pub encoder_embed_dim: usize,
    /// Width inside a feed-forward part.
    pub encoder_ffn_embed_dim: usize,
    /// Heads of a layer's attention.
    pub encoder_attention_heads: usize,
    /// Norms before attention and feed-forward parts instead of after them.
    #[serde(default)]
    pub layer_norm_first: bool,
    /// Activation of feed-forward parts.
    #[serde(default = "gelu")]
    pub activation_fn: String,
    /// Values of an audio frame.
    #[serde(default = "stacked")]
    pub audio_feat_dim: usize,
    /// How the modalities become one.
    #[serde(default)]
    pub modality_fuse: Fusion,
    /// The non-linearity of the convolutions.
    #[serde(default)]
    pub resnet_relu_type: ResNetRelu,
    /// Transformer layers of each modality before they become one, which are not supported.
    #[serde(default)]
    pub sub_encoder_layers: usize,
    /// Taps of the positional convolution.
    #[serde(default = "taps")]
    pub conv_pos: usize,
    /// Its groups.
    #[serde(default = "groups")]
    pub conv_pos_groups: usize,
    /// Channels of the convolution over frames; 64 in published models, whose configs do not say so.
    #[serde(default = "channels")]
    pub resnet_frontend_channels: usize,
    /// Channels of the four stages of the ResNet; 64, 128, 256, 512 in published models, whose configs do not say so.
    #[serde(default = "planes")]
    pub resnet_planes: [usize; 4],
    /// Squares of so many pixels a side become their mean before the first convolution: a key of this project's small models,
    /// 1 in published ones.
    #[serde(default = "one")]
    pub resnet_input_pool: usize,
}

fn one() -> usize {
    1
}

fn gelu() -> String {
    "gelu".to_string()
}

fn stacked() -> usize {
    104
}

fn taps() -> usize {
    128
}

fn groups() -> usize {
    16
}

fn channels() -> usize {
    64
}

fn planes() -> [usize; 4] {
    [64, 128, 256, 512]
}

impl AvHubertConfig {
    /// Reads `config.json` of a folder: fairseq's `cfg` as `moesaic convert` writes it, or the keys of its `model` alone.
    ///
    /// # Errors
    /// The file cannot be read, a value makes no sense, or something is asked for that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::from_json(&read_config(dir)?)
    }

    /// The same of a value: fairseq's `cfg`, or its `model` alone. In the `cfg` of a model that was fine-tuned, that of the
    /// encoder stands under `model.w2v_args`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(json: &Value) -> Result<Self> {
        let model = json.get("model").filter(|m| m.is_object()).unwrap_or(json);
        let own = match model.get("w2v_args").filter(|args| args.is_object()) {
            Some(args) => args.get("model").filter(|m| m.is_object()).unwrap_or(args),
            None => model,
        };
        match Self::deserialize(own) {
            Ok(config) => config.validate().map(|_| config),
            Err(e) => bail!("the config is not that of an AV-HuBERT: {e}; take `cfg.model` of its checkpoint"),
        }
    }

    /// The activation of feed-forward parts.
    pub(super) fn validate(&self) -> Result<Activation> {
        size("encoder_layers", self.encoder_layers, MOST)?;
        size("encoder_embed_dim", self.encoder_embed_dim, WIDEST)?;
        size("encoder_ffn_embed_dim", self.encoder_ffn_embed_dim, WIDEST)?;
        size("encoder_attention_heads", self.encoder_attention_heads, MOST)?;
        size("audio_feat_dim", self.audio_feat_dim, WIDEST)?;
        size("conv_pos", self.conv_pos, MOST)?;
        size("conv_pos_groups", self.conv_pos_groups, MOST)?;
        size("resnet_frontend_channels", self.resnet_frontend_channels, MOST)?;
        size("resnet_input_pool", self.resnet_input_pool, MOST_POOL)?;
        self.resnet_planes.iter().try_for_each(|&n| size("a value of resnet_planes", n, MOST))?;
        for (what, parts) in [("heads", self.encoder_attention_heads), ("groups", self.conv_pos_groups)] {
            if !self.encoder_embed_dim.is_multiple_of(parts) {
                bail!("encoder_embed_dim {} is not a multiple of the {parts} {what}", self.encoder_embed_dim);
            }
        }
        if self.sub_encoder_layers > 0 {
            bail!(
                "sub_encoder_layers is {}; published models have none, and others are not supported",
                self.sub_encoder_layers
            );
        }
        match self.activation_fn.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "relu" => Ok(Activation::Relu),
            other => bail!("activation_fn {other:?} is not supported, gelu and relu are"),
        }
    }

    /// Width of the frames of both modalities together.
    pub(super) fn fused(&self) -> usize {
        match self.modality_fuse {
            Fusion::Concat => 2 * self.encoder_embed_dim,
            Fusion::Add => self.encoder_embed_dim,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_keys_may_stand_where_fairseq_puts_them() {
        let keys = json!({
            "_name": "av_hubert", "encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096,
            "encoder_attention_heads": 16, "layer_norm_first": true, "modality_fuse": "concat", "dropout": 0.1,
        });
        let config = AvHubertConfig::from_json(&keys).unwrap();
        assert_eq!((config.conv_pos, config.audio_feat_dim, config.resnet_planes), (128, 104, [64, 128, 256, 512]));
        let pretrained = json!({ "model": keys, "task": {} });
        let tuned = json!({ "model": { "_name": "av_hubert_seq2seq", "w2v_args": pretrained } });
        assert_eq!(AvHubertConfig::from_json(&pretrained).unwrap(), config);
        assert_eq!(AvHubertConfig::from_json(&tuned).unwrap(), config);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let error = |key: &str, value: Value| {
            let mut keys = json!({
                "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
            });
            assert!(AvHubertConfig::from_json(&keys).is_ok());
            keys[key] = value;
            AvHubertConfig::from_json(&keys).unwrap_err().to_string()
        };
        assert!(error("sub_encoder_layers", json!(1)).contains("sub_encoder_layers is 1"));
        assert!(error("activation_fn", json!("tanh")).contains("tanh"));
        assert!(error("modality_fuse", json!("weighted")).contains("weighted"));
        assert!(error("encoder_attention_heads", json!(5)).contains("multiple of the 5 heads"));
        assert!(error("resnet_planes", json!([64, 0, 1, 1])).contains("resnet_planes"));
        assert!(error("resnet_input_pool", json!(9)).contains("resnet_input_pool"));
        assert!(error("encoder_embed_dim", json!(1u64 << 40)).contains("encoder_embed_dim"));
        assert!(error("encoder_layers", json!("two")).contains("not that of an AV-HuBERT"));
    }
}
