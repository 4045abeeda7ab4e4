//! A small model of every family, and what the tests do with models.

use candle_core::{D, DType, Device, Tensor};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::save;
use moesaic_kernels::rng::Rng;
use moesaic_models::decoder::{Cache, Context, Decoder, DecoderConfig, Input, pad_ids};
use serde_json::{Map, Value, json};

pub const VOCABULARY: usize = 37;

/// Small configs, each family at least once.
pub fn configs() -> Vec<Value> {
    let base = json!({
        "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 20, "max_position_embeddings": 64, "initializer_range": 0.3
    });
    let experts = json!({ "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10 });
    let local = json!({ "num_local_experts": 5, "num_experts_per_tok": 2 });
    let latent = json!({
        "num_key_value_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "n_shared_experts": 1,
        "first_k_dense_replace": 1
    });
    let with = |parts: &[&Value], own: Value| {
        let mut all = Map::new();
        for part in [&[&base][..], parts, &[&own]].concat() {
            all.extend(part.as_object().unwrap().clone());
        }
        Value::Object(all)
    };
    vec![
        with(&[], json!({ "model_type": "llama", "head_dim": 10 })),
        with(
            &[],
            json!({ "model_type": "llama", "tie_word_embeddings": true, "mlp_bias": true, "attention_bias": true }),
        ),
        with(
            &[],
            json!({ "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1 }),
        ),
        with(&[], json!({ "model_type": "stablelm", "partial_rotary_factor": 0.7, "qk_layernorm": true })),
        with(
            &[],
            json!({ "model_type": "phi", "qk_layernorm": true, "num_key_value_heads": 4, "partial_rotary_factor": 0.7 }),
        ),
        with(&[], json!({ "model_type": "mistral", "sliding_window": 5 })),
        with(&[&local], json!({ "model_type": "mixtral", "sliding_window": 5 })),
        with(
            &[&experts],
            json!({ "model_type": "qwen2_moe", "shared_expert_intermediate_size": 12, "mlp_only_layers": [0] }),
        ),
        with(&[&experts], json!({ "model_type": "qwen3_moe", "head_dim": 8, "norm_topk_prob": true })),
        with(&[&experts], json!({ "model_type": "olmoe", "clip_qkv": 1.5 })),
        with(
            &[&latent],
            json!({ "model_type": "deepseek_v2", "q_lora_rank": 7, "n_group": 3, "topk_group": 2,
            "topk_method": "group_limited_greedy" }),
        ),
        with(&[&latent], json!({ "model_type": "deepseek_v3", "n_group": 2, "topk_group": 1, "attention_bias": true })),
        with(
            &[&local],
            json!({ "model_type": "phimoe", "attention_bias": true, "lm_head_bias": true, "router_jitter_noise": 0.3,
            "rope_scaling": { "type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 2, 4], "short_mscale": 1.0,
                "long_mscale": 1.2, "original_max_position_embeddings": 9 } }),
        ),
        with(
            &[&local],
            json!({ "model_type": "granitemoe", "embedding_multiplier": 2.0, "attention_multiplier": 0.3,
            "residual_multiplier": 0.5, "logits_scaling": 2.0, "tie_word_embeddings": true }),
        ),
        with(&[&local], json!({ "model_type": "jetmoe", "kv_channels": 6 })),
        with(
            &[],
            json!({ "model_type": "llama", "rope_scaling": { "type": "dynamic", "factor": 3.0 }, "max_position_embeddings": 8 }),
        ),
        with(&[], json!({ "model_type": "mistral", "sliding_window": 4 })),
        with(
            &[],
            json!({ "model_type": "aria_text", "moe_num_experts": 5, "moe_topk": 2, "moe_num_shared_experts": 2,
            "mlp_bias": true }),
        ),
        with(
            &[],
            json!({ "model_type": "qwen3_vl_text", "head_dim": 12, "tie_word_embeddings": true,
            "rope_scaling": { "mrope_section": [2, 2, 2], "rope_type": "default" } }),
        ),
        with(
            &[&experts],
            json!({ "model_type": "qwen3_vl_moe_text", "head_dim": 12, "mlp_only_layers": [0],
            "rope_scaling": { "mrope_section": [4, 1, 1], "rope_type": "default" } }),
        ),
    ]
}

pub fn config(json: &Value) -> DecoderConfig {
    DecoderConfig::from_json(&json.to_string()).unwrap_or_else(|e| panic!("{json}: {e}"))
}

/// A model of seeded random weights, biases and norms too, saved as a checkpoint in the published layout.
pub struct Saved {
    pub label: String,
    pub config: DecoderConfig,
    pub dir: tempfile::TempDir,
    pub tensors: Vec<(String, Tensor)>,
}

impl Saved {
    pub fn new(json: &Value) -> Self {
        let config = config(json);
        let params = Params::init(5, &Device::Cpu);
        Decoder::new(config.clone(), &params).unwrap();
        let tensors: Vec<(String, Tensor)> = params.published(|var| Some(var.as_tensor().clone())).unwrap();
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, t)| {
                // Ones and zeros would hide a norm or a bias that is left out.
                let noise = rng_tensor(&name, t.dims());
                let t = if t.rank() == 1 { ((noise * 0.2).unwrap() + t).unwrap() } else { t };
                (name, t)
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        let saved = Self { label: json["model_type"].to_string(), config, dir, tensors };
        saved.write(&saved.tensors);
        saved
    }

    pub fn write(&self, tensors: &[(String, Tensor)]) {
        save(&self.dir.path().join("model.safetensors"), tensors, &[("format", "pt")]).unwrap();
    }

    pub fn load(&self, dtype: DType) -> Decoder {
        Decoder::load(self.dir.path(), dtype, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", self.label))
    }

    pub fn error(&self) -> String {
        Decoder::load(self.dir.path(), DType::F32, &Device::Cpu).unwrap_err().to_string()
    }
}

pub fn all() -> Vec<Saved> {
    configs().iter().map(Saved::new).collect()
}

pub fn rng_tensor(name: &str, dims: &[usize]) -> Tensor {
    let mut rng = Rng::named(11, name);
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

pub fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.below(VOCABULARY) as u32).collect()
}

pub fn ids(rows: &[&[u32]]) -> (Tensor, Context) {
    pad_ids(rows, 0, &Device::Cpu).unwrap()
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let worst = values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    // A NaN anywhere must not pass.
    if values(a).iter().chain(&values(b)).all(|v| v.is_finite()) { worst } else { f32::INFINITY }
}

/// Logits `[b, t, V]` of whole rows, without a cache.
pub fn logits(model: &Decoder, rows: &[&[u32]]) -> Tensor {
    let (ids, context) = ids(rows);
    model.logits(&model.forward(Input::Ids(&ids), &context, None, None).unwrap().hidden).unwrap()
}

/// `n` tokens after each row, greedily with a cache, and the logits that they were taken from, `[b, n, V]`.
pub fn greedy(model: &Decoder, rows: &[&[u32]], n: usize) -> (Vec<Vec<u32>>, Tensor) {
    let (mut step, context) = ids(rows);
    let mut cache = Cache::with_capacity(4);
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    for i in 0..n {
        let context = if i == 0 { context.clone() } else { Context::default() };
        let output = model.forward(Input::Ids(&step), &context, Some(&mut cache), None).unwrap();
        let last = model.last_logits(&output).unwrap();
        step = last.argmax(D::Minus1).unwrap().unsqueeze(1).unwrap();
        tokens.push(step.clone());
        all.push(last.unsqueeze(1).unwrap());
    }
    (Tensor::cat(&tokens, 1).unwrap().to_vec2().unwrap(), Tensor::cat(&all, 1).unwrap())
}
