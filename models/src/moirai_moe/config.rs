//! `config.json` of Moirai-MoE.

use candle_core::{Error, Result, bail};
use moesaic_kernels::{one_line, shown};
use serde::{Deserialize, Serialize};

/// Experts of a layer unless the file says otherwise: a constant of the reference, whose files do not name it.
pub const EXPERTS: usize = 32;
/// Experts that a token goes to unless the file says otherwise; see [`EXPERTS`].
pub const EXPERTS_PER_TOKEN: usize = 2;
/// Added to the mean square in norms.
pub(super) const NORM_EPS: f64 = 1e-5;
/// Base of the rotary frequencies.
pub(super) const ROPE_THETA: f64 = 10_000.0;
/// Width of a head that the reference aims at.
const HEAD: usize = 64;

fn published_experts() -> usize {
    EXPERTS
}

fn published_experts_per_token() -> usize {
    EXPERTS_PER_TOKEN
}

fn is_published_experts(count: &usize) -> bool {
    *count == EXPERTS
}

fn is_published_experts_per_token(count: &usize) -> bool {
    *count == EXPERTS_PER_TOKEN
}

/// The keys of a published `config.json` that the model reads, and two that such a file lacks, under the reference's names of
/// what is a constant there: a model with as many experts as the published ones has the published keys alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width of a token, D.
    pub d_model: usize,
    /// Width of one expert, F.
    pub d_ff: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Values that a token may hold, ascending; each size has its own projections.
    pub patch_sizes: Vec<usize>,
    /// Tokens of one variate that the published rotary table has room for.
    pub max_seq_len: usize,
    /// Dropout of attention weights, 0 in all published files. The reference applies it in inference too, so others are refused.
    pub attn_dropout_p: f64,
    /// Dropout in training.
    pub dropout_p: f64,
    /// Series are standardised.
    pub scaling: bool,
    /// The distribution that is predicted.
    pub distr_output: DistrOutput,
    /// Experts of a layer, E; 1 for a dense model.
    #[serde(default = "published_experts", skip_serializing_if = "is_published_experts")]
    pub num_experts: usize,
    /// Experts that a token goes to, k.
    #[serde(default = "published_experts_per_token", skip_serializing_if = "is_published_experts_per_token")]
    pub num_experts_per_token: usize,
}

/// The predicted distribution: a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistrOutput {
    /// The class of the reference; only `uni2ts.distribution.mixture.MixtureOutput` is known.
    #[serde(rename = "_target_")]
    pub target: String,
    /// What is mixed, in the order of the weights.
    pub components: Vec<ComponentOutput>,
}

/// One component as the file names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentOutput {
    /// The class of the reference.
    #[serde(rename = "_target_")]
    pub target: String,
    /// The fixed standard deviation of `NormalFixedScaleOutput`; others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
}

/// One component of the mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Component {
    /// Student's t with degrees of freedom, location and scale.
    StudentT,
    /// A narrow normal distribution with a location; its standard deviation is fixed.
    NormalFixedScale(f64),
    /// Negative binomial, its density taken on real numbers.
    NegativeBinomial,
    /// The exponential of a normal distribution.
    LogNormal,
}

impl Component {
    /// Names of its parameters in the checkpoint, in the order in which they are kept.
    pub fn parameters(&self) -> &'static [&'static str] {
        match self {
            Self::StudentT => &["df", "loc", "scale"],
            Self::NormalFixedScale(_) => &["loc"],
            Self::NegativeBinomial => &["total_count", "logits"],
            Self::LogNormal => &["loc", "scale"],
        }
    }
}

/// Counts of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All of them; centroids are not counted.
    pub total: usize,
    /// Those that take part in one token's forward pass.
    pub active: usize,
}

impl Config {
    /// Parses and checks a `config.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json)
            .map_err(|e| Error::msg(format!("this is not the config.json of a Moirai-MoE: {}", one_line(e))))?;
        config.validate()?;
        Ok(config)
    }

    /// Whether a parsed `config.json` is that of a Moirai: such files name no `model_type`, but a distribution.
    pub fn describes(json: &serde_json::Value) -> bool {
        json.get("model_type").is_none() && json.get("distr_output").is_some() && json.get("patch_sizes").is_some()
    }

    /// Checks that the sizes fit each other and stay in bounds, before anything is allocated.
    pub fn validate(&self) -> Result<()> {
        for (name, value, limit) in [
            ("d_model", self.d_model, 1 << 14),
            ("d_ff", self.d_ff, 1 << 16),
            ("num_layers", self.num_layers, 1 << 10),
            ("max_seq_len", self.max_seq_len, 1 << 20),
            ("patch_sizes (their number)", self.patch_sizes.len(), 64),
            ("num_experts", self.num_experts, 1 << 12),
            ("num_experts_per_token", self.num_experts_per_token, self.num_experts),
        ] {
            if value == 0 || value > limit {
                bail!("{name} is {value}, expected 1 to {limit}");
            }
        }
        if self.patch_sizes.iter().any(|&p| p == 0 || p > 1 << 12)
            || self.patch_sizes.windows(2).any(|pair| pair[0] >= pair[1])
        {
            bail!("patch_sizes is {:?}, expected ascending sizes in 1 to 4096", self.patch_sizes);
        }
        if self.d_model < HEAD {
            bail!("d_model is {}, expected at least {HEAD}, the width of a head", self.d_model);
        }
        if !self.d_model.is_multiple_of(self.heads()) || !self.head_dim().is_multiple_of(4) {
            bail!("d_model {} does not split into {} heads whose half turns in pairs", self.d_model, self.heads());
        }
        if self.attn_dropout_p != 0.0 {
            bail!(
                "attn_dropout_p is {}: the reference drops attention at random in inference too, which is not supported; \
                 published models have 0",
                self.attn_dropout_p
            );
        }
        if !(0.0..1.0).contains(&self.dropout_p) {
            bail!("dropout_p is {}, expected a number from 0 and below 1", self.dropout_p);
        }
        self.components().map(drop)
    }

    /// The components of the predicted mixture.
    ///
    /// # Errors
    /// A `_target_` that is not known, or a scale that is missing or not positive.
    pub fn components(&self) -> Result<Vec<Component>> {
        let DistrOutput { target, components } = &self.distr_output;
        if target != "uni2ts.distribution.mixture.MixtureOutput" {
            bail!(
                "distr_output._target_ is {}, expected \"uni2ts.distribution.mixture.MixtureOutput\"; other distributions \
                 are not supported",
                shown(target)
            );
        }
        if components.is_empty() || components.len() > 8 {
            bail!("distr_output has {} components, expected 1 to 8", components.len());
        }
        components.iter().map(ComponentOutput::component).collect()
    }

    /// Attention heads; a constant of the reference, not in the file.
    pub fn heads(&self) -> usize {
        (self.d_model / HEAD).max(1)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.heads()
    }

    /// Values of the largest token, P.
    pub fn max_patch(&self) -> usize {
        self.patch_sizes.last().copied().unwrap_or(1)
    }

    /// Values of a patch unless told otherwise: 16 as in the published models, or the largest below it, or the smallest.
    pub fn default_patch(&self) -> usize {
        let sizes = &self.patch_sizes;
        sizes.iter().rev().find(|&&size| size <= 16).or(sizes.first()).copied().unwrap_or(1)
    }

    /// Number of parameters, in all and at work for one token.
    pub fn parameters(&self) -> Parameters {
        let (d, p) = (self.d_model, self.max_patch());
        let components = self.components().unwrap_or_default();
        let outputs = components.iter().map(|c| 1 + c.parameters().len()).sum::<usize>() * p;
        // in_proj and res_proj, feat_proj, param_proj of one patch size; encoder.norm.
        let size = 2 * d * (p + 1) + d * (d + 1) + outputs * (d + 1);
        let layer = 2 * d + 4 * d * d + 2 * self.head_dim() + 2 * self.heads();
        let expert = 3 * d * self.d_ff;
        Parameters {
            total: self.patch_sizes.len() * size + d + self.num_layers * (layer + self.num_experts * expert),
            active: size + d + self.num_layers * (layer + self.num_experts_per_token * expert),
        }
    }
}

impl ComponentOutput {
    fn component(&self) -> Result<Component> {
        let component = match self.target.as_str() {
            "uni2ts.distribution.student_t.StudentTOutput" => Component::StudentT,
            "uni2ts.distribution.normal.NormalFixedScaleOutput" => match self.scale {
                // A scale that f32 cannot hold would be 0 or infinite in the reference.
                Some(scale) if scale >= f64::from(f32::MIN_POSITIVE) && scale <= f64::from(f32::MAX) => {
                    return Ok(Component::NormalFixedScale(scale));
                }
                Some(scale) => bail!("the scale of NormalFixedScaleOutput is {scale}, expected a positive number"),
                None => bail!("NormalFixedScaleOutput has no scale"),
            },
            "uni2ts.distribution.negative_binomial.NegativeBinomialOutput" => Component::NegativeBinomial,
            "uni2ts.distribution.log_normal.LogNormalOutput" => Component::LogNormal,
            other => bail!(
                "the component {} of distr_output is not known; known are StudentTOutput, NormalFixedScaleOutput, \
                 NegativeBinomialOutput and LogNormalOutput of uni2ts.distribution",
                shown(other)
            ),
        };
        match self.scale {
            Some(scale) => {
                bail!("{} has a scale of {scale}, which only NormalFixedScaleOutput takes", shown(&self.target))
            }
            None => Ok(component),
        }
    }
}
