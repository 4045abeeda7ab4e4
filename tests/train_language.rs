//! `moesaic train language` as a user runs it: the shipped examples, a tokenizer, bad input.

mod support;

use std::fs;
use std::path::Path;

use support::{Run, names, program, run};

/// An example's config with paths that hold from any folder, and few steps.
fn example(name: &str, steps: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("examples").join(name)).unwrap();
    let data = root.join("examples/data/");
    let quick = text.replace("\"examples/data/", &format!("\"{}/", data.display())).replace(steps, "steps = 2");
    assert!(quick.contains("steps = 2"), "{name} has other steps");
    quick
}

fn train(folder: &Path, config: &str) -> Run {
    fs::write(folder.join("run.toml"), config).unwrap();
    // On a busy machine threads that wait for each other cost more than such small models do.
    let run = program(folder).args(["train", "language", "run.toml"]).env("CANDLE_NUM_THREADS", "1").output();
    run.unwrap().into()
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

#[test]
fn the_examples_train_a_model_and_adapters_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = train(folder, &example("language.toml", "steps = 100"));
    let line = good(&first).lines().last().unwrap();
    for part in ["step 2/2", "cross_entropy", "balance", "validation", "perplexity", "tokens/s"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(first.stderr.contains("the model is in runs/language/model"), "{}", first.stderr);
    assert_eq!(names(&folder.join("runs/language/model")), ["config.json", "model.safetensors"]);
    let second = train(folder, &example("lora.toml", "steps = 100"));
    good(&second);
    assert_eq!(names(&folder.join("runs/lora/model")), ["adapter_config.json", "adapter_model.safetensors"]);
    // A run is not overwritten by accident; the message is one line.
    let again = run(folder, &["train", "language", "run.toml"]);
    assert_eq!((again.code, again.stderr.lines().count()), (Some(1), 1), "{}", again.stderr);
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
}

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null, "truncation": null,
    "padding": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
    "model": {"type": "WordLevel", "vocab": {"the": 0, "cat": 1, "sat": 2, "?": 3}, "unk_token": "?"}}"#;

#[test]
fn a_tokenizer_is_used_and_kept_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    fs::write(folder.join("t.txt"), "the cat sat on the cat ".repeat(20)).unwrap();
    let config = r#"seed = 1
tokenizer = "tokenizer.json"
data = { files = ["t.txt"], length = 16, rows = 2 }
plan = { steps = 2, out = "run" }
model = { model_type = "llama", vocab_size = VOCABULARY, hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 2, rms_norm_eps = 1e-6, max_position_embeddings = 64, hidden_act = "silu" }
"#;
    good(&train(folder, &config.replace("VOCABULARY", "4")));
    assert_eq!(names(&folder.join("run/model")), ["config.json", "model.safetensors", "tokenizer.json"]);
    for (config, word) in [
        (config.replace("VOCABULARY", "3"), "another model"),
        (config.replace("VOCABULARY", "4").replace("\"tokenizer.json\"", "\"t.txt\""), "not a tokenizer.json"),
        (config.replace("VOCABULARY", "four"), "line 5"),
        (config.replace("VOCABULARY", "4").replace("rows = 2", "rows = 2, lines = 3"), "line 3"),
        (config.replace("VOCABULARY", "4").replace("t.txt", "none.txt").replace("\"run\"", "\"other\""), "none.txt"),
    ] {
        fs::remove_dir_all(folder.join("run")).unwrap_or_default();
        let run = train(folder, &config);
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(word), "expected {word:?}: {}", run.stderr);
    }
}
