//! Language models: text in, text out.

pub(crate) mod adapters;
mod chat;
mod detokenizer;
mod generator;
mod gguf;
mod info;
mod json;
mod options;
mod perplexity;
mod quantise;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use chat::Chat;
pub use generator::{Answer, Speed, TextGenerator, TokenProbability};
#[cfg(any(feature = "image", feature = "audio"))]
pub(crate) use generator::{ended_by, generation_config, stored_dtype};
pub use gguf::{gguf_tokenizer, write_gguf};
pub use info::{LayerParameters, TextModelInfo};
pub use moesaic_models::generate::{Finish, Memory};
pub use options::{Dtype, TextOptions};
pub use perplexity::Perplexity;
pub use quantise::quantise;
pub use stream::{Piece, TextStream};
pub use template::{ChatTemplate, Message, TemplateOptions};
pub use tokenizer::{Tokenizer, guarded};

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a text file of a model folder that has at most `longest` bytes; `None` where it is not there.
pub(crate) fn read_text(path: &Path, longest: u64) -> Result<Option<String>> {
    let size = match fs::metadata(path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    if size > longest {
        return Err(Error::config(path, format!("has {size} bytes, more than such a file has: check the file")));
    }
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Error::config(path, "is not UTF-8 text: check the file")),
    }
}

#[cfg(test)]
mod tests;
