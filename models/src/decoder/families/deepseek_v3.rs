//! DeepSeek-V3 and R1: V2's attention and experts, chosen by sigmoid scores and a bias that balances them without a loss.
//!
//! Paper: DeepSeek-AI, arXiv 2412.19437. Reference:
//! [`modeling_deepseek_v3.py`](https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/deepseek_v3/modeling_deepseek_v3.py);
//! release 4.57 masks groups with 0 instead of leaving them out.
//!
//! Layers for multi-token prediction, which published checkpoints hold behind the others, are not loaded.

use candle_core::Result;
use moesaic_kernels::rotary::RotaryStyle;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use super::deepseek_v2::Keys;
use super::keys::yes;
use crate::decoder::config::{DecoderConfig, RouterConfig};

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    keys: Keys,
    /// The rotary dimensions of the checkpoint stand in pairs.
    #[serde(default = "yes")]
    rope_interleave: bool,
}

impl Family for Config {
    fn translate(self, published: Map<String, Value>) -> Result<DecoderConfig> {
        let keys = &self.keys;
        Keys::only("scoring_func", &keys.scoring_func, "sigmoid")?;
        Keys::only("topk_method", &keys.topk_method, "noaux_tc")?;
        let style = if self.rope_interleave { RotaryStyle::Interleaved } else { RotaryStyle::Half };
        let router = RouterConfig::SigmoidTopK {
            renormalise: keys.norm_topk_prob.unwrap_or(true),
            scale: keys.routed_scaling_factor.unwrap_or(2.5),
            groups: Some(keys.groups()?),
        };
        keys.translate("deepseek_v3", style, router, published)
    }
}
