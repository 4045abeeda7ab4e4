//! Adapters of language models: PEFT's layout against weights that were changed by hand, live and merged, several at once,
//! and adapters that belong elsewhere.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{GRANITE, LLAMA, QWEN3_MOE, far, logits, normal, write_model};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::rng::Rng;
use moesaic_models::decoder::{Decoder, DecoderConfig};
use moesaic_models::lora::{Adapter, adjust, attached, avsr, load_merged, merge_attached};

type Tensors = Vec<(String, Tensor)>;

const CPU: &Device = &Device::Cpu;

fn write_adapter(dir: &Path, config: &str, tensors: &Tensors) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("adapter_config.json"), config).unwrap();
    save(&dir.join("adapter_model.safetensors"), tensors, &[("format", "pt")]).unwrap();
    dir.to_path_buf()
}

/// Both tensors of a map, under PEFT's names.
fn pair(rng: &mut Rng, module: &str, r: usize, inputs: usize, out: usize) -> [(String, Tensor); 2] {
    let name = |half: &str| format!("base_model.model.{module}.lora_{half}.weight");
    [(name("A"), normal(rng, &[r, inputs])), (name("B"), normal(rng, &[out, r]))]
}

/// The model in `base` with `scale · B A` added to the weights of some tensors.
fn changed(base: &Path, to: &Path, changes: &[(String, Tensor)]) -> Decoder {
    let checkpoint = Checkpoint::open(base).unwrap();
    let tensors: Tensors = checkpoint
        .names()
        .map(|name| {
            let mut tensor = checkpoint.read_any(name).unwrap();
            for (_, delta) in changes.iter().filter(|(n, _)| n == name) {
                tensor = (tensor + delta).unwrap();
            }
            (name.to_string(), tensor)
        })
        .collect();
    assert!(changes.iter().all(|(name, _)| checkpoint.info(name).is_some()));
    std::fs::create_dir_all(to).unwrap();
    save(&to.join("model.safetensors"), &tensors, &[]).unwrap();
    std::fs::copy(base.join("config.json"), to.join("config.json")).unwrap();
    Decoder::load(to, DType::F32, CPU).unwrap()
}

fn live(base: &Path, adapters: &[(&Path, f64)]) -> candle_core::Result<Decoder> {
    let mut model = Decoder::load(base, DType::F32, CPU)?;
    for (i, (dir, weight)) in adapters.iter().enumerate() {
        Adapter::open(dir)?.attach(model.sites(), &format!("adapter {i}"), *weight, DType::F32, CPU)?;
    }
    Ok(model)
}

fn merged(base: &Path, adapters: &[(&Path, f64)]) -> candle_core::Result<Decoder> {
    let mut changes = BTreeMap::new();
    for (dir, weight) in adapters {
        Adapter::open(dir)?.merge(&mut changes, *weight)?;
    }
    let config = DecoderConfig::load(base)?;
    load_merged(&Checkpoint::open(base)?, changes, DType::F32, CPU, |params| Decoder::new(config, params))
}

/// An adapter of attention, a dense network and experts, with the change that it means for each tensor.
fn adapter(seed: u64) -> (String, Tensors, Vec<(String, Tensor)>) {
    let config = r#"{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "bias": "none",
        "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], "use_rslora": false, "inference_mode": true,
        "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.self_attn.q_proj": 1.5}, "some_new_key": {"a": 1}}"#;
    let mut rng = Rng::new(seed);
    let (mut tensors, mut changes) = (Vec::new(), Vec::new());
    let mut add = |module: String, r: usize, inputs: usize, out: usize, scale: f64| {
        let [a, b] = pair(&mut rng, &module, r, inputs, out);
        changes.push((format!("{module}.weight"), (b.1.matmul(&a.1).unwrap() * scale).unwrap()));
        tensors.extend([a, b]);
    };
    for layer in 0..2 {
        let attention = |map: &str| format!("model.layers.{layer}.self_attn.{map}");
        add(attention("q_proj"), 3, 32, 32, if layer == 1 { 0.5 } else { 2.0 });
        add(attention("v_proj"), 5, 32, 16, 1.2);
        add(attention("o_proj"), 3, 32, 32, 2.0);
    }
    add("model.layers.0.mlp.gate_proj".into(), 3, 32, 48, 2.0);
    add("model.layers.0.mlp.down_proj".into(), 3, 48, 32, 2.0);
    for expert in 0..4 {
        add(format!("model.layers.1.mlp.experts.{expert}.gate_proj"), 3, 32, 16, 2.0);
        add(format!("model.layers.1.mlp.experts.{expert}.down_proj"), 3, 16, 32, 2.0);
    }
    (config.into(), tensors, changes)
}

#[test]
fn a_peft_adapter_live_and_merged_equals_weights_changed_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (base, at) = (dir.path().join("base"), |name: &str| dir.path().join(name));
    write_model(&base, QWEN3_MOE, 1);
    let (config, tensors, changes) = adapter(2);
    let one = write_adapter(&at("one"), &config, &tensors);
    let expected = logits(&changed(&base, &at("changed"), &changes));
    let plain = logits(&Decoder::load(&base, DType::F32, CPU).unwrap());
    assert!(far(&plain, &expected) > 0.1);
    let mut model = live(&base, &[(&one, 1.0)]).unwrap();
    assert!(far(&logits(&model), &expected) < 1e-4, "live: {}", far(&logits(&model), &expected));
    assert!(far(&logits(&merged(&base, &[(&one, 1.0)]).unwrap()), &expected) < 1e-4);
    // 6 maps of attention, gate and down of a dense layer and of 4 experts.
    assert_eq!(attached(model.sites()), BTreeMap::from([("adapter 0".to_string(), 6 + 2 + 2)]));
    // Tiles cannot take it in; the message says what can be done.
    assert!(merge_attached(model.sites()).unwrap_err().to_string().contains("while the model is loaded"));
    adjust(model.sites(), |_, _| None);
    assert_eq!(logits(&model), plain);

    // A second one with a strength of its own, beside the first and merged with it.
    let (config, tensors, more) = adapter(3);
    let two = write_adapter(&at("two"), &config, &tensors);
    let mut all = changes;
    all.extend(more.into_iter().map(|(name, delta)| (name, (delta * -0.5).unwrap())));
    let expected = logits(&changed(&base, &at("both"), &all));
    let both = [(one.as_path(), 1.0), (two.as_path(), -0.5)];
    let mut model = live(&base, &both).unwrap();
    assert!(far(&logits(&model), &expected) < 2e-4);
    assert!(far(&logits(&merged(&base, &both).unwrap()), &expected) < 2e-4);
    adjust(model.sites(), |name, _| (name == "adapter 0").then_some(1.0));
    assert_eq!(logits(&model), logits(&live(&base, &[(&one, 1.0)]).unwrap()));

    // Half-precision weights round; the adapter's change is there all the same.
    for dtype in [DType::BF16, DType::F16] {
        let mut model = Decoder::load(&base, dtype, CPU).unwrap();
        Adapter::open(&one).unwrap().attach(model.sites(), "x", 1.0, dtype, CPU).unwrap();
        let (with, without) = (logits(&model), logits(&Decoder::load(&base, dtype, CPU).unwrap()));
        assert!(far(&with, &logits(&live(&base, &[(&one, 1.0)]).unwrap())) < 0.5 && far(&with, &without) > 0.1);
    }
}

#[test]
fn some_experts_in_ranks_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base, QWEN3_MOE, 1);
    let mut rng = Rng::new(5);
    let (mut tensors, mut changes) = (Vec::new(), Vec::new());
    for (expert, r, scale) in [(0, 2, 2.0), (3, 4, 1.0)] {
        let module = format!("model.layers.1.mlp.experts.{expert}.up_proj");
        let [a, b] = pair(&mut rng, &module, r, 32, 16);
        changes.push((format!("{module}.weight"), (b.1.matmul(&a.1).unwrap() * scale).unwrap()));
        tensors.extend([a, b]);
    }
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ".*experts\\.(0|3)\\.up_proj",
        "rank_pattern": {"experts.3.up_proj": 4}}"#;
    let adapter = write_adapter(&dir.path().join("adapter"), config, &tensors);
    let expected = logits(&changed(&base, &dir.path().join("changed"), &changes));
    assert!(far(&logits(&live(&base, &[(&adapter, 1.0)]).unwrap()), &expected) < 1e-4);
    assert!(far(&logits(&merged(&base, &[(&adapter, 1.0)]).unwrap()), &expected) < 1e-4);
}

#[test]
fn stacked_experts() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut rng = Rng::new(6);
    let (e, r) = (4, 2);
    // `[E * r, in]` and `[out, r * E]`, the expert running fastest in the second.
    let mut stack = |module: &str, inputs: usize, out: usize| {
        let [a, b] = pair(&mut rng, module, e * r, inputs, out);
        let by_expert = b.1.reshape((out, r, e)).unwrap().permute((2, 0, 1)).unwrap().contiguous().unwrap();
        let delta = by_expert.matmul(&a.1.reshape((e, r, inputs)).unwrap()).unwrap();
        ([a, b], (delta * 1.5).unwrap())
    };
    let config = |targets: &str| {
        format!(
            r#"{{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": {targets}}}"#
        )
    };
    write_model(&at("granite"), GRANITE, 7);
    let (mut tensors, mut changes) = (Vec::new(), Vec::new());
    for layer in 0..2 {
        for (map, inputs, out) in [("input_linear", 32, 32), ("output_linear", 16, 32)] {
            let module = format!("model.layers.{layer}.block_sparse_moe.{map}");
            let (pair, delta) = stack(&module, inputs, out);
            tensors.extend(pair);
            changes.push((format!("{module}.weight"), delta));
        }
    }
    let targets = r#"["input_linear.weight", "output_linear.weight"]"#;
    let adapter = write_adapter(&at("granite adapter"), &config(targets), &tensors);
    let expected = logits(&changed(&at("granite"), &at("granite changed"), &changes));
    assert!(far(&logits(&live(&at("granite"), &[(&adapter, 1.0)]).unwrap()), &expected) < 1e-4);
    assert!(far(&logits(&merged(&at("granite"), &[(&adapter, 1.0)]).unwrap()), &expected) < 1e-4);

    // Two parameters of one module: the first lies inside the wrapper of the second.
    write_model(&at("qwen"), QWEN3_MOE, 8);
    let module = "model.layers.1.mlp.experts";
    let (up, up_delta) = stack(&format!("{module}.base_layer"), 32, 32);
    let (down, down_delta) = stack(module, 16, 32);
    let targets = r#"["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]"#;
    let adapter = write_adapter(&at("qwen adapter"), &config(targets), &[up, down].concat());
    let mut changes = Vec::new();
    for expert in 0..e {
        let (up, name) = (up_delta.get(expert).unwrap(), format!("{module}.{expert}"));
        changes.push((format!("{name}.gate_proj.weight"), up.narrow(0, 0, 16).unwrap()));
        changes.push((format!("{name}.up_proj.weight"), up.narrow(0, 16, 16).unwrap()));
        changes.push((format!("{name}.down_proj.weight"), down_delta.get(expert).unwrap()));
    }
    let expected = logits(&changed(&at("qwen"), &at("qwen changed"), &changes));
    assert!(far(&logits(&live(&at("qwen"), &[(&adapter, 1.0)]).unwrap()), &expected) < 1e-4);
    let error = merged(&at("qwen"), &[(&adapter, 1.0)]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("one by one") && error.contains("live"), "{error}");
}

#[test]
fn an_adapter_for_another_model_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base, LLAMA, 1);
    let wrong = |targets: &str, pairs: &[(&str, usize, usize, usize)]| -> (String, String) {
        let mut rng = Rng::new(1);
        let tensors = pairs.iter().flat_map(|&(m, r, i, o)| pair(&mut rng, m, r, i, o)).collect();
        let config = format!(r#"{{"peft_type": "LORA", "r": 2, "target_modules": {targets}}}"#);
        let adapter = write_adapter(&dir.path().join("adapter"), &config, &tensors);
        let text = |model: candle_core::Result<Decoder>| model.map_or_else(|e| e.to_string(), |_| "no error".into());
        (text(live(&base, &[(&adapter, 1.0)])), text(merged(&base, &[(&adapter, 1.0)])))
    };
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    let (q0, q1, q2) = (q(0), q(1), q(2));
    // A layer is missing: a model of more layers than the adapter's.
    let (live, _) = wrong(r#"["q_proj"]"#, &[(&q0, 2, 32, 32)]);
    assert!(live.contains("layers.1.self_attn.q_proj.lora_A") && live.contains("layers.0.self_attn.q_proj"), "{live}");
    // One too many.
    let (live, merged) = wrong(r#"["q_proj"]"#, &[(&q0, 2, 32, 32), (&q1, 2, 32, 32), (&q2, 2, 32, 32)]);
    assert!(live.contains(&q2) && live.contains("nearest map is model.layers."), "{live}");
    assert!(merged.contains(&q2) && merged.contains("another model"), "{merged}");
    // Another width, another rank than the config says.
    let (live, merged) = wrong(r#"["q_proj"]"#, &[(&q0, 2, 64, 64), (&q1, 2, 64, 64)]);
    assert!(live.contains(&q0) && live.contains("[2, 32]") && live.contains("[2, 64]"), "{live}");
    assert!(merged.contains(&q0) && merged.contains("another model"), "{merged}");
    let (live, merged) = wrong(r#"["q_proj"]"#, &[(&q0, 4, 32, 32), (&q1, 4, 32, 32)]);
    assert!(live.contains(&q0) && merged.contains("rank 2"), "{live} {merged}");
    // Names of another family, names that no config mentions, targets that nothing has.
    let (live, _) = wrong(r#"["query_key_value"]"#, &[("transformer.h.0.attn.query_key_value", 2, 32, 32)]);
    assert!(live.contains("no map of the model is a target"), "{live}");
    let (live, _) =
        wrong(r#"["q_proj"]"#, &[(&q0, 2, 32, 32), (&q1, 2, 32, 32), ("model.layers.0.mlp.up_proj", 2, 32, 48)]);
    assert!(live.contains("mlp.up_proj") && live.contains("does not name this map"), "{live}");
    // The head of a model whose head is its embedding can be adapted live only.
    let granite = dir.path().join("granite");
    write_model(&granite, GRANITE, 2);
    let tensors: Tensors = pair(&mut Rng::new(1), "lm_head", 2, 32, 257).into();
    let config = r#"{"peft_type": "LORA", "r": 2, "target_modules": ["lm_head"]}"#;
    let adapter = write_adapter(&dir.path().join("head"), config, &tensors);
    let plain = logits(&Decoder::load(&granite, DType::F32, CPU).unwrap());
    assert!(far(&plain, &logits(&self::live(&granite, &[(&adapter, 1.0)]).unwrap())) > 0.01);
    let error = self::merged(&granite, &[(&adapter, 1.0)]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("live"), "{error}");
}

#[test]
fn folders_that_are_no_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| Adapter::open(dir).map(|_| ()).unwrap_err().to_string();
    assert!(open(dir.path()).contains("adapter_config.json"));
    let config = r#"{"peft_type": "LORA", "target_modules": ["q_proj"]}"#;
    std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    assert!(open(dir.path()).contains("adapter_model.safetensors"));
    std::fs::write(dir.path().join("adapter_model.bin"), b"PK").unwrap();
    assert!(open(dir.path()).contains("pickle"));
    let tensors: Tensors = pair(&mut Rng::new(1), "model.layers.0.self_attn.q_proj", 8, 32, 32).into();
    write_adapter(dir.path(), config, &tensors);
    let file = dir.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for keep in [0, 7, 40, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..keep]).unwrap();
        assert!(open(dir.path()).contains("adapter_model.safetensors"));
    }
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type": "LORA", "use_dora": true}"#).unwrap();
    assert!(open(dir.path()).contains("DoRA"));
}

#[test]
fn the_layout_of_llama_avsr_and_its_matryoshka() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base, LLAMA, 1);
    let mut rng = Rng::new(3);
    // Hidden 32, reduction 10: rank 3, scale 5 / 10.
    let numbers = avsr::Reduced { reduction: 10.0, alpha: 5.0 };
    let (mut tensors, mut changes): (Tensors, _) = (Vec::new(), Vec::new());
    for layer in 0..2 {
        for group in ["", "local_loras.0.", "local_loras.1.", "global_lora."] {
            for (letter, map, out) in [("Q", "q_proj", 32), ("V", "v_proj", 16)] {
                let name = |way| format!("llm.model.layers.{layer}.self_attn.{group}lora_{way}_{letter}.weight");
                let (down, up) = (normal(&mut rng, &[3, 32]), normal(&mut rng, &[out, 3]));
                let delta = (up.matmul(&down).unwrap() * 0.5).unwrap();
                changes.push((group, format!("model.layers.{layer}.self_attn.{map}.weight"), delta));
                tensors.extend([(name("down"), down), (name("up"), up)]);
            }
        }
    }
    let file = dir.path().join("avsr.safetensors");
    save(&file, &tensors, &[]).unwrap();
    let params = Params::load(&Checkpoint::open(&file).unwrap(), DType::F32, CPU).pp("llm");
    let run = |groups: &[&str]| {
        let mut model = Decoder::load(&base, DType::F32, CPU).unwrap();
        assert_eq!(avsr::attach(model.sites(), &params, numbers, groups).unwrap(), 4 * groups.len());
        logits(&model)
    };
    for groups in [&[""][..], &["local_loras.1"], &["local_loras.0", "global_lora"]] {
        let chosen: Vec<_> = changes
            .iter()
            .filter(|(group, ..)| groups.contains(&group.trim_end_matches('.')))
            .map(|(_, name, delta)| (name.clone(), delta.clone()))
            .collect();
        let expected = logits(&changed(&base, &dir.path().join("changed"), &chosen));
        assert!(far(&run(groups), &expected) < 1e-4, "{groups:?}");
    }
    let mut model = Decoder::load(&base, DType::F32, CPU).unwrap();
    let wide = avsr::Reduced { reduction: 8.0, ..numbers };
    let error = avsr::attach(model.sites(), &params, wide, &[""]).unwrap_err().to_string();
    assert!(error.contains("lora_down_Q") && error.contains("[4, 32]"), "{error}");
}
