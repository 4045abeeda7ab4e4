//! OLMoE: 64 small experts in every layer, norms over all heads of queries and keys together.
//!
//! Paper: Muennighoff et al., arXiv 2409.02060. Reference:
//! [`modeling_olmoe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/olmoe/modeling_olmoe.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, GroupedConfig, QkNorm, RouterConfig, SparseConfig,
};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    /// Of an expert.
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    clip_qkv: Option<f64>,
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let common = &self.common;
        let attention = GroupedConfig {
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            qk_norm: QkNorm::RmsWhole,
            clip: self.clip_qkv,
            ..common.grouped(None)?
        };
        let eps = self.rms_norm_eps.unwrap_or(1e-5);
        let mut config = DecoderConfig {
            sparse: Some(SparseConfig {
                experts: self.num_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::SoftmaxTopK { renormalise: self.norm_topk_prob, scale: 1.0, groups: None },
                shared: None,
                output_bias: false,
            }),
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.01)),
            ..common.decoder("olmoe", AttentionConfig::Grouped(attention), eps, published)?
        };
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        Ok(config)
    }
}
