//! The language model of Aria: Llama's attention, fine-grained experts with their inputs as rows, and shared experts that are
//! one network as wide as all of them.
//!
//! Paper: Li et al., arXiv 2410.05993, section 2.2. Reference:
//! [`modeling_aria.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/aria/modeling_aria.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{AttentionConfig, DecoderConfig, GroupedConfig, RouterConfig, SharedConfig, SparseConfig};
use crate::decoder::names::{ExpertNames, Names};

/// Where Aria's checkpoints keep it.
const NAMES: Names = Names {
    embed: "language_model.model.embed_tokens",
    layers: "language_model.model.layers",
    final_norm: "language_model.model.norm",
    head: "language_model.lm_head",
    router: "router.weight",
    experts: ExpertNames::InputMajor(["experts.fc1.weight", "experts.fc2.weight"]),
    shared: "shared_experts",
    ..Names::LLAMA
};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    /// Of one expert.
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    /// Of queries, keys, values and the output.
    #[serde(default)]
    attention_bias: bool,
    /// Of the shared experts.
    #[serde(default)]
    mlp_bias: bool,
    moe_num_experts: Option<usize>,
    moe_topk: Option<usize>,
    moe_num_shared_experts: Option<usize>,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let common = &self.common;
        let bias = self.attention_bias;
        let attention = GroupedConfig { qkv_bias: bias, output_bias: bias, ..common.grouped(common.head_dim)? };
        let shared = self.intermediate_size.saturating_mul(self.moe_num_shared_experts.unwrap_or(2));
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            sparse: Some(SparseConfig {
                experts: self.moe_num_experts.unwrap_or(8),
                k: self.moe_topk.unwrap_or(2),
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::TopKSoftmax,
                shared: (shared > 0).then_some(SharedConfig {
                    intermediate_size: shared,
                    gated: false,
                    bias: self.mlp_bias,
                    blended: false,
                }),
                output_bias: false,
            }),
            names: NAMES,
            ..common.decoder("aria_text", AttentionConfig::Grouped(attention), eps, published)?
        };
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        Ok(config)
    }
}
