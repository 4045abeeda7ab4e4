//! Mistral: Llama's decoder with a sliding window.
//!
//! Paper: Jiang et al., arXiv 2310.06825. Reference:
//! [`modeling_mistral.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/mistral/modeling_mistral.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{AttentionConfig, DecoderConfig, DenseConfig};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let common = &self.common;
        let attention = AttentionConfig::Grouped(common.grouped(common.head_dim)?);
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
            }),
            ..common.decoder("mistral", attention, eps, published)?
        };
        common.windows(&mut config.layers, |_| true)?;
        Ok(config)
    }
}
