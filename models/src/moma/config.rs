//! `config.json` of `model_type: moma`, a layout of this workspace: none is published.

use candle_core::{Error, Result, bail};
use moesaic_kernels::Modality;
use moesaic_kernels::one_line;
use moesaic_kernels::routers::ExpertGroup;
use serde::{Deserialize, Serialize};

use crate::folder::positive;

/// The sizes of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `moma`
    pub model_type: String,
    /// Rows of the embedding: words and the tokens of images in one table.
    pub vocab_size: usize,
    /// The ids of image tokens: the first, and the one behind the last.
    pub image_token_ids: [u32; 2],
    /// Width of a token, H.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Inner width of an expert.
    pub intermediate_size: usize,
    /// Experts for text tokens.
    pub text_experts: usize,
    /// Experts for image tokens; 0 for a model that takes none.
    pub image_experts: usize,
    /// Experts for tokens of sound; 0 for a model that takes none, as in the paper.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub audio_experts: usize,
    /// Experts for tokens of time series, likewise.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub series_experts: usize,
    /// So many experts that tokens of all modalities share, in the place of those of each: what the paper compares with. One is a dense
    /// network, without a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed_experts: Option<usize>,
    /// Attention projections and norms of their own for each modality; else one for all.
    #[serde(default)]
    pub untied: bool,
    /// Mixture-of-depths: the share of tokens that go through layers 0, 2, 4, ..., which the others pass by (0.25 in the
    /// paper); absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth_share: Option<f64>,
    /// Inner width of auxiliary routers; absent for half of a token's, as in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auxiliary_size: Option<usize>,
    /// Seed of Gumbel-sigmoid noise on the routers of experts in training, for upcycled models; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gumbel_noise: Option<u64>,
    /// Added to the mean square in norms.
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Standard deviation of initial weights.
    #[serde(default = "range")]
    pub initializer_range: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(n: &usize) -> bool {
    *n == 0
}
fn eps() -> f64 {
    1e-5
}
fn theta() -> f64 {
    10000.0
}
fn range() -> f64 {
    0.02
}

/// Sizes above which a config is taken for a mistake.
const WIDEST: usize = 1 << 20;
const MOST: usize = 1 << 14;

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a key that is missing or not known, or values that do not fit each other.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json).map_err(|e| Error::Msg(one_line(e)))?;
        config.validate()?;
        Ok(config)
    }

    /// The text of a `config.json`.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(Error::wrap)
    }

    /// Checks values before anything is made of them.
    pub fn validate(&self) -> Result<()> {
        if self.model_type != "moma" {
            bail!("model_type is {:?}, expected \"moma\"", one_line(&self.model_type));
        }
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, WIDEST),
            ("num_hidden_layers", self.num_hidden_layers, MOST),
            ("num_attention_heads", self.num_attention_heads, MOST),
            ("num_key_value_heads", self.num_key_value_heads, MOST),
            ("intermediate_size", self.intermediate_size, WIDEST),
            ("text_experts", self.text_experts, MOST),
            ("mixed_experts", self.mixed_experts.unwrap_or(1), MOST),
            ("auxiliary_size", self.auxiliary_size.unwrap_or(1), WIDEST),
        ] {
            if value == 0 || value > most {
                bail!("{name} is {value}, expected 1 to {most}");
            }
        }
        for modality in self.modalities() {
            if self.experts(modality) > MOST {
                bail!("{}_experts is {}, expected at most {MOST}", modality.name(), self.experts(modality));
            }
        }
        let (h, heads, kv) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        if !h.is_multiple_of(heads) || !(h / heads).is_multiple_of(2) || !heads.is_multiple_of(kv) {
            bail!("{heads} query and {kv} key-value heads do not divide a width of {h} into even heads");
        }
        if h < 2 {
            bail!("hidden_size is {h}, expected at least 2");
        }
        let [first, end] = self.image_token_ids;
        if first > end || end as usize > self.vocab_size {
            bail!("image_token_ids {first} to {end} are no ids of a vocabulary of {}", self.vocab_size);
        }
        if first < end && self.image_experts == 0 {
            bail!(
                "image_experts is 0, but there are image_token_ids, {first} to {end}: give images at least one expert"
            );
        }
        if self.depth_share.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            bail!("depth_share is {:?}, expected a share above 0 and up to 1", self.depth_share);
        }
        for (name, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ] {
            positive(name, value)?;
        }
        Ok(())
    }

    /// The modality of a token.
    pub fn modality(&self, id: u32) -> Modality {
        let [first, end] = self.image_token_ids;
        if (first..end).contains(&id) { Modality::Image } else { Modality::Text }
    }

    /// Width of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Experts for the tokens of a modality.
    pub fn experts(&self, modality: Modality) -> usize {
        match modality {
            Modality::Text => self.text_experts,
            Modality::Image => self.image_experts,
            Modality::Audio => self.audio_experts,
            Modality::Series => self.series_experts,
            Modality::Video => 0,
        }
    }

    /// The modalities that the model takes, in the order of their experts.
    pub fn modalities(&self) -> Vec<Modality> {
        let all = [Modality::Text, Modality::Image, Modality::Audio, Modality::Series];
        all.into_iter().filter(|modality| self.experts(*modality) > 0).collect()
    }

    /// The experts, one group for each modality or one for all.
    pub(super) fn groups(&self) -> Vec<ExpertGroup> {
        let own = |modality| ExpertGroup { modality: Some(modality), experts: self.experts(modality) };
        match self.mixed_experts {
            Some(experts) => vec![ExpertGroup { modality: None, experts }],
            None => self.modalities().into_iter().map(own).collect(),
        }
    }

    /// All tokens go to one network.
    pub(super) fn is_dense(&self) -> bool {
        self.mixed_experts == Some(1)
    }

    /// Whether inference takes auxiliary routers: something chooses its tokens in training.
    pub fn chooses(&self) -> bool {
        !self.is_dense() || self.depth_share.is_some()
    }

    /// True where layer `i` is passed by some tokens.
    pub fn is_deep(&self, i: usize) -> bool {
        self.depth_share.is_some() && i.is_multiple_of(2)
    }
}
