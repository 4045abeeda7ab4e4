//! Beam search, step for step that of `transformers` 4.57.6 (`_beam_search`).

use std::ops::ControlFlow;

use candle_core::{Result, Tensor, bail};

use super::options::{BeamOptions, EarlyStopping};
use super::sample::{apply_penalty, log_sum_exp};
use super::{Backbone, Finish, Memory, Prompts, distinct, start};
use crate::decoder::{Context, Input};

/// One continuation of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Beam {
    /// The new tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// Sum of the tokens' log-probabilities, divided by their number to the power of the length penalty.
    pub score: f32,
    /// Why it ended.
    pub finish: Finish,
}

/// The score of what does not exist, as in the reference.
const NEVER: f32 = -1e9;

/// The best continuations of every prompt, best first. The callback is told the number of new tokens after each step;
/// `Break` ends the search with what there is.
///
/// Prompts are searched in one batch and independently of each other; one whose search is over leaves the batch.
///
/// # Errors
/// As [`Generation::new`](super::Generation::new).
pub fn beam_search<M: Backbone + ?Sized>(
    model: &M,
    prompts: Prompts<'_>,
    options: &BeamOptions,
    on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Vec<Beam>>> {
    let penalised = options.repetition_penalty != 1.0;
    let started = start(model, prompts, options.max_new_tokens, penalised, Memory::default(), || options.validate())?;
    let (mut cache, mut logits) = (started.cache, started.logits);
    let mut searches: Vec<Search<'_>> = started
        .rooms
        .iter()
        .zip(started.seen)
        .map(|(&room, seen)| Search::new(options, options.max_new_tokens.min(room), seen))
        .collect();
    // Searches in the batch, and for each of its rows how many beams stand on it: all on one at first, then one each.
    let mut live: Vec<usize> = (0..searches.len()).collect();
    let mut rows_each = 1;
    for step in 1.. {
        let scores = logits.to_vec2::<f32>()?;
        let (mut going_on, mut rows, mut next) = (Vec::new(), Vec::new(), Vec::new());
        for (place, &index) in live.iter().enumerate() {
            let Some(search) = searches.get_mut(index) else { continue };
            let first = place * rows_each;
            let own = scores.get(first..first + rows_each).unwrap_or_default();
            if !search.step(own).map_err(|e| e.context(format!("prompt {index}")))? {
                continue;
            }
            going_on.push(index);
            for beam in &search.running {
                rows.push(first + beam.parent.min(rows_each - 1));
                next.push(beam.tokens.last().copied().unwrap_or(0));
            }
        }
        live = going_on;
        if on_step(step).is_break() || live.is_empty() {
            break;
        }
        rows_each = options.beams;
        cache.select(&rows)?;
        let next = Tensor::from_vec(next, (rows.len(), 1), model.device())?; // (searches * beams, 1)
        logits = model.next_logits(Input::Ids(&next), &Context::default(), &mut cache)?;
    }
    Ok(searches.into_iter().map(Search::best).collect())
}

#[derive(Clone, Debug)]
struct Running {
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    score: f32,
    /// The beam of the step before that it continues.
    parent: usize,
}

/// A place for a finished continuation.
#[derive(Clone, Debug)]
struct Finished {
    tokens: Vec<u32>,
    score: f32,
    done: bool,
    finish: Finish,
}

/// The search for one prompt.
struct Search<'o> {
    options: &'o BeamOptions,
    max_new: usize,
    /// Distinct ids of the prompt, where a penalty looks at them.
    prompt: Vec<u32>,
    running: Vec<Running>,
    finished: Vec<Finished>,
    /// A running beam may still become better than a finished one.
    improvable: bool,
}

struct Candidate {
    score: f32,
    beam: usize,
    token: u32,
    ends: bool,
}

impl<'o> Search<'o> {
    fn new(options: &'o BeamOptions, max_new: usize, prompt: Vec<u32>) -> Self {
        let running = |beam| Running { tokens: Vec::new(), score: if beam == 0 { 0.0 } else { NEVER }, parent: 0 };
        let finished = Finished { tokens: Vec::new(), score: NEVER, done: false, finish: Finish::Stopped };
        Self {
            options,
            max_new,
            prompt,
            running: (0..options.beams).map(running).collect(),
            finished: vec![finished; options.beams],
            improvable: true,
        }
    }

    /// One more token for every beam. `logits` has a row for each beam, or one for all of them at the first step. Tells
    /// whether the search goes on.
    fn step(&mut self, logits: &[Vec<f32>]) -> Result<bool> {
        let (options, beams) = (self.options, self.options.beams);
        let candidates = self.candidates(logits)?;
        let length = self.running.first().map_or(0, |beam| beam.tokens.len()) + 1;
        let divisor = |length: usize| (length as f64).powf(options.length_penalty) as f32;

        // Only the best `beams` candidates may finish; the others are there so that enough can go on.
        let full = self.finished.iter().all(|f| f.done);
        let closed = full && options.early_stopping == EarlyStopping::FirstFinished || !self.improvable;
        let ended = candidates.iter().take(beams).filter(|c| c.ends && !closed).map(|c| {
            let tokens = self.continued(c);
            let eos = tokens.last().is_some_and(|id| options.eos.contains(id));
            let finish = match eos {
                true => Finish::Eos,
                false if self.max_new < options.max_new_tokens => Finish::Context,
                false => Finish::Length,
            };
            Finished { score: c.score / divisor(length), tokens, done: true, finish }
        });
        let ended: Vec<Finished> = ended.collect();
        self.finished.extend(ended);
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score)); // stable: the older of equals stays first
        self.finished.truncate(beams);

        let all_end = candidates.iter().all(|c| c.ends);
        let score = |c: &Candidate| c.score + if c.ends { NEVER } else { 0.0 };
        let mut order: Vec<&Candidate> = candidates.iter().collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        self.running = order
            .into_iter()
            .take(beams)
            .map(|c| Running { tokens: self.continued(c), score: score(c), parent: c.beam })
            .collect();

        let best_length = match options.early_stopping {
            EarlyStopping::Never if options.length_penalty > 0.0 => self.max_new,
            _ => length,
        };
        let best_possible = self.running.first().map_or(NEVER, |beam| beam.score / divisor(best_length));
        let worst = self.finished.iter().map(|f| f.score).fold(f32::INFINITY, f32::min);
        let full = self.finished.iter().all(|f| f.done);
        self.improvable &= best_possible > if full { worst } else { NEVER };
        let enough = full && options.early_stopping == EarlyStopping::FirstFinished;
        Ok(self.improvable && !enough && !all_end)
    }

    /// The best continuations by one token, best first: enough for every beam to go on if all that can end do.
    fn candidates(&self, logits: &[Vec<f32>]) -> Result<Vec<Candidate>> {
        let keep = (1 + self.options.eos.len()).max(2).saturating_mul(self.options.beams);
        let length = self.running.first().map_or(0, |beam| beam.tokens.len()) + 1;
        let mut candidates: Vec<Candidate> = Vec::new();
        for (index, beam) in self.running.iter().enumerate() {
            let Some(logits) = logits.get(index).or(logits.first()) else { bail!("the model gave no scores") };
            let norm = log_sum_exp(logits);
            if !norm.is_finite() {
                bail!("scores are not finite after {} new tokens: check the weights", length - 1);
            }
            let mut scores: Vec<f32> = logits.iter().map(|&v| (f64::from(v) - norm) as f32).collect();
            if self.options.repetition_penalty != 1.0 {
                let seen = distinct(&[&self.prompt[..], &beam.tokens].concat());
                apply_penalty(&mut scores, &seen, self.options.repetition_penalty);
            }
            if length <= self.options.min_new_tokens {
                for &id in &self.options.eos {
                    if let Some(score) = scores.get_mut(id as usize) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            let mut order: Vec<u32> = (0u32..).take(scores.len()).collect();
            let by_score = |a: &u32, b: &u32| {
                let at = |id: u32| scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
                at(*b).total_cmp(&at(*a)).then(a.cmp(b))
            };
            if keep < order.len() {
                order.select_nth_unstable_by(keep, by_score);
                order.truncate(keep);
            }
            order.sort_unstable_by(by_score);
            candidates.extend(order.into_iter().map(|token| Candidate {
                score: scores.get(token as usize).map_or(NEVER, |score| score + beam.score),
                beam: index,
                token,
                ends: length >= self.max_new || self.options.eos.contains(&token),
            }));
        }
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(keep);
        Ok(candidates)
    }

    /// The tokens of the beam that a candidate continues, and its own.
    fn continued(&self, candidate: &Candidate) -> Vec<u32> {
        let before = self.running.get(candidate.beam).map_or(&[][..], |beam| &beam.tokens);
        [before, &[candidate.token]].concat()
    }

    /// What was found; running beams stand in where a search that was broken off has too little.
    fn best(self) -> Vec<Beam> {
        let mut beams: Vec<Beam> = (self.finished.into_iter().filter(|f| f.done))
            .map(|f| Beam { tokens: f.tokens, score: f.score, finish: f.finish })
            .collect();
        for beam in self.running.into_iter().filter(|beam| beam.score > NEVER / 2.0 && !beam.tokens.is_empty()) {
            if beams.len() >= self.options.sequences {
                break;
            }
            let divisor = (beam.tokens.len() as f64).powf(self.options.length_penalty) as f32;
            beams.push(Beam { score: beam.score / divisor, tokens: beam.tokens, finish: Finish::Stopped });
        }
        beams.truncate(self.options.sequences);
        beams
    }
}
