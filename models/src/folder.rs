//! What stands in a model's folder besides its weights.

use std::path::Path;

use candle_core::{Error, Result, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use serde_json::{Map, Value};

/// Checks that a setting is a positive number.
pub(crate) fn positive(name: &str, value: f64) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        bail!("{name} is {value}, expected a positive number");
    }
    Ok(())
}

/// Files that make a folder of weights a model that can be talked to and shown pictures, where they are there.
pub const BESIDE: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "vision_config.json",
];

/// The longest `config.json` that is read, in bytes.
const LONGEST_CONFIG: u64 = 16 << 20;

/// Copies what of [`BESIDE`] the folder `from` has into the folder `to`.
///
/// # Errors
/// A file cannot be copied; the error names it.
pub fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    for name in BESIDE {
        let file = from.join(name);
        if file.is_file() {
            std::fs::copy(&file, to.join(name)).map_err(|e| at(&file, e))?;
        }
    }
    Ok(())
}

/// The text of a configuration, if it is no longer than any is.
pub(crate) fn config_text(path: &Path) -> Result<String> {
    let missing = |e| at(path, format!("{e}; a model is a folder with config.json and model.safetensors"));
    let size = std::fs::metadata(path).map_err(missing)?.len();
    if size > LONGEST_CONFIG {
        return Err(at(path, format!("has {size} bytes, which no configuration has")));
    }
    std::fs::read_to_string(path).map_err(|e| at(path, e))
}

/// A configuration, which is a JSON object.
pub(crate) fn config(path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_str(&config_text(path)?) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(at(path, "this is not a configuration: expected a JSON object")),
        Err(e) => Err(at(path, format!("this is not JSON: {e}"))),
    }
}

/// Refuses a checkpoint with tensors that nobody asked for, unless they are known to be of no use.
pub(crate) fn no_others(
    params: &Params,
    checkpoint: &Checkpoint,
    model_type: &str,
    ignorable: impl Fn(&str) -> bool,
) -> Result<()> {
    let unknown: Vec<String> = params.unused().into_iter().filter(|name| !ignorable(name)).collect();
    match unknown.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{}: {} tensors do not belong to a {model_type} of this config, the first is {first}; check config.json",
            checkpoint.label(),
            unknown.len()
        ),
    }
}

/// Writes `config.json` into a folder.
pub(crate) fn write_config(folder: &Path, config: &Map<String, Value>) -> Result<()> {
    let path = folder.join("config.json");
    let json = serde_json::to_string_pretty(config).map_err(|e| at(&path, e))?;
    std::fs::write(&path, json + "\n").map_err(|e| at(&path, e))
}

/// The error of a file or folder.
pub(crate) fn at(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Msg(format!("{}: {error}", path.display()))
}
