//! Finding the weights of a model folder, and joining the shards that an index names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

use candle_core::Result;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::gguf::{Gguf, is_gguf};
use super::header::{self, MAX_HEADER};
use super::pickle::Pickle;
use super::source::Source;
use super::text::{one_line, refuse, shown};
use super::{Checkpoint, TensorInfo, fp8};

/// The one file of a model that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a model in shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

const INDEX_ENDING: &str = ".safetensors.index.json";
/// Endings of weight files that hold Python pickles.
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let label = path.display().to_string();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            refuse!("{label}: there is no such file or folder: check the path")
        }
        Err(e) => refuse!("{label}: cannot be read: {}", one_line(e)),
    };
    if !meta.is_dir() {
        return open_file(path, &label);
    }
    for (name, index) in [(SINGLE_FILE, false), (INDEX_FILE, true)] {
        let file = path.join(name);
        // try_exists follows links: the Hub's cache is made of them.
        if file.try_exists().unwrap_or(false) {
            return if index { open_index(&file, label) } else { open_single(&file, label) };
        }
    }
    nothing_there(path, &label)
}

/// The checkpoint of torch in a folder that holds no other weights.
const PICKLE: &str = "checkpoint.pt";
/// Endings of torch's own files.
const TORCH: [&str; 3] = [".pt", ".pth", ".ckpt"];

pub(super) fn open_any(path: &Path) -> Result<Checkpoint> {
    let there = |name: &str| path.join(name).try_exists().unwrap_or(false);
    let named = path.file_name().is_some_and(|n| TORCH.iter().any(|ending| n.to_string_lossy().ends_with(ending)));
    if path.is_file() && named {
        return Ok(Pickle::open(path)?.into_checkpoint());
    }
    if !there(SINGLE_FILE) && !there(INDEX_FILE) && there(PICKLE) {
        return Ok(Pickle::open(&path.join(PICKLE))?.into_checkpoint());
    }
    open(path)
}

fn open_file(path: &Path, label: &str) -> Result<Checkpoint> {
    if label.ends_with(INDEX_ENDING) {
        return open_index(path, label.to_string());
    }
    if PICKLES.iter().any(|ending| label.ends_with(ending)) {
        refuse!(
            "{label}: is a Python pickle, which is not loaded because it can run code: convert it with `moesaic convert`"
        );
    }
    open_single(path, label.to_string())
}

fn open_single(path: &Path, label: String) -> Result<Checkpoint> {
    if is_gguf(path) {
        return Ok(Gguf::open(path)?.into_checkpoint());
    }
    let source = Source::disk(path)?;
    let mut header = header::read(&source, 0)?;
    let sources = vec![source];
    fp8::join(&sources, &mut header.tensors)?;
    Ok(Checkpoint::assemble(label, sources, header.tensors, header.metadata))
}

/// A folder without weights: says what is in it, since that shows what went wrong.
fn nothing_there(dir: &Path, label: &str) -> Result<Checkpoint> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => refuse!("{label}: cannot be read: {}", one_line(e)),
    };
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() {
        refuse!("{label}: the folder is empty: put config.json and {SINGLE_FILE} there");
    }
    if let Some(other) = names.iter().find(|n| n.ends_with(".safetensors")) {
        refuse!("{label}: holds no {SINGLE_FILE}, but {}: rename it, or give the path of that file", shown(other));
    }
    if let Some(gguf) = names.iter().find(|n| n.ends_with(".gguf")) {
        refuse!("{label}: holds no {SINGLE_FILE}, but {}: give the path of that file", shown(gguf));
    }
    if let Some(pickle) = names.iter().find(|n| PICKLES.iter().any(|ending| n.ends_with(ending))) {
        refuse!(
            "{label}: holds only {}, a Python pickle, which is not loaded because it can run code: convert it with \
             `moesaic convert`",
            shown(pickle)
        );
    }
    let some: Vec<String> = names.iter().take(5).map(|n| shown(n)).collect();
    let more = if names.len() > some.len() { ", ..." } else { "" };
    refuse!(
        "{label}: holds no {SINGLE_FILE} and no {INDEX_FILE} (it holds {}{more}): download the weights",
        some.join(", ")
    )
}

fn open_index(path: &Path, label: String) -> Result<Checkpoint> {
    let index_label = path.display().to_string();
    let index = read_index(path, &index_label)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let names = shards(&index, &index_label)?;
    let (mut sources, mut metadata) = (Vec::with_capacity(names.len()), BTreeMap::new());
    let mut tensors: BTreeMap<String, TensorInfo> = BTreeMap::new();
    for (file, name) in names.iter().enumerate() {
        let shard = dir.join(name);
        if !shard.try_exists().unwrap_or(false) {
            refuse!("{index_label}: names {}, which is not there: download that file", shown(name));
        }
        let source = Source::disk(&shard)?;
        let header = header::read(&source, file)?;
        if file == 0 {
            metadata = header.metadata;
        }
        for (tensor, info) in header.tensors {
            // Where two shards hold one name, the index decides; a name that it lacks may stand in one shard only.
            let listed = index.weight_map.get(&tensor).map(|s| s == name);
            match (listed, tensors.entry(tensor)) {
                (Some(false), _) => {}
                (_, Entry::Vacant(slot)) => {
                    slot.insert(info);
                }
                (_, Entry::Occupied(slot)) => refuse!(
                    "{}: tensor {} stands in an earlier shard too and not in the index: download all shards again",
                    source.label(),
                    shown(slot.key())
                ),
            }
        }
        sources.push(source);
    }
    for (tensor, shard) in &index.weight_map {
        if !tensors.contains_key(tensor) {
            refuse!(
                "{index_label}: says that tensor {} is in {}, where it is not: download the index and its shards again",
                shown(tensor),
                shown(shard)
            );
        }
    }
    fp8::join(&sources, &mut tensors)?;
    Ok(Checkpoint::assemble(label, sources, tensors, metadata))
}

/// The files that the shard index at `path` names, each once: plain names of `.safetensors` files beside the index. They need
/// not be there yet.
///
/// # Errors
/// The index cannot be read, is none, or names a file outside its folder.
pub fn shard_files(path: &Path) -> Result<Vec<String>> {
    let label = path.display().to_string();
    let index = read_index(path, &label)?;
    Ok(shards(&index, &label)?.into_iter().map(str::to_string).collect())
}

/// The shards of an index in the order in which it first names them.
fn shards<'a>(index: &'a RawIndex, label: &str) -> Result<Vec<&'a str>> {
    let mut shards: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        if !is_plain(shard) {
            refuse!(
                "{label}: tensor {} is said to be in {}: a shard must be a .safetensors file beside the index",
                shown(tensor),
                shown(shard)
            );
        }
        let next = shards.len();
        shards.entry(shard).or_insert(next);
    }
    let mut names = vec![""; shards.len()];
    for (name, at) in &shards {
        if let Some(slot) = names.get_mut(*at) {
            *slot = name;
        }
    }
    Ok(names)
}

/// A file name and nothing else: no folders, no `..`, no drive, no alternate stream.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && name.ends_with(".safetensors")
        && !name.contains(['/', '\\', ':', '\0'])
}

fn read_index(path: &Path, label: &str) -> Result<RawIndex> {
    let source = Source::disk(path)?;
    if source.len() > MAX_HEADER {
        refuse!("{label}: has {} bytes, more than the {MAX_HEADER} that an index may have", source.len());
    }
    // Bounded by the length just checked, also where the file grows meanwhile.
    let mut json = Vec::with_capacity(source.len() as usize);
    if let Err(e) = source.reader(0)?.take(source.len()).read_to_end(&mut json) {
        refuse!("{label}: cannot be read: {}", one_line(e));
    }
    let index: RawIndex = match serde_json::from_slice(&json) {
        Ok(index) => index,
        Err(e) => refuse!("{label}: is not a shard index ({}): download it again", one_line(e)),
    };
    if index.weight_map.is_empty() {
        refuse!("{label}: names no tensors: download it again");
    }
    Ok(index)
}

/// The index; its `metadata` holds sizes that nothing here relies on.
#[derive(Deserialize)]
struct RawIndex {
    #[serde(deserialize_with = "names_once")]
    weight_map: BTreeMap<String, String>,
}

fn names_once<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BTreeMap<String, String>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map from tensor names to shard files")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut names = BTreeMap::new();
            while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                match names.entry(tensor) {
                    Entry::Vacant(slot) => slot.insert(shard),
                    Entry::Occupied(slot) => {
                        return Err(A::Error::custom(format_args!("tensor {} stands twice", shown(slot.key()))));
                    }
                };
            }
            Ok(names)
        }
    }
    deserializer.deserialize_map(Names)
}
