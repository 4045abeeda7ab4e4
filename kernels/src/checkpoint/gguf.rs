//! GGUF files, as llama.cpp writes them: metadata, a tokenizer and tensors in one file, or in numbered parts of one.
//!
//! A file is read as if it were a folder in the Hugging Face layout: its metadata amount to a `config.json`, and its tensors
//! answer to the names that the family publishes. What llama.cpp changes in a model is changed back while it is read: the rows
//! of query and key projections that it puts in pairs, stacks of experts, parts that it joins or takes apart. Blocks stay blocks, except where two
//! tensors of the file make one that blocks cannot make up.
//!
//! Nothing in a file is trusted: counts, lengths and offsets are held against its size before memory is taken. Opening
//! allocates at most [`OPEN_BYTES_PER_BYTE`] times the bytes before the tensors' data, plus [`OPEN_BYTES_PER_SLICE`] for each
//! expert's tensor.

mod config;
mod export;
mod index;
mod kind;
mod parse;
mod parts;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Result;
use serde_json::{Map, Value as Json};

pub use kind::Kind;
pub use value::{List, Metadata, Value};
pub use write::Draft;

use super::source::Source;
use super::text::{refuse, shown};
use super::{Checkpoint, convert};
pub(super) use parse::MAGIC;
use parse::{Head, Stored};

/// Opening allocates at most this many bytes for each byte before the data of the tensors.
pub const OPEN_BYTES_PER_BYTE: usize = 24;
/// And at most this many for each tensor that is a slice of another.
pub const OPEN_BYTES_PER_SLICE: usize = 512;

/// Longest tensor of rotary frequencies, in values.
const MOST_FREQUENCIES: usize = 1 << 16;
const SPLIT_COUNT: &str = "split.count";

/// A GGUF file: what stands before its tensors, and its tensors as a checkpoint.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: Metadata,
    config: Map<String, Json>,
    checkpoint: Checkpoint,
}

impl Gguf {
    /// Opens a file, or all parts of one whose first part (`...-00001-of-0000N.gguf`) this is.
    ///
    /// # Errors
    /// It cannot be read, breaks the format, has tensors of a type or is of an architecture that is not supported: the message
    /// says which are.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::disk(path)?;
        let head = parse::read(&source, 0)?;
        let parts = match head.metadata.whole(SPLIT_COUNT) {
            Ok(parts) => parts.unwrap_or(1),
            Err(e) => refuse!("{}: {e}: download the file again", source.label()),
        };
        let (mut sources, mut tensors) = (vec![source], head.tensors);
        for (i, part) in further_parts(path, parts)?.iter().enumerate() {
            let source = Source::disk(part)?;
            let head = parse::read(&source, i + 1)?;
            for (name, tensor) in head.tensors {
                if tensors.insert(name.clone(), tensor).is_some() {
                    refuse!(
                        "{}: tensor {} stands in an earlier part too: download all parts again",
                        source.label(),
                        shown(&name)
                    );
                }
            }
            sources.push(source);
        }
        Self::assemble(path.display().to_string(), sources, Head { metadata: head.metadata, tensors })
    }

    /// Opens a file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open), and for a file in parts.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let source = Source::memory(name, bytes.into());
        let head = parse::read(&source, 0)?;
        if !matches!(head.metadata.whole(SPLIT_COUNT), Ok(None | Some(1))) {
            refuse!("{name}: is one of several parts, which can only be opened as files");
        }
        Self::assemble(name.to_string(), vec![source], head)
    }

    fn assemble(label: String, sources: Vec<Source>, head: Head) -> Result<Self> {
        let Head { metadata, tensors } = head;
        let floats = |name: &str| small(&sources, name, tensors.get(name));
        let translated = config::translate(&label, &metadata, &tensors, &floats)?;
        let named = index::published(&label, translated.family, &translated.sizes, &tensors)?;
        let texts = metadata.iter().filter_map(|(key, value)| match value {
            Value::Text(text) if key.starts_with("general.") => Some((key.to_string(), text.clone())),
            _ => None,
        });
        let texts: BTreeMap<String, String> = texts.collect();
        let checkpoint = Checkpoint::assemble(label, sources, named, texts);
        Ok(Self { metadata, config: translated.config, checkpoint })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The `config.json` that the file amounts to.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The tensors, under published names.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tensors alone.
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }
}

/// Whether a file begins as a GGUF file does. One that cannot be read does not.
pub fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut first = [0; MAGIC.len()];
    path.is_file()
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok()
        && first == MAGIC
}

/// The values of a small tensor.
fn small(sources: &[Source], name: &str, tensor: Option<&Stored>) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = tensor else { return Ok(None) };
    let info = tensor.info();
    if info.values() > MOST_FREQUENCIES {
        refuse!("tensor {} has {} values, more than {MOST_FREQUENCIES}", shown(name), info.values());
    }
    let mut values = vec![0f32; info.values()];
    convert::floats(sources, name, &info, &mut values)?;
    if values.iter().any(|v| !(v.is_finite() && *v > 0.0)) {
        refuse!("tensor {}: a factor of frequencies is not a positive number", shown(name));
    }
    Ok(Some(values))
}

/// The paths of parts 2 to `count` of a file whose first part is `path`.
fn further_parts(path: &Path, count: u64) -> Result<Vec<PathBuf>> {
    /// More parts than the largest models have.
    const MOST_PARTS: u64 = 1000;
    if count <= 1 {
        return Ok(Vec::new());
    }
    let label = path.display();
    let ending = format!("-of-{count:05}.gguf");
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(&ending));
    let Some(stem) = name.and_then(|name| name.strip_suffix("-00001")).filter(|_| count <= MOST_PARTS) else {
        refuse!("{label}: is one of {count} parts: give the first one, whose name ends in -00001{ending}");
    };
    (2..=count)
        .map(|part| {
            let file = path.with_file_name(format!("{stem}-{part:05}{ending}"));
            match file.is_file() {
                true => Ok(file),
                false => refuse!("{}: part {part} of {count} is not there: download it too", file.display()),
            }
        })
        .collect()
}
