//! Qwen2 and Qwen2.5, dense.
//!
//! Paper: Yang et al., arXiv 2407.10671. Reference:
//! [`modeling_qwen2.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen2/modeling_qwen2.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{AttentionConfig, DecoderConfig, DenseConfig, GroupedConfig};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    /// Without it `sliding_window` means nothing.
    #[serde(default)]
    use_sliding_window: bool,
    /// The first layer that slides.
    max_window_layers: Option<usize>,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        if !self.use_sliding_window {
            (self.common.sliding_window, self.common.layer_types) = (None, None);
        }
        let common = &self.common;
        let attention = GroupedConfig { qkv_bias: true, ..common.grouped(common.head_dim)? };
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
            }),
            ..common.decoder("qwen2", AttentionConfig::Grouped(attention), eps, published)?
        };
        let first = self.max_window_layers.unwrap_or(28);
        common.windows(&mut config.layers, |i| i >= first)?;
        Ok(config)
    }
}
