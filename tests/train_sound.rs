//! `moesaic train sound` and `moesaic eval sound` as a user runs them, on a tiny model and a handful of tones.
#![cfg(feature = "audio")]

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use moesaic::{AudioChat, TextOptions, Tokenizer};
use moesaic_models::train::sound::{TrainConfig, run as train_in_process, settings};
use moesaic_models::train::{Ended, Report};
use moesaic_models::usam::Vocabulary;
use serde_json::{Value, json};
use support::{Run, names, program, run, tone};

const PROMPT: &str = "How high is it?";

/// Hears two seconds at once.
fn config() -> Value {
    json!({
        "model_type": "usam", "num_experts": 3, "score_hidden": 6, "num_aggregated": 4,
        "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "[PAD]", "num_beams": 1, "min_new_tokens": 1,
        "max_new_tokens": 6, "encoder_alignment": "time", "window_length": 10,
        "ced": {"embed_dim": 12, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "target_length": 201},
        "whisper": {"d_model": 8, "encoder_layers": 1, "heads": 2, "ffn": 8, "num_mel_bins": 40, "max_source_positions": 100},
        "mert": false,
        "qformer": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1},
        "llm": {"model_type": "qwen3_moe", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 128,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 2,
                "vocab_size": 212, "initializer_range": 0.1, "num_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 12, "norm_topk_prob": true, "router_aux_loss_coef": 0.01,
                "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": true},
    })
}

fn line(audio: &str, task: &str, question: &str, answer: &str) -> String {
    json!({"audio": audio, "task": task, "question": question, "answer": answer, "group": "seen"}).to_string() + "\n"
}

/// A folder with the model's config and tokenizer, and clips of tones.
fn prepare(folder: &Path) {
    let base = folder.join("base");
    fs::create_dir_all(&base).unwrap();
    fs::write(base.join("config.json"), config().to_string()).unwrap();
    let mut tokenizer = tiny::tokenizer();
    let pad = json!({"id": 211, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
    fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(base.join("tokenizer_config.json"), tiny::tokenizer_config().to_string()).unwrap();
    let mut lines = String::new();
    for (i, hertz) in [200.0, 260.0, 3000.0, 3600.0].into_iter().enumerate() {
        let (name, high) = (format!("{i}.wav"), hertz > 1000.0);
        tone(&folder.join(&name), hertz, 1.0 + 0.5 * (i % 2) as f32);
        lines += &line(&name, "pitch", PROMPT, if high { "high" } else { "low" });
        lines += &line(&name, "is", "Is it high?", if high { "yes" } else { "no" });
    }
    fs::write(folder.join("clips.jsonl"), lines).unwrap();
}

fn recipe(steps: u64) -> String {
    format!(
        "seed = 1\nbase = \"base\"\nctc = 0.1\n\n[data]\nclips = \"clips.jsonl\"\nvalid = \"clips.jsonl\"\nvalid_every = 1000\nrows = 2\nsaid = [\"pitch\"]\n\n\
         [optimiser]\nlearning_rate = 5e-3\nwarmup = 5\n\n\
         [plan]\nsteps = {steps}\naccumulation = 2\nworkers = 2\nlog_every = 10\ncheckpoint_every = 1000\nout = \"out\"\n"
    )
}

fn train(folder: &Path, config: &str) -> Run {
    fs::write(folder.join("run.toml"), config).unwrap();
    program(folder).args(["train", "sound", "run.toml"]).env("CANDLE_NUM_THREADS", "1").output().unwrap().into()
}

/// The numbers behind a word in a run's reports.
fn reported(stdout: &str, word: &str) -> Vec<f64> {
    let number =
        |line: &str| line.split_once(word)?.1.split_whitespace().next()?.trim_end_matches([',', ')']).parse().ok();
    stdout.lines().filter_map(number).collect()
}

#[test]
fn a_model_from_nothing_learns_and_listens() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let trained = train(folder, &recipe(400));
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let losses = reported(&trained.stdout, "cross_entropy ");
    assert!(losses[0] > 1.0 && *losses.last().unwrap() < 0.1, "{losses:?}");
    let ctc = reported(&trained.stdout, "ctc ");
    assert!(ctc[0] > 1.0 && *ctc.last().unwrap() < 0.1 * ctc[0], "{ctc:?}");
    let balance = reported(&trained.stdout, "balance ");
    assert!(balance.iter().all(|v| *v > 1.0), "{balance:?}");
    assert!(trained.stdout.contains("triplet") && trained.stdout.contains("pitch 1.0000"), "{}", trained.stdout);
    let model = folder.join("out/model");
    assert_eq!(names(&model), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);

    let eval = run(folder, &["eval", "sound", "out/model", "clips.jsonl", "--json"]);
    assert_eq!(eval.code, Some(0), "{}", eval.stderr);
    let eval: Value = serde_json::from_str(&eval.stdout).unwrap();
    assert_eq!((&eval["all"]["questions"], &eval["all"]["right"]), (&8.into(), &8.into()), "{eval}");
    assert_eq!(eval["parts"][1]["task"], "pitch");
    let of = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let routes = &eval["routes"]["pitch"];
    let projectors = of(&routes["projectors"]);
    assert!(projectors.len() == 3 && (projectors.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{projectors:?}");
    assert_eq!((routes["layers"].as_array().unwrap().len(), of(&routes["layers"][0]).len()), (2, 4));
    assert_ne!(projectors, of(&eval["routes"]["is"]["projectors"]), "the question does not count");
    let text = run(folder, &["eval", "sound", "out/model", "clips.jsonl", "--most", "1"]);
    assert!(text.stdout.contains("pitch") && text.stdout.lines().last().unwrap().contains(" 2 "), "{}", text.stdout);

    // Other answers than those are wrong.
    let other = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let answer = match line["answer"].as_str().unwrap() {
            "high" => "low",
            "low" => "high",
            "yes" => "no",
            _ => "yes",
        };
        line["answer"] = answer.into();
        line.to_string() + "\n"
    };
    let wrong: String = fs::read_to_string(folder.join("clips.jsonl")).unwrap().lines().map(other).collect();
    fs::write(folder.join("wrong.jsonl"), wrong).unwrap();
    let wrong = run(folder, &["eval", "sound", "out/model", "wrong.jsonl"]);
    assert!(wrong.stdout.lines().last().unwrap().ends_with(" 0.00 %"), "{}", wrong.stdout);

    // What was judged is what is written.
    for (file, answer) in [("0.wav", "low"), ("3.wav", "high")] {
        let heard = run(folder, &["listen", file, PROMPT, "--model", "out/model"]);
        assert_eq!(heard.stdout.trim(), answer, "{}", heard.stderr);
    }
    let chat = AudioChat::from_dir(&model).unwrap();
    assert_eq!((chat.window(), chat.info().encoders.as_slice()), (32_000, &["ced", "whisper"][..]));
    let again = train(folder, &recipe(400));
    assert!(again.code == Some(1) && again.stderr.contains("--resume"), "{}", again.stderr);
}

/// Trains in this process, asked to stop after `stop` steps.
fn in_process(folder: &Path, out: &str, changes: &[(&str, &str)], resume: bool, stop: u64) -> Result<Ended, String> {
    let mut text =
        recipe(6).replace("log_every = 10", "log_every = 1").replace("checkpoint_every = 1000", "checkpoint_every = 6");
    for (from, to) in changes {
        assert!(text.contains(from));
        text = text.replace(from, to);
    }
    fs::write(folder.join("run.toml"), text).unwrap();
    let mut config: TrainConfig = moesaic::settings::read(&folder.join("run.toml")).unwrap();
    for path in [&mut config.base, &mut config.data.clips] {
        *path = folder.join(&*path);
    }
    (config.data.valid, config.plan.out) = (None, folder.join(out));
    let tokenizer = Tokenizer::load(&config.base).unwrap();
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let model = settings(&config).map_err(|e| e.to_string())?;
    let vocabulary = Vocabulary::new(&model, |token| tokenizer.id(token)).unwrap();
    let flag = AtomicBool::new(false);
    let mut report = |report: &Report| {
        flag.store(report.step == stop, Ordering::Relaxed);
        Ok(())
    };
    train_in_process(&config, vocabulary, &encode, resume, &flag, &mut report).map_err(|e| e.to_string())
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    assert_eq!(in_process(folder, "whole", &[], false, 0), Ok(Ended::Finished));
    assert_eq!(in_process(folder, "parted", &[], false, 2), Ok(Ended::Stopped(2)));
    assert_eq!(in_process(folder, "parted", &[], true, 0), Ok(Ended::Finished));
    for file in ["model/model.safetensors", "checkpoint-00000006/optimiser.safetensors"] {
        let read = |out: &str| fs::read(folder.join(out).join(file)).unwrap();
        assert!(read("whole") == read("parted"), "{file} differs");
    }
    // Other clips are another run.
    let clips = fs::read_to_string(folder.join("clips.jsonl")).unwrap();
    fs::write(folder.join("clips.jsonl"), clips + &line("0.wav", "pitch", "Is it low?", "yes")).unwrap();
    let error = in_process(folder, "parted", &[], true, 0).unwrap_err();
    assert!(error.contains("other clips"), "{error}");
}

#[test]
fn every_variant_trains_and_loads() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let mert = "mert = { hidden_size = 8, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 8, \
                conv_dim = [4, 4, 4, 4, 4, 4, 4], conv_kernel = [10, 3, 3, 3, 3, 2, 2], conv_stride = [5, 2, 2, 2, 2, 2, 2], \
                num_conv_pos_embeddings = 4, num_conv_pos_embedding_groups = 2 }";
    for (name, settings, encoders) in [
        ("ced", "whisper = false, window_length = 1, num_experts = 1", &["ced"][..]),
        ("whisper", "ced = false, num_experts = 1", &["whisper"]),
        ("both", "num_experts = 1", &["ced", "whisper"]),
        ("released", "encoder_alignment = \"released\"", &["ced", "whisper"]),
        ("three", mert, &["ced", "whisper", "mert"]),
    ] {
        let table = format!("contrastive = 0.0\nsettings = {{ {settings} }}\n\n[data]\n");
        let ended = in_process(folder, name, &[("\n[data]\n", &table), ("steps = 6", "steps = 1")], false, 0);
        assert_eq!(ended, Ok(Ended::Finished), "{name}");
        let chat = AudioChat::from_dir(folder.join(name).join("model")).unwrap();
        assert_eq!(chat.info().encoders, encoders);
        assert!(chat.ask(folder.join("0.wav"), PROMPT, &TextOptions::default()).is_ok(), "{name}");
        // The shortest sound is filled up.
        assert!(chat.answer(&[0.1; 9], PROMPT, &TextOptions::default()).is_ok(), "{name}");
    }
    let none = ("\n[data]\n", "settings = { ced = false, whisper = false }\n\n[data]\n");
    assert!(in_process(folder, "none", &[none], false, 0).unwrap_err().contains("all left out"));
}

#[test]
fn what_cannot_be_trained_on_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    tone(&folder.join("long.wav"), 300.0, 2.5);
    fs::write(folder.join("text.wav"), "To be, or not to be").unwrap();
    let good = line("0.wav", "pitch", PROMPT, "low");
    for (lines, words) in [
        (String::new(), "clips.jsonl: there is no question in it"),
        (good.clone() + "{\"audio\": 3}", "clips.jsonl, line 2: "),
        (good.clone() + "\n[1]", "line 3: "),
        (line("0.wav", "pitch", PROMPT, ""), "line 1: the answer is empty"),
        (line("0.wav", "pitch", " ", "low"), "line 1: the question is empty"),
        (line("0.wav", "pitch", "<AcousticTokens> <AcousticTokens>", "low"), "one place for the sound"),
        (line("none.wav", "pitch", PROMPT, "low"), "none.wav"),
        (line("text.wav", "pitch", PROMPT, "low"), "text.wav"),
        (line("long.wav", "pitch", PROMPT, "low"), "lasts 2.5 s, the model hears 2.0 s"),
        (format!("{{\"audio\": \"{}\"}}", "x".repeat(1 << 20)), "has more than"),
    ] {
        fs::write(folder.join("clips.jsonl"), lines).unwrap();
        let run = train(folder, &recipe(1));
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(words), "expected {words:?}: {}", run.stderr);
    }
    fs::write(folder.join("clips.jsonl"), good).unwrap();
    for (from, to, words) in [
        ("rows = 2", "rows = 0", "data: rows"),
        ("seed = 1", "seed = 1\ncontrastive = -1.0", "contrastive"),
        ("ctc = 0.1", "ctc = -1.0", "ctc is -1"),
        ("[\"pitch\"]", "[]", "name them in data.said"),
        ("[\"pitch\"]", "[\"depth\"]", "the task \"depth\", but clips.jsonl has pitch"),
        ("rows = 2", "gain = 100.0", "data.gain"),
        ("rows = 2", "rowz = 2", "rowz"),
        ("seed = 1", "seed = 1\nsettings = { encoder_alignment = \"space\" }", "released or time"),
        ("\"base\"", "\"nowhere\"", "nowhere"),
    ] {
        let run = train(folder, &recipe(1).replace(from, to));
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(words), "expected {words:?}: {}", run.stderr);
    }
    assert!(!folder.join("out").exists());
}

#[test]
fn the_recipe_of_the_small_model_is_sound_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sound");
    let base = folder.path().join("examples/sound");
    fs::create_dir_all(&base).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(recipes.join(name), base.join(name)).unwrap();
    }
    let recipe = recipes.join("train.toml");
    let run: Run = program(folder.path()).args(["train", "sound"]).arg(recipe).output().unwrap().into();
    assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("data/sound/train.jsonl"), "{}", run.stderr);
    assert!(!folder.path().join("runs").exists());
}
