//! Upcycling: the sparse model starts as the dense one, what cannot be is refused, and nothing is left half-made.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use common::{LLAMA, far, write_model};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::decoder::{Context, Decoder, Input};
use moesaic_models::upcycle::{Error, Options, Plan, Start};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn logits(dir: &Path) -> Vec<f32> {
    let model = Decoder::load(dir, DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[10u32, 20, 31, 31, 7, 56, 9], [5, 6, 7, 8, 9, 10, 11]], &Device::Cpu).unwrap();
    let output = model.forward(Input::Ids(&ids), &Context::default(), None, None).unwrap();
    model.logits(&output.hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn write(plan: &Plan, output: &Path) {
    plan.write(output, &AtomicBool::new(false), &mut |_, _| {}).unwrap();
}

/// The largest difference between the logits of a dense model and of what is made of it, by the largest logit.
fn error(dense: &Path, options: Options) -> (f32, Plan) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("sparse");
    let plan = Plan::upcycle(dense, options).unwrap();
    write(&plan, &output);
    let (dense, sparse) = (logits(dense), logits(&output));
    let most = dense.iter().fold(0f32, |m, v| m.max(v.abs()));
    (far(&dense, &sparse) / most, plan)
}

/// Of f32 sums in another order, over three layers.
const TIGHT: f32 = 3e-6;

fn options(experts: usize, top_k: usize, granularity: usize, shared: usize) -> Options {
    Options { experts, top_k, granularity, shared, ..Options::default() }
}

#[test]
fn copies_give_the_logits_of_the_dense_model() {
    let dir = tempfile::tempdir().unwrap();
    let biases = dir.path().join("biases");
    write_model(&biases, &LLAMA.replace("\"llama\",", "\"llama\", \"attention_bias\": true,"), 1);
    for (dense, plain, shared) in [
        (fixture("llama/tiny_gqa"), "mixtral", Some("qwen2_moe")),
        (fixture("llama/tied_gelu"), "mixtral", Some("qwen2_moe")),
        (fixture("llama/yarn_options"), "mixtral", Some("qwen2_moe")),
        // Heads of their own width, which qwen2_moe has not.
        (fixture("llama/llama3_rope_tied"), "mixtral", None),
        (biases, "granitemoe", None),
        (fixture("qwen2/tiny_gqa"), "qwen2_moe", Some("qwen2_moe")),
        (fixture("qwen2/window"), "qwen2_moe", Some("qwen2_moe")),
        (fixture("qwen2/yarn"), "qwen2_moe", Some("qwen2_moe")),
    ] {
        for (n, k, g, s) in [
            (1, 1, 1, 0),
            (4, 2, 1, 0),
            (5, 3, 1, 0),
            (8, 2, 2, 0),
            (16, 8, 4, 0),
            (4, 2, 1, 1),
            (8, 4, 2, 1),
            (8, 4, 4, 3),
            (16, 4, 4, 4),
        ] {
            for shuffle in [false, true] {
                let options = Options { shuffle, seed: 7, ..options(n, k, g, s) };
                let name = format!("{} {n} {k} {g} {s} {shuffle}", dense.display());
                let Some(family) = (if s == 0 { Some(plain) } else { shared }) else {
                    let refused = Plan::upcycle(&dense, options).unwrap_err();
                    assert!(matches!(refused, Error::Unsupported { .. }), "{name}: {refused}");
                    continue;
                };
                let (error, plan) = error(&dense, options);
                assert!(plan.exact() && error < TIGHT, "{name}: {error}");
                assert_eq!(plan.config().model_type, family, "{name}");
            }
        }
    }
}

#[test]
fn some_layers_can_stay_dense() {
    let dense = fixture("llama/tiny_gqa");
    for (layers, shared) in [(vec![1], 0), (vec![0, 2], 2)] {
        let options = Options { layers: Some(layers.clone()), ..options(8, 4, 2, shared) };
        let (error, plan) = error(&dense, options);
        assert!(plan.exact() && error < TIGHT, "{layers:?}: {error}");
        assert_eq!(plan.config().model_type, "qwen2_moe");
        assert_eq!(plan.config().sparse_layers().collect::<Vec<_>>(), layers);
    }
}

#[test]
fn a_router_that_prefers_nobody_gives_the_dense_model_where_all_or_plain_softmax_weights_are_summed() {
    let dense = fixture("llama/tiny_gqa");
    let flat = Options { router_std: Some(0.0), ..Options::default() };
    let split = Options { experts: 8, top_k: 8, start: Start::Split, ..flat.clone() };
    let shared = Options { experts: 6, top_k: 6, shared: 1, ..split.clone() };
    let softmax = Options { experts: 16, top_k: 8, granularity: 4, renormalise: false, ..flat.clone() };
    let both = Options { shared: 3, ..softmax.clone() };
    for options in [split, shared, softmax, both] {
        let (error, plan) = error(&dense, options.clone());
        assert!(plan.exact() && error < TIGHT, "{options:?}: {error}");
    }
    // What is left out cannot be made up for exactly, and what a router prefers counts more.
    for options in [
        Options { experts: 8, top_k: 4, start: Start::Split, ..flat.clone() },
        Options { experts: 8, top_k: 8, start: Start::Split, router_std: Some(0.5), ..flat.clone() },
        Options { experts: 8, top_k: 4, renormalise: false, router_std: Some(0.5), ..flat },
    ] {
        let (error, plan) = error(&dense, options.clone());
        assert!(!plan.exact() && error > 1e-3, "{options:?}: {error}");
    }
}

#[test]
fn a_split_holds_each_neuron_once_in_an_order_of_its_seed() {
    let (dir, dense) = (tempfile::tempdir().unwrap(), fixture("llama/tiny_gqa"));
    let made = |name: &str, seed: u64| {
        let output = dir.path().join(name);
        let options = Options { experts: 7, top_k: 2, start: Start::Split, seed, ..Options::default() };
        write(&Plan::upcycle(&dense, options).unwrap(), &output);
        let sparse = Checkpoint::open(&output).unwrap();
        let rows = |checkpoint: &Checkpoint, name: &str| -> Vec<Vec<u32>> {
            let rows = checkpoint.read_any(name).unwrap().to_vec2::<f32>().unwrap();
            rows.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
        };
        let experts = |map: &str| -> Vec<Vec<u32>> {
            (0..7)
                .flat_map(|e| rows(&sparse, &format!("model.layers.1.block_sparse_moe.experts.{e}.{map}.weight")))
                .collect()
        };
        let (gates, ups) = (experts("w1"), experts("w3"));
        let original = Checkpoint::open(&dense).unwrap();
        let gate = rows(&original, "model.layers.1.mlp.gate_proj.weight");
        let up = rows(&original, "model.layers.1.mlp.up_proj.weight");
        // Gate and up of a neuron stay together.
        let order: Vec<usize> = gates.iter().map(|row| gate.iter().position(|g| g == row).unwrap()).collect();
        assert!(order.iter().zip(&ups).all(|(n, row)| up[*n] == *row));
        // So does its column of down, which is scaled by the number of experts.
        let down = original.read_any("model.layers.1.mlp.down_proj.weight").unwrap().to_vec2::<f32>().unwrap();
        let w2 = sparse.read_any("model.layers.1.block_sparse_moe.experts.2.w2.weight").unwrap();
        for (row, of) in w2.to_vec2::<f32>().unwrap().iter().zip(&down) {
            for (at, v) in row.iter().enumerate() {
                assert_eq!(*v, 7.0 * of[order[2 * 16 + at]]);
            }
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..112).collect::<Vec<_>>());
        order
    };
    let first = made("a", 1);
    assert_ne!(first, (0..112).collect::<Vec<_>>());
    assert_ne!(first, made("b", 2));
    assert_eq!(first, made("c", 1));
}

#[test]
fn noise_and_neurons_that_start_anew_change_experts_by_as_much_as_asked() {
    let (dir, dense) = (tempfile::tempdir().unwrap(), fixture("qwen2/tiny_gqa"));
    let original = Checkpoint::open(&dense).unwrap();
    let values = |checkpoint: &Checkpoint, name: &str| -> Vec<f32> {
        checkpoint.read_any(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let std = |v: &[f32]| (v.iter().map(|v| v * v).sum::<f32>() / v.len() as f32).sqrt();
    let make = |name: &str, noise: f64, reinit: f64| {
        let output = dir.path().join(name);
        let options = Options { noise, reinit, ..options(8, 4, 2, 1) };
        let plan = Plan::upcycle(&dense, options).unwrap();
        assert!(!plan.exact());
        write(&plan, &output);
        logits(&output);
        Checkpoint::open(&output).unwrap()
    };
    let noisy = make("noise", 0.1, 0.0);
    for (map, factor) in [("gate_proj", 1.0), ("up_proj", 1.0), ("down_proj", 2.0)] {
        let before = values(&original, &format!("model.layers.1.mlp.{map}.weight"));
        // Expert 3 holds the second half of its copy; columns of the down map.
        let after = values(&noisy, &format!("model.layers.1.mlp.experts.3.{map}.weight"));
        let half: Vec<f32> = match map {
            "down_proj" => before.chunks(96).flat_map(|row| row[48..].to_vec()).collect(),
            _ => before[48 * 64..].to_vec(),
        };
        let change: Vec<f32> = after.iter().zip(&half).map(|(a, b)| a / factor - b).collect();
        let share = std(&change) / std(&before);
        assert!((share - 0.1).abs() < 0.01, "{map}: {share}");
    }
    let anew = make("anew", 0.0, 0.25);
    let before = values(&original, "model.layers.0.mlp.up_proj.weight");
    let after = values(&anew, "model.layers.0.mlp.experts.2.up_proj.weight");
    let changed: Vec<&[f32]> =
        after.chunks(64).zip(before.chunks(64)).filter(|(a, b)| a != b).map(|(a, _)| a).collect();
    assert_eq!(changed.len(), 12);
    assert!((std(&changed.concat()) / std(&before) - 1.0).abs() < 0.15);
    // The shared expert is as it was.
    let shared = values(&anew, "model.layers.0.mlp.shared_expert.up_proj.weight");
    assert_eq!(shared, before[..48 * 64]);
}

#[test]
fn shards_and_dtypes() {
    let (dir, dense) = (tempfile::tempdir().unwrap(), fixture("llama/tiny_gqa"));
    let output = dir.path().join("out");
    let options = Options { dtype: Some(DType::BF16), shard_bytes: 100_000, ..Options::default() };
    let plan = Plan::upcycle(&dense, options).unwrap();
    let mut calls = Vec::new();
    plan.write(&output, &AtomicBool::new(false), &mut |done, all| calls.push((done, all))).unwrap();
    assert!(calls.iter().enumerate().all(|(i, c)| c.0 == i + 1) && calls.last().is_some_and(|c| c.0 == c.1));
    let checkpoint = Checkpoint::open(&output).unwrap();
    assert!(checkpoint.files().count() > 3);
    assert!(checkpoint.names().all(|name| checkpoint.info(name).unwrap().dtype == DType::BF16));
    let values: usize = checkpoint.names().map(|name| checkpoint.info(name).unwrap().values()).sum();
    assert_eq!((values, 2 * values as u64), (plan.parameters().total(), plan.bytes()));
    // The folder has weights and config, and nothing stands beside it.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["torch_dtype"], &config["architectures"][0]),
        (&"bfloat16".into(), &"MixtralForCausalLM".into())
    );
}

#[test]
fn siblings_become_experts_and_the_rest_their_mean() {
    let dir = tempfile::tempdir().unwrap();
    let siblings: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("s{i}"))).collect();
    for (i, sibling) in siblings.iter().enumerate() {
        write_model(sibling, LLAMA, i as u64);
    }
    let output = dir.path().join("mixed");
    let plan = Plan::mix(&siblings, options(0, 4, 2, 0)).unwrap();
    assert!(!plan.exact());
    write(&plan, &output);
    logits(&output);
    let open = |dir: &PathBuf| Checkpoint::open(dir).unwrap();
    let (mixed, dense): (_, Vec<Checkpoint>) = (open(&output), siblings.iter().map(open).collect());
    let rows = |c: &Checkpoint, name: &str| c.read_any(name).unwrap().to_vec2::<f32>().unwrap();
    for name in ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"] {
        let each: Vec<_> = dense.iter().map(|c| rows(c, name)).collect();
        for (r, row) in rows(&mixed, name).iter().enumerate() {
            for (c, v) in row.iter().enumerate() {
                let mean = each.iter().map(|e| e[r][c]).sum::<f32>() / 3.0;
                assert!((v - mean).abs() < 1e-6, "{name}");
            }
        }
    }
    // Expert 5 is the second half of the third sibling.
    let expert = rows(&mixed, "model.layers.0.block_sparse_moe.experts.5.w3.weight");
    assert_eq!(expert, rows(&dense[2], "model.layers.0.mlp.up_proj.weight")[24..]);
    let router = rows(&mixed, "model.layers.0.block_sparse_moe.gate.weight");
    assert!(router.len() == 6 && router[4] == router[5] && router[3] != router[4]);
    // Three times the same model is that model.
    let output = dir.path().join("same");
    write(&Plan::mix(&[siblings[0].clone(), siblings[0].clone()], options(0, 1, 1, 0)).unwrap(), &output);
    let (a, b) = (logits(&siblings[0]), logits(&output));
    assert!(far(&a, &b) < 1e-5, "{}", far(&a, &b));
}

#[test]
fn siblings_that_differ_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let make = |name: &str, config: &str| {
        write_model(&dir.join(name), config, 1);
        dir.join(name)
    };
    let first = make("first", LLAMA);
    let mix = |other: &Path| Plan::mix(&[first.clone(), other.to_path_buf()], options(0, 1, 1, 0)).unwrap_err();
    for (name, from, to, words) in [
        (
            "wide",
            "\"intermediate_size\": 48",
            "\"intermediate_size\": 64",
            "\"model.layers.0.mlp.gate_proj.weight\" has shape [64, 32]",
        ),
        ("words", "\"vocab_size\": 257", "\"vocab_size\": 258", "\"model.embed_tokens.weight\" has shape [258, 32]"),
        ("short", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "\"model.layers.1."),
        ("rope", "10000.0", "20000.0", "another rotary positions"),
        ("tied", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", "\"lm_head.weight\" is missing"),
    ] {
        let error = mix(&make(name, &LLAMA.replace(from, to)));
        assert!(matches!(&error, Error::Siblings { path, .. } if path.ends_with(name)), "{error}");
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    // Tokenizers that give the same ids to other texts.
    let second = make("second", LLAMA);
    for (dir, word) in [(&first, "cat"), (&second, "dog")] {
        let text = format!(r#"{{"model": {{"vocab": {{"{word}": 0}}}}}}"#);
        std::fs::write(dir.join("tokenizer.json"), text).unwrap();
    }
    assert!(mix(&second).to_string().contains("vocabulary"));
    let error = Plan::mix(std::slice::from_ref(&first), Options::default()).unwrap_err();
    assert!(error.to_string().contains("at least two"), "{error}");
    for other in [options(0, 1, 1, 1), Options { start: Start::Split, ..options(0, 1, 1, 0) }] {
        assert!(matches!(Plan::mix(&[first.clone(), first.clone()], other), Err(Error::Options(_))));
    }
}

#[test]
fn what_no_sparse_family_computes_is_refused_with_what_is_supported() {
    for (name, word) in [
        ("stablelm/tiny_partial_rope", "LayerNorms"),
        ("stablelm/parallel", "parallel"),
        ("phi/tiny_phi2", "parallel"),
        ("llama/biases", "biases"),
        ("mixtral/window", "routed experts already"),
    ] {
        let error = Plan::upcycle(&fixture(name), Options::default()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(word) && text.contains("supported are llama") && text.contains("qwen2"), "{text}");
    }
    let family = |name: &str| {
        let options = Options { family: Some(name.into()), ..Options::default() };
        Plan::upcycle(&fixture("llama/tiny_gqa"), options)
    };
    assert_eq!(family("granitemoe").unwrap().config().model_type, "granitemoe");
    assert_eq!(family("qwen2_moe").unwrap().config().model_type, "qwen2_moe");
    assert!(matches!(family("olmoe"), Err(Error::Options(text)) if text.contains("mixtral, granitemoe, qwen2_moe")));
    let options = Options { layers: Some(vec![1]), family: Some("mixtral".into()), ..Options::default() };
    let error = Plan::upcycle(&fixture("llama/tiny_gqa"), options).unwrap_err().to_string();
    assert!(error.contains("mixtral differs in which layers can stay dense"), "{error}");
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let refuse = |options: Options, word: &str| {
        let error = Plan::upcycle(&fixture("llama/tiny_gqa"), options).unwrap_err();
        assert!(matches!(error, Error::Options(_)) && error.to_string().contains(word), "expected {word:?}: {error}");
    };
    let split = |experts: usize, shared: usize| Options { start: Start::Split, ..options(experts, 1, 1, shared) };
    for (options, word) in [
        (options(8, 0, 1, 0), "0 experts for each token"),
        (options(2, 3, 1, 0), "give 1 to 2"),
        (options(0, 0, 1, 0), "0 experts"),
        (options(usize::MAX, 2, 1, 0), "give 1 to 16384"),
        (options(8, 2, 0, 0), "granularity of 0"),
        (options(10, 5, 5, 0), "does not divide the width 112"),
        (options(9, 2, 2, 0), "does not divide 9 experts"),
        (options(8, 2, 4, 0), "and 2 for each token"),
        (options(8, 2, 2, 3), "at most 2"),
        (split(9, 0), "cannot be cut into 9"),
        (split(8, 1), "cannot be cut into 9"),
        (split(8, usize::MAX), "shared"),
        (Options { start: Start::Split, ..options(8, 2, 2, 0) }, "leave one out"),
        (Options { noise: f64::NAN, ..Options::default() }, "noise is NaN"),
        (Options { noise: -0.1, ..Options::default() }, "noise is -0.1"),
        (Options { reinit: 1.5, ..Options::default() }, "anew"),
        (Options { router_std: Some(f64::INFINITY), ..Options::default() }, "router"),
        (Options { aux_loss: -1.0, ..Options::default() }, "load balance"),
        (Options { layers: Some(vec![3]), ..Options::default() }, "layer 3 of 3"),
        (Options { layers: Some(vec![]), ..Options::default() }, "no layer"),
        (Options { dtype: Some(DType::U8), ..Options::default() }, "choose f32"),
    ] {
        refuse(options, word);
    }
}

/// A llama of one wide layer whose weights are a hole in a file: they take no room, and nobody reads them.
fn hollow(dir: &Path) {
    let (v, h, i) = (16, 4096, 16384);
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": {v}, "hidden_size": {h}, "intermediate_size": {i}, "num_hidden_layers": 1,
        "num_attention_heads": 32, "max_position_embeddings": 128, "tie_word_embeddings": true}}"#
    );
    let mut tensors = vec![("embed_tokens".to_string(), vec![v, h]), ("norm".into(), vec![h])];
    for (name, shape) in [
        ("input_layernorm", vec![h]),
        ("post_attention_layernorm", vec![h]),
        ("mlp.gate_proj", vec![i, h]),
        ("mlp.up_proj", vec![i, h]),
        ("mlp.down_proj", vec![h, i]),
    ] {
        tensors.push((format!("layers.0.{name}"), shape));
    }
    tensors.extend(["q", "k", "v", "o"].map(|map| (format!("layers.0.self_attn.{map}_proj"), vec![h, h])));
    let (mut entries, mut at) = (serde_json::Map::new(), 0usize);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        entries.insert(format!("model.{name}.weight"), entry);
        at = end;
    }
    let header = serde_json::to_vec(&entries).unwrap();
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("config.json"), config).unwrap();
    let path = dir.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

#[cfg(unix)]
#[test]
fn a_model_that_the_disk_does_not_hold_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    hollow(&dir.path().join("dense"));
    // 13 TB
    let plan = Plan::upcycle(&dir.path().join("dense"), options(16384, 2, 1, 0)).unwrap();
    let refused = plan.write(&dir.path().join("out"), &AtomicBool::new(false), &mut |_, _| panic!("it began"));
    match refused {
        Err(error @ Error::Space { needed, free, .. }) => {
            assert!(needed == plan.bytes() && needed > free);
            assert!(error.to_string().contains("takes 13194.7 GB"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn nothing_is_left_of_what_does_not_come_to_an_end() {
    let (dir, dense) = (tempfile::tempdir().unwrap(), fixture("llama/tiny_gqa"));
    let plan = Plan::upcycle(&dense, Options::default()).unwrap();
    let output = dir.path().join("out");
    let stop = AtomicBool::new(false);
    let mut seen = 0;
    let stopped = plan.write(&output, &stop, &mut |done, _| {
        seen = done;
        // The unfinished folder is there, under another name.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(!output.exists());
        stop.store(done == 5, Ordering::Relaxed);
    });
    assert!(matches!(stopped, Err(Error::Stopped)) && seen == 5);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // What stands there already is not touched.
    for there in ["folder", "file"] {
        let path = dir.path().join(there);
        if there == "folder" { std::fs::create_dir(&path) } else { std::fs::write(&path, "mine") }.unwrap();
        let refused = plan.write(&path, &AtomicBool::new(false), &mut |_, _| {}).unwrap_err().to_string();
        assert!(refused.contains("exists already"), "{refused}");
    }
    // A damaged dense model is refused at the start.
    let broken = dir.path().join("broken");
    write_model(&broken, LLAMA, 1);
    let config = std::fs::read_to_string(broken.join("config.json")).unwrap();
    std::fs::write(broken.join("config.json"), config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"))
        .unwrap();
    let error = Plan::upcycle(&broken, Options::default()).unwrap_err().to_string();
    assert!(error.contains("model.layers.2.") && error.contains("missing"), "{error}");
    std::fs::write(broken.join("config.json"), config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"))
        .unwrap();
    let error = Plan::upcycle(&broken, Options::default()).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");
}
