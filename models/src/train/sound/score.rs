//! How many questions a model that listens answers right, and which experts hear and read them.

use std::sync::Arc;

use candle_core::{Result, bail};
use moesaic_kernels::Routes;

use super::manifest::Manifest;
use crate::usam::Usam;

/// What became of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// What kind of question it is.
    pub task: Arc<str>,
    /// The part of the data.
    pub group: Arc<str>,
    /// Greedy generation gives the answer, to the last token.
    pub right: bool,
    /// Of each projector, its mean weight over the tokens of the sound.
    pub projectors: Vec<f64>,
    /// Of each sparse layer of the language model, bottom to top, the share of each expert in the weights of all tokens.
    pub layers: Vec<Vec<f64>>,
}

/// Asks all questions about one clip. With `routes`, each by itself, so that it is seen where its tokens go.
///
/// # Errors
/// The clip cannot be read, or does not fit the model.
pub fn score(model: &Usam, clips: &Manifest, index: usize, routes: bool) -> Result<Vec<Scored>> {
    let questions = clips.questions(index)?;
    let encoded = model.encode(&model.sound(&[&clips.sound(index)?])?, None)?;
    let together = if routes { 1 } else { questions.len().max(1) };
    let mut all = Vec::with_capacity(questions.len());
    for part in questions.chunks(together) {
        let rows = model.repeated(&encoded, &vec![0; part.len()])?;
        let prompts: Vec<_> = part.iter().map(|question| question.prompt.clone()).collect();
        let texts: Vec<_> = part.iter().map(|question| question.text.clone()).collect();
        let pass = model.pass(&rows, &prompts, &texts)?;
        let (mut projectors, mut layers) = (Vec::new(), Vec::new());
        if let Some(heard) = pass.projected().first().filter(|_| routes) {
            projectors = shares(heard)?;
            layers = pass.layers().iter().map(shares).collect::<Result<_>>()?;
        }
        for (question, right) in part.iter().zip(model.judged(&pass)?) {
            let (task, group) = (question.task.clone(), question.group.clone());
            all.push(Scored { task, group, right, projectors: projectors.clone(), layers: layers.clone() });
        }
    }
    Ok(all)
}

/// The share of each expert in the weights of all routes.
fn shares(routes: &Routes) -> Result<Vec<f64>> {
    let weights = routes.weight().to_vec1::<f32>()?;
    let mut sums = Vec::with_capacity(routes.experts());
    for ends in routes.offsets()?.windows(2) {
        let &[start, end] = ends else { continue };
        let Some(own) = weights.get(start..end) else { bail!("routes without weights") };
        sums.push(own.iter().map(|&w| f64::from(w)).sum::<f64>());
    }
    let total: f64 = sums.iter().sum();
    Ok(sums.into_iter().map(|sum| if total > 0.0 { sum / total } else { 0.0 }).collect())
}
