//! What a model answers and forecasts, beside what is right.

use std::sync::Arc;

use candle_core::Result;

use super::items::{Items, Said, Shown};
use crate::omni::{Memory, Omni, Senses, Wanted};

/// Tokens of an answer at most.
const MOST_TOKENS: usize = 64;

/// What became of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What kind of question it is.
    pub task: Arc<str>,
    /// The part of the data.
    pub group: Arc<str>,
    /// Of an answer in words: it is the one that is right.
    pub right: Option<bool>,
    /// Of a forecast: its mean absolute error, and that of the last value of the series.
    pub errors: Option<(f64, f64)>,
}

/// Asks all questions about one item, each alone, or `together` in one conversation, which begins anew where the context is full. Only the
/// first question of a conversation comes with what it is about.
///
/// # Errors
/// The item cannot be read, does not fit the model, or the model is not one for inference.
pub fn score(model: &Omni, senses: &Senses, items: &Items, index: usize, together: bool) -> Result<Vec<Scored>> {
    let item = items.get(index)?;
    let shown = Shown::read(item, senses, 0.0)?;
    let (mut all, mut memory) = (Vec::with_capacity(item.questions.len()), Memory::default());
    for question in &item.questions {
        let asks = question.turn(Vec::new()).tokens(model.config());
        if !together || memory.tokens() + asks + 2 > model.config().context {
            memory = Memory::default();
        }
        let new = memory.tokens() == 0;
        let prompt = question.turn(if new { shown.parts(item) } else { Vec::new() }).prompt;
        let (mut right, mut errors) = (None, None);
        match &question.answer {
            Said::Words(words) => {
                let reply = model.reply(&prompt, Wanted::Any, words.len().max(MOST_TOKENS), &mut memory)?;
                right = Some(reply.words == *words && reply.steps() == 0);
            }
            Said::Values(values) => {
                let reply = model.reply(&prompt, Wanted::Values(values.len()), usize::MAX, &mut memory)?;
                let median = model.config().series.as_ref().and_then(|series| reply.quantiles.get(series.median()));
                errors = Some(differences(&item.series, values, median.map_or(&[], Vec::as_slice)));
            }
        }
        all.push(Scored { task: question.task.clone(), group: question.group.clone(), right, errors });
    }
    Ok(all)
}

/// The mean absolute errors of a forecast and of the last value. What was not forecast counts as the last value.
fn differences(series: &[f32], values: &[f32], forecast: &[f32]) -> (f64, f64) {
    let last = series.iter().rev().copied().find(|v| v.is_finite()).unwrap_or(0.0);
    let (mut own, mut naive, mut count) = (0.0, 0.0, 0.0f64);
    for (i, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        own += f64::from((forecast.get(i).copied().unwrap_or(last) - value).abs());
        naive += f64::from((last - value).abs());
        count += 1.0;
    }
    (own / count.max(1.0), naive / count.max(1.0))
}
