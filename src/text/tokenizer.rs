//! `tokenizer.json` and what `tokenizer_config.json` says beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use moesaic_kernels::checkpoint::gguf::{Gguf, Metadata, is_gguf};
use serde_json::{Map, Value};

use super::gguf::{self, Converted, Problem};
use super::read_text;
use crate::error::{Error, Result, one_line};

/// The longest files that are read, in bytes. The largest published vocabularies take about 35 MB.
pub(super) const LONGEST_TOKENIZER: u64 = 256 << 20;
pub(super) const LONGEST_CONFIG: u64 = 16 << 20;

/// Special tokens that chat templates know, as `tokenizer_config.json` calls them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Turns text into token ids and back, as the tokenizer of the model's folder does.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    named: Vec<(&'static str, String)>,
    /// Ids to put before and behind a text, where the tokenizer's class sets them rather than `tokenizer.json`.
    ends: Option<(Option<u32>, Option<u32>)>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder: `tokenizer.json` and, where there is one, `tokenizer_config.json`. Of a GGUF file,
    /// the tokenizer that it holds, or where that is of an unknown kind the `tokenizer.json` beside it.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`]: a file is missing, unreadable or damaged. The message names it and says what to
    /// do.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if is_gguf(dir) {
            let file = Gguf::open(dir).map_err(|error| Error::weights(dir, &error))?;
            return Self::of_gguf(dir, file.metadata());
        }
        let path = dir.join("tokenizer.json");
        let Some(json) = read_text(&path, LONGEST_TOKENIZER)? else {
            let more = match ["tokenizer.model", "spiece.model", "vocab.json"].iter().find(|f| dir.join(f).is_file()) {
                Some(other) => format!(
                    "{other} alone is not read: convert it with transformers, \
                     AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
                ),
                None => "copy it from the repository that the model comes from".to_string(),
            };
            return Err(Error::config(&path, format!("is missing; {more}")));
        };
        let config = tokenizer_config(dir)?;
        Self::from_json(&path, &json, &config)
    }

    /// The tokenizer of a GGUF file with this metadata.
    pub(super) fn of_gguf(path: &Path, metadata: &Metadata) -> Result<Self> {
        let problem = match gguf::convert(path, metadata) {
            Ok(Converted { tokenizer, config }) => return Self::from_json(path, &tokenizer.to_string(), &config),
            Err(Problem::Error(error)) => return Err(error),
            Err(Problem::Unknown(problem)) => problem,
        };
        match path.parent() {
            Some(folder) if folder.join("tokenizer.json").is_file() => Self::load(folder),
            _ => Err(gguf::alone(path, &problem)),
        }
    }

    /// The tokenizer of a `tokenizer.json`, with the settings of a `tokenizer_config.json`.
    pub(crate) fn from_json(path: &Path, json: &str, config: &Map<String, Value>) -> Result<Self> {
        // The tokenizers crate panics on some text that is not JSON.
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(json) {
            let problem = format!("is not a tokenizer (not valid JSON: {error}): copy it again");
            return Err(Error::config(path, problem));
        }
        let parsed = guarded(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()).map_err(|e| e.to_string()));
        let mut inner = parsed.map_err(|problem| {
            Error::config(path, format!("is not a tokenizer ({}): copy it again", shortened(&problem)))
        })?;
        // Limits for training batches have no place in generation.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::config(path, shortened(&error.to_string())))?;
        let named: Vec<(&str, String)> =
            NAMED.into_iter().filter_map(|name| Some((name, content(config.get(name)?)?))).collect();
        let mut tokenizer = Self { inner, path: path.to_path_buf(), named, ends: None };
        tokenizer.ends = tokenizer.class_ends(config);
        Ok(tokenizer)
    }

    /// Llama's tokenizer class replaces the post-processor of `tokenizer.json` by its own
    /// ([`LlamaTokenizerFast.update_post_processor`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llama/tokenization_llama_fast.py));
    /// DeepSeek's files rely on it.
    fn class_ends(&self, config: &Map<String, Value>) -> Option<(Option<u32>, Option<u32>)> {
        match config.get("tokenizer_class")?.as_str()? {
            "LlamaTokenizer" | "LlamaTokenizerFast" => {}
            _ => return None,
        }
        let flag = |name: &str, default| config.get(name).and_then(Value::as_bool).unwrap_or(default);
        let wanted = |name: &str, token: &str, default| match flag(name, default) {
            true => self.special(token),
            false => None,
        };
        Some((wanted("add_bos_token", "bos_token", true), wanted("add_eos_token", "eos_token", false)))
    }

    /// The ids of a text, with the special tokens that the model wants around it.
    ///
    /// # Errors
    /// [`Error::Config`] when the tokenizer cannot do it; it names the file.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some((before, behind)) = self.ends else { return self.ids(text, true) };
        let ids = self.ids(text, false)?;
        Ok(before.into_iter().chain(ids).chain(behind).collect())
    }

    /// The ids of a text that has its special tokens already, such as one that a [`ChatTemplate`](super::ChatTemplate) made.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.inner.encode_fast(text, special).map_err(|error| error.to_string()));
        Ok(encoded.map_err(|problem| self.broken("turn text into tokens", &problem))?.get_ids().to_vec())
    }

    /// The text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// As [`encode`](Self::encode). Ids that are not in the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let decoded = guarded(|| self.inner.decode(ids, true).map_err(|error| error.to_string()));
        decoded.map_err(|problem| self.broken("turn tokens into text", &problem))
    }

    fn broken(&self, what: &str, problem: &str) -> Error {
        Error::config(&self.path, format!("cannot {what}: {}", shortened(problem)))
    }

    /// The id of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that ends a text, where `tokenizer_config.json` names one that the vocabulary has.
    pub fn eos(&self) -> Option<u32> {
        self.special("eos_token")
    }

    /// The text of the token that begins a text, where `tokenizer_config.json` names one.
    #[cfg(feature = "image")]
    pub(crate) fn bos(&self) -> Option<&str> {
        self.named.iter().find(|(other, _)| *other == "bos_token").map(|(_, token)| token.as_str())
    }

    fn special(&self, name: &str) -> Option<u32> {
        self.named.iter().find(|(other, _)| *other == name).and_then(|(_, token)| self.id(token))
    }

    /// Special tokens by the names that chat templates use.
    pub(super) fn named(&self) -> &[(&'static str, String)] {
        &self.named
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("vocab_size", &self.vocab_size()).finish()
    }
}

/// `tokenizer_config.json` as an object; empty where there is no file.
pub(super) fn tokenizer_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("tokenizer_config.json");
    let Some(text) = read_text(&path, LONGEST_CONFIG)? else { return Ok(Map::new()) };
    parse_config(&path, &text)
}

/// The object in the text of a `tokenizer_config.json`.
pub(super) fn parse_config(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::config(path, "is not a JSON object: check the file")),
        Err(error) => Err(Error::config(path, format!("is not valid JSON ({error}): check the file"))),
    }
}

/// A token that is given as its text or as an object with `content`.
fn content(token: &Value) -> Option<String> {
    let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
    Some(text.to_string())
}

/// Runs code of the tokenizers crate, which panics on some files that contradict themselves.
#[doc(hidden)]
pub fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    // What a panic leaves behind is not looked at: a tokenizer that failed to parse is dropped, and one that encodes or
    // decodes is only read.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("it contradicts itself").to_string())
    })
}

/// Another library's message on one line, cut to a length that fits a message.
fn shortened(text: &str) -> String {
    one_line(text).chars().take(160).collect()
}
