//! The TOML file of a training run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{AdamWConfig, Plan};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of rows and all that is drawn.
    pub seed: u64,
    /// A folder with `config.json` ([`Config`](crate::omni::Config)) and the tokenizer.
    pub base: PathBuf,
    /// Keys of `config.json` that this run has otherwise than `base`; those of tables in it one by one.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// A folder with weights to go on from, as this training writes it; without it they start from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Train the auxiliary routers of the model in `init`, which itself stays: what makes it causal, and ready for use.
    #[serde(default)]
    pub auxiliary: bool,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// Questions of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What it is called in reports.
    pub name: String,
    /// The questions ([`Items`](super::Items)).
    pub file: PathBuf,
    /// How often turns are of this source, beside the others' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// By task, as how many questions one of it counts when a question about an item is drawn; 1 where nothing is said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repeat: BTreeMap<String, usize>,
}

/// What a run is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is trained on.
    pub train: Vec<Source>,
    /// What is measured and not trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub valid: Vec<Source>,
    /// Rows of each of these that are measured, taken evenly.
    #[serde(default = "many")]
    pub valid_rows: usize,
    /// Steps between measurements.
    #[serde(default = "often")]
    pub valid_every: u64,
    /// Rows in a batch: conversations.
    #[serde(default = "rows")]
    pub rows: usize,
    /// Turns of a row at most; it has as many as the model's context holds. About half of the turns ask another question about what the one
    /// before was about.
    #[serde(default = "turns")]
    pub turns: usize,
    /// Sound is made louder or softer by up to so many decibels.
    #[serde(default = "gain")]
    pub gain: f64,
}

fn one() -> f64 {
    1.0
}
fn many() -> usize {
    256
}
fn often() -> u64 {
    250
}
fn rows() -> usize {
    32
}
fn turns() -> usize {
    1
}
fn gain() -> f64 {
    6.0
}

impl TrainConfig {
    /// Checks what does not need the model.
    ///
    /// # Errors
    /// A setting that is out of range: the message names it.
    pub fn validate(&self) -> Result<()> {
        self.optimiser.validate()?;
        let DataConfig { train, valid, valid_rows, valid_every, rows, turns, gain } = &self.data;
        if train.is_empty() {
            bail!("data.train names no source");
        }
        if [*rows, *turns, *valid_rows, *valid_every as usize].contains(&0) {
            bail!("data: rows, turns, valid_rows and valid_every must be at least 1");
        }
        if !(0.0..=60.0).contains(gain) {
            bail!("data.gain is {gain}, expected decibels from 0 to 60");
        }
        if let Some(source) = train.iter().chain(valid).find(|s| !(s.weight > 0.0 && s.weight.is_finite())) {
            bail!("the weight of {:?} is {}, expected a number above 0", source.name, source.weight);
        }
        let repeats = train.iter().chain(valid).flat_map(|source| &source.repeat);
        if let Some((task, times)) = repeats.into_iter().find(|(_, times)| !(1..=100).contains(*times)) {
            bail!("a question of {task:?} counts as {times}, expected 1 to 100");
        }
        if self.auxiliary && self.init.is_none() {
            bail!("auxiliary routers belong to a trained model: name its folder in init");
        }
        if self.auxiliary && !self.settings.is_empty() {
            bail!("the model of auxiliary routers stays as it is: leave settings out");
        }
        Ok(())
    }
}
