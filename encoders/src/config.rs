//! Reading sizes out of a `config.json` with an error that names what is wrong.

use std::path::Path;

use candle_core::{Error, Result, bail};
use serde_json::{Map, Value};

/// A JSON object with checked access.
pub(crate) struct Object<'a>(pub &'a Map<String, Value>);

/// The `config.json` of a folder.
pub(crate) fn read(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::msg(format!("{}: cannot be read: {e}", path.display())))?;
    parse(&text).map_err(|e| Error::msg(format!("{}: {e}", path.display())))
}

/// The object in a text.
pub(crate) fn parse(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => bail!("is not a JSON object"),
        Err(e) => bail!("is not JSON: {e}"),
    }
}

/// The part that describes the vision tower: `vision_config`, or all of a file that has none.
pub(crate) fn vision(map: &Map<String, Value>) -> Object<'_> {
    Object(map.get("vision_config").and_then(Value::as_object).unwrap_or(map))
}

impl Object<'_> {
    /// A size from 1 to a bound that no published model comes near.
    pub fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        const MOST: u64 = 1 << 20;
        match self.0.get(key) {
            None | Some(Value::Null) => default.ok_or_else(|| Error::msg(format!("config.json lacks {key}"))),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=MOST).contains(&n) => Ok(n as usize),
                _ => bail!("config.json: {key} is {value}, expected 1 to {MOST}"),
            },
        }
    }

    /// A positive number.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64() {
                Some(v) if v > 0.0 && v.is_finite() => Ok(v),
                _ => bail!("config.json: {key} is {value}, expected a positive number"),
            },
        }
    }

    /// A name.
    pub fn name(&self, key: &str, default: &str) -> Result<String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default.to_string()),
            Some(Value::String(name)) => Ok(name.clone()),
            Some(value) => bail!("config.json: {key} is {value}, expected a name"),
        }
    }

    /// A switch.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => bail!("config.json: {key} is {value}, expected true or false"),
        }
    }
}

/// Patches along a side.
pub(crate) fn patches(image: usize, patch: usize) -> Result<usize> {
    match image / patch {
        0 => bail!("config.json: pictures of {image} pixels a side have no patch of {patch}"),
        n if n > 1 << 12 => bail!("config.json: {n} patches a side are too many"),
        n => Ok(n),
    }
}

/// Heads must divide the width.
pub(crate) fn heads(heads: usize, width: usize) -> Result<usize> {
    if !width.is_multiple_of(heads) {
        bail!("config.json: a width of {width} does not divide into {heads} heads");
    }
    Ok(heads)
}
