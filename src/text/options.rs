//! What a caller may ask of a language model.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use moesaic_models::generate::{BeamOptions, GenerationConfig, Options};
use serde::Serialize;

use crate::error::{Error, Result, candle_message, quoted};

/// The number type of weights and cache in memory. Computation on the CPU is in f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// Floats of 16 bits with the range of f32.
    Bf16,
    /// Floats of 16 bits with more precision and less range.
    F16,
}

impl Dtype {
    pub(crate) fn of(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
        }
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            "f16" => Ok(Dtype::F16),
            other => Err(Error::option(format!("{} is not a number type: give f32, bf16 or f16", quoted(other)))),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        })
    }
}

/// How to write. What is `None` is as the model's `generation_config.json` says, and where that is silent, as in
/// `transformers`: the likeliest token at each step.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TextOptions {
    /// Most tokens of an answer; 256 where the model does not say.
    pub max_tokens: Option<usize>,
    /// 0 takes the likeliest token at each step; higher values draw, the higher the more freely.
    pub temperature: Option<f64>,
    /// Draw among this many of the best tokens only; 0 for all.
    pub top_k: Option<usize>,
    /// Draw among the fewest tokens that have this probability together.
    pub top_p: Option<f64>,
    /// Draw among tokens at least this fraction as probable as the likeliest.
    pub min_p: Option<f64>,
    /// Above 1, tokens that stand in the text already become less likely.
    pub repetition_penalty: Option<f64>,
    /// Of the random numbers. The same seed gives the same text, alone or in a batch; equal prompts of one batch get
    /// different texts.
    pub seed: u64,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// Answers tell the probability of each token.
    pub log_probs: bool,
    /// Search with this many beams instead of drawing.
    pub beams: Option<usize>,
    /// The exponent of the length that a beam's log-probability is divided by.
    pub length_penalty: Option<f64>,
}

impl TextOptions {
    /// Options for the models crate, checked.
    pub(crate) fn sampling(&self, config: &GenerationConfig) -> Result<Options> {
        let base = config.options();
        let options = Options {
            max_new_tokens: self.max_tokens.unwrap_or(base.max_new_tokens),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            seed: self.seed,
            log_probs: self.log_probs,
            ..base
        };
        options.validate().map_err(|error| Error::option(candle_message(&error)))?;
        self.check_stops()?;
        Ok(options)
    }

    /// The same for a beam search that returns `sequences` answers.
    pub(crate) fn search(&self, config: &GenerationConfig, sequences: usize) -> Result<BeamOptions> {
        let base = config.beam_options();
        let options = BeamOptions {
            beams: self.beams.unwrap_or(base.beams),
            sequences,
            length_penalty: self.length_penalty.unwrap_or(base.length_penalty),
            max_new_tokens: self.max_tokens.unwrap_or(base.max_new_tokens),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            ..base
        };
        options.validate().map_err(|error| Error::option(candle_message(&error)))?;
        self.check_stops()?;
        Ok(options)
    }

    fn check_stops(&self) -> Result<()> {
        match self.stop.iter().any(String::is_empty) {
            true => Err(Error::option("a stop string is empty: leave it out, or give at least one character")),
            false => Ok(()),
        }
    }
}
