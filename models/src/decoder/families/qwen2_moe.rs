//! Qwen1.5-MoE and Qwen2-MoE: fine-grained experts and one shared expert behind a sigmoid gate.
//!
//! Paper: Yang et al., arXiv 2407.10671, section 2.2.2. Reference:
//! [`modeling_qwen2_moe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen2_moe/modeling_qwen2_moe.py).

use candle_core::{Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::{Common, yes};
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, DenseConfig, GroupedConfig, RouterConfig, SharedConfig, SparseConfig,
};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    /// Of dense layers.
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default = "yes")]
    qkv_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    shared_expert_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    router_aux_loss_coef: Option<f64>,
}

/// Layer `i` is sparse unless it is listed as dense, every `step` layers.
pub(super) fn is_sparse(i: usize, step: Option<usize>, dense: &Option<Vec<usize>>, experts: usize) -> bool {
    let listed = dense.as_ref().is_some_and(|dense| dense.contains(&i));
    !listed && experts > 0 && (i + 1).is_multiple_of(step.unwrap_or(1))
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        if !self.use_sliding_window {
            (self.common.sliding_window, self.common.layer_types) = (None, None);
        }
        let common = &self.common;
        let attention = GroupedConfig { qkv_bias: self.qkv_bias, ..common.grouped(None)? };
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
                shared: Some(SharedConfig {
                    intermediate_size: self.shared_expert_intermediate_size,
                    gated: true,
                    bias: false,
                    blended: false,
                }),
                output_bias: false,
            }),
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            ..common.decoder("qwen2_moe", AttentionConfig::Grouped(attention), eps, published)?
        };
        for (i, layer) in config.layers.iter_mut().enumerate() {
            layer.sparse = is_sparse(i, self.decoder_sparse_step, &self.mlp_only_layers, self.num_experts);
        }
        let first = self.max_window_layers.unwrap_or(28);
        common.windows(&mut config.layers, |i| i >= first)?;
        Ok(config)
    }
}
