//! JetMoE: experts in attention as well, the queries' and the output's.
//!
//! Paper: Shen et al., arXiv 2404.07413. Reference:
//! [`modeling_jetmoe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/jetmoe/modeling_jetmoe.py).

use candle_core::{Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{AttentionConfig, AuxLoss, DecoderConfig, MixtureConfig, RouterConfig, SparseConfig};
use crate::decoder::names::{ExpertNames, Names};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    /// Width of a head.
    kv_channels: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    activation_function: Option<String>,
    aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        self.common.hidden_act = self.activation_function.take();
        self.common.tie_word_embeddings = self.common.tie_word_embeddings.or(Some(true));
        let common = &self.common;
        let Some(kv_heads) = common.num_key_value_heads else { bail!("num_key_value_heads is missing") };
        let (experts, k) = (self.num_local_experts, self.num_experts_per_tok);
        if let Some(heads) = common.num_attention_heads
            && heads != kv_heads.saturating_mul(k)
        {
            bail!("num_attention_heads is {heads}, expected {kv_heads} key-value heads x {k} experts per token");
        }
        let attention = AttentionConfig::Mixture(MixtureConfig {
            experts,
            k,
            kv_heads,
            head_dim: self.kv_channels,
            scale: 1.0 / (self.kv_channels as f64).sqrt(),
        });
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            sparse: Some(SparseConfig {
                experts,
                k,
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::TopKSoftmax,
                shared: None,
                output_bias: true,
            }),
            aux_loss: AuxLoss::Balance(self.aux_loss_coef.unwrap_or(0.01)),
            names: Names {
                attention: "self_attention",
                router: "router.layer.weight",
                experts: ExpertNames::Stacked(["input_linear", "output_linear"]),
                ..Names::LLAMA
            },
            ..common.decoder("jetmoe", attention, eps, published)?
        };
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        Ok(config)
    }
}
