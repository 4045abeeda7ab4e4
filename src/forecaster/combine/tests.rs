//! Combinations with models whose answers are known.

use super::*;
use moesaic_kernels::rng::Rng;

/// What a model answers that continues each question by `say(values before the origin, step)`.
fn answers(trial: &Trial, horizon: usize, say: impl Fn(&[f32], usize) -> f32) -> Vec<Vec<Vec<f32>>> {
    let row = |question: &Question, origin: usize| (0..horizon).map(|k| say(&question.values[..origin], k)).collect();
    trial.questions.iter().map(|q| q.origins.iter().map(|&origin| row(q, origin)).collect()).collect()
}

fn last(past: &[f32], _: usize) -> f32 {
    *past.last().unwrap()
}

/// The forecast, and the candidates with their weights.
fn combined(y: &[f32], horizon: usize, say: impl Fn(&[f32], usize) -> f32) -> (Vec<f32>, Vec<(Candidate, f64)>) {
    let trial = Trial::of(y, horizon).unwrap();
    let answers = answers(&trial, horizon, say);
    let parts = trial.weigh(&answers).into_iter().map(|(candidate, weight, _)| (candidate.clone(), weight)).collect();
    (trial.finish(&answers), parts)
}

#[test]
fn an_exact_period_is_copied_whatever_the_model_says() {
    for (period, n) in [(7, 60), (24, 512), (336, 512)] {
        let mut rng = Rng::new(period as u64);
        let season: Vec<f32> = (0..period).map(|_| rng.normal() as f32).collect();
        let y: Vec<f32> = (0..n).map(|t| season[t % period]).collect();
        let (forecast, _) = combined(&y, 40, last);
        for (k, value) in forecast.iter().enumerate() {
            assert!((value - season[(n + k) % period]).abs() < 1e-3, "{period}: step {k}");
        }
    }
}

#[test]
fn a_model_that_knows_is_trusted_and_one_that_does_not_is_not() {
    // Nothing repeats in a wave whose frequency rises.
    let chirp = |t: f64| (0.0004 * t * t).sin();
    let y: Vec<f32> = (0..300).map(|t| chirp(f64::from(t)) as f32).collect();
    let whole = y.clone();
    // Every question is a suffix of the history: the time is told by what is missing at its front.
    let truth = move |past: &[f32], k: usize| {
        let from = whole.windows(past.len()).rposition(|window| window == past).unwrap();
        chirp((from + past.len() + k) as f64) as f32
    };
    let (forecast, parts) = combined(&y, 24, truth);
    for (k, value) in forecast.iter().enumerate() {
        assert!((f64::from(*value) - chirp((300 + k) as f64)).abs() < 1e-2, "step {k}: {value}");
    }
    assert!(parts.iter().all(|(c, _)| matches!(c.method, Method::Model { .. })), "{parts:?}");
    // One that is far off has no say.
    let mut rng = Rng::new(8);
    let noisy: Vec<f32> = (0..200).map(|t| [10.0, 14.0, 12.0, 9.0][t % 4] + 0.5 * rng.normal() as f32).collect();
    let (forecast, parts) = combined(&noisy, 12, |_, _| 500.0);
    assert!(forecast.iter().enumerate().all(|(k, v)| (v - [10.0, 14.0, 12.0, 9.0][k % 4]).abs() < 1.0), "{forecast:?}");
    assert!(parts.iter().all(|(c, _)| matches!(c.method, Method::Seasonal { .. })));
}

#[test]
fn growth_in_percent_is_continued_on_logarithms() {
    let of = |t: usize| (0.02 * t as f64 + [0.2, -0.1, 0.1, -0.2][t % 4]).exp() as f32;
    let y: Vec<f32> = (0..120).map(of).collect();
    let (forecast, parts) = combined(&y, 16, last);
    assert!(parts.iter().any(|(candidate, _)| candidate.log));
    for (k, value) in forecast.iter().enumerate() {
        assert!((value / of(120 + k) - 1.0).abs() < 0.05, "step {k}: {value} {}", of(120 + k));
    }
    // And nothing takes the logarithm of what is not positive.
    let shifted: Vec<f32> = y.iter().map(|v| v - 2.0).collect();
    assert!(combined(&shifted, 16, last).1.iter().all(|(candidate, _)| !candidate.log));
}

#[test]
fn short_histories_are_left_to_the_model_and_every_length_is_safe() {
    let mut rng = Rng::new(9);
    let y: Vec<f32> = (0..140).map(|_| rng.normal() as f32).collect();
    for n in 0..140 {
        for horizon in [1, 5, 60, 300] {
            let Some(trial) = Trial::of(&y[..n], horizon) else {
                assert!(n < SHORTEST);
                continue;
            };
            for question in &trial.questions {
                assert!(question.origins.iter().all(|o| (1..=question.values.len()).contains(o)), "{n} {horizon}");
                assert_eq!(question.origins.last(), Some(&question.values.len()));
            }
            let answers = answers(&trial, horizon, last);
            let forecast = trial.finish(&answers);
            assert!(forecast.len() == horizon && forecast.iter().all(|v| v.is_finite()), "{n} {horizon}");
        }
    }
}

#[test]
fn the_future_of_a_back_test_does_not_reach_its_forecast() {
    let mut rng = Rng::new(10);
    let mut y: Vec<f64> = (0..200).map(|t| [1.0, 5.0, 2.0][t % 3] + 0.3 * rng.normal()).collect();
    let paths = |y: &[f64]| Seasonal::fit(y, &Paths::of(y, 3), 20).unwrap();
    let family = paths(&y);
    for short in [None, Some(2)] {
        let candidate = Candidate { method: Method::Seasonal { short, family: family.clone() }, log: false };
        let before = candidate.seasonal(&y, [150].into_iter(), 20);
        assert!(before[0].is_some());
        y[150..].iter_mut().for_each(|v| *v += 100.0);
        assert_eq!(candidate.seasonal(&y, [150].into_iter(), 20), before);
    }
}
