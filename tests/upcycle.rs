//! `moesaic upcycle` and `moesaic mix` as a user runs them.

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use moesaic::{Chat, Message, TemplateOptions, Tokenizer, write_gguf};
use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::Kind;
use support::{Run, names, program, run};
use tiny::language_model;

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    language_model(folder.path());
    folder
}

/// A run of a few steps; its output.
fn train(folder: &Path, out: &str, init: &str, more: &[&str]) -> Run {
    fs::write(folder.join("t.txt"), "in the end there is no end to it, he said. ".repeat(30)).unwrap();
    let config = format!(
        "seed = 1\ninit = {init:?}\ndata = {{ files = [\"t.txt\"], length = 16, rows = 2, validation = 0.2 }}\n\
         plan = {{ steps = 3, log_every = 1, out = {out:?} }}\n"
    );
    fs::write(folder.join("run.toml"), config).unwrap();
    let mut command = program(folder);
    command.args(["train", "language", "run.toml"]).args(more).env("CANDLE_NUM_THREADS", "1").output().unwrap().into()
}

#[test]
fn a_dense_model_is_upcycled_and_writes_and_trains_on() {
    let folder = folder();
    let path = folder.path();
    let base = ["upcycle", "model", "--experts", "8", "--top-k", "4", "--granularity", "2"];
    let made = run(path, &[&base[..], &["--shared", "1", "--layers", "0,2", "--output", "made/sparse"]].concat());
    assert_eq!(good(&made), "");
    let lines: Vec<&str> = made.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("note: qwen2_moe of "), "{}", made.stderr);
    for part in ["8 experts in 2 of 3 layers", "4 for each token", "of weights"] {
        assert!(lines[0].contains(part), "{part}: {}", made.stderr);
    }
    assert_eq!(lines[1], "note: done: the model is in made/sparse; it gives the logits of the dense model");
    let sparse = path.join("made/sparse");
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(
        (names(&sparse), names(&path.join("made"))),
        (files.map(String::from).to_vec(), vec!["sparse".to_string()])
    );
    // It writes what the dense model writes.
    let write = |model: &str| good(&run(path, &["generate", model, "in the end", "--max-tokens", "12"])).to_string();
    assert_eq!(write("made/sparse"), write("model"));
    // Before training it has the loss of the dense model; each part can be trained.
    let before = |run: &Run| good(run).split_once(", perplexity").unwrap().0.to_string();
    let dense = before(&train(path, "runs/dense", "model", &[]));
    assert!(dense.starts_with("step 0/3  before training (validation "), "{dense}");
    for part in ["router", "experts", "all"] {
        let trained = train(path, &format!("runs/{part}"), "made/sparse", &["--train", part]);
        assert_eq!(before(&trained), dense, "{part}");
        let after = trained.stdout.lines().last().unwrap();
        assert!(after.contains("balance") && after.contains("validation"), "{after}");
    }
    let refused = train(path, "runs/refused", "model", &["--train", "router"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("has none"), "{}", refused.stderr);
}

#[test]
fn siblings_are_mixed() {
    let folder = folder();
    let path = folder.path();
    good(&train(path, "runs/a", "model", &[]));
    let made = run(path, &["mix", "model", "runs/a/model", "model", "--top-k", "2", "--output", "mixed"]);
    assert_eq!(good(&made), "");
    assert!(made.stderr.contains("3 experts in 3 of 3 layers, 2 for each token"), "{}", made.stderr);
    assert!(made.stderr.ends_with("the model is in mixed\n"), "{}", made.stderr);
    good(&train(path, "runs/mixed", "mixed", &["--train", "router"]));
    let info = run(path, &["info", "mixed"]);
    assert!(good(&info).contains("mixtral"), "{}", info.stdout);
}

#[test]
fn bad_input_is_one_line_and_nothing_is_written() {
    let folder = folder();
    let path = folder.path();
    fs::create_dir(path.join("there")).unwrap();
    fs::create_dir(path.join("phi")).unwrap();
    let phi = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/phi/tiny_phi2");
    for name in ["config.json", "model.safetensors"] {
        fs::write(path.join("phi").join(name), fs::read(phi.join(name)).unwrap()).unwrap();
    }
    let before = names(path);
    let fails = |arguments: &[&str], part: &str, code: i32| {
        let run = run(path, arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", run.stderr);
        let error = run.stderr.lines().last().unwrap_or_default();
        assert!(
            error.starts_with("error: ") && error.contains(part),
            "{arguments:?}: expected {part:?} in {}",
            run.stderr
        );
        assert_eq!(names(path), before, "{arguments:?}");
    };
    let base = ["upcycle", "model", "--output", "out"];
    let with = |more: &[&str], part: &str| fails(&[&base[..], more].concat(), part, 1);
    with(&["--experts", "4", "--top-k", "5"], "5 experts for each token: give 1 to 4");
    with(&["--experts", "4", "--top-k", "0"], "0 experts for each token");
    with(&["--experts", "8", "--top-k", "2", "--noise", "NaN"], "noise is NaN");
    with(&["--experts", "10", "--top-k", "5", "--granularity", "5"], "does not divide the width 112");
    with(&["--experts", "999999999", "--top-k", "2"], "give 1 to 16384");
    with(&["--experts", "9", "--top-k", "2", "--init", "split"], "cannot be cut into 9");
    with(&["--experts", "8", "--top-k", "2", "--layers", "1,7"], "layer 7 of 3");
    with(&["--experts", "8", "--top-k", "2", "--family", "jetmoe"], "choose one of mixtral");
    let usage = [&base[..], &["--experts", "8", "--top-k", "2", "--layers", "5-1"]].concat();
    fails(&usage, "is no range of layers", 2);
    fails(&["upcycle", "none", "--experts", "8", "--top-k", "2", "--output", "out"], "none", 1);
    fails(&["upcycle", "phi", "--experts", "8", "--top-k", "2", "--output", "out"], "supported are llama", 1);
    fails(&["upcycle", "model", "--experts", "8", "--top-k", "2", "--output", "there"], "exists already", 1);
    fails(&["mix", "model", "phi", "--top-k", "1", "--output", "out"], "phi: ", 1);
    fails(&["mix", "model", "--top-k", "1", "--output", "out"], "see --help", 2);
}

#[test]
fn a_gguf_file_is_upcycled() {
    let folder = folder();
    let path = folder.path();
    let (plain, blocks) = (path.join("plain.gguf"), path.join("blocks.gguf"));
    write_gguf(path.join("model"), &plain, |_, _| Kind::Float(DType::F32)).unwrap();
    let choose = |_: &str, shape: &[usize]| match shape.last().is_some_and(|width| width % 32 == 0) {
        true => Kind::Blocks(BlockFormat::Q8_0),
        false => Kind::Float(DType::F16),
    };
    write_gguf(path.join("model"), &blocks, choose).unwrap();
    let upcycle = |from: &str, to: &str| {
        let made = run(path, &["upcycle", from, "--experts", "4", "--top-k", "2", "--output", to]);
        assert_eq!(good(&made), "");
        made.stderr
    };
    let told = upcycle("plain.gguf", "sparse");
    assert!(told.ends_with("the model is in sparse; it gives the logits of the dense model\n"), "{told}");
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&path.join("sparse")), files.map(String::from));
    // It writes what the file writes, and so does the folder that the file is of.
    let write = |model: &str| good(&run(path, &["generate", model, "in the end", "--max-tokens", "12"])).to_string();
    assert_eq!(write("sparse"), write("plain.gguf"));
    assert_eq!(write("sparse"), write("model"));
    let ids = |model: &str| Tokenizer::load(path.join(model)).unwrap().encode("é 12 <|im_end|> ünd").unwrap();
    assert_eq!(ids("sparse"), ids("plain.gguf"));
    let prompt = |model: &str| {
        let chat = Chat::from_dir(path.join(model)).unwrap();
        chat.prompt(&[Message::user("in the")], &TemplateOptions::default()).unwrap()
    };
    assert_eq!(prompt("sparse"), prompt("plain.gguf"));
    // Blocks become the floats that they stand for.
    upcycle("blocks.gguf", "from-blocks");
    let of = |file: &str, name: &str, shape: &[usize]| {
        let checkpoint = Checkpoint::open(&path.join(file)).unwrap();
        let read = checkpoint.read(name, shape, DType::F32, &Device::Cpu).unwrap();
        read.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (dense, sparse) in [
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("mlp.gate_proj", "block_sparse_moe.experts.3.w1"),
        ("mlp.down_proj", "block_sparse_moe.experts.0.w2"),
    ] {
        let [dense, sparse] = [dense, sparse].map(|name| format!("model.layers.1.{name}.weight"));
        let shape = Checkpoint::open(&blocks).unwrap().info(&dense).unwrap().shape.clone();
        assert_eq!(of("blocks.gguf", &dense, &shape), of("from-blocks", &sparse, &shape), "{sparse}");
    }
    // Two files make a mixture.
    let mixed = run(path, &["mix", "plain.gguf", "blocks.gguf", "--top-k", "1", "--output", "mixed"]);
    good(&mixed);
    assert!(path.join("mixed/tokenizer.json").is_file());
}

#[test]
fn a_gguf_file_whose_tokenizer_is_unknown() {
    let folder = folder();
    let path = folder.path();
    let file = path.join("m.gguf");
    write_gguf(path.join("model"), &file, |_, _| Kind::Float(DType::F32)).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|part| part == b"gpt-2").unwrap();
    bytes[at..at + 5].copy_from_slice(b"gpt-9");
    fs::write(&file, bytes).unwrap();
    let base = ["upcycle", "m.gguf", "--experts", "4", "--top-k", "2", "--output"];
    let made = run(path, &[&base[..], &["out"]].concat());
    good(&made);
    for part in ["written without a tokenizer: m.gguf: ", "\"gpt-9\"", "known: default, ", "put one beside the weights"]
    {
        assert!(made.stderr.contains(part), "{part}: {}", made.stderr);
    }
    assert_eq!(names(&path.join("out")), ["config.json", "model.safetensors"]);
    // The files beside it stand in.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(path.join("model").join(name), path.join(name)).unwrap();
    }
    let helped = run(path, &[&base[..], &["helped"]].concat());
    assert!(!helped.stderr.contains("without a tokenizer"), "{}", helped.stderr);
    let read = |name: &str| fs::read(path.join(name).join("tokenizer.json")).unwrap();
    assert_eq!(read("helped"), read("model"));
}

/// More experts than memory and disk hold, said before anything is written. The dense model is a file with a hole: nothing of
/// it is read but its header.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_no_machine_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (h, i, kv) = (4096, 16384, 1024);
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": h, "intermediate_size": i, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    for (name, shape) in [
        ("model.embed_tokens.weight".to_string(), vec![256, h]),
        ("model.norm.weight".to_string(), vec![h]),
        (layer("input_layernorm"), vec![h]),
        (layer("post_attention_layernorm"), vec![h]),
        (layer("self_attn.q_proj"), vec![h, h]),
        (layer("self_attn.k_proj"), vec![kv, h]),
        (layer("self_attn.v_proj"), vec![kv, h]),
        (layer("self_attn.o_proj"), vec![h, h]),
        (layer("mlp.gate_proj"), vec![i, h]),
        (layer("mlp.up_proj"), vec![i, h]),
        (layer("mlp.down_proj"), vec![h, i]),
    ] {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    fs::create_dir(path.join("model")).unwrap();
    fs::write(path.join("model/config.json"), config.to_string()).unwrap();
    let header = serde_json::Value::Object(header).to_string();
    let file = path.join("model/model.safetensors");
    fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len((8 + header.len() + end) as u64).unwrap();
    let run = run(path, &["upcycle", "model", "--experts", "16384", "--top-k", "2", "--output", "out"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{}", run.stderr);
    assert!(lines[0].contains("16384 experts in 1 of 1 layers"), "{}", run.stderr);
    assert!(lines[1].starts_with("note: this machine has ") && lines[1].contains("of memory"), "{}", run.stderr);
    assert!(lines[2].contains("the model takes 13194.") && lines[2].contains("choose fewer experts"), "{}", run.stderr);
    assert_eq!(names(path), ["model"]);
}

/// Ctrl-C while a model is written.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::process::Stdio;
    use std::time::Duration;

    let folder = folder();
    let path = folder.path();
    let mut command = program(path);
    // 16384 experts in three layers take seconds.
    command.args(["upcycle", "model", "--experts", "16384", "--top-k", "2", "--output", "out"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let written = || {
        let partial = names(path).into_iter().find(|name| name.starts_with(".out.") && name.ends_with(".tmp"));
        partial.is_some_and(|name| !names(&path.join(name)).is_empty())
    };
    for _ in 0..1000 {
        if written() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(written());
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let run: Run = child.wait_with_output().unwrap().into();
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert!(run.stderr.ends_with("note: stopped: nothing is left of the model\n"), "{}", run.stderr);
    assert_eq!(names(path), ["model"]);
}
