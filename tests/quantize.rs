//! `moesaic quantize` and `moesaic eval language` as a user runs them, on tiny models of random weights.

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::Checkpoint;
use serde_json::Value;
use support::{Run, names, program, run};
use tiny::{language_model, sparse_model};

const TEXT: &str = "in the end the other one is there, and a few more of them come in the morning, so that the text is long \
                    enough for several windows of the tiny model: the rest of it says nothing at all.";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    language_model(folder.path());
    fs::write(folder.path().join("text.txt"), TEXT).unwrap();
    folder
}

fn json(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

fn nll(folder: &Path, model: &str, more: &[&str]) -> f64 {
    let found = json(&run(folder, &[&["eval", "language", model, "text.txt", "--json"], more].concat()));
    assert!(found["tokens"].as_u64().unwrap() > 100, "{found}");
    found["mean_nll"].as_f64().unwrap()
}

#[test]
fn a_quantised_model_predicts_like_the_model() {
    let folder = folder();
    let path = folder.path();
    let plain = nll(path, "model", &[]);
    for (format, output, most) in [("q8_0", "q8", 0.01), ("q4_1", "q4", 0.1), ("q8_0", "q8.gguf", 0.01)] {
        let command = ["quantize", "model", "--format", format, "--output", output, "--text", "text.txt", "--json"];
        let report = json(&run(path, &command));
        let after = report["perplexity"]["after"]["mean_nll"].as_f64().unwrap();
        assert_eq!(report["perplexity"]["before"]["mean_nll"].as_f64().unwrap(), plain);
        assert_eq!(nll(path, output, &[]), after);
        assert!((after - plain).abs() < 0.05 && after != plain, "{format}: {plain} {after}");
        let written = Checkpoint::open(&path.join(output)).unwrap();
        for tensor in report["tensors"].as_array().unwrap() {
            let (name, error) = (tensor["name"].as_str().unwrap(), tensor["error"].as_f64().unwrap());
            let stored = written.info(name).unwrap().blocks;
            assert_eq!(tensor["format"].as_str(), stored.map(BlockFormat::name), "{name}");
            // Errors of the head reach the result undamped.
            assert!(tensor["kind"] != "head" || stored == Some(BlockFormat::Q8_0), "{name}: {stored:?}");
            // 112 values in a row of `down_proj` fill no block of 32.
            assert_eq!(stored.is_none(), name.ends_with("down_proj.weight"), "{name}");
            assert_eq!(tensor["fallback"], stored.is_none());
            assert!(stored.is_none() && error == 0.0 || error > 0.0 && error < most, "{name}: {error}");
        }
        assert!(written.info("model.embed_tokens.weight").unwrap().blocks.is_none());
        assert!(written.info("model.norm.weight").unwrap().blocks.is_none());
    }
    assert_eq!(names(path), ["model", "q4", "q8", "q8.gguf", "text.txt"]);
    let text = run(path, &["quantize", "model", "--format", "q4_k"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    // Rows of 64 fill no block of 256: q8_0 stands in.
    assert!(text.stdout.contains("do not fill") && text.stdout.contains("attention  q8_0"), "{}", text.stdout);
    assert!(path.join("model-q4_k/tokenizer.json").is_file());
    let info = run(path, &["info", "model-q4_k"]);
    assert!(info.stdout.contains("q8_0 ("), "{}{}", info.stdout, info.stderr);
}

#[test]
fn experts_only_leaves_all_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    sparse_model(path);
    fs::write(path.join("text.txt"), TEXT).unwrap();
    let plain = Checkpoint::open(&path.join("model")).unwrap();
    for (output, text) in [("q", true), ("q.gguf", false)] {
        let command = ["quantize", "model", "--format", "q4_1", "--experts-only", "--output", output, "--json"];
        let report = json(&run(path, &[&command[..], if text { &["--text", "text.txt"] } else { &[] }].concat()));
        let written = Checkpoint::open(&path.join(output)).unwrap();
        let (mut experts, mut others) = (0, 0);
        for name in plain.names() {
            let info = written.info(name).unwrap();
            // Layer 1 is dense.
            let expert = name.contains(".mlp.experts.") || name.contains(".mlp.shared_expert.");
            assert_eq!(info.blocks, expert.then_some(BlockFormat::Q4_1), "{output}: {name}");
            let read = |file: &Checkpoint| {
                let values = file.read(name, &info.shape, DType::F32, &Device::Cpu).unwrap();
                values.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(read(&written) == read(&plain), !expert, "{output}: {name}");
            *if expert { &mut experts } else { &mut others } += 1;
        }
        assert_eq!((experts, others), (6 * 3 + 3, plain.names().count() - 21));
        let tensors = report["tensors"].as_array().unwrap();
        for tensor in tensors {
            let expert = tensor["kind"] == "experts";
            assert_eq!((tensor["format"] == "q4_1", tensor["error"] != 0.0), (expert, expert), "{tensor}");
            assert_eq!(tensor["fallback"], false, "{tensor}");
        }
        // Experts, three maps and four of attention in each layer, the head; no router and no gate.
        assert_eq!(tensors.len(), 21 + 3 + 2 * 4 + 1);
    }
    let (before, after) = (nll(path, "model", &[]), nll(path, "q", &[]));
    assert!(before != after && (before - after).abs() < 0.05, "{before} {after}");
    assert!((nll(path, "q.gguf", &[]) - after).abs() < 1e-3);
    let table = run(path, &["quantize", "model", "--format", "q8_0", "--experts-only"]);
    for line in ["experts    q8_0            21", "attention  as it was        8", "dense      as it was        3"] {
        assert!(table.stdout.contains(line), "{line}: {}{}", table.stdout, table.stderr);
    }
}

/// Ctrl-C while the new model is there and is not finished: it is being measured.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::process::Stdio;
    use std::time::Duration;

    let folder = folder();
    let path = folder.path();
    fs::write(path.join("long.txt"), TEXT.repeat(300)).unwrap();
    for output in ["out", "out.gguf"] {
        let before = names(path);
        let mut command = program(path);
        command.args(["quantize", "model", "--format", "q8_0", "--output", output, "--text", "long.txt"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let unfinished = || {
            let hidden = names(path).into_iter().find(|name| name.starts_with(".moesaic-"));
            hidden.is_some_and(|name| fs::read_dir(path.join(name)).is_ok_and(|mut all| all.next().is_some()))
        };
        while !unfinished() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
            std::thread::sleep(Duration::from_millis(2));
        }
        let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let run: Run = child.wait_with_output().unwrap().into();
        assert_eq!((run.code, run.stdout.as_str()), (Some(130), ""), "{}", run.stderr);
        assert_eq!(names(path), before);
    }
}

#[test]
fn windows_see_no_less_than_they_say() {
    let folder = folder();
    let path = folder.path();
    // A stride of one token gives each as much as the window holds; all windows predict every token once.
    let all = nll(path, "model", &["--window", "128"]);
    for stride in ["1", "31", "63"] {
        let some = nll(path, "model", &["--window", "64", "--stride", stride]);
        assert!((some - all).abs() < 0.2, "{stride}: {some} {all}");
    }
    let text = run(path, &["eval", "language", "model", "text.txt"]);
    assert!(text.stdout.contains("mean NLL") && text.stdout.contains("perplexity"), "{}", text.stdout);
}

#[test]
fn refusals_are_one_line_and_leave_nothing() {
    let folder = folder();
    let path = folder.path();
    fs::write(path.join("empty.txt"), "\n").unwrap();
    let quantize = |more: &[&str]| run(path, &[&["quantize"], more].concat());
    let made = quantize(&["model", "--format", "q8_0", "--output", "q"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let before = names(path);
    let fails = |run: Run, part: &str| {
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(1), "", 1), "{}", run.stderr);
        assert!(run.stderr.contains(part), "expected {part:?} in {}", run.stderr);
        assert_eq!(names(path), before);
    };
    fails(quantize(&["none", "--format", "q8_0"]), "none: does not exist");
    fails(quantize(&["model", "--format", "q8_0", "--output", "q"]), "q: exists already");
    fails(quantize(&["q", "--format", "q8_0"]), "is quantised already (q8_0)");
    fails(quantize(&["model", "--format", "q8_0", "--experts-only"]), "has no experts");
    fails(quantize(&["model", "--format", "q8_0", "--text", "empty.txt"]), "empty.txt has no text");
    fails(run(path, &["eval", "language", "model", "text.txt", "--window", "129"]), "give 2 to 128");
    fails(run(path, &["eval", "language", "model", "text.txt", "--window", "8", "--stride", "8"]), "give 1 to 7");
    let config = path.join("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"llama\"", "\"gemma9\"")).unwrap();
    fails(quantize(&["model", "--format", "q8_0"]), "gemma9");
    fs::write(&config, text).unwrap();
    fs::remove_file(path.join("model/tokenizer.json")).unwrap();
    fails(quantize(&["model", "--format", "q8_0", "--text", "text.txt"]), "tokenizer.json");
    // Weights that are no numbers, found while the file is written.
    let weights = path.join("model/model.safetensors");
    let checkpoint = Checkpoint::open(&weights).unwrap();
    let mut tensors: Vec<_> = checkpoint.names().map(|n| (n.to_string(), checkpoint.read_any(n).unwrap())).collect();
    let last = tensors.iter_mut().find(|(name, _)| name.ends_with("2.self_attn.q_proj.weight")).unwrap();
    last.1 = (&last.1 * f64::NAN).unwrap();
    moesaic_kernels::checkpoint::save(&weights, &tensors, &[]).unwrap();
    fails(quantize(&["model", "--format", "q8_0"]), "NaN cannot be quantised");
}
