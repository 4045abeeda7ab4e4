//! Phi-3.5-MoE: SparseMixer routing, LayerNorms with bias, LongRoPE.
//!
//! Papers: Abdin et al., arXiv 2404.14219; Liu et al., arXiv 2409.12136 (SparseMixer-v2). Reference:
//! [`modeling_phimoe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/phimoe/modeling_phimoe.py).
//!
//! `input_jitter_noise` and the sampling of experts belong to training in the reference; neither is done here.

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, GroupedConfig, NormConfig, NormKind, RouterConfig, SparseConfig,
};
use crate::decoder::names::{ExpertNames, Names};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    /// Of LayerNorms, despite its name.
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    lm_head_bias: bool,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    router_jitter_noise: Option<f64>,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        // The class's own base, which its published configs do name.
        self.common.rope_theta = self.common.rope_theta.or(Some(1e6));
        let common = &self.common;
        let bias = self.attention_bias;
        let attention = GroupedConfig { qkv_bias: bias, output_bias: bias, ..common.grouped(None)? };
        let eps = self.rms_norm_eps.unwrap_or(1e-5);
        let mut config = DecoderConfig {
            norm: NormConfig { kind: NormKind::Layer, eps },
            sparse: Some(SparseConfig {
                experts: self.num_local_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::SparseMixer { jitter: self.router_jitter_noise.unwrap_or(0.01) },
                shared: None,
                output_bias: false,
            }),
            head_bias: self.lm_head_bias,
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            names: Names { sparse: "block_sparse_moe", experts: ExpertNames::Each(["w1", "w3", "w2"]), ..Names::LLAMA },
            ..common.decoder("phimoe", AttentionConfig::Grouped(attention), eps, published)?
        };
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        common.windows(&mut config.layers, |_| true)?;
        Ok(config)
    }
}
