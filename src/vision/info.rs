//! What a vision model is.

use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::vision::{ProjectorConfig, TowerConfig, VisionConfig};
use serde::Serialize;

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
