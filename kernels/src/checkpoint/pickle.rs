//! Checkpoints that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`): a zip archive with a pickle, and an entry for each storage.
//!
//! A pickle is a program for a machine that can call any function. The machine here has no calls: it knows the functions that put
//! tensors together, keeps plain data as what it was said to be, and refuses every other name ([`Pickle::open`]). Tensors are then
//! read from their entries as those of a safetensors file are, one by one and when asked for.
//!
//! (candle reads such files, too. It copies what a pickle recalls, so that a few hundred bytes can fill any memory; takes memory
//! for declared lengths; panics on some damaged arguments; and gives tensors only, where settings are wanted as well.)

mod archive;
mod globals;
mod json;
mod machine;
mod tensors;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Result;

use super::source::Source;
use super::text::{refuse, shown};
use super::{Arrangement, Checkpoint, TensorInfo};
use archive::{Archive, Entry};
use machine::{Id, Machine, Value};

pub use machine::{MAX_PICKLE, MAX_VALUES};

/// Most tensors.
const MAX_TENSORS: usize = 1 << 17;
/// Most bytes of all tensors, in sizes of the file: some share their storage, as an embedding and the head of a language model.
const MOST_SHARED: u64 = 4;
/// Where the usual checkpoints hold their weights: fairseq's, Lightning's, and a common habit.
const KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];
/// Of Lightning's own names: the module that it trains is usually called `model`.
const LIGHTNING: &str = "pytorch-lightning_version";
const LIGHTNING_PREFIX: &str = "model.";

/// A checkpoint of torch, opened without running anything of it.
#[derive(Clone, Debug)]
pub struct Pickle {
    checkpoint: Checkpoint,
    config: Option<serde_json::Value>,
    key: Option<String>,
    skipped: Vec<String>,
}

impl Pickle {
    /// Opens a file. Weights are those under `model` (fairseq), `state_dict` (Lightning; where all their names start with
    /// `model.`, they lose that) or `model_state_dict`, else those of the whole.
    ///
    /// # Errors
    /// The file is no zip archive of torch, or is big-endian, compressed, cut off or damaged; its pickle is not of protocol 2 to
    /// 4, is longer than [`MAX_PICKLE`] or has more than [`MAX_VALUES`] values; it names a class or function that is neither part
    /// of a tensor nor plain data of Python, NumPy, fairseq, OmegaConf or Lightning; a tensor does not fit its storage. Each
    /// message is one line that names the file, what is wrong, and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(Source::disk(path)?, None)
    }

    /// The same with the weights under `key`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and where there are none.
    pub fn open_at(path: &Path, key: &str) -> Result<Self> {
        Self::read(Source::disk(path)?, Some(key))
    }

    /// Opens a file that is in memory; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::read(Source::memory(name, bytes.into()), None)
    }

    fn read(source: Source, key: Option<&str>) -> Result<Self> {
        let archive = archive::read(&source)?;
        let label = source.label().to_string();
        if archive.pickle.len > MAX_PICKLE {
            let len = archive.pickle.len;
            refuse!("{label}: its pickle has {len} bytes, more than {MAX_PICKLE}: save the weights alone");
        }
        // Not longer than the file, nor than MAX_PICKLE.
        let mut data = vec![0u8; archive.pickle.len as usize];
        source.fill(&mut source.reader(archive.pickle.offset)?, &mut data, "pickle")?;
        let (machine, root) = machine::run(&label, &data)?;
        let (key, dict) = weights(&machine, root, key)?;
        let (mut tensors, skipped) = named(&machine, dict, &archive, source.len())?;
        if machine.get(root, LIGHTNING).is_some() && tensors.keys().all(|name| name.starts_with(LIGHTNING_PREFIX)) {
            let bare = |(name, info): (String, TensorInfo)| (name[LIGHTNING_PREFIX.len()..].to_string(), info);
            tensors = tensors.into_iter().map(bare).collect();
        }
        let config = json::config(&machine, root);
        let checkpoint = Checkpoint::assemble(label.clone(), vec![source], tensors, BTreeMap::new());
        Ok(Self { checkpoint, config, key, skipped })
    }

    /// The settings of the model: `{"model_type", "model", "task"}` of fairseq's `cfg` or `args`, `{"hyper_parameters"}` of
    /// Lightning's.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// Where the weights stood; `None` for the whole.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Names beside those of the weights that hold no tensor.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The weights alone.
    pub fn into_checkpoint(self) -> Checkpoint {
        self.checkpoint
    }
}

/// The dict with the weights, and its key.
fn weights(machine: &Machine<'_>, root: Id, key: Option<&str>) -> Result<(Option<String>, Id)> {
    let label = machine.label;
    let holds = |id: Id| {
        let items = machine.items(id).unwrap_or_default();
        items.iter().any(|(_, value)| matches!(machine.value(*value), Value::Tensor(_)))
    };
    if let Some(key) = key {
        match machine.get(root, key) {
            Some(dict) if holds(dict) => return Ok((Some(key.to_string()), dict)),
            _ => refuse!("{label}: holds no weights under {} ({})", shown(key), keys(machine, root)),
        }
    }
    for key in KEYS {
        if let Some(dict) = machine.get(root, key).filter(|&dict| holds(dict)) {
            return Ok((Some(key.to_string()), dict));
        }
    }
    if holds(root) {
        return Ok((None, root));
    }
    refuse!("{label}: holds no weights by name ({}): give the name that they stand under", keys(machine, root))
}

/// What a dict holds, for messages.
fn keys(machine: &Machine<'_>, dict: Id) -> String {
    let items = machine.items(dict).unwrap_or_default();
    let names: Vec<String> = items.iter().filter_map(|(key, _)| machine.text(*key)).take(8).map(shown).collect();
    match names.as_slice() {
        [] => "it has no names".to_string(),
        _ => format!("it has {}{}", names.join(", "), if items.len() > names.len() { ", ..." } else { "" }),
    }
}

/// The tensors of a dict by name, and the names of what is none.
fn named(
    machine: &Machine<'_>,
    dict: Id,
    archive: &Archive,
    file_len: u64,
) -> Result<(BTreeMap<String, TensorInfo>, Vec<String>)> {
    let label = machine.label;
    let (mut tensors, mut skipped, mut bytes) = (BTreeMap::new(), Vec::new(), 0u64);
    for &(key, value) in machine.items(dict).unwrap_or_default() {
        let Some(name) = machine.text(key) else { continue };
        let &Value::Tensor(index) = machine.value(value) else {
            if skipped.len() < MAX_TENSORS {
                skipped.push(name.to_string());
            }
            continue;
        };
        let info = info(machine, name, index, archive)?;
        bytes = bytes.saturating_add(info.bytes as u64);
        if tensors.insert(name.to_string(), info).is_some() {
            refuse!("{label}: tensor {} stands twice: download the file again", shown(name));
        }
        if tensors.len() > MAX_TENSORS || bytes > file_len.saturating_mul(MOST_SHARED) {
            refuse!(
                "{label}: holds over {MAX_TENSORS} tensors, or such as take {MOST_SHARED} times the file: this is no model"
            );
        }
    }
    Ok((tensors, skipped))
}

fn info(machine: &Machine<'_>, name: &str, index: u32, archive: &Archive) -> Result<TensorInfo> {
    let label = machine.label;
    let missing =
        || super::text::error(format!("{label}: tensor {} has no storage: download the file again", shown(name)));
    let tensor = machine.tensors.get(index as usize).ok_or_else(missing)?;
    let storage = machine.storages.get(tensor.storage as usize).ok_or_else(missing)?;
    let key = machine.text(storage.key).ok_or_else(missing)?;
    let &Entry { offset, len } = archive.storages.get(key).ok_or_else(missing)?;
    let Some(dtype) = tensor.dtype else {
        refuse!(
            "{label}: tensor {}: its type of numbers is not supported (float64, float32, float16, bfloat16, int64, int32, int16, \
             uint32, uint8 and bool are): convert it before it is saved",
            shown(name)
        );
    };
    let size = storage.dtype.map_or(1, |dtype| dtype.size_in_bytes() as u64);
    let held = match storage.count.checked_mul(size) {
        Some(held) if held <= len => held,
        _ => refuse!(
            "{label}: tensor {}: its storage of {} values does not fit its entry of {len} bytes: download the file again",
            shown(name),
            storage.count
        ),
    };
    let extent = tensors::extent(label, name, tensor, dtype, held)?;
    let arrangement = match extent.plain {
        true => Arrangement::Plain,
        false => Arrangement::Strided(tensor.strides.clone()),
    };
    Ok(TensorInfo {
        dtype,
        shape: tensor.shape.clone(),
        blocks: None,
        // As many values as the storage at most.
        bytes: extent.values * dtype.size_in_bytes(),
        // Both are inside the file.
        offset: offset + extent.start,
        file: 0,
        arrangement,
    })
}
