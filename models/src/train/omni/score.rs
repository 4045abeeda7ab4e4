//! What a model answers and forecasts, beside what is right.

use std::sync::Arc;

use candle_core::Result;

use super::items::{Items, Said, Shown};
use crate::omni::{Omni, Senses};

/// Words of an answer at most.
const MOST_WORDS: usize = 64;

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

/// Asks all questions about one item.
///
/// # Errors
/// The item cannot be read, does not fit the model, or the model is not one for inference.
pub fn score(model: &Omni, senses: &Senses, items: &Items, index: usize) -> Result<Vec<Scored>> {
    let item = items.get(index)?;
    let shown = Shown::read(item, senses, 0.0)?;
    let mut all = Vec::with_capacity(item.questions.len());
    for question in &item.questions {
        let prompt = shown.prompt(item, question);
        let (mut right, mut errors) = (None, None);
        match &question.answer {
            Said::Words(words) => right = Some(model.answer(&prompt, words.len().max(MOST_WORDS))? == *words),
            Said::Values(values) => {
                let quantiles = model.forecast(&prompt, values.len())?;
                let median = model.config().series.as_ref().and_then(|series| quantiles.get(series.median()));
                let last = item.series.iter().rev().copied().find(|v| v.is_finite()).unwrap_or(0.0);
                let (mut own, mut naive, mut count) = (0.0, 0.0, 0.0f64);
                for (i, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                    let forecast = median.and_then(|median| median.get(i)).copied().unwrap_or(f32::NAN);
                    own += f64::from((forecast - value).abs());
                    naive += f64::from((last - value).abs());
                    count += 1.0;
                }
                errors = Some((own / count.max(1.0), naive / count.max(1.0)));
            }
        }
        all.push(Scored { task: question.task.clone(), group: question.group.clone(), right, errors });
    }
    Ok(all)
}
