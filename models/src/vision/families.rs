//! The families: one file each, which translates its `config.json` and says where its tensors stand.

mod cumo;
mod keys;
mod llava;
mod llava_next;
mod moe_llava;
mod native;
mod original;

use moesaic_kernels::shown;
use serde_json::{Map, Value};

use super::{Error, Result, VisionConfig};
use crate::decoder::DecoderConfig;

/// What a family is given: its `config.json`, and the `vision_config.json` beside it.
type Translate = fn(Map<String, Value>, Option<Map<String, Value>>) -> Result<VisionConfig>;

/// Every `model_type`, in the order in which messages list them.
const FAMILIES: [(&str, Translate); 17] = [
    ("moesaic_vision", native::translate),
    ("llava", llava),
    ("llava_next", llava_next::translate),
    ("llava_llama", original::translate),
    ("llava_mistral", cumo),
    ("llava_mixtral", cumo),
    ("moe_llava_stablelm", moe_llava::translate),
    ("moe_llava_phi", moe_llava::translate),
    ("moe_llava_qwen", moe_llava::translate),
    ("moe_llava_qwen1_5", moe_llava::translate),
    ("moe_llava_mistral", moe_llava::translate),
    ("moe_llava_llama", moe_llava::translate),
    ("moe_llava", moe_llava::translate),
    ("llava_stablelm", moe_llava::translate),
    ("llava_phi", moe_llava::translate),
    ("llava_qwen", moe_llava::translate),
    ("llava_qwen1_5", moe_llava::translate),
];

/// `llava` is what `transformers` calls it, and the code of LLaVA and that of MoE-LLaVA did so before.
fn llava(map: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    if map.contains_key("text_config") || map.contains_key("vision_config") && !map.contains_key("mm_hidden_size") {
        return llava::translate(map, tower);
    }
    let translate = if map.contains_key("mm_image_tower") { moe_llava::translate } else { original::translate };
    translate(map, tower)
}

/// The code of CuMo, of LLaVA and of MoE-LLaVA share these names.
fn cumo(map: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let translate = match () {
        () if map.contains_key("mm_image_tower") => moe_llava::translate,
        () if ["clip_smoe", "mlp_smoe", "scales"].iter().any(|key| map.contains_key(*key)) => cumo::translate,
        () => original::translate,
    };
    translate(map, tower)
}

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
