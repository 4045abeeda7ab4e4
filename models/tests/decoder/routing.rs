//! The routers that the key `router` names, in a whole decoder: trained a step, saved and loaded, cached.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::gguf::Kind;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_models::decoder::{Cache, Context, Decoder, DecoderConfig, Input, Usage};
use serde_json::{Value, json};

const E: usize = 4;

/// Each router, what a token takes, and the tensors that it has beside the family's.
fn routers() -> [(Value, usize, &'static [&'static str]); 6] {
    let pathways = json!({"type": "pathways", "zero_experts": 1, "copy_experts": 1, "constant_experts": 2});
    [
        (json!({"type": "null_top_k", "null_experts": 4}), 4, &[]),
        (pathways, 2, &["1.mlp.gate_residual.weight", "0.mlp.constant_experts.1.vector"]),
        (json!({"type": "relu"}), 2, &["router_l1_coefficient"]),
        (json!({"type": "normed_relu", "locality": 0.1, "chunk_sparsity": 0.1}), 2, &["1.mlp.gate_norm.weight"]),
        (json!({"type": "dense_training"}), 2, &[]),
        (json!({"type": "sigmoid_top_k", "bias_rate": 0.25}), 2, &["0.mlp.gate.e_score_correction_bias"]),
    ]
}

fn config(router: &Value, k: usize) -> Result<DecoderConfig> {
    let config = json!({
        "model_type": "qwen3_moe", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": true, "initializer_range": 0.3,
        "num_experts": E, "num_experts_per_tok": k, "moe_intermediate_size": 8, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "router": router,
    });
    DecoderConfig::from_json(&config.to_string())
}

fn text() -> Result<(Tensor, Vec<i64>)> {
    let ids: Vec<u32> = (0..24u32).map(|i| (i * i * 5 + 3 * i) % 40).collect();
    let labels = ids.iter().map(|&id| i64::from(id)).collect();
    Ok((Tensor::from_vec(ids, (2, 12), &Device::Cpu)?, labels))
}

#[test]
fn each_router_trains_is_saved_and_goes_on_token_by_token() -> Result<()> {
    let (ids, labels) = text()?;
    let training = Context { training: true, ..Context::default() };
    for (router, k, tensors) in routers() {
        let params = Params::init(3, &Device::Cpu);
        let model = Decoder::new(config(&router, k)?, &params)?;
        let (losses, output) = model.loss(Input::Ids(&ids), &training, &labels)?;
        let gradients = losses.total.backward()?;
        let named =
            |end: &str| params.variables().into_iter().find(|(name, _)| name.ends_with(end)).map(|(_, var)| var);
        for layer in ["0.mlp.gate.weight", "1.mlp.gate.weight"] {
            let gate = named(layer).expect(layer);
            let moved = gradients.get(&gate).map(|g| g.abs()?.max_all()?.to_scalar::<f32>()).transpose()?;
            assert!(moved.is_some_and(|g| g > 0.0 && g.is_finite()), "{router}: {layer} learns nothing");
        }
        for name in tensors {
            assert!(named(name).is_some(), "{router}: there is no {name}");
        }
        let dense = router["type"] == "dense_training";
        if dense {
            assert_eq!(output.networks_per_token(model.config())?, E as f64);
        }
        // What count of parameters the config gives is what there is.
        let all: usize = params.variables().iter().map(|(_, var)| var.elem_count()).sum();
        let steered = usize::from(router["type"] == "relu");
        assert_eq!(model.parameters().total(), all - steered, "{router}");

        // Saved, loaded, and one token at a time: as in one pass.
        let dir = tempfile::tempdir()?;
        save(&dir.path().join("model.safetensors"), &params.published(|v| Some(v.as_tensor().clone()))?, &[])?;
        let loaded =
            Decoder::from_checkpoint(config(&router, k)?, &Checkpoint::open(dir.path())?, DType::F32, &Device::Cpu)?;
        let whole = model.forward(Input::Ids(&ids), &Context::default(), None, None)?;
        if dense {
            assert_eq!(whole.networks_per_token(model.config())?, k as f64);
        }
        let mut cache = Cache::default();
        for i in 0..12 {
            let one = ids.narrow(1, i, 1)?.contiguous()?;
            let step = loaded.forward(Input::Ids(&one), &Context::default(), Some(&mut cache), None)?;
            let apart = (step.hidden - whole.hidden.narrow(1, i, 1)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(apart < 2e-5, "{router}: token {i} is {apart} apart");
        }
        let gguf = model.config().gguf(&Checkpoint::open(dir.path())?, |_, _| Kind::Float(DType::F32));
        assert!(gguf.is_err(), "{router} is written as what GGUF has");
    }
    Ok(())
}

#[test]
fn steering_follows_the_use_of_experts() -> Result<()> {
    let (ids, labels) = text()?;
    let step = |router: &Value| -> Result<(Params, Decoder, Usage)> {
        let params = Params::init(5, &Device::Cpu);
        let model = Decoder::new(config(router, 2)?, &params)?;
        let mut usage = Usage::default();
        for _ in 0..2 {
            usage.add(&model.loss(Input::Ids(&ids), &Context::default(), &labels)?.1)?;
        }
        assert!(model.is_steered());
        model.steer(&params, &usage)?;
        Ok((params, model, usage))
    };
    let value = |params: &Params, end: &str| -> Result<Vec<f32>> {
        let all = params.variables();
        all.iter().find(|(name, _)| name.ends_with(end)).expect(end).1.to_vec1()
    };
    let bias = json!({"type": "sigmoid_top_k", "bias_rate": 0.25});
    let (params, model, usage) = step(&bias)?;
    let load = model.forward(Input::Ids(&ids), &Context::default(), None, None)?.routes;
    for layer in 0..2 {
        let moved = value(&params, &format!("{layer}.mlp.gate.e_score_correction_bias"))?;
        assert!(moved.iter().all(|b| [-0.25, 0.0, 0.25].contains(b)) && moved.iter().any(|b| *b != 0.0), "{moved:?}");
    }
    // The same text again is spread better, or as well.
    let before = Decoder::new(config(&bias, 2)?, &Params::init(5, &Device::Cpu))?;
    let before = before.forward(Input::Ids(&ids), &Context::default(), None, None)?.routes;
    let most = |routes: &moesaic_kernels::Routes| routes.load().map(|load| load.into_iter().fold(0.0, f64::max));
    assert!(most(&load[0])? <= most(&before[0])?);
    assert!(usage != Usage::default());

    // A token should take 2 of 4, and takes another number: the coefficient grows or shrinks.
    let (params, model, _) = step(&json!({"type": "relu", "growth": 2.0}))?;
    let routes = model.forward(Input::Ids(&ids), &Context::default(), None, None)?;
    let taken = routes.networks_per_token(model.config())?;
    assert!(taken != 2.0);
    let expected = if taken > 2.0 { 2e-8 } else { 0.5e-8 };
    assert!((value(&params, "router_l1_coefficient")?[0] / expected - 1.0).abs() < 1e-5);
    // Without variables there is nothing to steer.
    let none = Params::init(1, &Device::Cpu);
    let mut usage = Usage::default();
    usage.add(&routes)?;
    assert!(model.steer(&none, &usage).unwrap_err().to_string().contains("router_l1_coefficient"));
    Ok(())
}
