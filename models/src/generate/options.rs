//! How to generate.

use candle_core::{Result, bail};

/// How tokens are chosen. The default takes the likeliest token, as `transformers` does with `do_sample` false.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Scores are divided by it before a token is drawn; 0 takes the likeliest token and looks at no filter.
    pub temperature: f64,
    /// Only this many tokens of the best scores can be drawn, and those that tie with the last of them; 0 for all. The
    /// default is that of `transformers`, 50.
    pub top_k: usize,
    /// Only the fewest tokens whose probabilities sum to at least this can be drawn; 1 for all.
    pub top_p: f64,
    /// Only tokens at least this fraction as probable as the likeliest can be drawn; 0 for all.
    pub min_p: f64,
    /// Positive scores of tokens that stand in the prompt or the answer are divided by it, negative ones multiplied
    /// (Keskar et al., arXiv 1909.05858, section 4.1, as `transformers` has it); 1 for no penalty. Applies without
    /// sampling as well. Padding does not count as seen.
    pub repetition_penalty: f64,
    /// Of the random numbers. The same seed gives the same tokens, in any batch.
    pub seed: u64,
    /// The random stream of each row under the seed, for different answers to equal prompts; empty for 0 everywhere.
    pub streams: Vec<u64>,
    /// Tokens that end a row.
    pub eos: Vec<u32>,
    /// Tokens come with the logarithm of their probability.
    pub log_probs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            streams: Vec::new(),
            eos: Vec::new(),
            log_probs: false,
        }
    }
}

impl Options {
    /// Checks that values are in their ranges. [`Generation::new`](super::Generation::new) does so first.
    pub fn validate(&self) -> Result<()> {
        at_least_one_token(self.max_new_tokens)?;
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            bail!(
                "the temperature is {}: give 0 for the likeliest tokens, or a positive number such as 0.7",
                self.temperature
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            bail!("top-p is {}: give a probability above 0, at most 1", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            bail!("min-p is {}: give a fraction from 0 to 1", self.min_p);
        }
        penalty(self.repetition_penalty)
    }
}

/// When a beam search has seen enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// Once no running beam, at its present length, is better than the worst finished one (`false` in `transformers`).
    #[default]
    Heuristic,
    /// Once as many continuations have ended as there are beams (`true`).
    FirstFinished,
    /// Once no running beam can become better than the worst finished one at any length (`"never"`).
    Never,
}

/// The most beams of one prompt.
pub const MAX_BEAMS: usize = 1024;

/// How to search by beams.
#[derive(Clone, Debug, PartialEq)]
pub struct BeamOptions {
    /// Continuations that are kept at each step.
    pub beams: usize,
    /// Continuations that are returned, best first; at most `beams`.
    pub sequences: usize,
    /// A continuation's log-probability is divided by its number of tokens to this power, so that positive values favour
    /// long ones.
    pub length_penalty: f64,
    /// When to stop.
    pub early_stopping: EarlyStopping,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Tokens that a continuation has before one of `eos` may end it: `min_new_tokens` of `transformers`.
    pub min_new_tokens: usize,
    /// As in [`Options::repetition_penalty`]; as in `transformers` it applies to log-probabilities here, all of which are
    /// negative.
    pub repetition_penalty: f64,
    /// Tokens that end a continuation.
    pub eos: Vec<u32>,
}

impl Default for BeamOptions {
    fn default() -> Self {
        Self {
            beams: 4,
            sequences: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            max_new_tokens: 256,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            eos: Vec::new(),
        }
    }
}

impl BeamOptions {
    /// Checks that values are in their ranges. [`beam_search`](super::beam_search) does so first.
    pub fn validate(&self) -> Result<()> {
        at_least_one_token(self.max_new_tokens)?;
        if self.beams == 0 || self.beams > MAX_BEAMS {
            bail!("{} beams: give 1 to {MAX_BEAMS}", self.beams);
        }
        if self.sequences == 0 || self.sequences > self.beams {
            bail!("{} sequences of {} beams: give 1 to {}", self.sequences, self.beams, self.beams);
        }
        if self.min_new_tokens > self.max_new_tokens {
            bail!("at least {} new tokens, but at most {}", self.min_new_tokens, self.max_new_tokens);
        }
        if !self.length_penalty.is_finite() {
            bail!("the length penalty is {}: give a number, 1 for the mean log-probability", self.length_penalty);
        }
        penalty(self.repetition_penalty)
    }
}

fn at_least_one_token(max_new_tokens: usize) -> Result<()> {
    if max_new_tokens == 0 {
        bail!("the most new tokens are 0: ask for at least 1");
    }
    Ok(())
}

fn penalty(value: f64) -> Result<()> {
    if !(value > 0.0 && value.is_finite()) {
        bail!("the repetition penalty is {value}: give a positive number, 1 for none");
    }
    Ok(())
}
