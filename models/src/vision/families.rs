//! The families: one file each, which translates its `config.json` and says where its tensors stand.

mod keys;
mod llava;
mod native;

use moesaic_kernels::shown;
use serde_json::{Map, Value};

use super::{Error, Result, VisionConfig};
use crate::decoder::DecoderConfig;

/// What a family is given: its `config.json`, and the `vision_config.json` beside it.
type Translate = fn(Map<String, Value>, Option<Map<String, Value>>) -> Result<VisionConfig>;

/// Every `model_type`, in the order in which messages list them.
const FAMILIES: [(&str, Translate); 2] = [("moesaic_vision", native::translate), ("llava", llava::translate)];

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

pub(super) fn translate(map: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let supported = || names().collect::<Vec<_>>().join(", ");
    let Some(model_type) = map.get("model_type").and_then(Value::as_str).map(str::to_string) else {
        return Err(Error::other(format!("there is no model_type; supported are {}", supported())));
    };
    let Some((_, translate)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        if DecoderConfig::supported().any(|name| name == model_type) {
            return Err(Error::no_tower(format!(
                "model_type {model_type} is that of a language model; models that look at pictures are {}",
                supported()
            )));
        }
        let shown = shown(&model_type);
        return Err(Error::other(format!("model_type {shown} is not supported; supported are {}", supported())));
    };
    translate(map, tower).map_err(|e| e.of_file(&model_type))
}
