//! The TOML file of a training run.

use std::path::PathBuf;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{AdamWConfig, Plan};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of clips and all that is drawn.
    pub seed: u64,
    /// A folder with `config.json` ([`UsamConfig`](crate::usam::UsamConfig)) and the tokenizer.
    pub base: PathBuf,
    /// Keys of `config.json` that this run has otherwise than `base`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// A folder with weights to go on from, as this training writes it; without it they start from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// What the contrastive loss weighs beside the cross entropy; the paper's is 1, 0 leaves it out.
    #[serde(default = "one")]
    pub contrastive: f64,
    /// What the CTC loss of the sound's tokens weighs, for answers that are said in the clip (`data.said`); 0 leaves it out.
    #[serde(default)]
    pub ctc: f64,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// What a run is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The clips and the questions about them ([`Manifest`](super::Manifest)).
    pub clips: PathBuf,
    /// Clips that are not trained on: the share of right answers there is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Clips of them that are asked about for that, taken evenly.
    #[serde(default = "valid_clips")]
    pub valid_clips: usize,
    /// Steps between measurements.
    #[serde(default = "valid_every")]
    pub valid_every: u64,
    /// Clips in a batch; they are about equally long.
    #[serde(default = "rows")]
    pub rows: usize,
    /// Questions about a clip in a batch at most, drawn from those that there are. A clip is encoded once for all.
    #[serde(default = "questions")]
    pub questions: usize,
    /// A clip is made louder or softer by up to so many decibels.
    #[serde(default = "gain")]
    pub gain: f64,
    /// Tasks whose answers are said in the clip, word by word in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<String>,
}

fn one() -> f64 {
    1.0
}

fn valid_clips() -> usize {
    200
}

fn valid_every() -> u64 {
    500
}

fn rows() -> usize {
    16
}

fn questions() -> usize {
    2
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
        let DataConfig { rows, questions, valid_clips, valid_every, gain, .. } = self.data;
        if rows == 0 || questions == 0 || valid_clips == 0 || valid_every == 0 {
            bail!("data: rows, questions, valid_clips and valid_every must be at least 1");
        }
        if !(0.0..=60.0).contains(&gain) {
            bail!("data.gain is {gain}, expected decibels from 0 to 60");
        }
        for (name, value) in [("contrastive", self.contrastive), ("ctc", self.ctc)] {
            if !(0.0..=1e3).contains(&value) {
                bail!("{name} is {value}, expected a weight of 0 to 1000");
            }
        }
        if self.ctc > 0.0 && self.data.said.is_empty() {
            bail!("ctc needs tasks whose answers are said in the clips: name them in data.said");
        }
        Ok(())
    }
}
