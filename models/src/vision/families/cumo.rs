//! CuMo: sparse networks in the tower and in the connector, co-upcycled; Mistral or Mixtral.
//!
//! Paper: Li et al., arXiv 2405.05949. Reference: `cumo/model` of SHI-Labs/CuMo at 6cd979a. Either part may be dense
//! (`clip_smoe`, `mlp_smoe`): what its training starts from. Pictures cut into tiles (`anyres`) are not supported.

use moesaic_encoders::CumoConfig;
use serde_json::{Map, Value};

use super::keys::Keys;
use super::original::{described, language_model};
use crate::decoder::{AuxLoss, DecoderConfig};
use crate::vision::{Language, Layout, LossWeights, ProjectorConfig, Result, TowerConfig, VisionConfig};

pub(super) fn translate(published: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let keys = Keys(&published);
    let vision = described(&keys, "mm_vision_tower", tower)?;
    let mut map = published.clone();
    map.insert("vision_config".into(), Value::Object(vision));
    let tower = CumoConfig::from_json(&Value::Object(map).to_string())?;
    let projector = match keys.name("mm_projector_type")? {
        kind if keys.flag("mlp_smoe", false)? || kind == Some("smoe_mlp") => ProjectorConfig::Sparse {
            experts: keys.count("num_experts")?.unwrap_or(4),
            k: keys.count("num_selected")?.unwrap_or(2),
        },
        kind => ProjectorConfig::llava(kind.unwrap_or("linear"))?,
    };
    let default = LossWeights::default();
    let losses = LossWeights {
        balance: keys.number("balance_loss_coef")?.unwrap_or(default.balance),
        z: keys.number("router_z_loss_coef")?.unwrap_or(default.z),
    };
    let mut decoder = language_model(&published)?;
    if decoder.sparse.is_some() {
        // CuMo's code has the losses of its other parts here too.
        decoder = DecoderConfig { aux_loss: AuxLoss::BalanceAndZ(losses.balance, losses.z), ..decoder };
    }
    let features = keys.features("mm_vision_select_layer", "mm_vision_select_feature")?;
    let layout =
        |tower: &str| Layout { tower: tower.into(), projector: "model.mm_projector".into(), language: Language::Own };
    Ok(VisionConfig {
        model_type: keys.name("model_type")?.unwrap_or_default().to_string(),
        tower: TowerConfig::Cumo(tower),
        features,
        compression: None,
        tiles: None,
        projector,
        decoder,
        picture_token: None,
        losses,
        longest: keys.count("tokenizer_model_max_length")?,
        image_aspect_ratio: keys.name("image_aspect_ratio")?.map(str::to_string),
        layouts: vec![layout("model.vision_tower"), layout("model.vision_tower.vision_tower")],
        published,
    })
}
