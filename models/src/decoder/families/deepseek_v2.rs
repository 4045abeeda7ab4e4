//! DeepSeek-V2 and V2-Lite: latent attention, fine-grained experts in groups, ungated shared experts.
//!
//! Paper: DeepSeek-AI, arXiv 2405.04434. Reference:
//! [`modeling_deepseek_v2.py`](https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/deepseek_v2/modeling_deepseek_v2.py);
//! releases 4.54 to 4.57 leave out what yarn multiplies the softmax scale with, which the published models need.

use candle_core::{Result, bail};
use moesaic_kernels::rotary::RotaryStyle;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::keys::Common;
use crate::decoder::config::{
    AttentionConfig, AuxLoss, DecoderConfig, DenseConfig, LatentConfig, RouterConfig, SharedConfig, SparseConfig,
};
use crate::decoder::names::Names;

/// The keys of V2, most of which V3 has too.
#[derive(Deserialize)]
pub(super) struct Keys {
    #[serde(flatten)]
    pub common: Common,
    /// Of dense layers.
    pub intermediate_size: usize,
    pub rms_norm_eps: Option<f64>,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub n_routed_experts: Option<usize>,
    pub n_shared_experts: Option<usize>,
    pub num_experts_per_tok: Option<usize>,
    pub moe_intermediate_size: usize,
    /// Layers before the first sparse one.
    #[serde(default)]
    pub first_k_dense_replace: usize,
    pub moe_layer_freq: Option<usize>,
    pub n_group: Option<usize>,
    pub topk_group: Option<usize>,
    pub topk_method: Option<String>,
    pub scoring_func: Option<String>,
    pub norm_topk_prob: Option<bool>,
    pub routed_scaling_factor: Option<f64>,
}

impl Keys {
    /// The decoder with routers of this equation.
    pub(super) fn translate(
        &self,
        model_type: &str,
        style: RotaryStyle,
        router: RouterConfig,
        published: Map<String, Value>,
    ) -> Result<DecoderConfig> {
        let common = &self.common;
        let Some(heads) = common.num_attention_heads else { bail!("num_attention_heads is missing") };
        let width = self.qk_nope_head_dim.saturating_add(self.qk_rope_head_dim);
        let attention = AttentionConfig::Latent(LatentConfig {
            heads,
            q_rank: self.q_lora_rank,
            kv_rank: self.kv_lora_rank,
            nope_dim: self.qk_nope_head_dim,
            rope_dim: self.qk_rope_head_dim,
            value_dim: self.v_head_dim,
            bias: self.attention_bias,
            scale: common.latent_scale()? / (width as f64).sqrt(),
        });
        let (activation, eps) = (common.activation()?, self.rms_norm_eps.unwrap_or(1e-6));
        let sparse = match (self.n_routed_experts, self.num_experts_per_tok) {
            (Some(experts), Some(k)) => {
                let shared = self.n_shared_experts.filter(|&n| n > 0);
                let shared = shared.map(|n| n.saturating_mul(self.moe_intermediate_size));
                Some(SparseConfig {
                    experts,
                    k,
                    intermediate_size: self.moe_intermediate_size,
                    activation,
                    gated: true,
                    bias: false,
                    router,
                    shared: shared.map(|intermediate_size| SharedConfig {
                        intermediate_size,
                        gated: false,
                        bias: false,
                        blended: false,
                    }),
                    output_bias: false,
                })
            }
            (None, _) => None,
            (Some(_), None) => bail!("num_experts_per_tok is missing"),
        };
        let mut config = DecoderConfig {
            rope: Some(common.rope(self.qk_rope_head_dim, style)?),
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size,
                activation,
                gated: true,
                bias: self.mlp_bias,
            }),
            sparse,
            names: Names { shared: "shared_experts", ..Names::LLAMA },
            ..common.decoder(model_type, attention, eps, published)?
        };
        if self.mlp_bias && config.sparse.is_some() {
            bail!("mlp_bias is set, which no published model has: biases of routed experts are not supported");
        }
        let every = self.moe_layer_freq.unwrap_or(1);
        if every == 0 {
            bail!("moe_layer_freq is 0, expected 1 or more");
        }
        for (i, layer) in config.layers.iter_mut().enumerate() {
            layer.sparse = config.sparse.is_some() && i >= self.first_k_dense_replace && i.is_multiple_of(every);
        }
        Ok(config)
    }

    /// `(n_group, topk_group)`
    pub(super) fn groups(&self) -> Result<(usize, usize)> {
        match (self.n_group, self.topk_group) {
            (Some(n), Some(keep)) => Ok((n, keep)),
            _ => bail!("n_group or topk_group is missing"),
        }
    }

    /// Checks that a key, where it is set, has the only value that is supported.
    pub(super) fn only(key: &str, value: &Option<String>, supported: &str) -> Result<()> {
        match value {
            Some(other) if other != supported => bail!("{key} {other:?} is not supported, expected {supported:?}"),
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    keys: Keys,
    aux_loss_alpha: Option<f64>,
    seq_aux: Option<bool>,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let keys = &self.keys;
        Keys::only("scoring_func", &keys.scoring_func, "softmax")?;
        if keys.norm_topk_prob == Some(true) {
            bail!("norm_topk_prob is set: the references disagree on what it does here, and no published model has it");
        }
        let groups = match keys.topk_method.as_deref().unwrap_or("greedy") {
            "greedy" => None,
            "group_limited_greedy" => Some(keys.groups()?),
            other => bail!("topk_method {other:?} is not supported, expected greedy or group_limited_greedy"),
        };
        let scale = keys.routed_scaling_factor.unwrap_or(1.0);
        let router = RouterConfig::SoftmaxTopK { renormalise: false, scale, groups };
        let alpha = self.aux_loss_alpha.unwrap_or(0.001);
        Ok(DecoderConfig {
            aux_loss: match self.seq_aux.unwrap_or(true) {
                true => AuxLoss::SequenceBalance(alpha),
                false => AuxLoss::LayerBalance(alpha),
            },
            ..keys.translate("deepseek_v2", RotaryStyle::Interleaved, router, published)?
        })
    }
}
