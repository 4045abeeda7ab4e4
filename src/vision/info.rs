//! What a vision model is.

use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::vision::{ProjectorConfig, TowerConfig, VisionConfig};
use serde::Serialize;

use super::config_error;
use crate::error::{Error, Result};
use crate::forecaster::Parameters;

/// What a model that looks at pictures is: its parts and its size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VisionModelInfo {
    /// The folder.
    pub source: String,
    /// The model family, as `model_type` in `config.json`.
    pub architecture: String,
    /// The vision tower: `clip`, `siglip` or `cumo`.
    pub tower: &'static str,
    /// Pixels of a picture's side, as the tower takes it.
    pub image_size: usize,
    /// Tokens that a picture has in the language model.
    pub picture_tokens: usize,
    /// The projector: `mlp` or `sparse_mlp`.
    pub projector: &'static str,
    /// The family of the language model.
    pub language: String,
    /// Parameters of the language model.
    pub language_parameters: Parameters,
    /// Decoder layers.
    pub layers: usize,
    /// How many of them have routed experts.
    pub sparse_layers: usize,
    /// Routed experts in each sparse layer; 0 for a dense language model.
    pub experts: usize,
    /// Routed experts that each token is sent to.
    pub experts_per_token: usize,
    /// Bytes of the files of weights.
    pub bytes: u64,
}

impl VisionModelInfo {
    /// Describes a model folder. Reads its configuration and the headers of its weights, not the weights.
    ///
    /// # Errors
    /// As [`VisionChat::from_dir`](super::VisionChat::from_dir), but for what only shows when tokenizer and weights are read.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = VisionConfig::load(dir).map_err(|error| config_error(dir, error))?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(Self::new(dir, &config, &checkpoint))
    }

    pub(super) fn new(dir: &Path, config: &VisionConfig, checkpoint: &Checkpoint) -> Self {
        let decoder = &config.decoder;
        let parameters = decoder.parameters();
        Self {
            source: dir.display().to_string(),
            architecture: config.model_type.clone(),
            tower: match config.tower {
                TowerConfig::Clip(_) => "clip",
                TowerConfig::Siglip(_) => "siglip",
                TowerConfig::Cumo(_) => "cumo",
            },
            image_size: config.tower.image_size(),
            picture_tokens: config.picture_tokens(),
            projector: match config.projector {
                ProjectorConfig::Sparse { .. } => "sparse_mlp",
                _ => "mlp",
            },
            language: decoder.model_type.clone(),
            language_parameters: Parameters { total: parameters.total(), active: parameters.active() },
            layers: decoder.layers.len(),
            sparse_layers: decoder.sparse_layers().count(),
            experts: decoder.sparse.map_or(0, |sparse| sparse.experts),
            experts_per_token: decoder.sparse.map_or(0, |sparse| sparse.k),
            bytes: checkpoint.files().map(|(_, bytes)| bytes).sum(),
        }
    }
}
