//! The commands for language models as a user runs them, on a tiny model of random weights.

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use candle_core::{Device, Tensor};
use moesaic_kernels::checkpoint::save;

use support::{Run, program, run};
use tiny::language_model;

/// Runs the program in a folder that has `model`, with this standard input.
fn with_input(folder: &Path, arguments: &[&str], input: &str) -> Run {
    let mut command = program(folder);
    let mut child =
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A run that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap().into()
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    language_model(folder.path());
    folder
}

#[test]
fn generate_prints_the_continuation_and_the_speed() {
    let folder = folder();
    let arguments = ["generate", "model", "in the end", "--max-tokens", "12"];
    let first = run(folder.path(), &arguments);
    assert!(good(&first).ends_with('\n') && first.stdout.len() > 1, "{}", first.stdout);
    assert!(
        first.stderr.starts_with("note: prompt ") && first.stderr.contains("answer 12 tokens, "),
        "{}",
        first.stderr
    );
    assert!(first.stderr.trim_end().ends_with("tokens/s"), "{}", first.stderr);
    // From a pipe, with and without the dash; the line end that echo adds is not part of the prompt.
    for arguments in
        [&["generate", "model", "--max-tokens", "12"][..], &["generate", "model", "-", "--max-tokens", "12"]]
    {
        assert_eq!(good(&with_input(folder.path(), arguments, "in the end\n")), first.stdout);
    }
    let drawn = |seed: &str| {
        let more = ["--temperature", "1.2", "--top-p", "0.95", "--min-p", "0.01", "--seed", seed];
        good(&run(folder.path(), &[&arguments[..], &more].concat())).to_string()
    };
    assert_eq!(drawn("3"), drawn("3"));
    assert_ne!(drawn("3"), drawn("4"));
    for dtype in ["bf16", "f16"] {
        good(&run(folder.path(), &[&arguments[..], &["--dtype", dtype]].concat()));
    }
}

#[test]
fn generate_as_json_and_by_beams() {
    let folder = folder();
    let base = ["generate", "model", "in the end", "--max-tokens", "6", "--json"];
    let output: serde_json::Value =
        serde_json::from_str(good(&run(folder.path(), &[&base[..], &["--log-probs"]].concat()))).unwrap();
    let answer = &output["answers"][0];
    assert_eq!((&answer["tokens"], &answer["finish"]), (&6.into(), &"length".into()));
    assert_eq!(answer["log_probs"].as_array().unwrap().len(), 6);
    assert_eq!(output["model"]["architecture"], "llama");
    assert_eq!(output["speed"]["decode_tokens"], 5);
    let beams = [&base[..], &["--beams", "4", "--sequences", "3", "--length-penalty", "0.5"]].concat();
    let output: serde_json::Value = serde_json::from_str(good(&run(folder.path(), &beams))).unwrap();
    let scores: Vec<f64> =
        output["answers"].as_array().unwrap().iter().map(|answer| answer["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    let text = run(folder.path(), &["generate", "model", "in the end", "--max-tokens", "6", "--beams", "2"]);
    assert!(good(&text).ends_with('\n') && text.stderr.contains("for 2 beams"), "{}", text.stderr);
}

#[test]
fn chat_answers_line_by_line() {
    let folder = folder();
    let base = ["chat", "model", "--max-tokens", "5", "--json"];
    let lines = |run: &Run| -> Vec<serde_json::Value> {
        good(run).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let talk = with_input(folder.path(), &base, "in the\n\n/help me\nmore\\\nto come\n");
    let answers = lines(&talk);
    assert_eq!(answers.len(), 2);
    assert!(talk.stderr.contains("note: there is no command /help;"), "{}", talk.stderr);
    assert!(answers[1]["prompt_tokens"].as_u64() > answers[0]["prompt_tokens"].as_u64());
    // Of the second message, what stood in the first one and its answer is not computed again.
    let reused = |i: usize| answers[i]["speed"]["reused_tokens"].as_u64().unwrap();
    assert!(reused(0) == 0 && reused(1) >= answers[0]["prompt_tokens"].as_u64().unwrap() - 1, "{answers:?}");
    // A new conversation gives the first answer again; instructions stay.
    let again =
        lines(&with_input(folder.path(), &base, "in the\n/reset\nin the\n/system Be.\nin the\n/quit\nin the\n"));
    assert_eq!((again.len(), &again[0]["text"], &again[1]["text"]), (3, &answers[0]["text"], &answers[0]["text"]));
    let system =
        lines(&with_input(folder.path(), &[&base[..], &["--system", "Be."]].concat(), "in the\n/reset\nin the"));
    for answer in &system {
        assert_eq!(answer["text"], again[2]["text"]);
    }
    let plain = with_input(folder.path(), &base[..4], "in the\n/help\n");
    assert!(good(&plain).starts_with(again[0]["text"].as_str().unwrap()), "{}", plain.stdout);
    assert!(plain.stdout.contains("/reset") && plain.stderr.contains("tokens/s"), "{}", plain.stderr);
}

#[test]
fn info_describes_a_language_model() {
    let folder = folder();
    let text = run(folder.path(), &["info", "model"]);
    for part in ["llama", "embedding", "attention", "head", "211 tokens", "128 tokens", "f32", "model.safetensors"] {
        assert!(good(&text).contains(part), "{part} in {}", text.stdout);
    }
    let json: serde_json::Value =
        serde_json::from_str(good(&run(folder.path(), &["info", "model", "--json"]))).unwrap();
    let kinds = json["kinds"].as_array().unwrap();
    let total: u64 = kinds.iter().map(|kind| kind["total"].as_u64().unwrap()).sum();
    assert_eq!(json["parameters"]["total"].as_u64(), Some(total));
    assert_eq!(json["experts"], 0);
}

/// An adapter in PEFT's layout for one map of the tiny model: row `i` of `B A` is `i + 1` times ones over 100.
fn adapter(folder: &Path, map: &str, (out, inputs): (usize, usize)) {
    fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [map]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let tensor = |half: &str, values: Vec<f32>, shape: (usize, usize)| {
        let name = format!("base_model.model.{map}.lora_{half}.weight");
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let b = (0..out).map(|i| (i + 1) as f32 / 100.0).collect();
    let tensors = [tensor("A", vec![1.0; inputs], (1, inputs)), tensor("B", b, (out, 1))];
    save(&folder.join("adapter_model.safetensors"), &tensors, &[]).unwrap();
}

#[test]
fn adapters_change_what_a_model_writes() {
    let folder = folder();
    let path = folder.path();
    let config: serde_json::Value = serde_json::from_slice(&fs::read(path.join("model/config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (h, layers) = (size("hidden_size"), size("num_hidden_layers"));
    let head = config["head_dim"].as_u64().map_or(h / size("num_attention_heads"), |d| d as usize);
    let map = format!("model.layers.{}.self_attn.o_proj", layers - 1);
    adapter(&path.join("tuned"), &map, (h, size("num_attention_heads") * head));
    adapter(&path.join("other"), &map, (h + 1, h));
    let generate = ["generate", "model", "in the end", "--max-tokens", "20"];
    let write = |adapters: &[&str]| {
        let flags: Vec<&str> = adapters.iter().flat_map(|a| ["--adapter", a]).collect();
        good(&run(path, &[&generate[..], &flags].concat())).to_string()
    };
    let plain = write(&[]);
    assert_ne!(write(&["tuned=4"]), plain);
    assert_eq!(write(&["tuned=0"]), plain);
    // Given again, an adapter has the new strength, not both.
    assert_eq!(write(&["tuned=4", "tuned=0"]), plain);
    fails(path, &["generate", "model", "a", "--adapter", "none"], "an adapter is a folder with adapter_config.json");
    fails(path, &["generate", "model", "a", "--adapter", "other"], "o_proj");
    fails(path, &["chat", "model", "--adapter", "model"], "an adapter is a folder with adapter_config.json");
}

/// Runs the program and checks that it ends with one line that has `part`.
fn fails(folder: &Path, arguments: &[&str], part: &str) {
    let run = with_input(folder, arguments, "Hi\n");
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{arguments:?}: {}", run.stderr);
    assert!(run.stderr.starts_with("error: ") && run.stderr.lines().count() == 1, "{arguments:?}: {}", run.stderr);
    assert!(run.stderr.contains(part), "{arguments:?}: expected {part:?} in {}", run.stderr);
}

#[test]
fn bad_input_is_one_line() {
    let folder = folder();
    let (path, dir) = (folder.path(), folder.path().join("model"));
    let long = "a ".repeat(200);
    for (arguments, part) in [
        (&["a", "--max-tokens", "0"][..], "the most new tokens are 0: ask for at least 1"),
        (&["a", "--temperature", "-1"], "the temperature is -1: give 0"),
        (&["a", "--temperature", "NaN"], "the temperature is NaN: give 0"),
        (&["a", "--top-p", "0"], "top-p is 0: give a probability"),
        (&["a", "--top-p", "1.01"], "top-p is 1.01"),
        (&["a", "--min-p", "2"], "min-p is 2"),
        (&["a", "--repetition-penalty", "-2"], "the repetition penalty is -2"),
        (&["a", "--beams", "0"], "0 beams: give 1 to 1024"),
        (&["a", "--beams", "2", "--sequences", "3"], "3 sequences of 2 beams"),
        (&["a", "--stop", ""], "a stop string is empty"),
        (&[""], "the prompt is empty: give at least one character"),
        (&[&long], "tokens and leaves no room for an answer in this model's context of 128: shorten it to at most 127"),
    ] {
        fails(path, &[&["generate", "model"], arguments].concat(), part);
    }
    fails(path, &["generate", "none", "a"], "none: does not exist: give a folder with config.json");
    fails(path, &["chat", "model", "--temperature", "-1"], "the temperature is -1");

    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let tokenizer = fs::read(dir.join("tokenizer.json")).unwrap();
    fs::write(dir.join("config.json"), config.replace("\"llama\"", "\"gemma9\"")).unwrap();
    for command in [&["generate", "model", "a"][..], &["chat", "model"], &["info", "model"]] {
        fails(path, command, "gemma9");
        fails(path, command, "mixtral");
    }
    fs::write(dir.join("config.json"), &config).unwrap();
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    fails(path, &["generate", "model", "a"], "model/tokenizer.json: is missing; copy it from");
    fs::write(dir.join("tokenizer.json"), &tokenizer[..tokenizer.len() / 2]).unwrap();
    fails(path, &["generate", "model", "a"], "model/tokenizer.json: is not a tokenizer (");
    fs::write(dir.join("tokenizer.json"), &tokenizer).unwrap();
    // A tokenizer with more tokens than the model.
    fs::write(dir.join("tokenizer.json"), String::from_utf8(tokenizer.clone()).unwrap().replace(":15,", ":4000,"))
        .unwrap();
    fails(path, &["generate", "model", ","], "is not in the vocabulary of 211 tokens");
    fs::write(dir.join("tokenizer.json"), tokenizer).unwrap();

    for (template, part) in [
        ("{% for", "chat_template.jinja: its chat template, line 1 fails (syntax error"),
        ("{{ raise_exception('Only tools') }}", "the model's chat template refuses this conversation: Only tools"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("", "the prompt has no token"),
    ] {
        fs::write(dir.join("chat_template.jinja"), template).unwrap();
        fails(path, &["chat", "model"], part);
    }
    fs::remove_file(dir.join("chat_template.jinja")).unwrap();
    fs::remove_file(dir.join("tokenizer_config.json")).unwrap();
    fails(path, &["chat", "model"], "tokenizer_config.json: has no chat_template");
}
