//! LLaVA-1.5 as `transformers` publishes it (`llava-hf/llava-1.5-7b-hf`): CLIP, two linear maps, Llama.
//!
//! Paper: Liu et al., arXiv 2310.03744. Reference:
//! [`modeling_llava.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llava/modeling_llava.py).
//! `image_token_index` stands in the ids once for each token of a picture, or once for a picture.

use candle_core::Error as Candle;
use moesaic_kernels::Activation;
use moesaic_projectors::MlpNames;
use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::decoder::DecoderConfig;
use crate::vision::{Language, Layout, LossWeights, ProjectorConfig, Result, TowerConfig, VisionConfig};

pub(super) fn translate(published: Map<String, Value>, tower: Option<Map<String, Value>>) -> Result<VisionConfig> {
    let keys = Keys(&published);
    let tower = match (keys.object("vision_config")?, tower) {
        (Some(config), _) => TowerConfig::from_map(config)?,
        (None, Some(config)) => TowerConfig::from_map(&config)?,
        (None, None) => TowerConfig::from_map(&TowerConfig::named("openai/clip-vit-large-patch14-336")?)?,
    };
    let text = with_defaults(keys.object("text_config")?.cloned().unwrap_or_default());
    let mut text = text;
    // The whole model's switch counts.
    if let Some(tied) = published.get("tie_word_embeddings").filter(|_| !text.contains_key("tie_word_embeddings")) {
        text.insert("tie_word_embeddings".into(), tied.clone());
    }
    let decoder =
        DecoderConfig::from_value(Value::Object(text)).map_err(|e| Candle::msg(format!("text_config: {e}")))?;
    let layout =
        |tower: &str, projector: &str, language| Layout { tower: tower.into(), projector: projector.into(), language };
    Ok(VisionConfig {
        model_type: "llava".into(),
        tower,
        features: keys.features("vision_feature_layer", "vision_feature_select_strategy")?,
        compression: None,
        tiles: None,
        projector: ProjectorConfig::Mlp {
            depth: 2,
            names: MlpNames::Each(vec!["linear_1".into(), "linear_2".into()]),
            activation: Activation::from_name(keys.name("projector_hidden_act")?.unwrap_or("gelu"))?,
            bias: keys.flag("multimodal_projector_bias", true)?,
        },
        decoder,
        picture_token: Some(keys.token(&["image_token_index", "image_token_id"])?.unwrap_or(32000)),
        losses: LossWeights::default(),
        longest: None,
        image_aspect_ratio: None,
        layouts: vec![
            layout("vision_tower", "multi_modal_projector", Language::Under("language_model")),
            layout("model.vision_tower", "model.multi_modal_projector", Language::Inside),
        ],
        published,
    })
}

/// A `text_config` with what its class has by default, which published files leave out.
fn with_defaults(mut text: Map<String, Value>) -> Map<String, Value> {
    let model_type =
        text.entry("model_type").or_insert_with(|| json!("llama")).as_str().unwrap_or_default().to_string();
    let defaults = match model_type.as_str() {
        "llama" => {
            json!({ "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6 })
        }
        "mistral" => {
            json!({ "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
            "sliding_window": 4096 })
        }
        "qwen2" => {
            json!({ "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6 })
        }
        _ => return text,
    };
    if let Value::Object(defaults) = defaults {
        for (key, value) in defaults {
            text.entry(key).or_insert(value);
        }
    }
    text
}
