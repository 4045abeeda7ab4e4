//! Text from a decoder, token by token: greedy, sampled, or by beam search.
//!
//! ```text
//! prompts ─ one pass ─▶ scores of the next token ─ penalty, temperature, top-k, top-p, min-p ─▶ token of each row
//!                              ▲                                                                  │
//!                              └───────────────────────── one pass over the cache ────────────────┘
//! ```
//!
//! [`Generation`] is an iterator over tokens; [`generate`] runs it to the end and tells a callback of every token.
//! [`beam_search`] keeps several continuations of each prompt. All of them work on a [`Backbone`], which a [`Decoder`] is
//! and which multimodal models wrap around theirs.
//!
//! A row gets the tokens that it would get alone: rows share passes, not scores, and each draws from a random stream of
//! its own. A row that has ended leaves the batch.
//!
//! Reference for the meaning and the order of all settings: `transformers` 4.57.6,
//! [`generation/utils.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/generation/utils.py)
//! (`_get_logits_processor`, `_beam_search`) and
//! [`logits_process.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/generation/logits_process.py).

mod beam;
mod config;
mod options;
mod sample;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use candle_core::{Device, Result, Tensor, bail};
use moesaic_kernels::rng::Rng;
use serde::Serialize;

use crate::decoder::{Cache, Context, Decoder, Input, pad_ids};

pub use beam::{Beam, beam_search};
pub use config::GenerationConfig;
pub use options::{BeamOptions, EarlyStopping, MAX_BEAMS, Options};

use sample::Sampler;

/// What generation asks of a model.
pub trait Backbone {
    /// Scores of the token that follows the last one of each row. The input goes on with the rows of the cache, or starts
    /// them where it is empty; the context is the caller's for a prompt, and the default one afterwards.
    ///
    /// # Shapes
    /// input of `b` rows to `[b, V]` in f32
    fn next_logits(&self, input: Input<'_>, context: &Context, cache: &mut Cache) -> Result<Tensor>;

    /// Tokens that a prompt and its answer may have together.
    fn max_positions(&self) -> usize;

    /// The device that the model computes on.
    fn device(&self) -> &Device;
}

impl Backbone for Decoder {
    fn next_logits(&self, input: Input<'_>, context: &Context, cache: &mut Cache) -> Result<Tensor> {
        self.last_logits(&self.forward(input, context, Some(cache), None)?)
    }

    fn max_positions(&self) -> usize {
        self.config().max_positions
    }

    fn device(&self) -> &Device {
        self.device()
    }
}

/// What is to be continued, one prompt a row.
#[derive(Clone, Copy, Debug)]
pub enum Prompts<'a> {
    /// Token ids of each row, of any lengths.
    Ids(&'a [&'a [u32]]),
    /// Embedded rows, padded at the left, with the context that says where what stands
    /// ([`Decoder::embed_rows`]). A repetition penalty does not see such a prompt.
    Embeds(&'a Tensor, &'a Context),
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it with one of [`Options::eos`].
    Eos,
    /// It has [`Options::max_new_tokens`].
    Length,
    /// The model's context is full.
    Context,
    /// The caller stopped it.
    Stopped,
}

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// The prompt that it continues.
    pub row: usize,
    /// Its id.
    pub id: u32,
    /// The logarithm of its probability under the model alone, before penalty, temperature and filters; present with
    /// [`Options::log_probs`].
    pub log_prob: Option<f32>,
    /// Present with the last token of a row.
    pub finish: Option<Finish>,
}

/// The continuation of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// The new tokens, with the one that ended the row.
    pub tokens: Vec<u32>,
    /// Of each token, with [`Options::log_probs`]; else empty.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A running generation: an iterator over the tokens of all rows, step by step, in the order of rows within a step.
///
/// A step runs when its first token is asked for, so dropping the iterator, or [`stop`](Self::stop)ping rows, leaves no
/// work behind. After an error it is at its end.
#[derive(Debug)]
pub struct Generation<'m, M: Backbone + ?Sized> {
    model: &'m M,
    options: Options,
    sampler: Sampler,
    cache: Cache,
    rows: Vec<Row>,
    /// Which row each row of the cache belongs to.
    live: Vec<usize>,
    /// Scores for the live rows that no token was chosen from yet.
    logits: Option<Tensor>,
    waiting: VecDeque<Token>,
    failed: bool,
    /// The prompt, and then all tokens, where they are to become a [`Memory`].
    ids: Vec<u32>,
    /// Tokens of the prompt that came out of a memory.
    reused: usize,
}

/// A text that went through a model, so that a text that begins with it need not do so again: the next turn of a
/// conversation. Of one model only; its default remembers nothing.
#[derive(Debug, Default)]
pub struct Memory {
    ids: Vec<u32>,
    /// Holds `ids`.
    cache: Cache,
}

impl Memory {
    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Cuts it to what `prompt` begins with, and leaves at least the last token of `prompt` to be computed: its scores choose
    /// the next one. Gives the number of tokens that stay.
    fn cut(&mut self, prompt: &[u32]) -> usize {
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        self.ids.truncate(kept);
        // A cache behind a sliding window cannot always go back; then all is computed again.
        if self.cache.truncate(kept).is_err() {
            *self = Self::default();
        }
        self.ids.len()
    }
}

#[derive(Debug)]
struct Row {
    rng: Rng,
    /// Ids of prompt and answer, where a penalty looks at them.
    seen: Vec<u32>,
    /// Tokens until the context is full.
    room: usize,
    tokens: usize,
    last: u32,
    finish: Option<Finish>,
}

impl<'m, M: Backbone + ?Sized> Generation<'m, M> {
    /// Checks the options and runs the prompts through the model.
    ///
    /// # Errors
    /// Options out of their range, an empty prompt (the message names its row), one that leaves no room in the model's
    /// context (the message has both numbers), or a model that fails.
    pub fn new(model: &'m M, prompts: Prompts<'_>, options: &Options) -> Result<Self> {
        Self::begin(model, prompts, options, Memory::default())
    }

    /// The same for one prompt, of which only what `memory` does not hold runs through the model. [`remember`](Self::remember)
    /// gives the memory back, with prompt and answer in it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn resume(model: &'m M, prompt: &[u32], options: &Options, memory: Memory) -> Result<Self> {
        let mut generation = Self::begin(model, Prompts::Ids(&[prompt]), options, memory)?;
        generation.ids = prompt.to_vec();
        Ok(generation)
    }

    /// What this generation has put through the model, for a text that goes on with it; nothing unless it was
    /// [`resume`](Self::resume)d.
    pub fn remember(self) -> Memory {
        let Self { mut ids, cache, .. } = self;
        if ids.is_empty() {
            return Memory::default();
        }
        // The last token has not been through the model.
        ids.truncate(cache.tokens());
        Memory { ids, cache }
    }

    /// Tokens of the prompt that were remembered instead of computed.
    pub fn reused(&self) -> usize {
        self.reused
    }

    fn begin(model: &'m M, prompts: Prompts<'_>, options: &Options, memory: Memory) -> Result<Self> {
        let penalised = options.repetition_penalty != 1.0;
        let started = start(model, prompts, options.max_new_tokens, penalised, memory, || options.validate())?;
        let n = started.rooms.len();
        if !options.streams.is_empty() && options.streams.len() != n {
            bail!("{} random streams for {n} prompts: give one for each, or none", options.streams.len());
        }
        let rows = started.rooms.iter().zip(started.seen).enumerate().map(|(i, (&room, seen))| Row {
            rng: Rng::keyed(&[options.seed, options.streams.get(i).copied().unwrap_or(0)]),
            seen,
            room,
            tokens: 0,
            last: 0,
            finish: None,
        });
        Ok(Self {
            model,
            options: options.clone(),
            sampler: Sampler::default(),
            cache: started.cache,
            rows: rows.collect(),
            live: (0..n).collect(),
            logits: Some(started.logits),
            waiting: VecDeque::new(),
            failed: false,
            ids: Vec::new(),
            reused: started.reused,
        })
    }

    /// Ends a row: it gets no more tokens. Nothing happens if it has ended.
    pub fn stop(&mut self, row: usize) {
        if let Some(row) = self.rows.get_mut(row) {
            row.finish.get_or_insert(Finish::Stopped);
        }
        self.waiting.retain(|token| token.row != row);
    }

    /// Why a row ended; absent while it runs.
    pub fn finish(&self, row: usize) -> Option<Finish> {
        self.rows.get(row)?.finish
    }

    /// The next token of every running row; absent when all have ended.
    fn step(&mut self) -> Result<Option<Vec<Token>>> {
        let ended = |row: usize| self.rows.get(row).is_none_or(|row| row.finish.is_some());
        let keep: Vec<usize> = (0..self.live.len()).filter(|&i| self.live.get(i).is_some_and(|&r| !ended(r))).collect();
        if keep.is_empty() {
            return Ok(None);
        }
        if keep.len() < self.live.len() {
            self.cache.select(&keep)?;
            self.live = keep.iter().filter_map(|&i| self.live.get(i).copied()).collect();
            self.logits = self.logits.take().map(|logits| select_rows(&logits, &keep)).transpose()?;
        }
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => {
                let last = self.live.iter().filter_map(|&r| self.rows.get(r)).map(|row| row.last).collect();
                let next = Tensor::from_vec(last, (self.live.len(), 1), self.model.device())?; // (b, 1)
                self.model.next_logits(Input::Ids(&next), &Context::default(), &mut self.cache)?
            }
        };
        let mut tokens = Vec::with_capacity(self.live.len());
        for (&index, logits) in self.live.iter().zip(logits.to_vec2::<f32>()?) {
            let Some(row) = self.rows.get_mut(index) else { continue };
            let Some(id) = self.sampler.choose(&logits, &row.seen, &self.options, &mut row.rng) else {
                bail!("the scores of prompt {index} are not finite after {} new tokens: check the weights", row.tokens);
            };
            row.tokens += 1;
            row.last = id;
            if !self.ids.is_empty() {
                self.ids.push(id);
            }
            if self.options.repetition_penalty != 1.0 {
                remember(&mut row.seen, id);
            }
            row.finish = if self.options.eos.contains(&id) {
                Some(Finish::Eos)
            } else if row.tokens >= self.options.max_new_tokens {
                Some(Finish::Length)
            } else if row.tokens >= row.room {
                Some(Finish::Context)
            } else {
                None
            };
            let log_prob = self.options.log_probs.then(|| sample::log_prob(&logits, id));
            tokens.push(Token { row: index, id, log_prob, finish: row.finish });
        }
        Ok(Some(tokens))
    }
}

impl<M: Backbone + ?Sized> Iterator for Generation<'_, M> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.waiting.is_empty() {
            match self.step() {
                Ok(tokens) => self.waiting.extend(tokens?),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.waiting.pop_front().map(Ok)
    }
}

/// Continues every prompt to its end. The callback sees every token as it comes; `Break` ends the generation, and rows that
/// have not ended are [`Finish::Stopped`].
///
/// # Errors
/// As [`Generation::new`], or a model that fails on the way.
pub fn generate<M: Backbone + ?Sized>(
    model: &M,
    prompts: Prompts<'_>,
    options: &Options,
    on_token: &mut dyn FnMut(&Token) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    let mut generation = Generation::new(model, prompts, options)?;
    let blank = Generated { tokens: Vec::new(), log_probs: Vec::new(), finish: Finish::Stopped };
    let mut answers = vec![blank; generation.rows.len()];
    while let Some(token) = generation.next().transpose()? {
        if let Some(answer) = answers.get_mut(token.row) {
            answer.tokens.push(token.id);
            answer.log_probs.extend(token.log_prob);
        }
        if on_token(&token).is_break() {
            // Tokens of this step that nobody was told of do not end their rows.
            for token in std::mem::take(&mut generation.waiting) {
                if let Some(row) = generation.rows.get_mut(token.row) {
                    row.finish = None;
                }
            }
            break;
        }
    }
    for (row, answer) in answers.iter_mut().enumerate() {
        answer.finish = generation.finish(row).unwrap_or(Finish::Stopped);
    }
    Ok(answers)
}

/// Prompts that went through the model.
struct Started {
    cache: Cache,
    /// `[b, V]`
    logits: Tensor,
    /// Tokens that each row has room for.
    rooms: Vec<usize>,
    /// Distinct ids of each prompt, where they are wanted.
    seen: Vec<Vec<u32>>,
    /// Tokens that came out of the memory.
    reused: usize,
}

/// New tokens that a cache makes room for at once.
const ROOM: usize = 512;

/// Checks prompts and, by `check`, options; then runs the prompts. A memory serves one prompt of ids.
fn start<M: Backbone + ?Sized>(
    model: &M,
    prompts: Prompts<'_>,
    new: usize,
    seen: bool,
    mut memory: Memory,
    check: impl FnOnce() -> Result<()>,
) -> Result<Started> {
    check()?;
    let (lengths, longest) = match prompts {
        Prompts::Ids(rows) => {
            let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
            let longest = lengths.iter().copied().max().unwrap_or(0);
            (lengths, longest)
        }
        Prompts::Embeds(embeds, context) => {
            let (b, t, _) = embeds.dims3()?;
            let padding = |row: usize| context.padding.get(row).copied().unwrap_or(0);
            ((0..b).map(|row| t.saturating_sub(padding(row))).collect(), t)
        }
    };
    if lengths.is_empty() {
        bail!("there is no prompt to continue");
    }
    if let Some(row) = lengths.iter().position(|&n| n == 0) {
        bail!("prompt {row} is empty: a prompt needs at least one token");
    }
    let most = model.max_positions();
    if let Some((row, n)) = lengths.iter().enumerate().find(|(_, n)| **n >= most) {
        bail!(
            "prompt {row} has {n} tokens and leaves no room for an answer in this model's context of {most}: shorten it \
             to at most {}",
            most.saturating_sub(1)
        );
    }
    let reused = match prompts {
        Prompts::Ids(&[prompt]) => memory.cut(prompt),
        _ => 0,
    };
    let mut cache = if reused > 0 { memory.cache } else { Cache::with_capacity(longest + new.min(ROOM)) };
    let logits = match prompts {
        Prompts::Ids(&[prompt]) if reused > 0 => {
            let rest = Tensor::new(prompt.get(reused..).unwrap_or_default(), model.device())?.unsqueeze(0)?; // (1, rest)
            model.next_logits(Input::Ids(&rest), &Context::default(), &mut cache)?
        }
        Prompts::Ids(rows) => {
            let (ids, context) = pad_ids(rows, 0, model.device())?; // (b, longest)
            model.next_logits(Input::Ids(&ids), &context, &mut cache)?
        }
        Prompts::Embeds(embeds, context) => model.next_logits(Input::Embeds(embeds), context, &mut cache)?,
    };
    let seen = match prompts {
        Prompts::Ids(rows) if seen => rows.iter().map(|row| distinct(row)).collect(),
        _ => vec![Vec::new(); lengths.len()],
    };
    Ok(Started { cache, logits, rooms: lengths.iter().map(|n| most - n).collect(), seen, reused })
}

/// The ids of `row`, each once, in ascending order.
fn distinct(row: &[u32]) -> Vec<u32> {
    let mut ids = row.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Adds an id to ascending ones.
fn remember(seen: &mut Vec<u32>, id: u32) {
    if let Err(at) = seen.binary_search(&id) {
        seen.insert(at, id);
    }
}

fn select_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}
