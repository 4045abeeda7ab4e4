//! A speech model to be trained, out of published parts: encoders and a language model, each in its own folder.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::{Checkpoint, Outline, Unfinished, save_shards};
use moesaic_kernels::rng::Rng;
use serde_json::{Map, Value, json};

use super::config::read;
use super::{AvsrConfig, encoders};
use crate::decoder::DecoderConfig;
use crate::folder::at;

/// The tokens that are appended to the language model's vocabulary, in this order.
pub const ADDED_TOKENS: [&str; 5] = ["<pad>", "<audio>", "</audio>", "<video>", "</video>"];

/// Folders of the parts, with `config.json` and safetensors weights.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Whisper or WavLM.
    pub audio: Option<&'a Path>,
    /// AV-HuBERT.
    pub av_hubert: Option<&'a Path>,
    /// A Llama, with its `tokenizer.json`.
    pub llm: &'a Path,
}

/// Bytes of a file of weights at most.
const SHARD: u64 = 5 << 30;
/// The longest tokenizer that is read, in bytes.
const LONGEST_TOKENIZER: u64 = 256 << 20;

/// Where a tensor of the new model comes from.
struct Source {
    part: usize,
    name: String,
    /// Rows of the embedding are added.
    grows: bool,
}

/// Writes a model's folder to `out`: weights under the names of the authors' checkpoints, `config.json` of `settings` (those of
/// [`AvsrConfig`] that are not the parts' own: `modality`, compression, adapters, experts), and the tokenizer with
/// [`ADDED_TOKENS`]. The embeddings of these are drawn from the seed; they are not trained. Projectors and adapters are left to
/// the training.
///
/// # Errors
/// A part is missing or of another kind, the settings make no sense, or a file cannot be read or written.
pub fn assemble(parts: Parts<'_>, settings: &Map<String, Value>, seed: u64, out: &Path) -> Result<AvsrConfig> {
    let llm = DecoderConfig::load(parts.llm)?;
    if llm.model_type != "llama" {
        bail!("{}: a {} cannot read what it hears; give a Llama", parts.llm.display(), llm.model_type);
    }
    let old = llm.vocab_size;
    let tokenizer = tokenizer(parts.llm, old)?;
    let mut config = settings.clone();
    let mut grown = llm.published.clone();
    grown.insert("vocab_size".into(), json!(old + ADDED_TOKENS.len()));
    config.insert("llama".into(), Value::Object(grown));
    config.entry("special_tokens").or_insert(json!(ADDED_TOKENS));

    let mut files = vec![Checkpoint::open(parts.llm)?];
    let mut sources = BTreeMap::new();
    for name in files.iter().flat_map(Checkpoint::names).filter(|name| !llm.ignorable(name)) {
        let grows = name == "model.embed_tokens.weight" || name == "lm_head.weight";
        sources.insert(format!("llm.{name}"), Source { part: 0, name: name.to_string(), grows });
    }
    let mut add = |dir: &Path, prefixes: &[&str], known: &str, to: &str, keep: &dyn Fn(&str) -> bool| -> Result<()> {
        let file = Checkpoint::open(dir)?;
        let Some(prefix) = prefixes.iter().find(|prefix| file.info(&format!("{prefix}{known}")).is_some()) else {
            bail!("{}: has no tensor {known}: is this the right model?", dir.display());
        };
        for name in file.names() {
            if let Some(inner) = name.strip_prefix(prefix).filter(|inner| keep(inner)) {
                let source = Source { part: files.len(), name: name.to_string(), grows: false };
                sources.insert(format!("{to}.{inner}"), source);
            }
        }
        files.push(file);
        Ok(())
    };
    if let Some(dir) = parts.audio {
        let keys = read(dir)?;
        let (key, prefixes, known): (_, &[&str], _) = match keys.get("model_type").and_then(Value::as_str) {
            Some("whisper") => ("whisper", &["model.encoder.", "encoder.", ""], "conv1.weight"),
            Some("wavlm") => ("wavlm", &["wavlm.", ""], "feature_projection.projection.weight"),
            other => bail!("{}: model_type {other:?}, expected whisper or wavlm", dir.display()),
        };
        add(dir, prefixes, known, "audio_encoder", &|inner| {
            !inner.starts_with("lm_head") && inner != "masked_spec_embed"
        })?;
        config.insert(key.into(), Value::Object(keys));
    }
    if let Some(dir) = parts.av_hubert {
        let joint = config.get("modality").and_then(Value::as_str) == Some("audiovisual_avhubert");
        let alone = config.get("modality").and_then(Value::as_str) == Some("audio");
        let to = if joint {
            "audiovisual_encoder"
        } else if alone {
            "audio_encoder"
        } else {
            "video_encoder"
        };
        let prefixes = ["", "encoder.w2v_model.", "w2v_encoder.w2v_model."];
        add(dir, &prefixes, "feature_extractor_audio.proj.weight", to, &|inner| encoders::belongs(inner))?;
        config.insert("av_hubert".into(), Value::Object(read(dir)?));
    }
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::Msg(e.to_string()))? + "\n";
    let checked = AvsrConfig::from_json(&text)?;

    let unfinished = Unfinished::folder(out).map_err(|e| at(out, e))?;
    let place = unfinished.path();
    let outlines = sources.iter().map(|(name, source)| {
        let info = files.get(source.part).and_then(|file| file.info(&source.name));
        let Some(info) = info else { bail!("tensor {} went missing", source.name) };
        let mut shape = info.shape.clone();
        if let (true, Some(rows)) = (source.grows, shape.first_mut()) {
            *rows += ADDED_TOKENS.len();
        }
        Ok(Outline { name: name.clone(), dtype: info.dtype, shape })
    });
    let outlines = outlines.collect::<Result<Vec<_>>>()?;
    save_shards(place, outlines, SHARD, &mut |outline| {
        let Some((source, file)) = sources.get(&outline.name).and_then(|s| Some((s, files.get(s.part)?))) else {
            bail!("tensor {} went missing", outline.name)
        };
        let tensor = file.read_any(&source.name)?;
        if !source.grows {
            return Ok(tensor);
        }
        let mut rng = Rng::named(seed, &outline.name);
        let width = tensor.dim(1)?;
        let values: Vec<f32> =
            (0..ADDED_TOKENS.len() * width).map(|_| (llm.initializer_range * rng.normal()) as f32).collect();
        let rows = Tensor::from_vec(values, (ADDED_TOKENS.len(), width), &Device::Cpu)?.to_dtype(tensor.dtype())?;
        Tensor::cat(&[tensor, rows], 0)
    })?;
    for (name, text) in [("config.json", text), ("tokenizer.json", tokenizer)] {
        let path = place.join(name);
        std::fs::write(&path, text).map_err(|e| at(&path, e))?;
    }
    let beside = parts.llm.join("tokenizer_config.json");
    if beside.is_file() {
        std::fs::copy(&beside, place.join("tokenizer_config.json")).map_err(|e| at(&beside, e))?;
    }
    unfinished.finish().map_err(|e| at(out, e))?;
    Ok(checked)
}

/// The tokenizer with the added tokens, whose ids start at the language model's `size`.
fn tokenizer(llm: &Path, size: usize) -> Result<String> {
    let path = llm.join("tokenizer.json");
    let bytes = std::fs::metadata(&path).map_err(|e| at(&path, e))?.len();
    if bytes > LONGEST_TOKENIZER {
        return Err(at(&path, format!("has {bytes} bytes, which no tokenizer has")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| at(&path, e))?;
    let mut tokenizer: Value = serde_json::from_str(&text).map_err(|e| at(&path, e))?;
    let Some(all) = tokenizer.as_object_mut() else { return Err(at(&path, "is no tokenizer")) };
    let Some(added) = all.entry("added_tokens").or_insert_with(|| json!([])).as_array_mut() else {
        return Err(at(&path, "added_tokens is no list"));
    };
    for known in added.iter() {
        let (content, id) = (known.get("content").and_then(Value::as_str), known.get("id").and_then(Value::as_u64));
        if id.is_some_and(|id| id as usize >= size) || content.is_some_and(|c| ADDED_TOKENS.contains(&c)) {
            let content = content.unwrap_or_default();
            return Err(at(
                &path,
                format!("has a token {content} already that would be added; take the tokenizer as published"),
            ));
        }
    }
    for (i, content) in ADDED_TOKENS.iter().enumerate() {
        added.push(json!({
            "id": size + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    serde_json::to_string_pretty(&tokenizer).map_err(|e| Error::Msg(e.to_string()))
}
