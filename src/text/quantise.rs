//! A model folder once more, quantised.

use std::fs;
use std::path::Path;

use candle_core::DType;
use moesaic_kernels::checkpoint::gguf::{Kind, is_gguf};
use moesaic_kernels::checkpoint::{Checkpoint, SINGLE_FILE, Unfinished, save_in_blocks};
use moesaic_models::decoder::{DecoderConfig, MatrixKind, Quantisation, QuantisedTensor};
use moesaic_models::folder::copy_beside;

use super::{generator, write_gguf};
use crate::error::{Error, Result};

/// Writes a language model's folder once more with its matrices in blocks: `out` becomes a folder, or one GGUF file where its
/// name ends in `.gguf`. Returns every matrix with its error, measured on what was written.
///
/// Linear maps and experts take the format; the output head, or the table that is head and embedding, takes `q8_0`. Norms,
/// biases, routers and embeddings stay as they are. Needs memory for about two tensors in f32. `out` appears complete or not
/// at all.
///
/// # Errors
/// As [`TextGenerator::from_dir`](crate::TextGenerator::from_dir) for the folder, [`Quantisation::check`] for the model, and
/// [`write_gguf`] for GGUF files; `out` exists already or cannot be written.
pub fn quantise(dir: impl AsRef<Path>, out: impl AsRef<Path>, how: &Quantisation) -> Result<Vec<QuantisedTensor>> {
    let (dir, out) = (dir.as_ref(), out.as_ref());
    if is_gguf(dir) {
        return Err(Error::config(dir, "is a GGUF file: give the folder of the model that it was made from"));
    }
    let config = generator::decoder_config(dir)?;
    let weights = |error: candle_core::Error| Error::weights(dir, &error);
    let checkpoint = Checkpoint::open(dir).map_err(weights)?;
    how.check(&config, &checkpoint).map_err(weights)?;
    let unfinished = Unfinished::beside(out).map_err(|error| Error::new_place(out, error))?;
    let place = unfinished.path();
    if out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
        write_gguf(dir, place, |name, shape| in_file(&config, &checkpoint, how, name, shape))?;
    } else {
        fs::create_dir(place).map_err(|error| Error::io("write", out, error))?;
        copy_beside(dir, place).map_err(weights)?;
        let config_json = dir.join("config.json");
        // That weights were in FP8 no longer holds; else the file stays as it is.
        if checkpoint.names().any(|name| checkpoint.info(name).is_some_and(|info| info.is_fp8())) {
            let text = serde_json::to_string_pretty(&config.published)
                .map_err(|error| Error::config(&config_json, error.to_string()))?;
            fs::write(place.join("config.json"), text + "\n").map_err(|error| Error::io("write", out, error))?;
        } else {
            fs::copy(&config_json, place.join("config.json"))
                .map_err(|error| Error::io("copy", &config_json, error))?;
        }
        let choose = |name: &str, shape: &[usize]| how.format_of(config.matrix(name, shape)?, *shape.last()?);
        save_in_blocks(&checkpoint, &place.join(SINGLE_FILE), choose).map_err(weights)?;
    }
    let written = Checkpoint::open(place).map_err(weights)?;
    let report = how.compare(&config, &checkpoint, &written).map_err(weights)?;
    unfinished.finish().map_err(|error| Error::new_place(out, error))?;
    Ok(report)
}

/// What a matrix of a GGUF file is stored as, by its name there.
fn in_file(config: &DecoderConfig, checkpoint: &Checkpoint, how: &Quantisation, name: &str, shape: &[usize]) -> Kind {
    let kind = match name.strip_suffix(".weight").unwrap_or(name) {
        "output" => Some(MatrixKind::Head),
        "token_embd" => config.tie_word_embeddings.then_some(MatrixKind::Head),
        name if name.ends_with("_exps") || name.ends_with("_shexp") => Some(MatrixKind::Experts),
        name if name.contains(".attn_") => Some(MatrixKind::Attention),
        name if name.contains(".ffn_") => Some(MatrixKind::Dense),
        _ => None,
    };
    let format = kind.zip(shape.last()).and_then(|(kind, &width)| how.format_of(kind, width));
    let stored = checkpoint.info(&format!("{}.weight", config.names.embed)).map(|info| info.dtype);
    match (format, stored) {
        (Some(format), _) => Kind::Blocks(format),
        (None, Some(dtype @ (DType::F16 | DType::BF16))) => Kind::Float(dtype),
        (None, _) => Kind::Float(DType::F32),
    }
}
