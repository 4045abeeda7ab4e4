//! Our own trained models. `config.json`:
//!
//! ```json
//! { "model_type": "moesaic_vision",
//!   "vision_config": { "model_type": "clip_vision_model", "hidden_size": 64, "..": ".." },
//!   "text_config": { "model_type": "qwen3_moe", "..": ".." },
//!   "projector": { "type": "mlp", "depth": 2 },
//!   "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
//!   "image_token_index": 511 }
//! ```
//!
//! `vision_config` is that of CLIP or SigLIP, `text_config` that of any language family. `projector` is `{"type": "mlp", "depth": N}`
//! (linear maps with GELU between) or `{"type": "sparse_mlp", "num_experts": E, "num_selected": K}` (CuMo's connector, whose losses
//! `balance_loss_coef` and `router_z_loss_coef` weigh). Layer and strategy are as in LLaVA (by default -2 and `default`, which leaves
//! out the first token). `"compression": {"type": "pixel_shuffle", "size": 2}` joins features before the projector
//! ([`Compression::named`]). `conversation` names the template of its prompts. Without `image_token_index` no word stands for a picture. Tensors are `vision_tower.vision_model.*`,
//! `multi_modal_projector.{0, 2, ..}.*` or `multi_modal_projector.{gate, experts}.*`, and `language_model.*` with the names of the family.

use candle_core::{Error as Candle, bail};
use moesaic_kernels::{Activation, shown};
use moesaic_projectors::{Compression, MlpNames};
use serde_json::{Map, Value};

use super::keys::Keys;
use crate::decoder::DecoderConfig;
use crate::vision::{Error, Language, Layout, LossWeights, ProjectorConfig, Result, TowerConfig, VisionConfig};

pub(super) fn translate(published: Map<String, Value>, _: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let keys = Keys(&published);
    let Some(vision) = keys.object("vision_config")? else {
        return Err(Error::no_tower("config.json has no vision_config"));
    };
    let Some(text) = keys.object("text_config")? else { return Err(Error::other("config.json has no text_config")) };
    let decoder =
        DecoderConfig::from_value(Value::Object(text.clone())).map_err(|e| Candle::msg(format!("text_config: {e}")))?;
    let Some(projector) = keys.object("projector")? else { return Err(Error::other("config.json has no projector")) };
    let default = LossWeights::default();
    Ok(VisionConfig {
        model_type: "moesaic_vision".into(),
        tower: TowerConfig::from_map(vision)?,
        features: keys.features("vision_feature_layer", "vision_feature_select_strategy")?,
        compression: keys.object("compression")?.map(|c| compression(&Keys(c))).transpose()?,
        tiles: None,
        projector: self::projector(&Keys(projector))?,
        decoder,
        picture_token: keys.token(&["image_token_index", "image_token_id"])?,
        losses: LossWeights {
            balance: keys.number("balance_loss_coef")?.unwrap_or(default.balance),
            z: keys.number("router_z_loss_coef")?.unwrap_or(default.z),
        },
        longest: keys.count("tokenizer_model_max_length")?,
        image_aspect_ratio: keys.name("image_aspect_ratio")?.map(str::to_string),
        layouts: vec![Layout {
            tower: "vision_tower".into(),
            projector: "multi_modal_projector".into(),
            language: Language::Under("language_model"),
        }],
        published,
    })
}

fn compression(keys: &Keys<'_>) -> candle_core::Result<Compression> {
    match (keys.name("type")?, keys.count("size")?) {
        (Some(kind), Some(size)) => Compression::named(kind, size),
        _ => bail!("compression needs a type and a size"),
    }
}

fn projector(keys: &Keys<'_>) -> candle_core::Result<ProjectorConfig> {
    match keys.name("type")? {
        Some("mlp") => {
            let depth = keys.count("depth")?.unwrap_or(2);
            if !(1..=64).contains(&depth) {
                bail!("the projector's depth is {depth}, expected 1 to 64");
            }
            let activation = Activation::Gelu;
            Ok(ProjectorConfig::Mlp { depth, names: MlpNames::Sequential, activation, bias: true })
        }
        Some("sparse_mlp") => Ok(ProjectorConfig::Sparse {
            experts: keys.count("num_experts")?.unwrap_or(4),
            k: keys.count("num_selected")?.unwrap_or(2),
        }),
        Some(other) => bail!("a projector of type {} is not known; known are mlp and sparse_mlp", shown(other)),
        None => bail!("the projector has no type; known are mlp and sparse_mlp"),
    }
}
