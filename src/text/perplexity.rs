//! How well a model predicts a text, and where its tokens go.

use candle_core::{DType, Tensor};
use moesaic_kernels::{Modality, Probe};
use moesaic_models::decoder::{Context, Input};
use serde::Serialize;

use super::TextGenerator;
use crate::atlas::{Atlas, RouteMap};
use crate::error::{Error, Result};

/// The longest window unless another is asked for, in tokens.
const WINDOW: usize = 2048;
/// Logits that are computed at once.
const LOGITS: usize = 1 << 24;

/// How well a model predicts a text: see [`TextGenerator::perplexity`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Perplexity {
    /// Tokens that were predicted: all but the first.
    pub tokens: usize,
    /// Mean negative log-likelihood of a token, in nats.
    pub mean_nll: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens that each window after the first predicts.
    pub stride: usize,
}

impl TextGenerator {
    /// How well the model predicts a text, special tokens included as the tokenizer sets them.
    ///
    /// Every token but the first is predicted once. A text that is longer than `window` tokens (by default the model's context, at
    /// most 2048) is read in windows of that length; each after the first begins `stride` tokens later (by default half a
    /// window) and predicts the tokens that are new in it, so that each of them has at least `window - stride` tokens before it.
    /// One window is computed at a time, and the logits of a part of it.
    ///
    /// # Errors
    /// [`Error::Input`] for a text with fewer than two tokens, or a window or stride out of range; [`Error::Compute`] when the
    /// model fails.
    pub fn perplexity(&self, text: &str, window: Option<usize>, stride: Option<usize>) -> Result<Perplexity> {
        if text.is_empty() {
            return Err(Error::option("the text is empty: give at least two tokens"));
        }
        let ids = self.tokenizer.encode(text)?;
        if ids.len() < 2 {
            return Err(Error::option(format!("the text has {} token: give at least two", ids.len())));
        }
        let most = self.decoder.config().max_positions;
        let window = window.unwrap_or(WINDOW.min(most));
        if !(2..=most).contains(&window) {
            return Err(Error::option(format!("a window of {window} tokens: give 2 to {most}, the model's context")));
        }
        let stride = stride.unwrap_or(window / 2);
        if !(1..window).contains(&stride) {
            return Err(Error::option(format!("a stride of {stride} tokens: give 1 to {}", window - 1)));
        }
        let (mut sum, mut known, mut end) = (0f64, 1, window.min(ids.len()));
        loop {
            let begin = end.saturating_sub(window);
            sum += self.nll(&ids[begin..end], known - begin).map_err(|error| Error::compute(&error))?;
            if end == ids.len() {
                break;
            }
            known = end;
            end = (end + stride).min(ids.len());
        }
        if !sum.is_finite() {
            return Err(Error::Compute("the model gives probabilities that are no numbers: check its weights".into()));
        }
        let tokens = ids.len() - 1;
        let mean_nll = sum / tokens as f64;
        Ok(Perplexity { tokens, mean_nll, perplexity: mean_nll.exp(), window, stride })
    }

    /// Where the tokens of a text go, special tokens as the tokenizer sets them. A text that is longer than the model's context, or
    /// than 2048 tokens, is read in parts that know nothing of each other. Segments have `segment` tokens ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// [`Error::Input`] for a text without tokens, or a model without sparse layers; [`Error::Compute`] when the model fails.
    pub fn routes(&self, text: &str, segment: usize) -> Result<RouteMap> {
        let ids = self.tokenizer.encode(text)?;
        if ids.is_empty() {
            return Err(Error::option("the text is empty: give at least one token"));
        }
        let mut atlas = Atlas::default();
        atlas.count(Modality::Text, ids.len());
        for part in ids.chunks(WINDOW.min(self.decoder.config().max_positions).max(1)) {
            let probe = Probe::new();
            let mut pass = || -> candle_core::Result<()> {
                let input = Tensor::from_slice(part, (1, part.len()), self.decoder.device())?;
                self.decoder.forward(Input::Ids(&input), &Context::default(), None, Some(&probe))?;
                atlas.add_probe(&probe, &|_| Modality::Text)
            };
            pass().map_err(|error| Error::compute(&error))?;
        }
        atlas.finish(segment)
    }

    /// Negative log-likelihood of the tokens from `from` on, summed; `from` is at least 1.
    fn nll(&self, ids: &[u32], from: usize) -> candle_core::Result<f64> {
        let input = Tensor::from_slice(ids, (1, ids.len()), self.decoder.device())?;
        let hidden = self.decoder.forward(Input::Ids(&input), &Context::default(), None, None)?.hidden.squeeze(0)?;
        let vocabulary = self.decoder.config().vocab_size.max(1);
        let mut sum = 0f64;
        let mut at = from;
        for targets in ids[from..].chunks((LOGITS / vocabulary).max(1)) {
            let hidden = hidden.narrow(0, at - 1, targets.len())?.contiguous()?;
            let logits = self.decoder.logits(&hidden)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for (row, &target) in logits.chunks_exact(vocabulary).zip(targets) {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = row.iter().map(|&l| f64::from(l - top).exp()).sum();
                let own = row.get(target as usize).map_or(f64::NAN, |&l| f64::from(l - top));
                sum += total.ln() - own;
            }
            at += targets.len();
        }
        Ok(sum)
    }
}
