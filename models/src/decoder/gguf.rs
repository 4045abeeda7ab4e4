//! GGUF files of decoders, written.

use std::path::Path;

use candle_core::{Error, Result, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::{Draft, Kind};
use serde_json::Value;

use super::config::DecoderConfig;
use super::rope::{RopeConfig, RopeScaling};

impl DecoderConfig {
    /// A GGUF file of this model with the tensors of `checkpoint`, to be written with [`Draft::write`]. `choose` says what a
    /// matrix is stored as, by its name in the file and its shape; norms, biases and routers are F32.
    ///
    /// # Errors
    /// The family has no architecture in GGUF, or the model has a property that files of that architecture cannot express:
    /// they would be read as another model. The message names it.
    pub fn gguf(&self, checkpoint: &Checkpoint, choose: impl FnMut(&str, &[usize]) -> Kind) -> Result<Draft> {
        let draft = Draft::new(&self.published, checkpoint, choose)?;
        let read = Self::from_json(&Value::Object(draft.config()?).to_string())?;
        match self.unlike(&read) {
            None => Ok(draft),
            Some(what) => bail!("{}: {what} of this model cannot be expressed in GGUF", self.model_type),
        }
    }

    /// What another configuration has different that the forward pass depends on.
    fn unlike(&self, other: &Self) -> Option<&'static str> {
        let checks = [
            ("the family", self.model_type == other.model_type),
            ("the vocabulary's size", self.vocab_size == other.vocab_size),
            ("the width", self.hidden_size == other.hidden_size),
            ("a sliding window, or which layers are sparse,", self.layers == other.layers),
            ("the attention", self.attention == other.attention),
            ("the kind of norms", self.norm == other.norm),
            ("the parallel residual", self.parallel == other.parallel),
            ("the dense part", self.dense_part() == other.dense_part()),
            ("the routing", self.sparse == other.sparse),
            ("the rotary positions", same_rope(self.rope.as_ref(), other.rope.as_ref())),
            ("a multiplier", self.multipliers == other.multipliers),
            (
                "the output head",
                (self.tie_word_embeddings, self.head_bias) == (other.tie_word_embeddings, other.head_bias),
            ),
        ];
        checks.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }

    /// The dense network, where a layer has one.
    fn dense_part(&self) -> Option<super::config::DenseConfig> {
        self.dense.filter(|_| self.layers.iter().any(|layer| !layer.sparse))
    }
}

/// Whether two give the same frequencies. Llama 3's are written as factors of each, which [`RopeScaling::LongRope`] holds.
fn same_rope(a: Option<&RopeConfig>, b: Option<&RopeConfig>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    let plain = |rope: &RopeConfig| RopeConfig { scaling: RopeScaling::None, ..rope.clone() };
    match (&a.scaling, &b.scaling) {
        (RopeScaling::Llama3 { .. }, RopeScaling::LongRope { short, long, .. }) => {
            plain(a) == plain(b) && short == long
        }
        // Numbers of factors have 32 bits in the file.
        (
            RopeScaling::LongRope { short: s, long: l, short_scale, long_scale, original },
            RopeScaling::LongRope { short, long, short_scale: ss, long_scale: ls, original: o },
        ) => {
            let near =
                |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| *a as f32 == *b as f32);
            let same = |a: f64, b: f64| a as f32 == b as f32;
            plain(a) == plain(b)
                && near(s, short)
                && near(l, long)
                && same(*short_scale, *ss)
                && same(*long_scale, *ls)
                && original == o
        }
        // The file has a 32-bit number that is multiplied by another.
        (RopeScaling::Yarn { attention: ours, .. }, RopeScaling::Yarn { attention, .. }) => {
            let mut near = a.clone();
            if let RopeScaling::Yarn { attention: to, .. } = &mut near.scaling {
                *to = *attention;
            }
            near == *b && (ours / attention - 1.0).abs() < 1e-6
        }
        _ => a == b,
    }
}

/// Writes the GGUF file of a model folder, without a tokenizer.
///
/// # Errors
/// As [`DecoderConfig::gguf`], and where the folder cannot be read or the file cannot be written.
pub fn save_gguf(dir: &Path, path: &Path, choose: impl FnMut(&str, &[usize]) -> Kind) -> Result<()> {
    let named = |e: Error| Error::msg(format!("{}: {e}", dir.display()));
    let draft = DecoderConfig::load(dir)?.gguf(&Checkpoint::open(dir)?, choose).map_err(named)?;
    draft.write(path)
}
