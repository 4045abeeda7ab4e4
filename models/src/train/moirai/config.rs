//! The TOML file of a training run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Result, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::super::forecast::FolderConfig;
use super::super::{AdamWConfig, Plan};
use crate::moirai_moe::Config;

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, data and centroids.
    pub seed: u64,
    /// The model, as in its `config.json`; `num_experts = 1` and `num_experts_per_token = 1` for a dense one.
    #[serde(deserialize_with = "known_keys")]
    pub model: Config,
    /// A folder with a model that the run starts from: one of the same config (fine-tuning), or the dense one of it, of which the
    /// sparse one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// How the centroids of a sparse model come out of the dense one.
    #[serde(default)]
    pub centroids: Centroids,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// How centroids are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Centroids {
    /// Batches that the dense model looks at.
    pub batches: u64,
    /// Most steps of k-means.
    pub iterations: usize,
}

impl Default for Centroids {
    fn default() -> Self {
        Self { batches: 16, iterations: 50 }
    }
}

/// What a forecaster of patches is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a row, into which samples are packed.
    pub length: usize,
    /// Fewest and most patches of a sample's variate, history and future together.
    pub patches: [usize; 2],
    /// Most variates of a sample.
    #[serde(default = "one")]
    pub variates: usize,
    /// Share of the samples that have several variates, 2 to `variates`.
    #[serde(default)]
    pub together: f64,
    /// The part of a sample, least and most, that only says how its series are scaled; what comes after it is predicted. The paper
    /// takes 0.3 (its masking ratio).
    #[serde(default = "paper")]
    pub scaled_by: [f64; 2],
    /// Relative share of synthetic series.
    pub synthetic: f64,
    /// Factors on how often the generator draws its kinds of series, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recipes: BTreeMap<String, f64>,
    /// Folders of CSV files.
    #[serde(default)]
    pub folders: Vec<FolderConfig>,
    /// Folders of series that the model will be evaluated on: a training series that shares a window with one of them is
    /// refused.
    #[serde(default)]
    pub evaluation: Vec<PathBuf>,
}

fn one() -> usize {
    1
}

fn paper() -> [f64; 2] {
    [0.3; 2]
}

/// Most tokens of a batch, and values of a series.
const MOST: usize = 1 << 20;

impl TrainConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        if self.model.dropout_p != 0.0 {
            bail!(
                "dropout_p is {}: dropout is not trained with here, as in the published models; give 0",
                self.model.dropout_p
            );
        }
        self.optimiser.validate()?;
        self.data.validate(self.model.max_patch())?;
        let Centroids { batches, iterations } = self.centroids;
        if !(1..=1 << 16).contains(&batches) || !(1..=1 << 16).contains(&iterations) {
            bail!("centroids: batches = {batches}, iterations = {iterations}, expected 1 to 65536 of each");
        }
        // What the dense model makes of them is kept: 1 GiB at most.
        let values = self.data.rows * self.data.length * self.model.d_model;
        if values
            .checked_mul(self.model.num_layers)
            .and_then(|n| n.checked_mul(batches as usize))
            .is_none_or(|n| n > 1 << 28)
        {
            bail!(
                "centroids.batches is {batches}: what the model makes of so many tokens does not fit in memory; give fewer"
            );
        }
        Ok(())
    }
}

impl DataConfig {
    /// Checks the settings for patches of up to `patch` values.
    pub(super) fn validate(&self, patch: usize) -> Result<()> {
        let [least, most] = self.patches;
        if !(2..=most).contains(&least) || most > MOST / patch.max(1) {
            bail!(
                "data.patches is {:?}, expected ascending numbers from 2, one patch to scale by and one to predict",
                self.patches
            );
        }
        if self.rows == 0 || self.length < least || self.rows.checked_mul(self.length).is_none_or(|n| n > MOST) {
            bail!(
                "data.rows = {} and data.length = {}, expected at least 1 row, of at least {least} tokens, and {MOST} tokens in all at \
                 most",
                self.rows,
                self.length
            );
        }
        // Each sample cuts what it needs out of a longer series.
        if (self.rows * self.length / least).saturating_mul(self.window(patch)) > 1 << 28 {
            bail!(
                "data: {} rows of samples of up to {most} patches are too much for memory; lower one of them",
                self.rows
            );
        }
        if !(1..=128).contains(&self.variates) || !(0.0..=1.0).contains(&self.together) {
            bail!("data.variates = {}, data.together = {}, expected 1 to 128 and 0 to 1", self.variates, self.together);
        }
        if self.together > 0.0 && (self.variates < 2 || self.length < 2 * least) {
            bail!(
                "data.together is {}, but data.variates or data.length leaves no room for two variates",
                self.together
            );
        }
        let [low, high] = self.scaled_by;
        if !(low > 0.0 && low <= high && high < 1.0) {
            bail!("data.scaled_by is {:?}, expected ascending shares above 0 and below 1", self.scaled_by);
        }
        Ok(())
    }

    /// Values of the series that samples are cut from: room for the longest, and for variates that run behind others.
    pub(super) fn window(&self, patch: usize) -> usize {
        ((self.patches[1] + LAG) * patch).max(super::super::data::MIN_LENGTH)
    }
}

/// Most patches that one variate runs behind another it depends on.
pub(super) const LAG: usize = 2;

/// The keys that a `config.json` of Moirai-MoE may have. Others are left alone in a model's file, but a slip of the pen in the file of
/// a run would cost hours.
const KEYS: [&str; 11] = [
    "d_model",
    "d_ff",
    "num_layers",
    "patch_sizes",
    "max_seq_len",
    "attn_dropout_p",
    "dropout_p",
    "scaling",
    "distr_output",
    "num_experts",
    "num_experts_per_token",
];

fn known_keys<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Config, D::Error> {
    let map = serde_json::Map::<String, serde_json::Value>::deserialize(deserializer)?;
    if let Some(other) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(D::Error::custom(format!(
            "unknown field `{other}` in [model], expected one of {}",
            KEYS.join(", ")
        )));
    }
    serde_json::from_value(serde_json::Value::Object(map)).map_err(|e| D::Error::custom(format!("in [model]: {e}")))
}
