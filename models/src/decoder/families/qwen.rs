//! Qwen 1, as the language model of MoE-LLaVA: queries, keys and values in one map, a network of half the width that the
//! config says.
//!
//! Paper: Bai et al., arXiv 2309.16609. Reference: `modeling_qwen.py` of `Qwen/Qwen-1_8B`. Past `seq_length` it scales
//! queries and frequencies by the length of the text (`use_logn_attn`, `use_dynamic_ntk`); that is not built, so the context
//! ends there.

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Family;
use super::keys::{Common, yes};
use crate::decoder::config::{AttentionConfig, DecoderConfig, DenseConfig, GroupedConfig};
use crate::decoder::names::Names;

#[derive(Deserialize)]
pub(super) struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// Width of a head.
    kv_channels: usize,
    /// Twice the width of a network.
    intermediate_size: usize,
    layer_norm_epsilon: Option<f64>,
    rotary_emb_base: Option<f64>,
    rotary_pct: Option<f64>,
    seq_length: Option<usize>,
    max_position_embeddings: Option<usize>,
    /// The joint map has a bias in any case.
    #[serde(default = "yes")]
    no_bias: bool,
    initializer_range: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let positions = self.seq_length.or(self.max_position_embeddings).unwrap_or(8192);
        let id = |key: &str| published.get(key).cloned().unwrap_or_default();
        let common = json!({
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads, "head_dim": self.kv_channels,
            "max_position_embeddings": positions, "rope_theta": self.rotary_emb_base,
            "partial_rotary_factor": self.rotary_pct, "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_word_embeddings, "bos_token_id": id("bos_token_id"),
            "eos_token_id": id("eos_token_id"), "pad_token_id": id("pad_token_id"),
        });
        let common: Common = serde_json::from_value(common).map_err(|e| Error::msg(e.to_string()))?;
        if !self.intermediate_size.is_multiple_of(2) {
            bail!("intermediate_size is {}, expected twice the width of a network", self.intermediate_size);
        }
        let attention =
            GroupedConfig { qkv_bias: true, output_bias: !self.no_bias, ..common.grouped(common.head_dim)? };
        let eps = self.layer_norm_epsilon.unwrap_or(1e-6);
        Ok(DecoderConfig {
            dense: Some(DenseConfig {
                intermediate_size: self.intermediate_size / 2,
                activation: common.activation()?,
                gated: true,
                bias: !self.no_bias,
            }),
            names: Names {
                embed: "transformer.wte",
                layers: "transformer.h",
                final_norm: "transformer.ln_f",
                attention_norm: "ln_1",
                ffn_norm: "ln_2",
                attention: "attn",
                output: "c_proj",
                qkv: &["c_attn"],
                dense_maps: ["w2", "w1", "c_proj"],
                ..Names::LLAMA
            },
            ..common.decoder("qwen", AttentionConfig::Grouped(attention), eps, published)?
        })
    }
}
