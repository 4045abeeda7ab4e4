//! A checkpoint that `torch.save` wrote as a model folder.

use std::fs;
use std::path::{Path, PathBuf};

use moesaic_kernels::checkpoint::pickle::Pickle;
use moesaic_kernels::checkpoint::{Outline, Unfinished, save_shards};

use crate::error::{Error, Result};

/// Bytes of a shard at most, as on the Hub.
const SHARD: u64 = 5_000_000_000;

/// What [`convert`] wrote.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// Where the weights stood in the checkpoint; nothing for the whole.
    pub key: Option<String>,
    /// Tensors written.
    pub tensors: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// The `model_type` of the `config.json` that was written; nothing where there is none.
    pub model_type: Option<String>,
    /// The checkpoint's settings stand in `config.json`.
    pub config: bool,
    /// Names beside the weights that hold no tensor, and were left out.
    pub skipped: Vec<String>,
    /// Files of the folder.
    pub files: Vec<PathBuf>,
}

/// Writes a checkpoint of torch (`.pt`, `.pth`, `.ckpt`; those of fairseq and Lightning among them) as a new folder with
/// `model.safetensors` and, where the checkpoint holds settings, `config.json`. Nothing in the file is executed; tensors are read
/// one by one. Weights are those under `key`, or where [`Pickle::open`] finds them. The folder appears complete or not at all.
///
/// # Errors
/// What [`Pickle::open`] refuses; `folder` exists already or cannot be written.
pub fn convert(file: impl AsRef<Path>, folder: impl AsRef<Path>, key: Option<&str>) -> Result<Converted> {
    let (file, out) = (file.as_ref(), folder.as_ref());
    let unfinished = Unfinished::beside(out).map_err(|error| Error::new_place(out, error))?;
    let weights = |error: candle_core::Error| Error::weights(file, &error);
    let pickle = match key {
        None => Pickle::open(file),
        Some(key) => Pickle::open_at(file, key),
    };
    let pickle = pickle.map_err(weights)?;
    let checkpoint = pickle.checkpoint();
    let outline = |name: &str| {
        checkpoint.info(name).map(|info| Outline { name: name.into(), dtype: info.dtype, shape: info.shape.clone() })
    };
    let outlines: Vec<Outline> = checkpoint.names().filter_map(outline).collect();
    let (tensors, bytes) = (outlines.len(), outlines.iter().map(Outline::bytes).sum());

    let place = unfinished.path();
    fs::create_dir(place).map_err(|error| Error::io("write", out, error))?;
    let mut files = save_shards(place, outlines, SHARD, &mut |o| checkpoint.read_any(&o.name)).map_err(weights)?;
    if let Some(config) = pickle.config() {
        let path = place.join("config.json");
        let text = serde_json::to_string_pretty(config).map_err(|error| Error::config(&path, error.to_string()))?;
        fs::write(&path, text + "\n").map_err(|error| Error::io("write", &path, error))?;
        files.push(path);
    }
    unfinished.finish().map_err(|error| Error::new_place(out, error))?;
    let model_type = pickle.config().and_then(|config| config.get("model_type")?.as_str());
    Ok(Converted {
        key: pickle.key().map(str::to_string),
        tensors,
        bytes,
        model_type: model_type.map(str::to_string),
        config: pickle.config().is_some(),
        skipped: pickle.skipped().to_vec(),
        files: files.iter().filter_map(|file| Some(out.join(file.file_name()?))).collect(),
    })
}
