//! What models of several parts do alike with their `config.json` and their checkpoint.

use candle_core::{Error, Result, bail};
use serde_json::{Map, Value};

use crate::decoder::DecoderConfig;

/// The language model that `text_config` describes, with `defaults` for what the file leaves out.
pub(crate) fn language(published: &Map<String, Value>, defaults: &Value) -> Result<DecoderConfig> {
    let mut text = match published.get("text_config") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(text)) => text.clone(),
        Some(_) => bail!("text_config is not an object"),
    };
    for (key, value) in defaults.as_object().into_iter().flatten() {
        text.entry(key.as_str()).or_insert_with(|| value.clone());
    }
    // The whole model's switches count where the part has none.
    for key in ["tie_word_embeddings", "quantization_config"] {
        if let Some(value) = published.get(key).filter(|_| !text.contains_key(key)) {
            text.insert(key.into(), value.clone());
        }
    }
    DecoderConfig::from_value(Value::Object(text)).map_err(|e| Error::msg(format!("text_config: {e}")))
}

/// An id of the vocabulary under one of these keys.
pub(crate) fn token(published: &Map<String, Value>, keys: &[&str], default: u32) -> Result<u32> {
    for key in keys {
        match published.get(*key) {
            None | Some(Value::Null) => {}
            Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => return Ok(id),
                None => bail!("{key} is {value}, expected the id of a token"),
            },
        }
    }
    Ok(default)
}
