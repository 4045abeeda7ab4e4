//! GGUF files through the program: a folder written as one, and what it says and writes then.

#[path = "support/mod.rs"]
mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use moesaic::{Chat, Message, TemplateOptions, TextGenerator, TextOptions, Tokenizer, write_gguf};
use moesaic_kernels::BlockFormat;
use moesaic_kernels::checkpoint::gguf::{Gguf, Kind, Value};
use support::run;
use tiny::language_model;

fn floats(_: &str, _: &[usize]) -> Kind {
    Kind::Float(DType::F32)
}

/// A model folder and the file written from it.
fn both(folder: &Path) -> (PathBuf, PathBuf) {
    let dir = language_model(folder);
    let file = folder.join("model.gguf");
    write_gguf(&dir, &file, floats).unwrap();
    (dir, file)
}

#[test]
fn a_file_writes_what_its_folder_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = both(folder.path());
    for prompt in ["in the end", "é 12 <|im_end|> ünd", "  a\n"] {
        let ids = |path: &Path| Tokenizer::load(path).unwrap().encode(prompt).unwrap();
        assert_eq!(ids(&file), ids(&dir), "{prompt}");
        let text =
            |path: &str| run(folder.path(), &["generate", path, prompt, "--max-tokens", "9", "--temperature", "0.8"]);
        let (ours, theirs) = (text("model.gguf"), text("model"));
        assert_eq!(ours.code, Some(0), "{}", ours.stderr);
        assert_eq!(ours.stdout, theirs.stdout);
    }
    let messages = [Message::user("in the")];
    let prompt = |path: &Path| Chat::from_dir(path).unwrap().prompt(&messages, &TemplateOptions::default()).unwrap();
    assert_eq!(prompt(&file), prompt(&dir));
    let answer = |path: &Path| {
        let chat = Chat::from_dir(path).unwrap();
        let mut options = TextOptions::default();
        options.max_tokens = Some(7);
        chat.answer(&messages, &TemplateOptions::default(), &options).unwrap()
    };
    assert_eq!(answer(&file), answer(&dir));
}

#[test]
fn info_names_the_formats() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = both(folder.path());
    let text = run(folder.path(), &["info", "model.gguf"]);
    for part in ["llama", "211 tokens", "128 tokens", "f32", "model.gguf"] {
        assert!(text.stdout.contains(part), "{part} in {}{}", text.stdout, text.stderr);
    }
    assert_eq!(TextGenerator::from_dir(&file).unwrap().info().source, file.display().to_string());
}

#[test]
fn a_file_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (_, file) = both(folder.path());
    let bytes = fs::read(&file).unwrap();
    let fails = |what: &str, bytes: &[u8], part: &str| {
        fs::write(folder.path().join("bad.gguf"), bytes).unwrap();
        for command in [&["info", "bad.gguf"][..], &["generate", "bad.gguf", "a"], &["chat", "bad.gguf"]] {
            let run = run(folder.path(), command);
            assert_eq!(run.code, Some(1), "{what}: {}{}", run.stdout, run.stderr);
            assert_eq!((run.stdout.as_str(), run.stderr.lines().count()), ("", 1), "{what}: {}", run.stderr);
            assert!(run.stderr.starts_with("error: bad.gguf: ") && run.stderr.contains(part), "{what}: {}", run.stderr);
        }
    };
    fails("cut", &bytes[..bytes.len() - 4096], "past the end of the file");
    fails("cut in the head", &bytes[..300], "download");
    let text = String::from_utf8_lossy(&bytes[..200]).into_owned();
    let at = text.find("llama").unwrap();
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"mamba");
    fails("another architecture", &other, "\"mamba\" is not supported (supported: llama");
    fails("no GGUF", b"PK\x03\x04", "");
    // Adapters, training and whatever else reads a checkpoint take the file too.
    assert!(moesaic_kernels::checkpoint::Checkpoint::open(&file).is_ok());
}

#[test]
fn an_unknown_way_to_split_text() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = both(folder.path());
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|part| part == b"gpt-2").unwrap();
    bytes[at..at + 5].copy_from_slice(b"gpt-9");
    fs::write(&file, bytes).unwrap();
    let failed = run(folder.path(), &["generate", "model.gguf", "in the end", "--max-tokens", "4"]);
    assert!(failed.stderr.contains("\"gpt-9\"") && failed.stderr.contains("tokenizer.json"), "{}", failed.stderr);
    // The tokenizer of the folder beside the file stands in.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(dir.join(name), folder.path().join(name)).unwrap();
    }
    let helped = run(folder.path(), &["generate", "model.gguf", "in the end", "--max-tokens", "4"]);
    let plain = run(folder.path(), &["generate", "model", "in the end", "--max-tokens", "4"]);
    assert_eq!((helped.code, helped.stdout), (Some(0), plain.stdout), "{}", helped.stderr);
}

#[test]
fn a_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = language_model(folder.path());
    let file = folder.path().join("m.gguf");
    let blocks = |_: &str, _: &[usize]| Kind::Blocks(BlockFormat::Q4K);
    let message = write_gguf(&dir, &file, blocks).unwrap_err().to_string();
    assert!(message.contains("do not fill blocks of 256 (Q4_K)") && !file.exists(), "{message}");
    let path = dir.join("tokenizer.json");
    let tokenizer = fs::read_to_string(&path).unwrap();
    fs::write(&path, tokenizer.replace("\"use_regex\":true", "\"use_regex\":false")).unwrap();
    let message = write_gguf(&dir, &file, floats).unwrap_err().to_string();
    assert!(message.contains("has no name") && !file.exists(), "{message}");
    fs::write(&path, tokenizer).unwrap();
    write_gguf(&dir, &file, floats).unwrap();
    let read = Gguf::open(&file).unwrap();
    assert_eq!(read.metadata().get("tokenizer.ggml.pre"), Some(&Value::Text("gpt-2".into())));
    assert_eq!(read.metadata().texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), 211);
}

/// Not a test: writes files for other programs to read, into `target/gguf`.
#[test]
#[ignore = "writes target/gguf"]
fn write_for_other_readers() {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/gguf");
    fs::create_dir_all(&out).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = language_model(folder.path());
    write_gguf(&dir, out.join("tiny.gguf"), floats).unwrap();
    let half = |name: &str, shape: &[usize]| match shape.last().is_some_and(|n| n % 32 == 0) {
        true if name.contains("ffn") => Kind::Blocks(BlockFormat::Q8_0),
        true => Kind::Blocks(BlockFormat::Q4_1),
        false => Kind::Float(DType::F16),
    };
    write_gguf(&dir, out.join("tiny-blocks.gguf"), half).unwrap();
    for case in ["mixtral/sharded_bf16", "olmoe/tiny_8e_top4", "qwen2_moe/tiny_8e_top4", "granitemoe/tiny_8e_top4"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(case);
        let path = out.join(format!("{}.gguf", case.replace('/', "-")));
        moesaic_models::decoder::save_gguf(&dir, &path, floats).unwrap();
    }
}
