//! Models from a Hub: a small server on the loopback interface speaks its routes, honestly and otherwise.
#![cfg(all(feature = "hub", feature = "cli"))] // `support` runs the program

#[path = "support/hub.rs"]
mod server;
mod support;

#[path = "hub/breaking.rs"]
mod breaking;
#[path = "hub/fetching.rs"]
mod fetching;
#[path = "hub/hostile.rs"]
mod hostile;
#[path = "hub/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moesaic::hub::{Hub, HubErrorKind, HubOptions, Stage};
use moesaic::{Error, ForecastOptions, Forecaster, ModelInfo, Series};
use moesaic_kernels::checkpoint::{self, Checkpoint};
use server::{COMMIT, REPO, Reply, Server, etag};
use support::model;

type Files = BTreeMap<String, Vec<u8>>;

const WEIGHTS: &str = "model.safetensors";

/// A repository: a model, what belongs to it, and what does not.
fn files() -> Files {
    let mut files: Files = ["config.json", WEIGHTS]
        .map(|name| (name.to_string(), fs::read(model().join(name)).unwrap()))
        .into_iter()
        .collect();
    for name in
        ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "additional_chat_templates/a.jinja"]
    {
        files.insert(name.into(), format!("content of {name}").into());
    }
    for name in ["README.md", "pytorch_model.bin", "onnx/model.safetensors", "training_args.json", ".gitattributes"] {
        files.insert(name.into(), b"not part of the model".to_vec());
    }
    files
}

/// The same model in two shards and an index, with a third shard that the index does not name.
fn sharded() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let whole = Checkpoint::open(&model()).unwrap();
    let names: Vec<&str> = whole.names().collect();
    let mut files = files();
    files.remove(WEIGHTS);
    let mut map = serde_json::Map::new();
    for (shard, names) in [("a-1.safetensors", &names[..20]), ("a-2.safetensors", &names[20..])] {
        let tensors: Vec<_> = names.iter().map(|name| (name.to_string(), whole.read_any(name).unwrap())).collect();
        checkpoint::save(&folder.path().join(shard), &tensors, &[("format", "pt")]).unwrap();
        files.insert(shard.into(), fs::read(folder.path().join(shard)).unwrap());
        map.extend(names.iter().map(|name| (name.to_string(), shard.into())));
    }
    files.insert("a-3.safetensors".into(), b"not named".to_vec());
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    files.insert("model.safetensors.index.json".into(), index.to_string().into());
    files
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions::new(cache).endpoint(&server.endpoint).retries(0).timeout(Duration::from_secs(20))
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(options(server, cache)).unwrap()
}

fn storage(cache: &Path) -> PathBuf {
    cache.join("models--org--name")
}

/// Paths of all files in a folder, sorted.
fn tree(folder: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => open.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/")),
            }
        }
    }
    found.sort();
    found
}

fn kind(error: &Error) -> HubErrorKind {
    match error {
        Error::Hub { kind, .. } => *kind,
        other => panic!("{other:?}"),
    }
}

/// Checks an error: its kind, a part of its message, and that the message is one short line that names the model.
fn check(what: &str, error: &Error, expected: HubErrorKind, part: &str) {
    let message = error.to_string();
    assert_eq!(kind(error), expected, "{what}: {message}");
    assert!(message.contains(part), "{what}: expected {part:?} in {message}");
    assert!(message.starts_with(REPO) && message.lines().count() == 1 && message.len() < 400, "{what}: {message}");
}

/// No file counts as fetched, but for the names given; none is left half-way.
fn nothing_of(cache: &Path, name: &str) {
    let found = tree(cache);
    for part in [name, "incomplete", "refs/"] {
        assert!(!found.iter().any(|path| path.contains(part)), "{part} in {found:?}");
    }
}
