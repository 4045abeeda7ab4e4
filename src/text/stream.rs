//! Text as it is written.

use std::ops::ControlFlow;
use std::time::Instant;

use moesaic_models::generate::{Backbone, Finish, Generation, Memory, Options, Prompts, Token};

use super::Tokenizer;
use super::detokenizer::Detokenizer;
use super::generator::{Answer, Speed, TextGenerator, TokenProbability};
use super::stop::StopStrings;
use crate::error::{Error, Result};

/// A piece of text: whole characters, and never a part of a stop string.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Number of the prompt, from 0.
    pub row: usize,
    /// The text; may be empty in the last piece of a row.
    pub text: String,
    /// Present in the last piece of a row.
    pub finish: Option<Finish>,
}

/// A running generation: an iterator over pieces of text.
pub struct TextStream<'g> {
    tokenizer: &'g Tokenizer,
    generation: Generation<'g, dyn Backbone + Sync>,
    rows: Vec<Row>,
    prefill_seconds: f64,
    /// When the prompts were through the model.
    decoding: Instant,
    decode_seconds: f64,
}

#[derive(Debug)]
struct Row {
    detokenizer: Detokenizer,
    stops: StopStrings,
    answer: Answer,
    /// White space in front of the answer is left out.
    trimmed: bool,
    ended: bool,
}

impl<'g> TextStream<'g> {
    pub(super) fn start(
        generator: &'g TextGenerator,
        prompts: &[Vec<u32>],
        options: &Options,
        stop: &[String],
        memory: Option<Memory>,
    ) -> Result<Self> {
        let start = Instant::now();
        let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let model: &(dyn Backbone + Sync) = &generator.decoder;
        let generation = match (&ids[..], memory) {
            ([prompt], Some(memory)) => Generation::resume(model, prompt, options, memory),
            _ => Generation::new(model, Prompts::Ids(&ids), options),
        };
        let rows = ids.iter().map(|prompt| (*prompt, prompt.len()));
        let generation = generation.map_err(|error| Error::compute(&error))?;
        Self::of(&generator.tokenizer, generation, rows, stop, false, start)
    }

    /// The stream of a generation that began at `start`. Each row has the ids that end its prompt, and the tokens of the
    /// prompt. Of `trimmed` answers, white space in front is left out.
    pub(crate) fn of<'i>(
        tokenizer: &'g Tokenizer,
        generation: Generation<'g, dyn Backbone + Sync>,
        prompts: impl Iterator<Item = (&'i [u32], usize)>,
        stop: &[String],
        trimmed: bool,
        start: Instant,
    ) -> Result<Self> {
        let rows = prompts.map(|(ids, prompt_tokens)| {
            Ok(Row {
                detokenizer: Detokenizer::after(ids, tokenizer)?,
                stops: StopStrings::new(stop),
                answer: Answer {
                    text: String::new(),
                    finish: Finish::Stopped,
                    prompt_tokens,
                    tokens: 0,
                    score: None,
                    log_probs: Vec::new(),
                },
                trimmed,
                ended: false,
            })
        });
        let rows = rows.collect::<Result<_>>()?;
        let prefill_seconds = start.elapsed().as_secs_f64();
        Ok(Self { tokenizer, generation, rows, prefill_seconds, decoding: Instant::now(), decode_seconds: 0.0 })
    }

    /// Tells `on_piece` of every piece until all rows have ended or it breaks, and gives the answers.
    ///
    /// # Errors
    /// [`Error::Compute`] when the model fails on the way.
    pub fn run(self, on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>) -> Result<(Vec<Answer>, Speed)> {
        let (answers, speed, _) = self.run_remembering(on_piece)?;
        Ok((answers, speed))
    }

    /// [`run`](Self::run), and the memory for the next message of a conversation that [`Chat::resume`](crate::Chat::resume)
    /// began.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_remembering(
        mut self,
        on_piece: &mut dyn FnMut(&Piece) -> ControlFlow<()>,
    ) -> Result<(Vec<Answer>, Speed, Memory)> {
        while let Some(piece) = self.next().transpose()? {
            if on_piece(&piece).is_break() {
                break;
            }
        }
        let speed = self.speed();
        Ok((self.rows.into_iter().map(|row| row.answer).collect(), speed, self.generation.remember()))
    }

    /// Runs to the end and gives the answers.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn answers(self) -> Result<Vec<Answer>> {
        Ok(self.run(&mut |_| ControlFlow::Continue(()))?.0)
    }

    /// The time taken so far.
    pub fn speed(&self) -> Speed {
        let answers = || self.rows.iter().map(|row| &row.answer);
        Speed {
            prompt_tokens: answers().map(|answer| answer.prompt_tokens).sum(),
            reused_tokens: self.generation.reused(),
            prefill_seconds: self.prefill_seconds,
            decode_tokens: answers().map(|answer| answer.tokens.saturating_sub(1)).sum(),
            decode_seconds: self.decode_seconds,
        }
    }

    /// The piece that a token completes, if any.
    fn take(&mut self, token: &Token) -> Result<Option<Piece>> {
        let tokenizer = self.tokenizer;
        let Some(row) = self.rows.get_mut(token.row) else { return Ok(None) };
        if row.ended {
            return Ok(None);
        }
        row.answer.tokens += 1;
        if let Some(log_prob) = token.log_prob {
            let text = tokenizer.token(token.id).unwrap_or_default();
            row.answer.log_probs.push(TokenProbability { id: token.id, token: text, log_prob });
        }
        let mut text = String::new();
        let mut hit = false;
        if token.finish != Some(Finish::Eos) {
            (text, hit) = row.stops.push(&row.detokenizer.push(token.id, tokenizer)?);
        }
        if token.finish.is_some() && !hit {
            let (rest, stop) = row.stops.push(&row.detokenizer.finish(tokenizer)?);
            text.push_str(&rest);
            hit = stop;
            if !hit {
                text.push_str(&row.stops.finish());
            }
        }
        if row.trimmed && row.answer.text.is_empty() {
            text = text.trim_start().to_string();
        }
        let finish = if hit { Some(Finish::Stopped) } else { token.finish };
        if let Some(finish) = finish {
            row.answer.finish = finish;
            row.ended = true;
            self.generation.stop(token.row);
        }
        row.answer.text.push_str(&text);
        Ok((!text.is_empty() || finish.is_some()).then_some(Piece { row: token.row, text, finish }))
    }
}

impl std::fmt::Debug for TextStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextStream").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let token = match self.generation.next()? {
                Ok(token) => token,
                Err(error) => return Some(Err(Error::compute(&error))),
            };
            self.decode_seconds = self.decoding.elapsed().as_secs_f64();
            match self.take(&token) {
                Ok(None) => {}
                Ok(Some(piece)) => return Some(Ok(piece)),
                Err(error) => {
                    self.rows.iter().enumerate().for_each(|(row, _)| self.generation.stop(row));
                    return Some(Err(error));
                }
            }
        }
    }
}
