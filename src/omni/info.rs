//! What a model that reads everything is.

use std::collections::BTreeMap;
use std::path::Path;

use moesaic_kernels::Modality;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::omni::Config;
use serde::Serialize;

use super::read_config;
use crate::error::{Error, Result};

/// What a model that reads everything is: its parts and its size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OmniModelInfo {
    /// The folder.
    pub source: String,
    /// The model family.
    pub architecture: &'static str,
    /// Experts of a layer: of each modality, or under `all` those that tokens of all modalities share.
    pub experts: BTreeMap<&'static str, usize>,
    /// Attention and norms are of each modality's own.
    pub untied: bool,
    /// Pixels a side of a picture as the model sees it, where it takes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Seconds of sound that it hears at once, where it takes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Values of a series that it reads, the newest, where it takes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<usize>,
    /// Decoder layers.
    pub layers: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Words that it knows.
    pub vocabulary: usize,
    /// Tokens of a conversation at most.
    pub context: usize,
    /// Weights.
    pub parameters: usize,
    /// Bytes of the file of weights.
    pub bytes: u64,
}

impl OmniModelInfo {
    /// Describes a model folder. Reads its configuration and the header of its weights, not the weights.
    ///
    /// # Errors
    /// As [`Omni::from_dir`](super::Omni::from_dir), but for what only shows when tokenizer and weights are read.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = read_config(dir)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(Self::new(dir, &config, &checkpoint))
    }

    pub(super) fn new(dir: &Path, config: &Config, checkpoint: &Checkpoint) -> Self {
        let own = |modality: Modality| (modality.name(), config.backbone.experts(modality));
        let experts = match config.backbone.mixed_experts {
            Some(experts) => BTreeMap::from([("all", experts)]),
            None => config.backbone.modalities().into_iter().map(own).collect(),
        };
        Self {
            source: dir.display().to_string(),
            architecture: "omni",
            experts,
            untied: config.backbone.untied,
            image_size: config.image.map(|image| image.size),
            seconds: config.audio.map(|audio| audio.longest),
            values: config.series.as_ref().map(|series| series.longest),
            layers: config.backbone.num_hidden_layers,
            hidden: config.backbone.hidden_size,
            vocabulary: config.backbone.vocab_size,
            context: config.context,
            parameters: checkpoint.names().filter_map(|name| checkpoint.info(name)).map(|tensor| tensor.values()).sum(),
            bytes: checkpoint.files().map(|(_, bytes)| bytes).sum(),
        }
    }
}
