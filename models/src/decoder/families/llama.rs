//! Llama 1, 2 and 3, and models of their layout (Vicuna, SmolLM2).
//!
//! Papers: Touvron et al., arXiv 2302.13971 and 2307.09288; Llama Team, arXiv 2407.21783. Reference:
//! [`modeling_llama.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llama/modeling_llama.py).

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
    /// Of queries, keys, values and the output.
    #[serde(default)]
    attention_bias: bool,
    /// Of queries, keys and values alone, and of the output alone: GGUF files may have one without the other.
    qkv_bias: Option<bool>,
    output_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let common = &self.common;
        let bias = self.attention_bias;
        let attention = GroupedConfig {
            qkv_bias: self.qkv_bias.unwrap_or(bias),
            output_bias: self.output_bias.unwrap_or(bias),
            ..common.grouped(common.head_dim)?
        };
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        Ok(DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: self.mlp_bias,
            }),
            ..common.decoder("llama", AttentionConfig::Grouped(attention), eps, published)?
        })
    }
}
