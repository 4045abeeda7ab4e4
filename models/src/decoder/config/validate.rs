//! Checks of a configuration: sizes that fit each other and stay in bounds.

use crate::folder::positive;
use candle_core::{Error, Result, bail};

use super::{
    AttentionConfig, AuxLoss, DecoderConfig, GroupedConfig, LatentConfig, MOST, MOST_TOKENS, MixtureConfig,
    RouterConfig, SparseConfig, WIDEST,
};

impl DecoderConfig {
    /// Checks that sizes fit each other and stay in bounds, before anything is allocated.
    pub fn validate(&self) -> Result<()> {
        size("vocab_size", self.vocab_size, MOST_TOKENS)?;
        size("hidden_size", self.hidden_size, WIDEST)?;
        size("num_hidden_layers", self.layers.len(), MOST)?;
        size("max_position_embeddings", self.max_positions, 1 << 30)?;
        positive("the eps of norms", self.norm.eps)?;
        if !(self.initializer_range >= 0.0 && self.initializer_range.is_finite()) {
            bail!("initializer_range is {}, expected 0 or more", self.initializer_range);
        }
        positive("embedding_multiplier", self.multipliers.embedding)?;
        positive("residual_multiplier", self.multipliers.residual)?;
        positive("logits_scaling", self.multipliers.logits_divisor)?;
        let coefficients = match self.aux_loss {
            AuxLoss::None => [0.0, 0.0],
            AuxLoss::Balance(c) | AuxLoss::LayerBalance(c) => [c, 0.0],
            AuxLoss::SequenceBalance(c) | AuxLoss::FirstChoice(c) => [c, 0.0],
            AuxLoss::BalanceAndZ(balance, z) => [balance, z],
            AuxLoss::LoadBias(c) | AuxLoss::NullBalance(c) | AuxLoss::MutualInformation(c) => [c, 0.0],
            AuxLoss::HeterogeneousBalance(c, tau) => [c, tau],
            AuxLoss::AdaptiveL1 { growth } if !(growth > 1.0 && growth.is_finite()) => {
                bail!("the growth of the L1 loss is {growth}, expected more than 1")
            }
            AuxLoss::AdaptiveL1 { .. } => [0.0, 0.0],
            AuxLoss::Activation { chunk: 0, .. } => bail!("chunks of 0 tokens for the router's sparsity"),
            AuxLoss::Activation { locality, chunk_sparsity, .. } => [locality, chunk_sparsity],
        };
        if let Some(c) = coefficients.into_iter().find(|c| !(*c >= 0.0 && c.is_finite())) {
            bail!("the coefficient of the auxiliary loss is {c}, expected 0 or more");
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.window == Some(0) {
                bail!("layer {i} has a sliding window of 0 tokens");
            }
            if layer.sparse && self.sparse.is_none() || !layer.sparse && self.dense.is_none() {
                bail!("layer {i} has no feed-forward part");
            }
            if let (Some(experts), Some(sparse)) = (layer.experts, self.sparse) {
                top_k(sparse.k, experts, sparse.router.free()).map_err(|e| Error::msg(format!("layer {i}: {e}")))?;
            }
        }
        let rotary = self.attention.validate()?;
        if let Some(rope) = &self.rope {
            rope.validate()?;
            if rope.dims > rotary {
                bail!("rotary positions over {} dimensions, but a head has {rotary}", rope.dims);
            }
        }
        if let Some(dense) = self.dense {
            size("intermediate_size", dense.intermediate_size, WIDEST)?;
        }
        self.sparse.map_or(Ok(()), |sparse| sparse.validate())
    }
}

/// Checks that `1 <= value <= most`.
fn size(name: &str, value: usize, most: usize) -> Result<()> {
    if value == 0 || value > most {
        bail!("{name} is {value}, expected 1 to {most}");
    }
    Ok(())
}

/// `free` experts have no network.
fn top_k(k: usize, networks: usize, free: usize) -> Result<()> {
    let experts = networks.saturating_add(free);
    // Experts without a network are none by themselves.
    size("the number of experts", if networks == 0 { 0 } else { experts }, MOST)?;
    if k == 0 || k > experts {
        bail!("num_experts_per_tok is {k}, expected 1 to {experts}, the number of experts");
    }
    Ok(())
}

impl AttentionConfig {
    /// Checks sizes; the width that may turn.
    fn validate(&self) -> Result<usize> {
        match *self {
            Self::Grouped(GroupedConfig { heads, kv_heads, head_dim, clip, scale, .. }) => {
                size("num_attention_heads", heads, MOST)?;
                size("num_key_value_heads", kv_heads, MOST)?;
                size("head_dim", head_dim, WIDEST)?;
                if !heads.is_multiple_of(kv_heads) {
                    bail!("{heads} attention heads cannot share {kv_heads} key-value heads; one must divide the other");
                }
                positive("the scale of attention scores", scale)?;
                clip.map_or(Ok(()), |clip| positive("clip_qkv", clip))?;
                Ok(head_dim)
            }
            Self::Latent(LatentConfig { heads, q_rank, kv_rank, nope_dim, rope_dim, value_dim, scale, .. }) => {
                size("num_attention_heads", heads, MOST)?;
                q_rank.map_or(Ok(()), |rank| size("q_lora_rank", rank, WIDEST))?;
                size("kv_lora_rank", kv_rank, WIDEST)?;
                size("qk_nope_head_dim", nope_dim, WIDEST)?;
                size("qk_rope_head_dim", rope_dim, WIDEST)?;
                size("v_head_dim", value_dim, WIDEST)?;
                positive("the scale of attention scores", scale)?;
                Ok(rope_dim)
            }
            Self::Mixture(MixtureConfig { experts, k, kv_heads, head_dim, scale }) => {
                top_k(k, experts, 0)?;
                size("num_key_value_heads", kv_heads, MOST)?;
                size("kv_channels", head_dim, WIDEST)?;
                positive("the scale of attention scores", scale)?;
                Ok(head_dim)
            }
        }
    }
}

impl SparseConfig {
    fn validate(&self) -> Result<()> {
        top_k(self.k, self.experts, self.router.free())?;
        size("the width of an expert", self.intermediate_size, WIDEST)?;
        if let Some(shared) = self.shared {
            size("the width of the shared expert", shared.intermediate_size, WIDEST)?;
        }
        match self.router {
            RouterConfig::SoftmaxTopK { scale, groups, .. } | RouterConfig::SigmoidTopK { scale, groups, .. } => {
                positive("routed_scaling_factor", scale)?;
                let Some((n, keep)) = groups else { return Ok(()) };
                if n == 0 || keep == 0 || keep > n || !self.experts.is_multiple_of(n) {
                    bail!("{keep} of {n} groups of {} experts: n_group must divide the experts", self.experts);
                }
                if keep * (self.experts / n) < self.k {
                    bail!("{keep} groups of {} experts do not hold {} for a token", self.experts / n, self.k);
                }
                if matches!(self.router, RouterConfig::SigmoidTopK { .. }) && self.experts / n < 2 {
                    bail!("groups are scored by their two best experts, but have {} each", self.experts / n);
                }
                Ok(())
            }
            RouterConfig::TopKSoftmax | RouterConfig::NullTopK { .. } | RouterConfig::Pathways { .. } => Ok(()),
            RouterConfig::Relu | RouterConfig::NormedRelu | RouterConfig::DenseTraining => Ok(()),
            RouterConfig::Capacity { factor, train_factor, .. } => {
                if !(1..=2).contains(&self.k) {
                    bail!("top_k_experts is {}, expected 1 or 2: no other number is defined", self.k);
                }
                positive("eval_capacity_factor", factor)?;
                positive("capacity_factor", train_factor)
            }
            RouterConfig::SparseMixer { jitter } => {
                if self.k != 2 {
                    bail!("SparseMixer routes to 2 experts, num_experts_per_tok is {}", self.k);
                }
                if !(jitter >= 0.0 && jitter.is_finite()) {
                    bail!("router_jitter_noise is {jitter}, expected 0 or more");
                }
                Ok(())
            }
        }
    }
}
