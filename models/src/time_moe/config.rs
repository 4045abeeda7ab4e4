//! `config.json` of `model_type: time_moe`.

use candle_core::{Error, Result, bail};
use moesaic_kernels::{one_line, shown};
use serde::{Deserialize, Serialize};

use crate::folder::positive;

/// The keys of a published `config.json` that the model reads; others are kept out of the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `time_moe`
    pub model_type: String,
    /// Values per token.
    #[serde(default = "one")]
    pub input_size: usize,
    /// Width of a token, H.
    pub hidden_size: usize,
    /// Width of the shared expert, and of the dense layer with `use_dense`; a routed expert is `num_experts_per_tok` times
    /// narrower.
    pub intermediate_size: usize,
    /// Numbers of values that the heads predict, ascending. The published config may hold one number instead of a list.
    #[serde(default = "one_horizon", deserialize_with = "one_or_many")]
    pub horizon_lengths: Vec<usize>,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; as many as query heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Activation of the experts.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Routed experts of a layer, E.
    #[serde(default = "one")]
    pub num_experts: usize,
    /// Experts that a token goes to, k.
    #[serde(default = "two")]
    pub num_experts_per_tok: usize,
    /// Context and horizon that the model was trained for, in values.
    #[serde(default = "positions")]
    pub max_position_embeddings: usize,
    /// Standard deviation of initial weights.
    #[serde(default = "range")]
    pub initializer_range: f64,
    /// Added to the mean square in norms.
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// One dense feed-forward layer instead of experts.
    #[serde(default)]
    pub use_dense: bool,
    /// Weight of the load balance loss.
    #[serde(default = "aux")]
    pub router_aux_loss_factor: f64,
    /// The load balance loss is part of the loss.
    #[serde(default = "yes")]
    pub apply_aux_loss: bool,
    /// Dtype of the published weights; informative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch_dtype: Option<String>,
    /// Class names of the reference; informative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architectures: Option<Vec<String>>,
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn one_horizon() -> Vec<usize> {
    vec![1]
}
fn silu() -> String {
    "silu".into()
}
fn positions() -> usize {
    32768
}
fn range() -> f64 {
    0.02
}
fn eps() -> f64 {
    1e-6
}
fn theta() -> f64 {
    10000.0
}
fn aux() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<usize>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(usize),
        Many(Vec<usize>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(n) => vec![n],
        OneOrMany::Many(all) => all,
    })
}

/// Counts of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All of them.
    pub total: usize,
    /// Those that take part in one token's forward pass, all heads included.
    pub active: usize,
}

/// Sizes above which a config is taken for a mistake: they allow models a thousand times larger than the published ones.
const LIMITS: [(&str, usize); 3] = [("width", 1 << 16), ("count", 1 << 12), ("positions", 1 << 24)];

impl Config {
    /// Parses and checks a `config.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json)
            .map_err(|e| Error::msg(format!("this is not the config.json of a Time-MoE: {}", one_line(e))))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes fit each other and stay in bounds, before anything is allocated.
    pub fn validate(&self) -> Result<()> {
        if self.model_type != "time_moe" {
            let other = shown(&self.model_type);
            bail!("model_type is {other}, expected \"time_moe\"; other forecasters are not supported");
        }
        let [width, count, positions] = LIMITS.map(|(_, n)| n);
        let horizons = self.horizon_lengths.len();
        let sizes = [
            ("input_size", self.input_size, count),
            ("hidden_size", self.hidden_size, width),
            ("intermediate_size", self.intermediate_size, 4 * width),
            ("num_hidden_layers", self.num_hidden_layers, count),
            ("num_attention_heads", self.num_attention_heads, count),
            ("num_key_value_heads", self.kv_heads(), count),
            ("num_experts", self.num_experts, count),
            ("num_experts_per_tok", self.num_experts_per_tok, count),
            ("max_position_embeddings", self.max_position_embeddings, positions),
            ("horizon_lengths (its length)", horizons, 64),
        ];
        for (name, value, limit) in sizes {
            if value == 0 || value > limit {
                bail!("{name} is {value}, expected 1 to {limit}");
            }
        }
        if self.horizon_lengths.iter().any(|&h| h == 0 || h > count)
            || self.horizon_lengths.windows(2).any(|pair| pair[0] >= pair[1])
        {
            bail!("horizon_lengths is {:?}, expected ascending values in 1 to {count}", self.horizon_lengths);
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) || !self.head_dim().is_multiple_of(2) {
            bail!(
                "hidden_size {} does not split into {} attention heads of even width",
                self.hidden_size,
                self.num_attention_heads
            );
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            bail!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads,
                self.kv_heads()
            );
        }
        if !self.use_dense && self.num_experts_per_tok > self.num_experts {
            bail!("num_experts_per_tok is {}, but there are {} experts", self.num_experts_per_tok, self.num_experts);
        }
        if !self.use_dense && self.expert_size() == 0 {
            bail!("intermediate_size {} leaves experts without width", self.intermediate_size);
        }
        for (name, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ] {
            positive(name, value)?;
        }
        if !(self.router_aux_loss_factor >= 0.0 && self.router_aux_loss_factor.is_finite()) {
            bail!("router_aux_loss_factor is {}, expected 0 or more", self.router_aux_loss_factor);
        }
        moesaic_kernels::Activation::from_name(&self.hidden_act)?;
        Ok(())
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// Width of a routed expert. (The paper's table says otherwise, the code and the published weights say this.)
    pub fn expert_size(&self) -> usize {
        self.intermediate_size / self.num_experts_per_tok.max(1)
    }

    /// Number of parameters, in all and at work for one token.
    pub fn parameters(&self) -> Parameters {
        let (h, i, d) = (self.hidden_size, self.intermediate_size, self.head_dim());
        let (q, kv) = (self.num_attention_heads * d, self.kv_heads() * d);
        let attention = h * (q + 2 * kv) + q + 2 * kv + q * h;
        let expert = 3 * h * self.expert_size();
        let (all, active) = if self.use_dense {
            (3 * h * i, 3 * h * i)
        } else {
            let every = 3 * h * i + h + self.num_experts * h;
            (every + self.num_experts * expert, every + self.num_experts_per_tok * expert)
        };
        let heads: usize = self.horizon_lengths.iter().map(|n| n * self.input_size * h).sum();
        let rest = 2 * h * self.input_size + h + heads;
        let layer = attention + 2 * h;
        Parameters {
            total: self.num_hidden_layers * (layer + all) + rest,
            active: self.num_hidden_layers * (layer + active) + rest,
        }
    }
}
