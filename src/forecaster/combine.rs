//! The model's forecast combined with smoothed seasonal ones, weighted by how each did on the series' own past.
//!
//! Combining forecasts by their past errors is Bates and Granger's ("The Combination of Forecasts", 1969). Candidates are
//! the model on the history, on its newer half and, for positive series, on logarithms; and [`Seasonal`] families at lag 1
//! and at the [`Lags`] that the history shows, on values and on logarithms. All forecast the last `h = min(horizon, n / 4)`
//! values and more from up to 8 origins, `h / 4` apart, each from what lay before its origin; candidate `c` then weighs
//!
//! `w[c] = (loss[c] / loss[model]) ^ (-4 m / (m + 1))`
//!
//! where losses are sums of absolute errors over the origins that both have, and `m` how many horizons those span: little
//! evidence leaves the weights near equal. (The choice of lags and of the families' own weights has seen the whole history, and a
//! candidate of the model is standardised by all of it.)
//!
//! Every series is combined by itself, in one thread and in f64, so neighbours in a batch and the number of threads change
//! nothing.

mod lags;
mod seasonal;

use lags::Lags;
use seasonal::{Paths, Seasonal, without_season};

/// Shorter histories are left to the model.
const SHORTEST: usize = 16;
/// The most origins of a back-test.
const ORIGINS: usize = 8;
/// The exponent of the weights with much evidence.
const SHARPNESS: f64 = 4.0;
/// Candidates below this weight are left out.
const LEAST: f64 = 0.01;
/// A positive series is also forecast on logarithms where its largest value is this many times its least.
const SPREAD: f64 = 1.5;

/// One way to forecast.
#[derive(Debug, Clone, PartialEq)]
enum Method {
    /// The model on the history, or its newer half.
    Model { half: bool },
    /// A family on what a smoothed profile at the short lag, if any, leaves.
    Seasonal { short: Option<usize>, family: Seasonal },
}

/// A method, on values or on their logarithms.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    method: Method,
    log: bool,
}

/// What the model is asked for: to continue `values` from each of the `origins`, the last of which is their end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    pub values: Vec<f32>,
    pub origins: Vec<usize>,
}

/// A back-test under way: the model has not answered yet.
pub(super) struct Trial {
    history: Vec<f64>,
    horizon: usize,
    /// Steps that a back-test scores.
    steps: usize,
    origins: Vec<usize>,
    /// Those of the model first.
    candidates: Vec<Candidate>,
    /// One for each candidate of the model.
    pub questions: Vec<Question>,
}

impl Trial {
    /// The back-test of a history; `None` where it is too short to say anything.
    pub fn of(history: &[f32], horizon: usize) -> Option<Self> {
        let n = history.len();
        if n < SHORTEST {
            return None;
        }
        let steps = horizon.min(n / 4).max(1);
        let earliest = (n / 3).max(8);
        let mut origins: Vec<usize> = (0..ORIGINS)
            .map_while(|back| (n - steps).checked_sub(back * (steps / 4).max(1)))
            .take_while(|&origin| origin >= earliest)
            .collect();
        origins.reverse();
        let y: Vec<f64> = history.iter().map(|&v| f64::from(v)).collect();
        let mut candidates = vec![Candidate { method: Method::Model { half: false }, log: false }];
        let half = Candidate { method: Method::Model { half: true }, log: false };
        candidates.extend((n >= 64).then_some(half));
        let log = multiplicative(&y);
        candidates.extend(log.then_some(Candidate { method: Method::Model { half: false }, log }));
        let questions = candidates
            .iter()
            .map(|candidate| {
                let (values, offset) = candidate.view(&y);
                // Where little is left before an origin the model would be judged on next to nothing.
                let room = (n / 8).clamp(8, 32);
                let origins = origins.iter().filter_map(|o| o.checked_sub(offset).filter(|&o| o >= room));
                let origins = origins.chain([values.len()]).collect();
                Question { values: values.iter().map(|&v| v as f32).collect(), origins }
            })
            .collect();
        let lags = Lags::of(&y, horizon);
        let single = std::iter::once(1).chain(lags.single).map(|lag| (None, lag));
        let nested = lags.nested.map(|(short, long)| (Some(short), long));
        for (short, lag) in single.chain(nested) {
            for log in [false, true] {
                // A season within a season is sought in the values alone.
                if !log || (short.is_none() && multiplicative(&y)) {
                    let x = if log { y.iter().map(|v| v.ln()).collect() } else { y.clone() };
                    let x = short.map(|short| without_season(&x, short).0).unwrap_or(x);
                    let family = Seasonal::fit(&x, &Paths::of(&x, lag), steps);
                    candidates
                        .extend(family.map(|family| Candidate { method: Method::Seasonal { short, family }, log }));
                }
            }
        }
        Some(Trial { history: y, horizon, steps, origins, candidates, questions })
    }

    /// The combined forecast, from the model's answers to the questions.
    pub fn finish(self, answers: &[Vec<Vec<f32>>]) -> Vec<f32> {
        let parts = self.weigh(answers);
        let all: f64 = parts.iter().map(|(_, weight, _)| weight).sum();
        if all.is_nan() || all <= 0.0 {
            // The model has answered with what is no number: the caller says so.
            return answers.first().and_then(|rows| rows.last()).cloned().unwrap_or_default();
        }
        let mean = |k: usize| parts.iter().filter_map(|(_, w, said)| said.get(k).map(|v| w / all * v)).sum::<f64>();
        let limit = f64::from(f32::MAX);
        (0..self.horizon).map(|k| mean(k).clamp(-limit, limit) as f32).collect()
    }

    /// The candidates that count, each with its weight and its forecast.
    fn weigh(&self, answers: &[Vec<Vec<f32>>]) -> Vec<(&Candidate, f64, Vec<f64>)> {
        let Trial { history: y, horizon, steps, origins, candidates, questions } = self;
        let n = y.len();
        // Of each candidate, what it said at each origin, and at the end.
        let mut said: Vec<Vec<Option<Vec<f64>>>> = Vec::with_capacity(candidates.len());
        for (at, candidate) in candidates.iter().enumerate() {
            let of_model = questions.get(at).zip(answers.get(at));
            let all = origins.iter().copied().chain([n]);
            said.push(match of_model {
                Some((question, answers)) => {
                    let offset = n - question.values.len();
                    let find = |origin: usize| question.origins.iter().position(|&o| o + offset == origin);
                    let answer = |origin| Some(candidate.undo(answers.get(find(origin)?)?, y));
                    all.map(answer).collect()
                }
                None => candidate.seasonal(y, all, *horizon),
            });
        }
        let weights = weights(y, origins, *steps, &said);
        let parts = candidates.iter().zip(weights).zip(said);
        let part = |((candidate, weight), mut said): ((_, f64), Vec<Option<Vec<f64>>>)| {
            (weight >= LEAST).then_some((candidate, weight, said.pop()??))
        };
        parts.filter_map(part).collect()
    }
}

impl Candidate {
    /// What the model sees of a history, and where that starts.
    fn view(&self, y: &[f64]) -> (Vec<f64>, usize) {
        let from = if self.method == (Method::Model { half: true }) { y.len() / 2 } else { 0 };
        (y[from..].iter().map(|&v| if self.log { v.ln() } else { v }).collect(), from)
    }

    /// Values from what the model or a family said. An exponential is kept from running away: it may pass the history's
    /// largest value by e squared.
    fn undo<T: Copy + Into<f64>>(&self, said: &[T], y: &[f64]) -> Vec<f64> {
        let most = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let said = said.iter().map(|&v| -> f64 { v.into() });
        if self.log { said.map(|v| v.min(most.ln() + 2.0).exp()).collect() } else { said.collect() }
    }

    /// What a family says at each origin; `None` where the history before it is shorter than the lags.
    fn seasonal(&self, y: &[f64], origins: impl Iterator<Item = usize>, horizon: usize) -> Vec<Option<Vec<f64>>> {
        let Method::Seasonal { short, family } = &self.method else { return origins.map(|_| None).collect() };
        let (x, _) = self.view(y);
        let (rest, profile) = short.map(|short| without_season(&x, short)).unwrap_or_else(|| (x.clone(), Vec::new()));
        let paths = Paths::of(&rest, family.lag());
        let offset = short.unwrap_or(0);
        let say = |origin: usize| {
            // A season seen once, and one value more, to be judged by.
            let mut values =
                family.forecast(&paths, origin.checked_sub(offset).filter(|&o| o > family.lag())?, horizon)?;
            if let Some(short) = short {
                let profile = profile.get(origin - short..origin)?;
                values.iter_mut().zip(profile.iter().cycle()).for_each(|(value, season)| *value += season);
            }
            Some(self.undo(&values, y))
        };
        origins.map(say).collect()
    }
}

/// Whether logarithms may suit a history.
fn multiplicative(y: &[f64]) -> bool {
    let (least, most) = y.iter().fold((f64::INFINITY, 0f64), |(least, most), &v| (least.min(v), most.max(v)));
    least > 0.0 && most > SPREAD * least
}

/// The weight of each candidate, the first being the model on the history; see the module.
fn weights(y: &[f64], origins: &[usize], steps: usize, said: &[Vec<Option<Vec<f64>>>]) -> Vec<f64> {
    let loss = |said: &[f64], origin: usize| -> f64 {
        said.iter().zip(&y[origin..(origin + steps).min(y.len())]).map(|(f, y)| (f - y).abs()).sum()
    };
    // Below this a difference is rounding: a billionth of how far the values are from the last one before.
    let least: f64 = origins.iter().map(|&o| loss(&vec![y[o - 1]; steps], o)).sum::<f64>() * 1e-9 + f64::MIN_POSITIVE;
    let Some((model, _)) = said.split_first() else { return Vec::new() };
    let weight = |(at, candidate): (usize, &Vec<Option<Vec<f64>>>)| {
        let both: Vec<(usize, &[f64], &[f64])> = origins
            .iter()
            .zip(candidate.iter().zip(model))
            .filter_map(|(&o, (said, model))| Some((o, &said.as_ref()?[..], &model.as_ref()?[..])))
            .collect();
        let (Some(first), Some(last)) = (both.first(), both.last()) else {
            // Never tried: only the model itself may go on.
            return if at == 0 { 1.0 } else { 0.0 };
        };
        let spans = 1.0 + (last.0 - first.0) as f64 / steps as f64;
        let losses =
            both.iter().fold((least, least), |(a, b), (o, said, model)| (a + loss(said, *o), b + loss(model, *o)));
        (losses.0 / losses.1).clamp(1e-9, 1e9).powf(-SHARPNESS * spans / (spans + 1.0))
    };
    let weights: Vec<f64> = said.iter().enumerate().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests;
