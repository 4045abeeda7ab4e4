//! The tokenizer of a folder as the metadata of a GGUF file, and the file with it.

use std::path::Path;

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::{Kind, List, Value};
use moesaic_models::decoder::DecoderConfig;
use serde_json::Value as Json;

use super::bytes;
use crate::error::{Error, Result, candle_message};
use crate::text::Tokenizer;
use crate::text::template::named_template;
use crate::text::tokenizer::{LONGEST_TOKENIZER, tokenizer_config};
use crate::text::{generator, read_text};

/// Types of tokens in llama.cpp that are only written.
const NORMAL: i64 = 1;
const UNUSED: i64 = 5;

/// Writes a language model's folder as one GGUF file: weights, configuration, tokenizer and chat template. `choose` says what a
/// matrix is stored as, by its name in the file and its shape; norms, biases and routers are F32.
///
/// # Errors
/// As [`TextGenerator::from_dir`](crate::TextGenerator::from_dir) for the folder; and a family, a property of the model or a
/// kind of tokenizer that GGUF has no words for, rows that do not fill the blocks that were chosen, or a file that cannot be
/// written.
pub fn write_gguf(
    dir: impl AsRef<Path>,
    path: impl AsRef<Path>,
    choose: impl FnMut(&str, &[usize]) -> Kind,
) -> Result<()> {
    let (dir, path) = (dir.as_ref(), path.as_ref());
    let config = generator::decoder_config(dir)?;
    let tokenizer = metadata(dir, &config)?;
    let weights = |error: candle_core::Error| Error::weights(dir, &error);
    let checkpoint = Checkpoint::open(dir).map_err(weights)?;
    let mut draft = config.gguf(&checkpoint, choose).map_err(weights)?;
    tokenizer.into_iter().for_each(|(key, value)| draft.add(key, value));
    draft.write(path).map_err(|error| Error::Compute(candle_message(&error)))
}

/// Keys and values of the tokenizer of a folder.
fn metadata(dir: &Path, config: &DecoderConfig) -> Result<Vec<(String, Value)>> {
    let path = dir.join("tokenizer.json");
    let refused = |problem: &str| Error::config(&path, format!("{problem}, which cannot be written as GGUF"));
    let loaded = Tokenizer::load(dir)?;
    let text = read_text(&path, LONGEST_TOKENIZER)?.unwrap_or_default();
    let json: Json = serde_json::from_str(&text).map_err(|_| refused("is not JSON"))?;
    let (model, kind) = (&json["model"], json["model"]["type"].as_str().unwrap_or("BPE"));
    if kind != "BPE" || model["byte_fallback"] == true {
        return Err(refused("its tokenizer is not a byte-level one"));
    }
    let Some(name) = bytes::name_of(&json) else {
        return Err(refused("its tokenizer splits text in a way that has no name there"));
    };
    let merges: Option<Vec<String>> =
        model["merges"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(merge).collect();
    let merges = merges.ok_or_else(|| refused("it has a merge that is not two tokens"))?;

    // A token for every row of the embedding.
    let (mut tokens, mut types) = (Vec::new(), Vec::new());
    for id in 0..config.vocab_size.max(loaded.vocab_size()) {
        let token = u32::try_from(id).ok().and_then(|id| loaded.token(id));
        types.push(if token.is_some() { NORMAL } else { UNUSED });
        tokens.push(token.unwrap_or_else(|| format!("[PAD{id}]")));
    }
    for added in json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let id = added["id"].as_u64().and_then(|id| usize::try_from(id).ok());
        if let Some(kind) = id.and_then(|id| types.get_mut(id)) {
            *kind = if added["special"] == true { super::CONTROL as i64 } else { super::USER_DEFINED as i64 };
        }
    }
    let settings = tokenizer_config(dir)?;
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut all = vec![
        (key("model"), Value::Text("gpt2".into())),
        (key("pre"), Value::Text(name.into())),
        (key("tokens"), Value::List(List::Text(tokens))),
        (key("token_type"), Value::List(List::Signed(types))),
        (key("merges"), Value::List(List::Text(merges))),
    ];
    let named =
        |name: &str| loaded.named().iter().find(|(other, _)| *other == name).and_then(|(_, token)| loaded.id(token));
    let (bos, eos) =
        (named("bos_token").or(config.bos_token_id), named("eos_token").or(config.eos_token_ids.first().copied()));
    let ids = [("bos", bos), ("eos", eos), ("unknown", named("unk_token")), ("padding", named("pad_token"))];
    all.extend(
        ids.into_iter().filter_map(|(name, id)| Some((key(&format!("{name}_token_id")), Value::Unsigned(id?.into())))),
    );
    // What stands around a text, whoever puts it there.
    let around = loaded.encode("a")?;
    let first = around.len() > 1 && bos.is_some() && around.first().copied() == bos;
    let last = around.len() > 1 && eos.is_some() && around.last().copied() == eos;
    all.push((key("add_bos_token"), Value::Bool(first)));
    all.push((key("add_eos_token"), Value::Bool(last)));
    let template = match read_text(&dir.join("chat_template.jinja"), LONGEST_TOKENIZER)? {
        Some(template) => Some(template),
        None => named_template(&dir.join("tokenizer_config.json"), &settings)?,
    };
    all.extend(template.map(|template| ("tokenizer.chat_template".to_string(), Value::Text(template))));
    Ok(all)
}

/// A merge as GGUF has it: both tokens with a space between.
fn merge(merge: &Json) -> Option<String> {
    match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [left, right] => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}
