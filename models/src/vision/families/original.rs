//! LLaVA-1.5 and 1.6 as their authors publish them (`liuhaotian/llava-v1.5-7b`, `liuhaotian/llava-v1.6-mistral-7b`): the language
//! model's keys at the top of `config.json`, the tower only named.
//!
//! Paper: Liu et al., arXiv 2310.03744. Reference: `llava/model/llava_arch.py` of haotian-liu/LLaVA. From 1.6 on pictures are cut
//! into tiles (`image_aspect_ratio: anyres`, `mm_patch_merge_type: spatial_unpad`, `image_newline`); `image_grid_pinpoints` are
//! pairs of width and height.

use candle_core::Error as Candle;
use moesaic_kernels::shown;
use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::decoder::DecoderConfig;
use crate::vision::{
    Error, Language, Layout, LossWeights, ProjectorConfig, Result, TilesConfig, TowerConfig, VisionConfig,
};

pub(super) fn translate(published: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let keys = Keys(&published);
    let tower = TowerConfig::from_map(&described(&keys, "mm_vision_tower", tower)?)?;
    let projector = ProjectorConfig::llava(keys.name("mm_projector_type")?.unwrap_or("linear"))?;
    let layout =
        |tower: &str| Layout { tower: tower.into(), projector: "model.mm_projector".into(), language: Language::Own };
    Ok(VisionConfig {
        model_type: keys.name("model_type")?.unwrap_or_default().to_string(),
        tower,
        features: keys.features("mm_vision_select_layer", "mm_vision_select_feature")?,
        compression: None,
        tiles: tiles(&keys)?,
        projector,
        decoder: language_model(&published)?,
        picture_token: None,
        losses: LossWeights::default(),
        longest: keys.count("tokenizer_model_max_length")?,
        image_aspect_ratio: keys.name("image_aspect_ratio")?.map(str::to_string),
        layouts: vec![layout("model.vision_tower.vision_tower"), layout("model.vision_tower")],
        published,
    })
}

/// How pictures are cut, by models from 1.6 on.
fn tiles(keys: &Keys<'_>) -> Result<Option<TilesConfig>> {
    let (ratio, merge) = (keys.name("image_aspect_ratio")?, keys.name("mm_patch_merge_type")?);
    match (ratio, merge.unwrap_or("flat")) {
        (Some("anyres"), "spatial_unpad") => {}
        (Some(ratio), merge) if ratio.starts_with("anyres") || merge.contains("unpad") => {
            return Err(Error::other(format!(
                "pictures are cut ({}) and put together again ({}) in a way that is not supported, only anyres with spatial_unpad is",
                shown(ratio),
                shown(merge)
            )));
        }
        _ => return Ok(None),
    }
    match keys.pairs("image_grid_pinpoints")? {
        Some(grids) => Ok(Some(TilesConfig { grids })),
        None => Err(Error::other("image_aspect_ratio is anyres, but there are no image_grid_pinpoints")),
    }
}

/// The tower's `vision_config`: in `config.json`, in the file beside it, or of the tower that the key names.
pub(super) fn described(keys: &Keys<'_>, name: &str, beside: Option<Map<String, Value>>) -> Result<Map<String, Value>> {
    if let Some(map) = keys.object("vision_config")?.cloned().or(beside) {
        return Ok(map);
    }
    match keys.name(name)? {
        None => Err(Error::no_tower(format!("config.json has no {name}"))),
        Some(tower) => TowerConfig::named(tower),
    }
}

/// The language model whose keys stand at the top of `config.json`.
pub(super) fn language_model(published: &Map<String, Value>) -> Result<DecoderConfig> {
    let model_type = match published.get("model_type").and_then(Value::as_str).unwrap_or_default() {
        "llava" | "llava_llama" => "llama",
        "llava_mistral" => "mistral",
        "llava_mixtral" => "mixtral",
        other => return Err(Error::other(format!("the language model of a {} is not known", shown(other)))),
    };
    let mut map = published.clone();
    map.insert("model_type".into(), json!(model_type));
    Ok(DecoderConfig::from_value(Value::Object(map)).map_err(|e| Candle::msg(format!("language model: {e}")))?)
}
