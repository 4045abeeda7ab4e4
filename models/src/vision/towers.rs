//! Sizes of the towers that configs name by their id on the Hub and do not describe.

use serde_json::{Map, Value, json};

/// The `vision_config` of a published tower.
pub(super) fn known(name: &str) -> Option<Map<String, Value>> {
    let clip = |hidden: usize, inner: usize, layers: usize, heads: usize, image: usize, patch: usize| {
        json!({ "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": image, "patch_size": patch,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5 })
    };
    let siglip = |hidden: usize, inner: usize, layers: usize, heads: usize, image: usize, patch: usize| {
        json!({ "model_type": "siglip_vision_model", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": image, "patch_size": patch,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6 })
    };
    let config = match name.rsplit('/').next()? {
        "clip-vit-large-patch14-336" => clip(1024, 4096, 24, 16, 336, 14),
        "clip-vit-large-patch14" => clip(1024, 4096, 24, 16, 224, 14),
        "clip-vit-base-patch16" => clip(768, 3072, 12, 12, 224, 16),
        "clip-vit-base-patch32" => clip(768, 3072, 12, 12, 224, 32),
        "siglip-so400m-patch14-384" => siglip(1152, 4304, 27, 16, 384, 14),
        "siglip-so400m-patch14-224" => siglip(1152, 4304, 27, 16, 224, 14),
        "siglip-large-patch16-384" => siglip(1024, 4096, 24, 16, 384, 16),
        "siglip-large-patch16-256" => siglip(1024, 4096, 24, 16, 256, 16),
        "siglip-base-patch16-224" => siglip(768, 3072, 12, 12, 224, 16),
        "siglip-base-patch16-256" => siglip(768, 3072, 12, 12, 256, 16),
        "siglip-base-patch16-384" => siglip(768, 3072, 12, 12, 384, 16),
        _ => return None,
    };
    match config {
        Value::Object(map) => Some(map),
        _ => None,
    }
}
