//! Configs, checkpoints, inputs and values that are refused.

use candle_core::{DType, Device, Result, Tensor};
use moesaic_kernels::Modality;
use moesaic_kernels::rng::Rng;
use moesaic_models::decoder::{Cache, Context, DecoderConfig, Input, pad_ids};
use serde_json::{Value, json};

use crate::families::*;

#[test]
fn a_broken_router_names_its_layer() {
    for saved in all() {
        let routers = ["gate.weight", "router.layer.weight", "router.weight"];
        let Some(at) =
            saved.tensors.iter().position(|(n, _)| n.contains("layers.1.") && routers.iter().any(|r| n.ends_with(r)))
        else {
            assert!(saved.config.sparse.is_none());
            continue;
        };
        let mut tensors = saved.tensors.clone();
        tensors[at].1 = (tensors[at].1.clone() * f64::NAN).unwrap();
        saved.write(&tensors);
        let model = saved.load(DType::F32);
        let (ids, context) = ids(&[&prompt(1, 4)]);
        let mut cache = Cache::default();
        let error = model.forward(Input::Ids(&ids), &context, Some(&mut cache), None).unwrap_err().to_string();
        assert!(error.contains("layer 1") && error.contains("NaN"), "{}: {error}", saved.label);
        assert!(cache.is_empty());
    }
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let saved = Saved::new(&configs()[0]);
    let rename = |from: &str, to: &str| -> Vec<(String, Tensor)> {
        saved.tensors.iter().map(|(n, t)| (n.replace(from, to), t.clone())).collect()
    };
    saved.write(&rename("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"));
    let error = saved.error();
    assert!(error.contains("layers.1.mlp.up_proj.weight") && error.contains("upp_proj"), "{error}");
    let extra = |name: &str| {
        let mut tensors = saved.tensors.clone();
        tensors.push((name.to_string(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
        saved.write(&tensors);
    };
    extra("model.layers.2.self_attn.q_proj.weight");
    let error = saved.error();
    assert!(error.contains("layers.2") && error.contains("llama"), "{error}");
    // Buffers that old releases saved are no mistake.
    extra("model.layers.1.self_attn.rotary_emb.inv_freq");
    saved.load(DType::F32);
    // DeepSeek-V3's layers for multi-token prediction follow the others.
    let mut v3 = configs().into_iter().find(|c| c["model_type"] == "deepseek_v3").unwrap();
    v3["num_nextn_predict_layers"] = json!(1);
    let saved = Saved::new(&v3);
    let mut tensors = saved.tensors.clone();
    tensors.push(("model.layers.2.eh_proj.weight".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
    saved.write(&tensors);
    saved.load(DType::F32);
    tensors.push(("model.layers.3.eh_proj.weight".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
    saved.write(&tensors);
    assert!(saved.error().contains("layers.3"));
    std::fs::remove_file(saved.dir.path().join("config.json")).unwrap();
    assert!(saved.error().contains("config.json"));
}

#[test]
fn inputs_that_do_not_fit_are_refused() -> Result<()> {
    let model = Saved::new(&configs()[0]).load(DType::F32);
    let run = |ids: &Tensor, context: Context| {
        model.forward(Input::Ids(ids), &context, None, None).map(|_| ()).map_err(|e| e.to_string())
    };
    let two = Tensor::zeros((2, 3), DType::I64, &Device::Cpu)?;
    assert!(run(&two, Context::default()).is_ok());
    let error = run(&Tensor::new(&[[1i64, -1]], &Device::Cpu)?, Context::default()).unwrap_err();
    assert!(error.contains("-1") && error.contains("vocabulary"), "{error}");
    assert!(run(&Tensor::new(&[[VOCABULARY as u32]], &Device::Cpu)?, Context::default()).is_err());
    assert!(run(&two.flatten_all()?, Context::default()).is_err());
    assert!(run(&Tensor::zeros((2, 0), DType::U32, &Device::Cpu)?, Context::default()).is_err());
    assert!(run(&two, Context { padding: vec![1], ..Context::default() }).is_err());
    assert!(run(&two, Context { padding: vec![1, 3], ..Context::default() }).unwrap_err().contains("row 1"));
    assert!(run(&two, Context { positions: Some(vec![0; 5]), ..Context::default() }).is_err());
    assert!(run(&two, Context { modality: Some(vec![Modality::Text; 5]), ..Context::default() }).is_err());
    assert!(Context::left_padded(&Tensor::new(&[[1u8, 0, 1]], &Device::Cpu)?).is_err());
    assert!(pad_ids(&[], 0, &Device::Cpu).is_err());
    assert!(pad_ids(&[&[1], &[]], 0, &Device::Cpu).unwrap_err().to_string().contains("row 1"));
    let embeds = Tensor::zeros((1, 2, 23), DType::F32, &Device::Cpu)?;
    assert!(model.forward(Input::Embeds(&embeds), &Context::default(), None, None).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[-100; 6]).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[1; 5]).is_err());
    assert!(model.loss(Input::Ids(&two), &Context::default(), &[VOCABULARY as i64; 6]).is_err());
    Ok(())
}

#[test]
fn hostile_configs_are_refused_before_anything_is_made() {
    for good in configs() {
        let family = good["model_type"].as_str().unwrap().to_string();
        let refused = |what: &str, bad: &Value| match DecoderConfig::from_json(&bad.to_string()) {
            Ok(_) => panic!("{family}: {what} is accepted"),
            Err(e) => assert!(e.to_string().contains(&family), "{family}: {what}: {e}"),
        };
        for key in ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size"] {
            for value in
                [json!(0), json!(-1), json!(u64::MAX), json!(1e300), json!("12"), json!(1.5), json!([1]), Value::Null]
            {
                // A sparse family may not use the width of dense layers; then it may be anything that is a number.
                let mut bad = good.clone();
                bad[key] = value.clone();
                if DecoderConfig::from_json(&bad.to_string()).is_ok() {
                    assert!(
                        key == "intermediate_size" && good["moe_intermediate_size"].is_u64(),
                        "{family}: {key} {value}"
                    );
                }
            }
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().remove(key);
            if key != "intermediate_size" || family != "olmoe" {
                refused(&format!("no {key}"), &bad);
            }
        }
        let with = |key: &str, value: Value| {
            let mut bad = good.clone();
            bad[key] = value;
            bad
        };
        if family.starts_with("deepseek") {
            refused("no heads", &with("num_attention_heads", json!(0)));
        } else if family != "jetmoe" {
            refused("3 heads for 2 key-value heads", &with("num_attention_heads", json!(3)));
            refused("no heads", &with("num_attention_heads", json!(0)));
        }
        if family != "stablelm" && family != "phi" {
            refused("a negative eps", &with("rms_norm_eps", json!(-1e-5)));
        }
        refused("a theta of 0", &with("rope_theta", json!(0)));
        refused("a negative range", &with("initializer_range", json!(-0.1)));
        refused(
            "an unknown activation",
            &with(if family == "jetmoe" { "activation_function" } else { "hidden_act" }, json!("wow")),
        );
        for how in [
            json!({ "quant_method": "gptq", "bits": 4 }),
            json!({ "quant_method": "fp8" }),
            json!({ "quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128] }),
            json!({ "quant_method": "fp8", "weight_block_size": [1, 128] }),
        ] {
            refused("quantised weights", &with("quantization_config", how));
        }
        for scaling in [
            json!({ "type": "wow" }),
            json!({ "type": "linear" }),
            json!({ "type": "linear", "factor": 0 }),
            json!({ "type": "linear", "factor": "2" }),
            json!({ "type": "yarn", "factor": -1 }),
            json!({ "rope_type": "llama3", "factor": 8 }),
            json!({ "type": "longrope", "short_factor": [1], "long_factor": [1], "factor": 2 }),
            json!({ "type": "longrope", "short_factor": 1, "long_factor": [1], "factor": 2 }),
            json!([1]),
        ] {
            refused(&scaling.to_string(), &with("rope_scaling", scaling.clone()));
        }
        for key in
            ["num_local_experts", "num_experts", "n_routed_experts"].into_iter().filter(|k| good.get(*k).is_some())
        {
            refused("more experts a token than there are", &with(key, json!(1)));
            refused("too many experts", &with(key, json!(1u64 << 40)));
            refused("no expert a token", &with("num_experts_per_tok", json!(0)));
        }
    }
    let v3 = configs().into_iter().find(|c| c["model_type"] == "deepseek_v3").unwrap();
    for (key, value) in [
        ("n_group", json!(4)),
        ("n_group", json!(0)),
        ("topk_group", json!(3)),
        ("topk_group", json!(0)),
        ("n_group", json!(6)),
        ("scoring_func", json!("softmax")),
        ("topk_method", json!("greedy")),
        ("routed_scaling_factor", json!(0)),
        ("kv_lora_rank", json!(0)),
        ("qk_rope_head_dim", json!(3)),
    ] {
        let mut bad = v3.clone();
        bad[key] = value.clone();
        assert!(DecoderConfig::from_json(&bad.to_string()).is_err(), "{key} {value}");
    }
    let mut phimoe = configs().into_iter().find(|c| c["model_type"] == "phimoe").unwrap();
    phimoe["num_experts_per_tok"] = json!(3);
    assert!(DecoderConfig::from_json(&phimoe.to_string()).unwrap_err().to_string().contains("SparseMixer"));
    for (json, word) in [
        ("", "JSON"),
        ("[]", "object"),
        ("{}", "jetmoe"),
        (r#"{"model_type": "gpt2"}"#, "deepseek_v3"),
        (r#"{"model_type": 7}"#, "llama"),
    ] {
        let error = DecoderConfig::from_json(json).unwrap_err().to_string();
        assert!(error.contains(word), "{json}: {error}");
    }
}

/// A value that a config might hold by mistake or by malice.
fn strange(rng: &mut Rng) -> Value {
    let all = [
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(7),
        json!(1u64 << 20),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(-0.5),
        json!(1e-300),
        json!(2.5),
        json!(true),
        json!(false),
        json!(""),
        json!("silu"),
        json!([]),
        json!([1, 2, 3]),
        json!([1e300, -1]),
        json!({}),
        json!({ "type": "yarn", "factor": 1e300, "mscale": 1e300, "mscale_all_dim": 1e-300 }),
        json!({ "type": "dynamic", "factor": 1e-300 }),
        json!({ "type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 1, 1] }),
        json!({ "rope_type": "llama3", "factor": 1, "low_freq_factor": 1e-300, "high_freq_factor": 1e300,
            "original_max_position_embeddings": 1 }),
        Value::Null,
    ];
    all[rng.below(all.len())].clone()
}

/// Whatever stands in a config, it is refused or describes a model of bounded size; nothing panics.
#[test]
fn twenty_thousand_mutated_configs() {
    let goods = configs();
    let mut rng = Rng::new(17);
    let (mut taken, mut refused) = (0, 0);
    for i in 0..20_000 {
        let mut bad = goods[i % goods.len()].clone();
        let map = bad.as_object_mut().unwrap();
        for _ in 0..1 + rng.below(3) {
            let mut keys: Vec<String> = map.keys().filter(|k| *k != "model_type").cloned().collect();
            keys.extend(
                ["rope_scaling", "rope_parameters", "sliding_window", "layer_types", "eos_token_id"]
                    .map(str::to_string),
            );
            let key = keys[rng.below(keys.len())].clone();
            match rng.below(4) {
                0 => drop(map.remove(&key)),
                _ => drop(map.insert(key, strange(&mut rng))),
            }
        }
        let mut text = bad.to_string();
        if rng.below(4) == 0 {
            // Now and then the text itself is broken.
            let at = rng.below(text.len());
            let with = ["", "\"", "9", "}", "-", "e", "\u{fffd}"][rng.below(7)];
            text.replace_range(at..at + 1, with);
        }
        match DecoderConfig::from_json(&text) {
            Err(e) => {
                refused += 1;
                // A backtrace, if one is asked for, follows on further lines.
                assert!(e.to_string().lines().next().is_some_and(|line| line.len() < 1000), "{text}: {e}");
            }
            Ok(config) => {
                taken += 1;
                assert!(config.layers.len() <= 1 << 14);
                let parameters = config.parameters();
                assert!(parameters.active() <= parameters.total(), "{text}");
            }
        }
    }
    assert!(taken > 1000 && refused > 5000, "{taken} taken, {refused} refused");
}
