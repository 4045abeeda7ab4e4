//! Training of language models and adapters: it learns, resumes without a trace, and what it saves is what it trained.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device};
use common::{GRANITE, LLAMA, QWEN3_MOE, far, logits, write_model};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::decoder::{Decoder, DecoderConfig};
use moesaic_models::lora::{Adapter, attach};
use moesaic_models::train::language::{LoraConfig, Part, TargetsConfig, TrainConfig, run};
use moesaic_models::train::{Ended, Report, checkpoints};

const TEXT: &str = "the cat sat on the mat and the dog lay by the door; ";

fn text(dir: &Path) -> PathBuf {
    let file = dir.join("text.txt");
    std::fs::write(&file, TEXT.repeat(12)).unwrap();
    file
}

fn config(dir: &Path, out: &str, model: &str, steps: u64) -> TrainConfig {
    let text = format!(
        r#"{{ "seed": 3, "model": {model}, "data": {{ "files": [{:?}], "length": 24, "rows": 2, "validation": 0.2, "eval_every": 2 }},
        "optimiser": {{ "learning_rate": 0.01, "warmup": 3, "weight_decay": 0.0 }},
        "plan": {{ "steps": {steps}, "log_every": 1, "checkpoint_every": 2, "accumulation": 2, "out": {:?} }} }}"#,
        text(dir),
        dir.join(out)
    );
    serde_json::from_str(&text).unwrap()
}

fn lora(dir: &Path, out: &str, steps: u64, lora: LoraConfig) -> TrainConfig {
    let base = config(dir, out, QWEN3_MOE, steps);
    TrainConfig { model: None, init: Some(dir.join("base")), lora: Some(lora), ..base }
}

/// The loss that was reported, and its parts.
type Step = (f64, Vec<(String, f64)>);

/// What is changed, and a word of the error that it makes.
type Case<'a, C> = (&'a dyn Fn(&mut C), &'a str);

/// Trains; how it ended, and what was reported of every step.
fn train(config: &TrainConfig, resume: bool, stop_after: Option<u64>) -> (Ended, Vec<Step>) {
    let stop = AtomicBool::new(false);
    let mut reports = Vec::new();
    let mut report = |r: &Report| {
        // Before the first step only the held-out text is measured.
        if r.step == 0 {
            let names: Vec<&str> = r.parts.iter().map(|(name, _)| name.as_str()).collect();
            assert!(r.loss.is_nan() && names == ["validation", "perplexity"], "{:?}", r.parts);
            return Ok(());
        }
        reports.push((r.loss, r.parts.clone()));
        stop.store(stop_after == Some(r.step), Ordering::Relaxed);
        Ok(())
    };
    (run(config, None, resume, &stop, &mut report).unwrap(), reports)
}

fn refused(config: &TrainConfig, resume: bool) -> String {
    run(config, None, resume, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string()
}

#[test]
fn a_resumed_run_has_the_losses_of_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_model(&dir.join("base"), QWEN3_MOE, 1);
    let with_dropout = LoraConfig {
        r: 4,
        lora_dropout: 0.1,
        target_modules: TargetsConfig::Names(vec!["q_proj".into(), "v_proj".into(), "gate_proj".into()]),
        ..LoraConfig::default()
    };
    let full = |out: &str| config(dir, out, QWEN3_MOE, 6);
    let adapters = |out: &str| lora(dir, out, 6, with_dropout.clone());
    for (kind, make) in [("full", &full as &dyn Fn(&str) -> TrainConfig), ("lora", &adapters)] {
        let (one, two) = (make(&format!("{kind} one")), make(&format!("{kind} two")));
        let (ended, whole) = train(&one, false, None);
        assert_eq!(ended, Ended::Finished);
        let (ended, mut parts) = train(&two, false, Some(3));
        assert_eq!(ended, Ended::Stopped(3));
        parts.extend(train(&two, true, None).1);
        assert_eq!(whole, parts, "{kind}");
        let file = if kind == "full" { "model/model.safetensors" } else { "model/adapter_model.safetensors" };
        let bytes = |config: &TrainConfig| std::fs::read(config.plan.out.join(file)).unwrap();
        assert_eq!(bytes(&one), bytes(&two));
        assert_eq!(checkpoints(&one.plan.out).unwrap().len(), 2);
        // Cross entropy and auxiliary loss of every step; the held-out text at its time and at the end.
        let names = |step: usize| whole[step].1.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(2), ["cross_entropy", "balance"]);
        for step in [1, 3, 5] {
            assert_eq!(names(step), ["cross_entropy", "balance", "validation", "perplexity"]);
            let [.., (_, mean), (_, perplexity)] = whole[step].1.as_slice() else { panic!() };
            assert!((mean.exp() - perplexity).abs() < 1e-9);
        }
        // Accumulated parts on threads of their own: the same sums in the same order, the same masks.
        let mut threads = make(&format!("{kind} threads"));
        threads.plan.workers = 2;
        assert_eq!(train(&threads, false, None).1, whole, "{kind}");
    }
}

/// A run on what `write_model` made of a sparse model.
fn part(dir: &Path, out: &str, part: Part, steps: u64) -> TrainConfig {
    let base = config(dir, out, QWEN3_MOE, steps);
    TrainConfig { model: None, init: Some(dir.join("base")), train: part, ..base }
}

#[test]
fn a_part_of_a_sparse_model_is_trained_and_resumed_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (family, model) in [("qwen3_moe", QWEN3_MOE), ("granitemoe", GRANITE)] {
        write_model(&dir.join("base"), model, 1);
        let before = Checkpoint::open(&dir.join("base")).unwrap();
        for (name, chosen) in [("router", Part::Router), ("experts", Part::Experts), ("all", Part::All)] {
            let (one, two) = (format!("{family} {name} one"), format!("{family} {name} two"));
            let (_, whole) = train(&part(dir, &one, chosen, 5), false, None);
            let two = part(dir, &two, chosen, 5);
            let (ended, mut parts) = train(&two, false, Some(3));
            assert_eq!(ended, Ended::Stopped(3));
            parts.extend(train(&two, true, None).1);
            assert_eq!(whole, parts, "{family} {name}");
            let newest = checkpoints(&two.plan.out).unwrap().pop().unwrap();
            // A checkpoint is the whole model; moments are only of what is trained.
            let after = Checkpoint::open(&newest).unwrap();
            assert_eq!(after.names().collect::<Vec<_>>(), before.names().collect::<Vec<_>>());
            let moments = Checkpoint::open(&newest.join("optimiser.safetensors")).unwrap();
            let bits =
                |c: &Checkpoint, name: &str| c.read_any(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for name in before.names() {
                let router = name.ends_with("mlp.gate.weight") || name.contains("router");
                let inside = name.contains("layers.1.mlp.") || name.contains("block_sparse_moe");
                let trained = match chosen {
                    Part::Router => router,
                    Part::Experts => inside,
                    Part::All => true,
                };
                assert_eq!(bits(&before, name) != bits(&after, name), trained, "{family} {chosen:?} {name}");
                if router || name.contains("norm") {
                    assert_eq!(moments.info(&format!("mean.{name}")).is_some(), trained, "{name}");
                }
            }
            logits(&Decoder::load(&two.plan.out.join("model"), DType::F32, &Device::Cpu).unwrap());
        }
    }
    let refuse = |f: &dyn Fn(&mut TrainConfig)| {
        let mut config = part(dir, "refused", Part::Router, 2);
        f(&mut config);
        refused(&config, false)
    };
    assert!(refuse(&|c| c.lora = Some(LoraConfig::default())).contains("both given"));
    let dense = serde_json::from_str(LLAMA).unwrap();
    assert!(refuse(&|c| (c.init, c.model) = (None, Some(dense_map(&dense)))).contains("init instead of [model]"));
    write_model(&dir.join("base"), LLAMA, 1);
    assert!(refuse(&|_| ()).contains("this llama has none"));
}

fn dense_map(value: &serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    value.as_object().cloned().unwrap()
}

#[test]
fn a_repeated_text_is_learnt_by_heart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, model) in [("dense", LLAMA), ("sparse", QWEN3_MOE)] {
        let mut config = config(dir, name, model, 90);
        (config.plan.checkpoint_every, config.plan.accumulation) = (1000, 1);
        (config.data.rows, config.data.eval_every) = (4, 1000);
        let (_, reports) = train(&config, false, None);
        let entropy = |i: usize| reports[i].1[0].1;
        assert!(entropy(0) > 4.0 && entropy(89) < 0.6, "{name}: from {} to {}", entropy(0), entropy(89));
        // The held-out end of the text repeats it; only what starts a row has to be guessed.
        let perplexity = reports[89].1.last().unwrap().1;
        assert!(perplexity < 2.5, "{name}: {perplexity}");
    }
    // The trained model as a base: adapters of it learn another text, the model stays as it is.
    let base = dir.join("sparse/model");
    let before = std::fs::read(base.join("model.safetensors")).unwrap();
    let all = LoraConfig {
        target_modules: TargetsConfig::Pattern("all-linear".into()),
        base_dtype: "bf16".into(),
        ..LoraConfig::default()
    };
    let mut config = TrainConfig { init: Some(base.clone()), ..lora(dir, "adapters", 70, all) };
    std::fs::write(dir.join("text.txt"), "a bird in the hand is worth two in the bush, he said. ".repeat(12)).unwrap();
    (config.plan.checkpoint_every, config.data.eval_every) = (1000, 1000);
    let (_, reports) = train(&config, false, None);
    let entropy = |i: usize| reports[i].1[0].1;
    assert!(entropy(0) > 2.0 && entropy(69) < 1.0, "from {} to {}", entropy(0), entropy(69));
    assert_eq!(std::fs::read(base.join("model.safetensors")).unwrap(), before);
}

#[test]
fn a_saved_adapter_gives_the_logits_that_it_was_trained_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (family, model, parameters) in [
        ("qwen", QWEN3_MOE, &[][..]),
        ("stacked", QWEN3_MOE, &["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
        ("granite", GRANITE, &["input_linear.weight", "output_linear.weight"]),
    ] {
        write_model(&dir.join("base"), model, 1);
        let names = ["q_proj", "k_proj", "o_proj", "down_proj"].map(String::from).to_vec();
        let names = if parameters.is_empty() { names } else { vec!["q_proj".to_string()] };
        let settings = LoraConfig {
            r: 3,
            lora_alpha: 5.0,
            use_rslora: true,
            target_modules: TargetsConfig::Names(names),
            target_parameters: parameters.iter().map(ToString::to_string).collect(),
            ..LoraConfig::default()
        };
        let config = lora(dir, family, 6, settings.clone());
        train(&config, false, None);
        // The last checkpoint, attached as training attaches it, to plain weights.
        let base = dir.join("base");
        let decoder = DecoderConfig::load(&base).unwrap();
        let frozen = Params::frozen(&Checkpoint::open(&base).unwrap(), DType::F32, &Device::Cpu);
        let mut trained = Decoder::new(decoder, &frozen).unwrap();
        let last = checkpoints(&config.plan.out).unwrap().pop().unwrap().join("adapter_model.safetensors");
        let params = Params::resume(&Checkpoint::open(&last).unwrap(), &Device::Cpu);
        attach(&settings.adapter(&base).unwrap(), trained.sites(), &params, "x", 1.0, None).unwrap();
        // The finished adapter, beside weights in tiles.
        let adapter = Adapter::open(&config.plan.out.join("model")).unwrap();
        assert_eq!(adapter.config().base_model.as_deref(), Some(base.display().to_string().as_str()));
        let mut loaded = Decoder::load(&base, DType::F32, &Device::Cpu).unwrap();
        adapter.attach(loaded.sites(), "x", 1.0, DType::F32, &Device::Cpu).unwrap();
        let plain = logits(&Decoder::load(&base, DType::F32, &Device::Cpu).unwrap());
        let (trained, loaded) = (logits(&trained), logits(&loaded));
        assert!(far(&trained, &loaded) < 1e-4, "{family}: {}", far(&trained, &loaded));
        assert!(far(&plain, &loaded) > 0.05, "{family}");
    }
}

#[test]
fn what_would_go_wrong_later_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_model(&dir.join("base"), QWEN3_MOE, 1);
    let good = config(dir, "run", QWEN3_MOE, 2);
    let change = |f: &dyn Fn(&mut TrainConfig)| {
        let mut config = good.clone();
        f(&mut config);
        refused(&config, false)
    };
    let bad = dir.join("bad.txt");
    std::fs::write(&bad, b"good\nbad \xff").unwrap();
    let cases: [Case<'_, TrainConfig>; 14] = [
        (&|c| c.data.files.clear(), "data.files"),
        (&|c| c.data.files = vec![dir.join("nowhere.txt")], "nowhere.txt"),
        (&|c| c.data.files = vec![bad.clone()], "line 2"),
        (&|c| c.data.length = 1, "length"),
        (&|c| c.data.length = 100_000, "context 128"),
        (&|c| c.data.rows = 0, "rows"),
        (&|c| c.data.validation = f64::NAN, "validation"),
        (&|c| c.data.validation = 0.01, "held out"),
        (&|c| c.model = None, "init"),
        (&|c| c.init = Some(dir.join("base")), "both given"),
        (&|c| c.lora = Some(LoraConfig::default()), "init"),
        (&|c| c.optimiser.learning_rate = -1.0, "learning_rate"),
        (&|c| c.plan.steps = 0, "steps"),
        (&|c| drop(c.model.as_mut().unwrap().insert("model_type".into(), "gpt9".into())), "gpt9"),
    ];
    for (f, word) in cases {
        let error = change(f);
        assert!(error.contains(word), "expected {word:?}: {error}");
    }
    let adapters = |f: &dyn Fn(&mut LoraConfig)| {
        let mut settings = LoraConfig::default();
        f(&mut settings);
        refused(&lora(dir, "lora", 2, settings), false)
    };
    let cases: [Case<'_, LoraConfig>; 6] = [
        (&|l| l.r = 0, "rank of 0"),
        (&|l| l.base_dtype = "q4".into(), "base_dtype"),
        (&|l| l.target_modules = TargetsConfig::Pattern("(".into()), "pattern"),
        (&|l| l.target_modules = TargetsConfig::Names(vec!["nothing".into()]), "no map of the model"),
        (&|l| l.target_modules = TargetsConfig::Pattern(".*experts.1.up_proj".into()), "experts of a layer"),
        (
            &|l| (l.target_parameters, l.lora_dropout) = (vec!["experts.down_proj".into()], 0.1),
            "dropout for stacked experts",
        ),
    ];
    for (f, word) in cases {
        let error = adapters(f);
        assert!(error.contains(word), "expected {word:?}: {error}");
    }
    // Another text, another config, another run.
    train(&good, false, None);
    assert!(refused(&good, false).contains("--resume"));
    std::fs::write(dir.join("text.txt"), TEXT.repeat(13)).unwrap();
    assert!(refused(&good, true).contains("other text"));
    let other = TrainConfig { seed: 4, ..good.clone() };
    assert!(refused(&other, true).contains("another config"));
    let none = config(dir, "none", QWEN3_MOE, 2);
    assert!(refused(&none, true).contains("no checkpoint"));
    // Ids that are not the model's.
    let foreign = |_: &str| Ok(vec![300u32; 64]);
    let error = run(&none, Some(&foreign), false, &AtomicBool::new(false), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("300") && error.contains("another model"), "{error}");
}
