//! A model that looks at pictures, small enough for tests: random weights, and the tokenizer of the tiny language model.

#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_models::aria::{Aria, AriaConfig};
use moesaic_models::qwen3_vl::{Qwen3Vl, Qwen3VlConfig};
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

/// Writes a tokenizer with these special tokens behind the others, from 211 on, and no chat template.
fn with_tokens(dir: &Path, names: &[&str]) {
    let mut tokenizer = tiny::tokenizer();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.extend(names.iter().enumerate().map(|(i, name)| {
        json!({"id": 211 + i, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    }));
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut config = tiny::tokenizer_config();
    config.as_object_mut().unwrap().remove("chat_template");
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes the weights that were made, and the configuration.
fn write(dir: &Path, params: &Params, config: &Value) {
    let tensors = params.published(|v| Some(v.as_tensor().clone())).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[("format", "pt")]).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn map(config: &Value) -> serde_json::Map<String, Value> {
    config.as_object().unwrap().clone()
}

/// Aria with 14 x 14 patches of a picture of 490 pixels, 4 queries, and 2 layers of 5 experts.
pub fn aria_model(folder: &Path) -> PathBuf {
    let dir = folder.join("aria");
    fs::create_dir_all(&dir).unwrap();
    let config = json!({
        "model_type": "aria", "image_token_index": 213, "projector_patch_to_query_dict": {"196": 4},
        "vision_config": {"model_type": "idefics3_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 490, "patch_size": 35},
        "text_config": {"model_type": "aria_text", "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "moe_num_experts": 5, "moe_topk": 2,
            "moe_num_shared_experts": 1, "vocab_size": 214, "max_position_embeddings": 160, "rms_norm_eps": 1e-5,
            "eos_token_id": 2, "initializer_range": 0.5},
    });
    let params = Params::init(6, &Device::Cpu);
    Aria::new(AriaConfig::from_map(map(&config)).unwrap(), &params).unwrap();
    write(&dir, &params, &config);
    with_tokens(&dir, &["<fim_prefix>", "<fim_suffix>", "<|img|>"]);
    dir
}

/// Qwen3-VL, dense or with 3 layers of 5 experts: cells of 16 pixels, 4 to 16 of them for a picture.
pub fn qwen_model(folder: &Path, sparse: bool) -> PathBuf {
    let dir = folder.join(if sparse { "qwen-sparse" } else { "qwen" });
    fs::create_dir_all(&dir).unwrap();
    let kind = if sparse { "qwen3_vl_moe" } else { "qwen3_vl" };
    let mut config = json!({
        "model_type": kind, "image_token_id": 213, "video_token_id": 214, "vision_start_token_id": 211,
        "vision_end_token_id": 212,
        "vision_config": {"model_type": kind, "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "num_position_embeddings": 16, "out_hidden_size": 32, "patch_size": 8, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "deepstack_visual_indexes": [0, 1]},
        "text_config": {"model_type": format!("{kind}_text"), "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 215,
            "max_position_embeddings": 160, "rms_norm_eps": 1e-5, "eos_token_id": 2, "initializer_range": 0.5,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": true, "mrope_section": [4, 2, 2]}},
    });
    if sparse {
        for (key, value) in [("num_experts", 5), ("num_experts_per_tok", 2), ("moe_intermediate_size", 12)] {
            config["text_config"][key] = json!(value);
        }
    }
    let params = Params::init(7, &Device::Cpu);
    Qwen3Vl::new(Qwen3VlConfig::from_map(map(&config)).unwrap(), &params).unwrap();
    write(&dir, &params, &config);
    with_tokens(&dir, &["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]);
    let processor = json!({"size": {"shortest_edge": 1024, "longest_edge": 4096}, "patch_size": 8, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5]});
    fs::write(dir.join("preprocessor_config.json"), processor.to_string()).unwrap();
    dir
}

/// LLaVA-NeXT with tiles of 16 pixels, and the language model of [`config`].
pub fn llava_next_model(folder: &Path) -> PathBuf {
    let dir = folder.join("next");
    fs::create_dir_all(&dir).unwrap();
    let config = json!({
        "model_type": "llava_next", "image_token_index": 211, "text_config": config()["text_config"],
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]],
    });
    let params = Params::init(8, &Device::Cpu);
    VisionModel::new(VisionConfig::from_map(map(&config), None).unwrap(), &params).unwrap();
    write(&dir, &params, &config);
    with_tokens(&dir, &["<image>"]);
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
