//! Checked access to the keys that the families share.

use candle_core::{Error as Candle, Result, bail};
use moesaic_encoders::{Features, Select};
use serde_json::{Map, Value};

/// A `config.json`.
pub(super) struct Keys<'a>(pub &'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A name.
    pub fn name(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(name)) => Ok(Some(name)),
            Some(value) => bail!("{key} is {value}, expected a name"),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => bail!("{key} is {value}, expected a whole number"),
            },
        }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) => Ok(Some(n)),
                None => bail!("{key} is {value}, expected a number"),
            },
        }
    }

    /// A switch.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => bail!("{key} is {value}, expected true or false"),
        }
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => bail!("{key} is not an object"),
        }
    }

    /// Pairs of whole numbers.
    pub fn pairs(&self, key: &str) -> Result<Option<Vec<(usize, usize)>>> {
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= 1 << 20);
        let pair = |v: &Value| match v.as_array().map(Vec::as_slice) {
            Some([a, b]) => Some((number(a)?, number(b)?)),
            _ => None,
        };
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array().and_then(|all| all.iter().map(pair).collect()) {
            Some(pairs) => Ok(Some(pairs)),
            None => bail!("{key} is not a list of pairs of whole numbers"),
        }
    }

    /// A token's id.
    pub fn token(&self, keys: &[&str]) -> Result<Option<u32>> {
        let Some((key, value)) = keys.iter().find_map(|&key| Some((key, self.get(key)?))) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n < u32::MAX) {
            Some(id) => Ok(Some(id)),
            None => bail!("{key} is {value}, expected a token's id"),
        }
    }

    /// Layers and tokens that become features; the second last layer's patches unless something else is said.
    pub fn features(&self, layer: &str, select: &str) -> Result<Features> {
        let number = |value: &Value| value.as_i64().ok_or_else(|| Candle::msg(format!("{layer} is {value}")));
        let layers = match self.get(layer) {
            None => vec![-2],
            Some(Value::Array(layers)) => layers.iter().map(number).collect::<Result<_>>()?,
            Some(value) => vec![number(value)?],
        };
        Ok(Features { layers, select: Select::from_name(self.name(select)?.unwrap_or("patch"))? })
    }
}
