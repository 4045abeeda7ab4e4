//! `moesaic train omni` and `moesaic eval omni` as a user runs them, on a tiny model, two pictures, two tones and a few series.
#![cfg(all(feature = "audio", feature = "image"))]

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Run, example, names, program, run, tone};

fn config() -> Value {
    json!({
        "model_type": "omni", "context": 64, "bos_token": "<s>", "eos_token": "<|im_end|>",
        "backbone": {
            "model_type": "moma", "vocab_size": 211, "image_token_ids": [0, 0], "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32, "text_experts": 2,
            "image_experts": 2, "audio_experts": 2, "series_experts": 2, "initializer_range": 0.1
        },
        "image": {"size": 32, "patch": 16},
        "audio": {"bands": 16, "frames": 20, "mean": -40.0, "std": 20.0, "longest": 2.0},
        "series": {"patch": 4, "levels": [0.1, 0.5, 0.9], "longest": 32, "forecast_token": "<|im_start|>"},
    })
}

/// A folder with the model's config and tokenizer, and questions of three kinds.
fn prepare(folder: &Path) {
    let base = folder.join("base");
    fs::create_dir_all(&base).unwrap();
    fs::write(base.join("config.json"), config().to_string()).unwrap();
    fs::write(base.join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
    fs::write(base.join("tokenizer_config.json"), tiny::tokenizer_config().to_string()).unwrap();
    let write = |name: &str, lines: Vec<Value>| {
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        fs::write(folder.join(name), lines.join("\n") + "\n").unwrap();
    };
    let mut pictures: Vec<_> = fs::read_dir(example("pictures")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.retain(|path| path.extension().is_some_and(|end| end == "png"));
    pictures.sort();
    for (i, picture) in pictures.iter().take(2).enumerate() {
        fs::copy(picture, folder.join(format!("{i}.png"))).unwrap();
    }
    let turns = |answer: &str| json!([{"question": "which?", "answer": answer, "type": "which"}]);
    write(
        "pictures.jsonl",
        vec![
            json!({"image": "0.png", "turns": turns("cat"), "source": "seen"}),
            json!({"image": "1.png", "turns": turns("hat"), "source": "seen"}),
        ],
    );
    tone(&folder.join("low.wav"), 200.0, 1.0);
    tone(&folder.join("high.wav"), 3000.0, 1.0);
    let sound =
        |file: &str, answer: &str| json!({"audio": file, "task": "pitch", "question": "how high?", "answer": answer});
    write("sounds.jsonl", vec![sound("low.wav", "low"), sound("high.wav", "high")]);
    let line =
        |slope: f32, from: usize, n: usize| -> Vec<f32> { (from..from + n).map(|i| 3.0 + slope * i as f32).collect() };
    let mut series = Vec::new();
    for slope in [1.0, 2.0, -1.0, -3.0] {
        let answer = if slope > 0.0 { "yes" } else { "no" };
        series.push(
            json!({"series": line(slope, 0, 12), "task": "rising", "question": "is it rising?", "answer": answer}),
        );
        let next = line(slope, 12, 8);
        series.push(
            json!({"series": line(slope, 0, 12), "task": "forecast", "question": "forecast it", "forecast": next}),
        );
    }
    write("series.jsonl", series);
}

fn recipe(steps: u64) -> String {
    let source = |name: &str| format!("{{ name = \"{name}\", file = \"{name}.jsonl\" }}");
    let all = ["pictures", "sounds", "series"].map(source).join(", ");
    format!(
        "seed = 1\nbase = \"base\"\n\n[data]\ntrain = [{all}]\nvalid = [{all}]\nvalid_every = 1000\nrows = 12\nturns = 4\ngain = 3.0\n\n\
         [optimiser]\nlearning_rate = 5e-3\nwarmup = 5\n\n\
         [plan]\nsteps = {steps}\nlog_every = 10\ncheckpoint_every = 1000\nout = \"out\"\n"
    )
}

fn train(folder: &Path, config: &str, more: &[&str]) -> Run {
    fs::write(folder.join("run.toml"), config).unwrap();
    let mut command = program(folder);
    command.args(["train", "omni", "run.toml"]).args(more).env("CANDLE_NUM_THREADS", "1").output().unwrap().into()
}

#[test]
fn a_model_from_nothing_answers_and_forecasts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let trained = train(folder, &recipe(800), &[]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let last = trained.stdout.lines().rfind(|line| line.contains("800/800")).unwrap();
    for name in ["pictures", "sounds", "series", "series.forecast"] {
        let value = |name: &str| -> f64 {
            let rest = last.split(&format!("{name} ")).nth(1).unwrap_or_else(|| panic!("{name}: {last}"));
            rest.split([',', ')']).next().unwrap().trim().parse().unwrap()
        };
        assert!(value(name) < 0.3, "{name}: {last}");
        assert!(value(&format!("valid.{name}")) < 0.4, "{name}: {last}");
    }
    let model = folder.join("out/model");
    assert_eq!(names(&model), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    let eval = |model: &str, more: &[&str]| {
        run(folder, &[&["eval", "omni", model, "pictures.jsonl", "sounds.jsonl", "series.jsonl"], more].concat())
    };
    let early = eval("out/model", &[]);
    assert!(early.code == Some(1) && early.stderr.contains("auxiliary"), "{}", early.stderr);

    // The second run makes it causal.
    let second = recipe(600)
        .replace("base = \"base\"", "base = \"base\"\ninit = \"out/model\"\nauxiliary = true")
        .replace("\"out\"\n", "\"whole\"\n");
    let second = train(folder, &second, &[]);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(second.stdout.contains("routers") && second.stdout.contains("valid.sounds"), "{}", second.stdout);
    let expected =
        ["auxiliary.safetensors", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder.join("whole/model")), expected);
    assert_eq!(
        fs::read(model.join("model.safetensors")).unwrap(),
        fs::read(folder.join("whole/model/model.safetensors")).unwrap()
    );
    let json = eval("whole/model", &["--json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap_or_else(|_| panic!("{}", json.stderr));
    assert_eq!(json["all"]["questions"], 8);
    assert!(json["all"]["right"].as_u64().unwrap() >= 7, "{json}");
    let forecast = json["parts"].as_array().unwrap().iter().find(|part| part["task"] == "forecast").unwrap();
    assert_eq!(forecast["errors"]["forecasts"], 4);
    // A straight line is nearer than its last value.
    assert!(forecast["errors"]["ratio"].as_f64().unwrap() < 0.5, "{json}");
    // The same in conversations: the second question about a series comes without it.
    let together = eval("whole/model", &["--json", "--together"]);
    let together: Value = serde_json::from_str(&together.stdout).unwrap_or_else(|_| panic!("{}", together.stderr));
    assert!(together["all"]["right"].as_u64().unwrap() >= 7, "{together}");
    converse(folder);
    let few = eval("whole/model", &["--most", "2"]);
    assert!(few.stdout.lines().last().unwrap().contains(" 6 "), "{}", few.stdout);
    let text = eval("whole/model", &[]);
    assert!(text.stdout.contains("rising") && text.stdout.contains("of the last value's error"), "{}", text.stdout);
}

/// A conversation with the trained model about a picture, a sound and a table, as a user has it.
fn converse(folder: &Path) {
    let rows: Vec<String> = (0..12).map(|i| format!("2024-01-{:02},{}", i + 1, 3 + 2 * i)).collect();
    fs::write(folder.join("sales.csv"), format!("day,sales\n{}\n", rows.join("\n"))).unwrap();
    let ask = |more: &[&str]| run(folder, &[&["run", "--model", "whole/model"], more].concat());
    let all = ["1.png", "which?", "low.wav", "how high?", "sales.csv", "is it rising?", "forecast it"];
    let talk = ask(&all);
    assert_eq!(talk.code, Some(0), "{}", talk.stderr);
    let lines: Vec<&str> = talk.stdout.lines().collect();
    assert_eq!(lines[..3], ["hat", "low", "yes"], "{}", talk.stdout);
    // As many values as it has learnt to forecast, two patches of four.
    assert!(lines[3].starts_with("time") && lines[3].contains("sales") && lines[3].contains("q-0.9"), "{}", lines[3]);
    assert_eq!(lines.len(), 4 + 8, "{}", talk.stdout);
    assert!(lines[4].starts_with("2024-01-13"), "{}", lines[4]);
    let json = ask(&[&all[..], &["--json", "--horizon", "3"]].concat());
    let answers: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((answers.len(), &answers[1]["text"]), (4, &"low".into()), "{}", json.stdout);
    assert!(answers[2]["forecast"].is_null() && answers[3]["finished"] == true, "{}", json.stdout);
    let values: Vec<f64> = serde_json::from_value(answers[3]["forecast"]["values"].clone()).unwrap();
    assert!(values.len() == 3 && values.iter().zip([27.0, 29.0, 31.0]).all(|(a, b)| (a - b).abs() < 4.0), "{values:?}");
    // From a pipe, with files in front of the question or on lines of their own.
    let mut child = program(folder)
        .args(["run", "--model", "whole/model"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"high.wav how high?\n0.png\nwhich?\n/reset\n\n1.png which?\n").unwrap();
    let piped: Run = child.wait_with_output().unwrap().into();
    assert_eq!((piped.code, piped.stdout.as_str()), (Some(0), "high\ncat\nhat\n"));
    let info = run(folder, &["info", "whole/model"]);
    assert!(
        info.stdout.contains("2 for audio") && info.stdout.contains("64 tokens of a conversation"),
        "{}",
        info.stdout
    );
    let routes = run(folder, &["routes", "--model", "whole/model", "0.png", "sales.csv", "which?"]);
    assert!(routes.stdout.contains("4 image, 3 series") && routes.stdout.contains("layer 1"), "{}", routes.stdout);
    for (given, words) in [
        (&["none.wav", "how high?"][..], "none.wav: there is no such file"),
        (&["0.png"], "what is asked about 0.png"),
        (&["base", "which?"], "is a folder"),
        (&["which?", "--horizon", "4"], "follows a series"),
        (&["sales.csv", "forecast it", "--horizon", "1000"], "ask for up to"),
        (&["sales.csv", "is it rising?", "--column", "cost"], "cost"),
        (&["which?", "--max-tokens", "0"], "at least 1"),
        (&["scen.png", "which?"], "no such file"),
        (&[&["a"; 90].join(" ")], "context of 64"),
    ] {
        let refused = ask(given);
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "expected {words:?}: {}", refused.stderr);
    }
    for (model, words) in [("base", "no model.safetensors"), ("out/model", "auxiliary"), ("nowhere", "no such folder")]
    {
        let refused = run(folder, &["run", "--model", model, "which?"]);
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{}", refused.stderr);
    }
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let short = recipe(6).replace("checkpoint_every = 1000", "checkpoint_every = 3");
    assert_eq!(train(folder, &short, &[]).code, Some(0));
    let whole = fs::read(folder.join("out/model/model.safetensors")).unwrap();
    for part in ["model", "checkpoint-00000006"] {
        fs::remove_dir_all(folder.join("out").join(part)).unwrap();
    }
    let again = train(folder, &short, &[]);
    assert!(again.code == Some(1) && again.stderr.contains("--resume"), "{}", again.stderr);
    let resumed = train(folder, &short, &["--resume"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert!(fs::read(folder.join("out/model/model.safetensors")).unwrap() == whole, "resuming changes the weights");
    let other = train(folder, &short.replace("rows = 12", "rows = 11"), &["--resume"]);
    assert!(other.code == Some(1) && other.stderr.contains("another config"), "{}", other.stderr);
}

#[test]
fn variants_train_and_what_cannot_be_trained_on_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    for (name, settings) in [
        ("mixed", "backbone = { mixed_experts = 8 }"),
        ("untied", "backbone = { untied = true }"),
        ("depth", "backbone = { depth_share = 0.5 }"),
        ("dense", "backbone = { mixed_experts = 1 }"),
    ] {
        let config = recipe(2)
            .replace("base = \"base\"", &format!("base = \"base\"\nsettings = {{ {settings} }}"))
            .replace("\"out\"\n", &format!("\"{name}\"\n"));
        let trained = train(folder, &config, &[]);
        assert_eq!(trained.code, Some(0), "{name}: {}", trained.stderr);
    }
    // Nothing chooses in a dense model: it is ready.
    let dense = run(folder, &["eval", "omni", "dense/model", "series.jsonl", "--most", "1"]);
    assert_eq!(dense.code, Some(0), "{}", dense.stderr);
    let good = fs::read_to_string(folder.join("sounds.jsonl")).unwrap();
    for (lines, words) in [
        (String::new(), "there is no question in it"),
        (good.clone() + "{\"audio\": 3}", "line 3: "),
        (json!({"audio": "low.wav"}).to_string(), "line 1: there is no question"),
        (json!({"question": "why?"}).to_string(), "needs an answer or a forecast"),
        (json!({"question": "why?", "answer": ""}).to_string(), "is empty"),
        (json!({"question": "why?", "forecast": [1.0]}).to_string(), "follows no series"),
        (json!({"series": [1.0], "question": "why?", "forecast": [null]}).to_string(), "is empty"),
        (json!({"audio": "none.wav", "question": "why?", "answer": "low"}).to_string(), "none.wav"),
        (json!({"image": "low.wav", "question": "why?", "answer": "low"}).to_string(), "low.wav"),
    ] {
        fs::write(folder.join("sounds.jsonl"), lines).unwrap();
        let refused = train(folder, &recipe(2).replace("rows = 12", "rows = 24").replace("\"out\"\n", "\"no\"\n"), &[]);
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "expected {words:?}: {}", refused.stderr);
        let _ = fs::remove_dir_all(folder.join("no"));
    }
    fs::write(folder.join("sounds.jsonl"), good).unwrap();
    for (from, to, words) in [
        ("rows = 12", "rows = 0", "data: rows"),
        ("gain = 3.0", "gain = 99.0", "data.gain"),
        ("file = \"sounds.jsonl\"", "file = \"sounds.jsonl\", weight = 0.0", "weight"),
        ("base = \"base\"", "base = \"base\"\nauxiliary = true", "name its folder in init"),
        ("base = \"base\"", "base = \"base\"\nsettings = { series = false }", "series and backbone.series_experts"),
        ("base = \"base\"", "base = \"nowhere\"", "nowhere"),
        ("rows = 12", "rowz = 12", "rowz"),
    ] {
        let refused = train(folder, &recipe(2).replacen(from, to, 1), &[]);
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "expected {words:?}: {}", refused.stderr);
    }
    assert!(!folder.join("out").exists());
}
