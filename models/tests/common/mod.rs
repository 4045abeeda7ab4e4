//! Tiny language models with seeded weights, in folders as they are published.
#![allow(dead_code)] // each test program uses its part

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_kernels::rng::Rng;
use moesaic_models::decoder::{Context, Decoder, DecoderConfig, Input};

/// Sparse, experts stored one by one.
pub const QWEN3_MOE: &str = r#"{"model_type": "qwen3_moe", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 128, "decoder_sparse_step": 1, "mlp_only_layers": [0],
    "router_aux_loss_coef": 0.01, "output_router_logits": true, "tie_word_embeddings": false, "initializer_range": 0.2,
    "bos_token_id": null, "eos_token_id": 256}"#;

/// Sparse, experts stacked, the head tied to the embedding.
pub const GRANITE: &str = r#"{"model_type": "granitemoe", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    "num_experts_per_tok": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0, "logits_scaling": 1.5, "residual_multiplier": 0.8, "max_position_embeddings": 128,
    "router_aux_loss_coef": 0.01, "tie_word_embeddings": true, "initializer_range": 0.2, "bos_token_id": null,
    "eos_token_id": 256}"#;

/// Dense.
pub const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": false, "initializer_range": 0.2,
    "bos_token_id": null, "eos_token_id": 256}"#;

/// Writes a model of this config, its weights of this seed.
pub fn write_model(dir: &Path, config: &str, seed: u64) {
    let params = Params::init(seed, &Device::Cpu);
    Decoder::new(DecoderConfig::from_json(config).unwrap(), &params).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    let tensors = params.published(|v| Some(v.as_tensor().clone())).unwrap();
    save(&dir.join("model.safetensors"), &tensors, &[("format", "pt")]).unwrap();
    std::fs::write(dir.join("config.json"), config).unwrap();
}

/// Seeded values.
pub fn normal(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| 0.3 * rng.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Logits of some text.
pub fn logits(model: &Decoder) -> Vec<f32> {
    let ids = Tensor::new(&[[10u32, 200, 31, 31, 7, 256, 90], [5, 6, 7, 8, 9, 10, 11]], &Device::Cpu).unwrap();
    let output = model.forward(Input::Ids(&ids), &Context::default(), None, None).unwrap();
    model.logits(&output.hidden).unwrap().flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// The largest difference.
pub fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
