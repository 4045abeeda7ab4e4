//! What a vision model is.

use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::vision::{ProjectorConfig, TowerConfig, VisionConfig};
use serde::Serialize;

use super::{Config, OTHERS};
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
    /// The vision tower: `clip`, `siglip`, `cumo` or `qwen3_vl`.
    pub tower: &'static str,
    /// Pixels of a picture's side, as the tower takes it, or its largest; none where a picture may have any size.
    pub image_size: Option<usize>,
    /// Tokens that a picture has in the language model; none where that depends on its size.
    pub picture_tokens: Option<usize>,
    /// The projector: `mlp`, `sparse_mlp`, `queries` or `merger`.
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
        let config = Config::load(dir)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(Self::new(dir, &config, &checkpoint))
    }

    /// Refuses a folder whose `config.json` is not that of a model that looks at pictures, by that file alone.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`], as [`of_dir`](Self::of_dir).
    pub fn check(dir: impl AsRef<Path>) -> Result<()> {
        Config::load(dir.as_ref()).map(|_| ())
    }

    /// Every `model_type` of a model that looks at pictures.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        VisionConfig::supported().chain(OTHERS)
    }

    pub(super) fn new(dir: &Path, config: &Config, checkpoint: &Checkpoint) -> Self {
        let (architecture, tower, image_size, picture_tokens, projector) = match config {
            Config::Vision(config) => {
                let tower = match config.tower {
                    TowerConfig::Clip(_) => "clip",
                    TowerConfig::Siglip(_) => "siglip",
                    TowerConfig::Cumo(_) => "cumo",
                };
                let projector = match config.projector {
                    ProjectorConfig::Sparse { .. } => "sparse_mlp",
                    _ => "mlp",
                };
                let (side, tokens) = (config.tower.image_size(), config.picture_tokens());
                (
                    config.model_type.clone(),
                    tower,
                    Some(side),
                    Some(tokens).filter(|_| config.tiles.is_none()),
                    projector,
                )
            }
            Config::Aria(config) => {
                let queries = config.projector.queries.values();
                // Of small and of large pictures; one number where there is but one kind.
                let tokens = queries.clone().next().copied().filter(|_| queries.len() == 1);
                ("aria".into(), "siglip", Some(config.tower.image_size), tokens, "queries")
            }
            Config::Qwen3Vl(config) => (config.model_type.clone(), "qwen3_vl", None, None, "merger"),
        };
        let decoder = config.decoder();
        let parameters = decoder.parameters();
        Self {
            source: dir.display().to_string(),
            architecture,
            tower,
            image_size,
            picture_tokens,
            projector,
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
