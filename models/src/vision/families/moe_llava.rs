//! MoE-LLaVA (`LanguageBind/MoE-LLaVA-*`): LLaVA whose language model has experts in every other layer; and the dense models of
//! its stage II, whose `model_type` lacks the `moe_`.
//!
//! Paper: Lin et al., arXiv 2401.15947. Reference: `moellava/model/llava_arch.py` of PKU-YuanGroup/MoE-LLaVA at 6cb5f66. The
//! tower is the one that the checkpoint brings; its sizes come from `vision_config.json` beside the config, or from its name.

use moesaic_kernels::shown;
use serde_json::{Map, Value};

use super::keys::Keys;
use super::original::described;
use crate::decoder;
use crate::vision::{Error, Language, Layout, LossWeights, ProjectorConfig, Result, TowerConfig, VisionConfig};

pub(super) fn translate(published: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let keys = Keys(&published);
    let model_type = keys.name("model_type")?.unwrap_or_default().to_string();
    let backbone = match model_type.strip_prefix("moe_").unwrap_or(&model_type).strip_prefix("llava") {
        Some("") => "llama",
        Some(rest) => rest.strip_prefix('_').unwrap_or(rest),
        None => return Err(Error::other(format!("the language model of a {} is not known", shown(&model_type)))),
    };
    let decoder = decoder::moe_llava(backbone, published.clone())?;
    // Qwen 1 calls its trunk so.
    let trunk = if backbone == "qwen" { "transformer" } else { "model" };
    Ok(VisionConfig {
        tower: TowerConfig::from_map(&described(&keys, "mm_image_tower", tower)?)?,
        features: keys.features("mm_vision_select_layer", "mm_vision_select_feature")?,
        compression: None,
        tiles: None,
        projector: ProjectorConfig::llava(keys.name("image_projector_type")?.unwrap_or("linear"))?,
        decoder,
        picture_token: None,
        losses: LossWeights::default(),
        longest: keys.count("tokenizer_model_max_length")?,
        image_aspect_ratio: keys.name("image_aspect_ratio")?.map(str::to_string),
        layouts: vec![Layout {
            tower: format!("{trunk}.image_tower.image_tower"),
            projector: format!("{trunk}.mm_projector.image_spatial_proj"),
            language: Language::Own,
        }],
        model_type,
        published,
    })
}
