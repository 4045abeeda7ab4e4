//! Granite 3.0 MoE: constant multipliers of embeddings, scores, residuals and logits; all experts of a layer in two tensors.
//!
//! Paper: Granite Team, "Granite 3.0 Language Models" (2024). Reference:
//! [`modeling_granitemoe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/granitemoe/modeling_granitemoe.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, GroupedConfig, Multipliers, RouterConfig, SparseConfig,
};
use crate::decoder::names::{ExpertNames, Names};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    embedding_multiplier: Option<f64>,
    /// Instead of `1 / sqrt(head_dim)`.
    attention_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
    /// Without positions unless `rope`.
    position_embedding_type: Option<String>,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let common = &self.common;
        let bias = self.attention_bias;
        let attention = GroupedConfig {
            qkv_bias: bias,
            output_bias: bias,
            scale: self.attention_multiplier.unwrap_or(1.0),
            ..common.grouped(None)?
        };
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            sparse: Some(SparseConfig {
                experts: self.num_local_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::TopKSoftmax,
                shared: None,
                output_bias: false,
            }),
            multipliers: Multipliers {
                embedding: self.embedding_multiplier.unwrap_or(1.0),
                residual: self.residual_multiplier.unwrap_or(1.0),
                logits_divisor: self.logits_scaling.unwrap_or(1.0),
            },
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            names: Names {
                sparse: "block_sparse_moe",
                router: "router.layer.weight",
                experts: ExpertNames::Stacked(["input_linear", "output_linear"]),
                ..Names::LLAMA
            },
            ..common.decoder("granitemoe", AttentionConfig::Grouped(attention), eps, published)?
        };
        if self.position_embedding_type.is_some_and(|kind| kind != "rope") {
            config.rope = None;
        }
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        Ok(config)
    }
}
