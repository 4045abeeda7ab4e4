//! How pictures are prepared.

use std::path::Path;

use moesaic_encoders::image::{AriaProcessor, Filter, ImageError, ImageProcessor, Limits, PatchProcessor, Sizing};
use moesaic_models::aria::AriaConfig;
use moesaic_models::qwen3_vl::Qwen3VlConfig;
use moesaic_models::vision::{TowerConfig, VisionConfig};
use serde_json::json;

use crate::error::{Error, Result};

/// Mean and deviation of the colours that OpenAI's CLIP was trained with.
const CLIP: ([f64; 3], [f64; 3]) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);

/// The processor of a model folder: its `preprocessor_config.json`, or that of the tower's family.
pub(super) fn of(dir: &Path, config: &VisionConfig) -> Result<ImageProcessor> {
    let path = dir.join("preprocessor_config.json");
    let processor = match path.is_file() {
        true => ImageProcessor::load(&path).map_err(|error| Error::config(&path, error.to_string()))?,
        false => usual(&config.tower),
    };
    Ok(padded(processor, config))
}

/// This processor, padding pictures to a square where `config.json` says so.
pub(super) fn padded(processor: ImageProcessor, config: &VisionConfig) -> ImageProcessor {
    processor.with_padding(config.image_aspect_ratio.as_deref() == Some("pad"))
}

/// What a folder's `preprocessor_config.json` says, or this text where there is none.
fn read<P>(
    dir: &Path,
    load: fn(&Path) -> std::result::Result<P, ImageError>,
    parse: fn(&str) -> std::result::Result<P, ImageError>,
    usual: &str,
) -> Result<(P, std::path::PathBuf)> {
    let path = dir.join("preprocessor_config.json");
    let processor = if path.is_file() { load(&path) } else { parse(usual) };
    match processor {
        Ok(processor) => Ok((processor, path)),
        Err(error) => {
            // The file's name stands in front already.
            let text = error.to_string();
            Err(Error::config(&path, text.strip_prefix("preprocessor_config.json: ").unwrap_or(&text)))
        }
    }
}

/// Aria's: pictures of a size that the model has queries for.
pub(super) fn aria(dir: &Path, config: &AriaConfig) -> Result<AriaProcessor> {
    let patches = |side: usize| (side / config.tower.patch_size.max(1)).pow(2);
    let fits = |side: &usize| config.projector.queries.contains_key(&patches(*side));
    let largest = [980, 490].into_iter().find(fits).unwrap_or(980);
    let usual = json!({ "max_image_size": largest }).to_string();
    let (processor, path) = read(dir, AriaProcessor::load, AriaProcessor::from_json, &usual)?;
    if !fits(&processor.side) {
        let (side, patches) = (processor.side, patches(processor.side));
        let known: Vec<String> = config.projector.queries.keys().map(ToString::to_string).collect();
        let problem = format!(
            "pictures of {side} x {side} pixels have {patches} patches, and config.json has queries for pictures of {}: give \
             another max_image_size",
            known.join(" and ")
        );
        return Err(Error::config(&path, problem));
    }
    Ok(processor)
}

/// Qwen3-VL's: patches and cells as the tower takes them.
pub(super) fn patches(dir: &Path, config: &Qwen3VlConfig) -> Result<PatchProcessor> {
    let tower = &config.tower;
    let wanted = (tower.patch_size, tower.temporal_patch_size, tower.merge);
    let usual = json!({
        "size": { "shortest_edge": 65536, "longest_edge": 16_777_216 }, "patch_size": wanted.0,
        "temporal_patch_size": wanted.1, "merge_size": wanted.2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]
    });
    let (processor, path) = read(dir, PatchProcessor::load, PatchProcessor::from_json, &usual.to_string())?;
    let given = (processor.patch, processor.frames, processor.cell);
    if given != wanted {
        let problem = format!(
            "patches of {} pixels and {} frames in cells of {} do not fit the tower of config.json, which takes {}, {} and {}",
            given.0, given.1, given.2, wanted.0, wanted.1, wanted.2
        );
        return Err(Error::config(&path, problem));
    }
    Ok(processor)
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
