//! The tokenizer of a GGUF file, as the `tokenizer.json` and `tokenizer_config.json` that it amounts to.
//!
//! Keys: llama.cpp's [`constants.py`](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py).

mod bytes;
mod export;
mod sentences;
#[cfg(test)]
mod tests;

pub use export::write_gguf;

use std::path::Path;

use moesaic_kernels::checkpoint::gguf::{Gguf, Metadata};
use serde_json::{Map, Value, json};

use super::read_text;
use super::tokenizer::LONGEST_TOKENIZER;
use crate::error::{Error, Result, candle_message};

/// A tokenizer in the form in which folders hold it.
pub(super) struct Converted {
    /// `tokenizer.json`
    pub tokenizer: Value,
    /// `tokenizer_config.json`
    pub config: Map<String, Value>,
}

/// Why there is none.
pub(super) enum Problem {
    /// It splits text in a way that is not known: a `tokenizer.json` beside the file may help.
    Unknown(String),
    Error(Error),
}

/// What the parts of the conversion work with.
struct Source<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// One of the numbers below for each token; empty where the file has none.
    types: Vec<f64>,
}

/// Types of tokens in llama.cpp.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// More tokens than any vocabulary has.
const MOST_TOKENS: usize = 1 << 24;
/// Bytes of the longest token. Some vocabularies have runs of a few hundred spaces.
const LONGEST_TOKEN: usize = 4096;

pub(super) fn convert(path: &Path, metadata: &Metadata) -> std::result::Result<Converted, Problem> {
    let source = Source::new(path, metadata).map_err(Problem::Error)?;
    let model = metadata.text("tokenizer.ggml.model").map_err(|e| Problem::Error(source.broken(&e)))?;
    let (tokenizer, adds_first) = match model {
        Some("gpt2") => bytes::tokenizer(&source)?,
        Some("llama") => sentences::tokenizer(&source).map_err(Problem::Error)?,
        Some(other) => {
            let shown = moesaic_kernels::shown(other);
            return Err(Problem::Unknown(format!("its tokenizer is of the kind {shown} (supported: gpt2, llama)")));
        }
        None => return Err(Problem::Unknown("it has no tokenizer (tokenizer.ggml.model)".into())),
    };
    let config = source.config(adds_first).map_err(Problem::Error)?;
    Ok(Converted { tokenizer, config })
}

/// The tokenizer of a GGUF file as the files of a folder: `tokenizer.json` and `tokenizer_config.json`, which has the chat
/// template, with their texts. A folder with them reads and writes text as the file does. Where the file's tokenizer is of an
/// unknown kind these are the files beside it, as for [`Tokenizer::load`](super::Tokenizer::load).
///
/// # Errors
/// The file cannot be read, its vocabulary contradicts itself, or its tokenizer is of an unknown kind and there is no
/// `tokenizer.json` beside it.
pub fn gguf_tokenizer(path: impl AsRef<Path>) -> Result<Vec<(&'static str, String)>> {
    let path = path.as_ref();
    let file = Gguf::open(path).map_err(|error| Error::weights(path, &error))?;
    let problem = match convert(path, file.metadata()) {
        Ok(Converted { tokenizer, config }) => {
            let config = Value::Object(config).to_string();
            return Ok(vec![("tokenizer.json", tokenizer.to_string()), ("tokenizer_config.json", config)]);
        }
        Err(Problem::Error(error)) => return Err(error),
        Err(Problem::Unknown(problem)) => problem,
    };
    let mut files = Vec::new();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        match read_text(&path.with_file_name(name), LONGEST_TOKENIZER)? {
            Some(text) => files.push((name, text)),
            None if files.is_empty() => return Err(alone(path, &problem)),
            None => {}
        }
    }
    Ok(files)
}

/// A file cannot do without a `tokenizer.json` beside it.
pub(super) fn alone(path: &Path, problem: &str) -> Error {
    let help = "copy tokenizer.json from the repository that the model comes from beside it";
    Error::config(path, format!("{problem}: {help}"))
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, metadata: &'a Metadata) -> Result<Self> {
        let broken = |e: &candle_core::Error| Error::config(path, format!("{}: download it again", candle_message(e)));
        let tokens = metadata.texts("tokenizer.ggml.tokens").map_err(|e| broken(&e))?.unwrap_or_default();
        let types = metadata.numbers("tokenizer.ggml.token_type").map_err(|e| broken(&e))?.unwrap_or_default();
        let problem = if tokens.is_empty() || tokens.len() > MOST_TOKENS {
            format!("its vocabulary has {} tokens, expected 1 to {MOST_TOKENS}", tokens.len())
        } else if !types.is_empty() && types.len() != tokens.len() {
            format!("its vocabulary has {} tokens and {} types of tokens", tokens.len(), types.len())
        } else if let Some(id) = tokens.iter().position(|t| t.len() > LONGEST_TOKEN) {
            format!("token {id} has {} bytes, more than {LONGEST_TOKEN}", tokens.get(id).map_or(0, String::len))
        } else {
            return Ok(Self { path, metadata, tokens, types });
        };
        Err(Error::config(path, format!("{problem}: download it again")))
    }

    fn broken(&self, error: &candle_core::Error) -> Error {
        Error::config(self.path, format!("{}: download it again", candle_message(error)))
    }

    fn kind(&self, id: usize) -> f64 {
        self.types.get(id).copied().unwrap_or(1.0)
    }

    /// Ids by text; the first of those that are alike.
    fn vocabulary(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            all.entry(token.clone()).or_insert_with(|| id.into());
        }
        all
    }

    /// Tokens that stand for themselves wherever they stand in a text.
    fn added(&self, special: impl Fn(usize) -> bool) -> Vec<Value> {
        let all = self.tokens.iter().enumerate();
        let added = all.filter(|(id, token)| !token.is_empty() && (special(*id) || self.kind(*id) == USER_DEFINED));
        let entry = |(id, token): (usize, &String)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special(id),
            })
        };
        added.map(entry).collect()
    }

    fn id(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = self.metadata.whole(&key).map_err(|e| self.broken(&e))?;
        match id.map(usize::try_from) {
            None => Ok(None),
            Some(Ok(id)) if id < self.tokens.len() => Ok(Some(id)),
            // Written for "none".
            Some(_) if id == Some(u64::from(u32::MAX)) => Ok(None),
            Some(_) => {
                let problem = format!("{key} is no token of {}: download it again", self.tokens.len());
                Err(Error::config(self.path, problem))
            }
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.metadata.flag(&format!("tokenizer.ggml.{name}")).map_err(|e| self.broken(&e))
    }

    /// `tokenizer_config.json`; `adds_first` tells whether texts begin with the first token where the file does not say.
    fn config(&self, adds_first: bool) -> Result<Map<String, Value>> {
        let mut config = Map::new();
        // The class whose settings say which tokens stand around a text.
        config.insert("tokenizer_class".into(), "LlamaTokenizerFast".into());
        config.insert("add_bos_token".into(), self.flag("add_bos_token")?.unwrap_or(adds_first).into());
        config.insert("add_eos_token".into(), self.flag("add_eos_token")?.unwrap_or(false).into());
        for (key, name) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(token) = self.id(name)?.and_then(|id| self.tokens.get(id)) {
                config.insert(key.into(), token.clone().into());
            }
        }
        if let Some(template) = self.metadata.text("tokenizer.chat_template").map_err(|e| self.broken(&e))? {
            config.insert("chat_template".into(), template.into());
        }
        Ok(config)
    }
}
