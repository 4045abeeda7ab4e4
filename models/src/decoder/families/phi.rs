//! Phi-1, 1.5 and 2: attention and feed-forward part in parallel behind one LayerNorm, biases everywhere.
//!
//! Papers: Gunasekar et al., arXiv 2306.11644; Li et al., arXiv 2309.05463. Reference:
//! [`modeling_phi.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/phi/modeling_phi.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{
    AttentionConfig, DecoderConfig, DenseConfig, GroupedConfig, NormConfig, NormKind, QkNorm,
};
use crate::decoder::names::Names;

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    layer_norm_eps: Option<f64>,
    #[serde(default)]
    qk_layernorm: bool,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        self.common.partial_rotary_factor = self.common.partial_rotary_factor.or(Some(0.5));
        self.common.hidden_act = self.common.hidden_act.or(Some("gelu_new".into()));
        let common = &self.common;
        let attention = GroupedConfig {
            qkv_bias: true,
            output_bias: true,
            qk_norm: if self.qk_layernorm { QkNorm::LayerShared } else { QkNorm::None },
            ..common.grouped(common.head_dim)?
        };
        let eps = self.layer_norm_eps.unwrap_or(1e-5);
        Ok(DecoderConfig {
            norm: NormConfig { kind: NormKind::Layer, eps },
            parallel: true,
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: false,
                bias: true,
            }),
            head_bias: true,
            names: Names {
                final_norm: "model.final_layernorm",
                output: "dense",
                qk_norms: ("q_layernorm", "k_layernorm"),
                dense_maps: ["", "fc1", "fc2"],
                ..Names::LLAMA
            },
            ..common.decoder("phi", AttentionConfig::Grouped(attention), eps, published)?
        })
    }
}
