//! Mixtral: Mistral's decoder with eight experts in every layer, two for each token.
//!
//! Paper: Jiang et al., arXiv 2401.04088. Reference:
//! [`modeling_mixtral.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/mixtral/modeling_mixtral.py).

use candle_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{AttentionConfig, AuxLoss, DecoderConfig, RouterConfig, SparseConfig};
use crate::decoder::names::{ExpertNames, Names};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Config {
    fn translate(mut self, published: Map<String, Value>) -> Result<DecoderConfig> {
        self.common.rope_theta = self.common.rope_theta.or(Some(1e6));
        let common = &self.common;
        let attention = AttentionConfig::Grouped(common.grouped(common.head_dim)?);
        let eps = self.rms_norm_eps.unwrap_or(1e-5);
        let mut config = DecoderConfig {
            sparse: Some(SparseConfig {
                experts: self.num_local_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
                router: RouterConfig::SoftmaxTopK { renormalise: true, scale: 1.0, groups: None },
                shared: None,
                output_bias: false,
            }),
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            names: Names { sparse: "block_sparse_moe", experts: ExpertNames::Each(["w1", "w3", "w2"]), ..Names::LLAMA },
            ..common.decoder("mixtral", attention, eps, published)?
        };
        config.layers.iter_mut().for_each(|l| l.sparse = true);
        common.windows(&mut config.layers, |_| true)?;
        Ok(config)
    }
}
