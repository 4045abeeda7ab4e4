//! The key `router` of a `config.json`, which no published family has: another router for the family's routed experts.
//!
//! ```json
//! "num_experts": 8, "num_experts_per_tok": 4, "router": {"type": "null_top_k", "null_experts": 8, "balance": 0.01}
//! ```
//!
//! Experts, their number and what a token takes of them stay as the family's keys say; a model with this key is read by this workspace
//! alone. What each router computes is said in [`moesaic_kernels::routers`].

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::{AuxLoss, DecoderConfig, RouterConfig};

/// `router`, by its `type`.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Key {
    /// Sigmoid scores; a bias that follows the load steers the choice (DeepSeek-V3).
    SigmoidTopK {
        #[serde(default = "yes")]
        renormalise: bool,
        #[serde(default = "unit")]
        scale: f64,
        /// What the bias moves by after each step of training.
        #[serde(default = "thousandth")]
        bias_rate: f64,
    },
    /// Null experts among those that a token chooses (AdaMoE).
    NullTopK {
        null_experts: usize,
        #[serde(default = "hundredth")]
        balance: f64,
    },
    /// Experts without a network, and the choice of the layer before (MoE++).
    Pathways {
        #[serde(default)]
        zero_experts: usize,
        #[serde(default)]
        copy_experts: usize,
        #[serde(default)]
        constant_experts: usize,
        #[serde(default = "hundredth")]
        balance: f64,
        /// What experts without a network weigh in the balance, beside 1 of those with one.
        #[serde(default = "three_quarters")]
        tau: f64,
    },
    /// Positive scores, as many as an L1 loss leaves (ReMoE).
    Relu {
        /// What the loss's coefficient is multiplied or divided with after each step of training.
        #[serde(default = "growth")]
        growth: f64,
    },
    /// Positive scores, normed (BlockFFN).
    NormedRelu {
        #[serde(default)]
        locality: f64,
        #[serde(default)]
        chunk_sparsity: f64,
        #[serde(default = "chunk")]
        chunk: usize,
    },
    /// All experts in training, the best ones afterwards (DS-MoE).
    DenseTraining {
        #[serde(default = "hundredth")]
        mutual_information: f64,
    },
}

fn yes() -> bool {
    true
}
fn unit() -> f64 {
    1.0
}
fn thousandth() -> f64 {
    1e-3
}
fn hundredth() -> f64 {
    1e-2
}
fn three_quarters() -> f64 {
    0.75
}
fn growth() -> f64 {
    1.2
}
fn chunk() -> usize {
    8
}

impl DecoderConfig {
    /// The same with the router and the auxiliary loss that the value of `router` names.
    pub(in crate::decoder) fn with_router(mut self, key: &Value) -> Result<Self> {
        let key = Key::deserialize(key).map_err(|e| Error::msg(format!("router: {e}")))?;
        let Some(sparse) = &mut self.sparse else { bail!("router is given, but the model has no routed experts") };
        (sparse.router, self.aux_loss) = match key {
            Key::SigmoidTopK { renormalise, scale, bias_rate } => {
                (RouterConfig::SigmoidTopK { renormalise, scale, groups: None }, AuxLoss::LoadBias(bias_rate))
            }
            Key::NullTopK { null_experts, balance } => {
                (RouterConfig::NullTopK { nulls: null_experts }, AuxLoss::NullBalance(balance))
            }
            Key::Pathways { zero_experts: zero, copy_experts: copy, constant_experts: constant, balance, tau } => {
                (RouterConfig::Pathways { zero, copy, constant }, AuxLoss::HeterogeneousBalance(balance, tau))
            }
            Key::Relu { growth } => (RouterConfig::Relu, AuxLoss::AdaptiveL1 { growth }),
            Key::NormedRelu { locality, chunk_sparsity, chunk } => {
                (RouterConfig::NormedRelu, AuxLoss::Activation { locality, chunk_sparsity, chunk })
            }
            Key::DenseTraining { mutual_information } => {
                (RouterConfig::DenseTraining, AuxLoss::MutualInformation(mutual_information))
            }
        };
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(router: Value, k: usize) -> Result<DecoderConfig> {
        let text = json!({
            "model_type": "qwen3_moe", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": true, "initializer_range": 0.1,
            "num_experts": 4, "num_experts_per_tok": k, "moe_intermediate_size": 8, "norm_topk_prob": true,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "router": router,
        });
        DecoderConfig::from_json(&text.to_string())
    }

    #[test]
    fn each_router_is_read() -> Result<()> {
        let null = config(json!({"type": "null_top_k", "null_experts": 4}), 6)?;
        let sparse = null.sparse.map(|s| (s.router, s.router.free(), s.k));
        assert_eq!(sparse, Some((RouterConfig::NullTopK { nulls: 4 }, 4, 6)));
        assert_eq!(null.aux_loss, AuxLoss::NullBalance(0.01));
        let pathways =
            json!({"type": "pathways", "zero_experts": 1, "copy_experts": 1, "constant_experts": 2, "tau": 0.5});
        let pathways = config(pathways, 2)?;
        assert_eq!(pathways.sparse.map(|s| s.router.free()), Some(4));
        assert_eq!(pathways.aux_loss, AuxLoss::HeterogeneousBalance(0.01, 0.5));
        for (router, aux) in [
            (json!({"type": "relu"}), AuxLoss::AdaptiveL1 { growth: 1.2 }),
            (
                json!({"type": "normed_relu", "locality": 0.1}),
                AuxLoss::Activation { locality: 0.1, chunk_sparsity: 0.0, chunk: 8 },
            ),
            (json!({"type": "dense_training", "mutual_information": 0.5}), AuxLoss::MutualInformation(0.5)),
            (json!({"type": "sigmoid_top_k"}), AuxLoss::LoadBias(1e-3)),
        ] {
            assert_eq!(config(router, 2)?.aux_loss, aux);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_router_is_refused() {
        for (router, k, words) in [
            (json!({"type": "dice"}), 2, "router: unknown variant `dice`"),
            (json!({"type": "relu", "speed": 3}), 2, "speed"),
            (json!({"type": "relu", "growth": 1.0}), 2, "growth of the L1 loss is 1"),
            (json!("relu"), 2, "router"),
            (json!({"type": "null_top_k"}), 2, "null_experts"),
            (json!({"type": "null_top_k", "null_experts": 0}), 5, "num_experts_per_tok is 5, expected 1 to 4"),
            (json!({"type": "null_top_k", "null_experts": u32::MAX}), 2, "experts"),
            (json!({"type": "null_top_k", "null_experts": 1, "balance": -1.0}), 2, "auxiliary loss is -1"),
            (json!({"type": "normed_relu", "chunk": 0}), 2, "chunks of 0 tokens"),
            (json!({"type": "sigmoid_top_k", "scale": 0.0}), 2, "routed_scaling_factor"),
        ] {
            let message = config(router.clone(), k).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(words), "{router}: {message}");
        }
    }
}
