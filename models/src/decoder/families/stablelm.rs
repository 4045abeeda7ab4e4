//! StableLM: LayerNorms, rotary positions on a part of each head, optionally parallel residuals and norms by head.
//!
//! Papers: Bellagente et al., arXiv 2402.17834 (StableLM 2). Reference:
//! [`modeling_stablelm.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/stablelm/modeling_stablelm.py).

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
    use_qkv_bias: bool,
    #[serde(default)]
    qk_layernorm: bool,
    #[serde(default)]
    use_parallel_residual: bool,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        self.common.partial_rotary_factor = self.common.partial_rotary_factor.or(Some(0.25));
        let common = &self.common;
        let attention = GroupedConfig {
            qkv_bias: self.use_qkv_bias,
            qk_norm: if self.qk_layernorm { QkNorm::LayerEachHead } else { QkNorm::None },
            ..common.grouped(None)?
        };
        let eps = self.layer_norm_eps.unwrap_or(1e-5);
        Ok(DecoderConfig {
            norm: NormConfig { kind: NormKind::Layer, eps },
            parallel: self.use_parallel_residual,
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
            }),
            names: Names { qk_norms: ("q_layernorm", "k_layernorm"), ..Names::LLAMA },
            ..common.decoder("stablelm", AttentionConfig::Grouped(attention), eps, published)?
        })
    }
}
