//! How pictures are prepared.

use std::path::Path;

use moesaic_encoders::image::{Filter, ImageProcessor, Limits, Sizing};
use moesaic_models::vision::{TowerConfig, VisionConfig};

use crate::error::{Error, Result};

/// Mean and deviation of the colours that OpenAI's CLIP was trained with.
const CLIP: ([f64; 3], [f64; 3]) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);

/// The processor of a model folder: its `preprocessor_config.json`, or that of the tower's family. Pictures are padded to a
/// square where `config.json` says so.
pub(super) fn of(dir: &Path, config: &VisionConfig) -> Result<ImageProcessor> {
    let path = dir.join("preprocessor_config.json");
    let processor = match path.is_file() {
        true => ImageProcessor::load(&path).map_err(|error| Error::config(&path, error.to_string()))?,
        false => usual(&config.tower),
    };
    Ok(processor.with_padding(config.image_aspect_ratio.as_deref() == Some("pad")))
}

/// What the published towers of a family come with.
fn usual(tower: &TowerConfig) -> ImageProcessor {
    let side = tower.image_size();
    let clip = ImageProcessor {
        size: Some(Sizing::Shortest(side)),
        filter: Filter::Bicubic,
        crop: Some((side, side)),
        rescale: Some(1.0 / 255.0),
        normalise: Some(CLIP),
        pad_to_square: false,
        grids: Vec::new(),
        limits: Limits::default(),
    };
    match tower {
        TowerConfig::Clip(_) | TowerConfig::Cumo(_) => clip,
        TowerConfig::Siglip(_) => ImageProcessor {
            size: Some(Sizing::Exact(side, side)),
            crop: None,
            normalise: Some(([0.5; 3], [0.5; 3])),
            ..clip
        },
    }
}
