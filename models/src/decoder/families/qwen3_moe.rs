//! Qwen3-MoE: heads of their own width, with norms of queries and keys, and no shared expert.
//!
//! Paper: Yang et al., arXiv 2505.09388. Reference:
//! [`modeling_qwen3_moe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_moe/modeling_qwen3_moe.py).

use candle_core::{Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use super::qwen2_moe::is_sparse;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, DenseConfig, GroupedConfig, QkNorm, RouterConfig, SparseConfig,
};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    /// Of dense layers.
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    /// Of queries, keys, values and the output.
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        if !self.use_sliding_window {
            (self.common.sliding_window, self.common.layer_types) = (None, None);
        }
        let common = &self.common;
        let attention = GroupedConfig {
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            qk_norm: QkNorm::RmsPerHead,
            ..common.grouped(common.head_dim)?
        };
        if self.decoder_sparse_step == Some(0) {
            bail!("decoder_sparse_step is 0, expected 1 or more");
        }
        let (activation, eps) = (common.activation()?, self.rms_norm_eps.unwrap_or(1e-6));
        let mut config = DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation,
                gated: true,
                bias: false,
            }),
            sparse: (self.num_experts > 0).then_some(SparseConfig {
                experts: self.num_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.moe_intermediate_size,
                activation,
                gated: true,
                bias: false,
                router: RouterConfig::SoftmaxTopK { renormalise: self.norm_topk_prob, scale: 1.0, groups: None },
                shared: None,
                output_bias: false,
            }),
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            ..common.decoder("qwen3_moe", AttentionConfig::Grouped(attention), eps, published)?
        };
        for (i, layer) in config.layers.iter_mut().enumerate() {
            layer.sparse = is_sparse(i, self.decoder_sparse_step, &self.mlp_only_layers, self.num_experts);
        }
        common.windows(&mut config.layers, |_| true)?;
        Ok(config)
    }
}
