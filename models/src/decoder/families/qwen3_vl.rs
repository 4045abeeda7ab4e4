//! The language models of Qwen3-VL, dense and sparse: Qwen3's with three streams of rotary positions, interleaved, and, in
//! the sparse one, experts with their inputs as rows.
//!
//! Paper: Bai et al., arXiv 2511.21631. References:
//! [`modeling_qwen3_vl.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl/modeling_qwen3_vl.py),
//! [`modeling_qwen3_vl_moe.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl_moe/modeling_qwen3_vl_moe.py).

use candle_core::{Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use super::qwen2_moe::is_sparse;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, DenseConfig, GroupedConfig, QkNorm, RouterConfig, SparseConfig,
};
use crate::decoder::names::{ExpertNames, Names};

/// Where Qwen3-VL's checkpoints keep it.
const NAMES: Names = Names {
    embed: "model.language_model.embed_tokens",
    layers: "model.language_model.layers",
    final_norm: "model.language_model.norm",
    experts: ExpertNames::InputMajor(["experts.gate_up_proj", "experts.down_proj"]),
    ..Names::LLAMA
};

#[derive(Deserialize)]
struct Keys {
    #[serde(flatten)]
    common: Common,
    /// Of dense layers.
    intermediate_size: usize,
    rms_norm_eps: Option<f64>,
    /// Of queries, keys, values and the output.
    #[serde(default)]
    attention_bias: bool,
}

impl Keys {
    /// The dense model. `head_dim` is the width of a head where the file does not say it.
    fn translate(
        mut self,
        model_type: &str,
        head_dim: Option<usize>,
        published: Map<String, Value>,
    ) -> Result<DecoderConfig> {
        self.common.rope_theta.get_or_insert(5e6);
        let common = &self.common;
        let attention = GroupedConfig {
            qkv_bias: self.attention_bias,
            output_bias: self.attention_bias,
            qk_norm: QkNorm::RmsPerHead,
            ..common.grouped(common.head_dim.or(head_dim))?
        };
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        let mut config = DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation: common.activation()?,
                gated: true,
                bias: false,
            }),
            names: NAMES,
            ..common.decoder(model_type, AttentionConfig::Grouped(attention), eps, published)?
        };
        if let Some(rope) = &mut config.rope {
            rope.sections = Some(common.sections([24, 20, 20])?);
        }
        Ok(config)
    }
}

/// Of `qwen3_vl`.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Dense(Keys);

impl Family for Dense {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        self.0.translate("qwen3_vl_text", Some(128), published)
    }
}

/// Of `qwen3_vl_moe`. Weights are renormalised whatever `norm_topk_prob` says.
#[derive(Deserialize)]
pub(super) struct Sparse {
    #[serde(flatten)]
    keys: Keys,
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    router_aux_loss_coef: Option<f64>,
}

impl Family for Sparse {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        if self.decoder_sparse_step == Some(0) {
            bail!("decoder_sparse_step is 0, expected 1 or more");
        }
        let activation = self.keys.common.activation()?;
        let mut config = DecoderConfig {
            sparse: (self.num_experts > 0).then_some(SparseConfig {
                experts: self.num_experts,
                k: self.num_experts_per_tok,
                intermediate_size: self.moe_intermediate_size,
                activation,
                gated: true,
                bias: false,
                router: RouterConfig::SoftmaxTopK { renormalise: true, scale: 1.0, groups: None },
                shared: None,
                output_bias: false,
            }),
            aux_loss: AuxLoss::Balance(self.router_aux_loss_coef.unwrap_or(0.001)),
            ..self.keys.translate("qwen3_vl_moe_text", None, published)?
        };
        for (i, layer) in config.layers.iter_mut().enumerate() {
            layer.sparse = is_sparse(i, self.decoder_sparse_step, &self.mlp_only_layers, self.num_experts);
        }
        Ok(config)
    }
}
