//! What a model that listens is.

use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::usam::{MixtureSum, UsamConfig};
use serde::Serialize;

use super::read_config;
use crate::error::{Error, Result};
use crate::forecaster::Parameters;

/// What a model that listens is: its parts and its size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AudioModelInfo {
    /// The folder.
    pub source: String,
    /// The model family.
    pub architecture: &'static str,
    /// The encoders, in the order of their features.
    pub encoders: Vec<&'static str>,
    /// Width of their features together.
    pub width: usize,
    /// Seconds that it hears at once.
    pub seconds: f64,
    /// Projectors that are mixed.
    pub experts: usize,
    /// What their weighted outputs are summed over: `experts`, as the paper says, or `time`, as the released code does.
    pub mixture_sum: &'static str,
    /// The family of the language model.
    pub language: String,
    /// Parameters of the language model.
    pub language_parameters: Parameters,
    /// Decoder layers.
    pub layers: usize,
    /// Bytes of the files of weights.
    pub bytes: u64,
}

impl AudioModelInfo {
    /// Describes a model folder. Reads its configuration and the headers of its weights, not the weights.
    ///
    /// # Errors
    /// As [`AudioChat::from_dir`](super::AudioChat::from_dir), but for what only shows when tokenizer and weights are read.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = read_config(dir)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(Self::new(dir, &config, &checkpoint))
    }

    pub(super) fn new(dir: &Path, config: &UsamConfig, checkpoint: &Checkpoint) -> Self {
        let parameters = config.llm.parameters();
        Self {
            source: dir.display().to_string(),
            architecture: "usam",
            encoders: config.encoders(),
            width: config.qformer.inputs,
            seconds: config.window() as f64 / f64::from(moesaic_encoders::audio::SAMPLE_RATE),
            experts: config.projector.experts,
            mixture_sum: match config.projector.sum {
                MixtureSum::Experts => "experts",
                MixtureSum::Time => "time",
            },
            language: config.llm.model_type.clone(),
            language_parameters: Parameters { total: parameters.total(), active: parameters.active() },
            layers: config.llm.layers.len(),
            bytes: checkpoint.files().map(|(_, bytes)| bytes).sum(),
        }
    }
}
