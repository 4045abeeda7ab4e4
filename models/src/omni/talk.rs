//! Answers, word by word and patch by patch, in a conversation.

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::Modality;

use super::Omni;
use super::sequence::{self, Answer, Part, Row, Scale};
use crate::moma::Cache;

/// A conversation so far.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    cache: Cache,
    /// How the last series was scaled.
    scale: Option<Scale>,
    /// There is an answer, the last token of which was not read.
    answered: bool,
}

impl Memory {
    /// Tokens of the conversation.
    pub fn tokens(&self) -> usize {
        self.cache.seen().first().copied().unwrap_or(0)
    }

    /// Whether a series was shown, which a forecast may follow.
    pub fn has_series(&self) -> bool {
        self.scale.is_some()
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the model takes for the answer: words, or a forecast as long as it was asked for.
    Any,
    /// Words.
    Words,
    /// So many values that follow the last series.
    Values(usize),
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Ids of its words, without the last token.
    pub words: Vec<u32>,
    /// Quantiles of the values that come next, by level of the config and then by step; no steps where none are forecast.
    pub quantiles: Vec<Vec<f32>>,
    /// It ended of itself.
    pub finished: bool,
}

impl Reply {
    /// Steps that are forecast.
    pub fn steps(&self) -> usize {
        self.quantiles.first().map_or(0, Vec::len)
    }
}

impl Omni {
    /// The likeliest answer to a prompt that goes on with a conversation, of `most` tokens at most. A forecast's later patches follow the
    /// medians of earlier ones. On an error the conversation stays as it was.
    ///
    /// # Errors
    /// As [`sequence`](Self::sequence), a model that is not for inference ([`Routing::Causal`](crate::moma::Routing)), values where no series
    /// was shown, or a conversation that has grown longer than the model's context.
    pub fn reply(&self, prompt: &[Part<'_>], wanted: Wanted, most: usize, memory: &mut Memory) -> Result<Reply> {
        let mut after = memory.clone();
        let head: &[u32] = match (after.answered, after.tokens()) {
            (true, _) => &[self.marks.eos],
            (false, 0) => &[self.marks.bos],
            (false, _) => &[],
        };
        let row = Row::one(prompt.to_vec(), Answer::Open);
        let sequence = sequence::lay_out(self, head, after.scale, &[row])?;
        let (seen, new, context) = (after.tokens(), sequence.embeds.dim(1)?, self.config.context);
        if seen + new >= context {
            let advice = if seen == 0 { "show less, or ask more briefly" } else { "start anew" };
            bail!("{seen} tokens and {new} new ones leave no room in this model's context of {context}: {advice}");
        }
        after.scale = sequence.scales.into_iter().next().flatten();
        let levels = self.config.series.as_ref().map_or(0, |series| series.levels.len());
        let mut reply = Reply { quantiles: vec![Vec::new(); levels], ..Reply::default() };
        if let (Wanted::Values(1..), None) = (wanted, after.scale) {
            bail!("a forecast follows a series: there is none before it");
        }
        let forward = |x: &Tensor, modality: &[Modality], cache: &mut Cache| {
            let hidden = self.backbone.forward_embeds(x, modality, &[], Some(cache))?.hidden;
            hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous() // (1, 1, h)
        };
        let mut last = forward(&sequence.embeds, &sequence.modality, &mut after.cache)?;
        for _ in 0..most {
            if wanted == Wanted::Values(reply.steps()) {
                reply.finished = true;
                break;
            }
            let (next, modality) = match self.next(&last, wanted, after.scale)? {
                Next::End => {
                    reply.finished = true;
                    break;
                }
                Next::Word(id) => {
                    reply.words.push(id);
                    (self.embed_all(&[id], &[], &[], &[])?.0, Modality::Text)
                }
                Next::Patch(scale) => (self.extend(&last, scale, wanted, &mut reply.quantiles)?, Modality::Series),
            };
            if after.tokens() + 1 >= context {
                break;
            }
            last = forward(&next.unsqueeze(0)?, &[modality], &mut after.cache)?;
        }
        // The last of the values may have come with the last token.
        reply.finished |= matches!(wanted, Wanted::Values(steps) if reply.steps() >= steps);
        after.answered = true;
        *memory = after;
        Ok(reply)
    }

    /// What comes after the last token.
    fn next(&self, last: &Tensor, wanted: Wanted, scale: Option<Scale>) -> Result<Next> {
        if let (Wanted::Values(_), Some(scale)) = (wanted, scale) {
            return Ok(Next::Patch(scale));
        }
        let scores = self.logits(last)?.flatten_all()?.to_vec1::<f32>()?;
        let forecasts = wanted == Wanted::Any && scale.is_some();
        let open = scores.iter().enumerate().filter(|(id, _)| forecasts || self.marks.forecast != Some(*id as u32));
        let Some((id, score)) = open.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))) else {
            bail!("there is no word to answer with");
        };
        if !score.is_finite() {
            bail!("the scores of words are not finite: are the weights damaged?");
        }
        Ok(match (id as u32, scale) {
            (id, _) if id == self.marks.eos => Next::End,
            (id, Some(scale)) if self.marks.forecast == Some(id) => Next::Patch(scale),
            (id, _) => Next::Word(id),
        })
    }

    /// Adds the quantiles of the next patch to a forecast, no more than are wanted, and embeds their medians.
    ///
    /// # Shapes
    /// `last [1, 1, h]` to `[1, h]`
    fn extend(&self, last: &Tensor, scale: Scale, wanted: Wanted, all: &mut [Vec<f32>]) -> Result<Tensor> {
        let median = self.config.series.as_ref().map_or(0, |series| series.median());
        let mut values = self.quantiles(&last.squeeze(0)?)?.squeeze(0)?.to_vec2::<f32>()?; // [patch][levels]
        // Quantiles that were learnt one by one may cross.
        values.iter_mut().for_each(|levels| levels.sort_by(f32::total_cmp));
        let most = if let Wanted::Values(steps) = wanted { steps } else { usize::MAX };
        for levels in &values {
            let values = levels.iter().map(|&value| scale.invert(value));
            if !values.clone().all(f32::is_finite) {
                bail!(
                    "the forecast is not finite: are the weights damaged, or the values of the series close to the largest?"
                );
            }
            let open = all.iter_mut().filter(|all| all.len() < most);
            open.zip(values).for_each(|(all, value)| all.push(value));
        }
        let medians: Vec<f32> = values.iter().filter_map(|levels| levels.get(median).copied()).collect();
        self.embed_all(&[], &[], &[], &[sequence::patch(&medians)]).map(|(token, _)| token)
    }

    /// The likeliest words after a prompt, to the last token or `most` words.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub fn answer(&self, prompt: &[Part<'_>], most: usize) -> Result<Vec<u32>> {
        Ok(self.reply(prompt, Wanted::Words, most, &mut Memory::default())?.words)
    }

    /// Quantiles of the `steps` values that follow the last series of a prompt, by level of the config and then by step.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub fn forecast(&self, prompt: &[Part<'_>], steps: usize) -> Result<Vec<Vec<f32>>> {
        Ok(self.reply(prompt, Wanted::Values(steps), usize::MAX, &mut Memory::default())?.quantiles)
    }
}

/// What a token predicts.
enum Next {
    End,
    Word(u32),
    /// Values, scaled so.
    Patch(Scale),
}
