//! A model that looks at pictures, small enough for tests: random weights, and the tokenizer of the tiny language model.

#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use moesaic_kernels::Params;
use moesaic_models::vision::{VisionConfig, VisionModel};
use serde_json::{Value, json};

use crate::tiny;

/// CLIP with 16 patches of a picture of 32 pixels, CuMo's sparse connector, Mixtral with three layers of 5 experts.
pub fn config() -> Value {
    json!({
        "model_type": "moesaic_vision",
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        "text_config": {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2,
            "vocab_size": 212, "max_position_embeddings": 160, "rms_norm_eps": 1e-5, "eos_token_id": 2,
            "initializer_range": 0.5},
        "projector": {"type": "sparse_mlp", "num_experts": 4, "num_selected": 2},
        "vision_feature_layer": -1,
    })
}

/// Writes the model into `folder`.
pub fn vision_model(folder: &Path) -> PathBuf {
    let dir = folder.join("looking");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), config().to_string()).unwrap();
    let params = Params::init(4, &Device::Cpu);
    let model = VisionModel::new(VisionConfig::load(&dir).unwrap(), &params).unwrap();
    model.save(&params, &dir, DType::F32).unwrap();
    fs::write(dir.join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
    let mut config = tiny::tokenizer_config();
    config.as_object_mut().unwrap().remove("chat_template");
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// Names the token `<image>`, with which the model marks pictures from now on.
pub fn name_the_mark(dir: &Path) {
    let mut tokenizer = tiny::tokenizer();
    let mark = json!({"id": 211, "content": "<image>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(mark);
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["image_token_index"] = json!(211);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}
