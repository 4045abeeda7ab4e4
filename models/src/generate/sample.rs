//! Choosing a token from scores.

use moesaic_kernels::rng::Rng;

use super::options::Options;

/// Chooses tokens; keeps its buffers from one to the next.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    scores: Vec<f32>,
    /// Tokens that can be drawn, with their probabilities up to a common factor.
    drawable: Vec<(u32, f64)>,
}

impl Sampler {
    /// The next token, `None` if scores are not finite. One random number is used unless the temperature is 0.
    pub fn choose(&mut self, logits: &[f32], seen: &[u32], options: &Options, rng: &mut Rng) -> Option<u32> {
        let best = self.penalise(logits, seen, options.repetition_penalty)?;
        if options.temperature == 0.0 {
            return Some(best);
        }
        self.filter(options);
        let total: f64 = self.drawable.iter().map(|(_, p)| p).sum();
        let mut left = rng.uniform() * total;
        for &(id, p) in &self.drawable {
            left -= p;
            if left < 0.0 {
                return Some(id);
            }
        }
        Some(self.drawable.last().map_or(best, |(id, _)| *id)) // rounding left a trace
    }

    /// Copies the scores, penalises tokens that were seen, and finds the best, the first among equals.
    fn penalise(&mut self, logits: &[f32], seen: &[u32], penalty: f64) -> Option<u32> {
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if penalty != 1.0 {
            apply_penalty(&mut self.scores, seen, penalty);
        }
        let mut best = (0u32, f32::NEG_INFINITY);
        for (id, &score) in (0u32..).zip(&self.scores) {
            if score.is_nan() {
                return None;
            }
            if score > best.1 {
                best = (id, score);
            }
        }
        best.1.is_finite().then_some(best.0)
    }

    /// Fills `drawable` in ascending order of ids: temperature, top-k, top-p, min-p, in this order.
    fn filter(&mut self, options: &Options) {
        let top = self.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = match options.top_k {
            0 => f32::NEG_INFINITY,
            k if k >= self.scores.len() => f32::NEG_INFINITY,
            k => {
                let mut scores = self.scores.clone();
                *scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
            }
        };
        // Relative to the best score, so that no temperature overflows.
        let weight = |score: f32| (f64::from(score - top) / options.temperature).exp();
        self.drawable.clear();
        self.drawable.extend((0u32..).zip(&self.scores).filter(|(_, s)| **s >= least).map(|(id, &s)| (id, weight(s))));
        if options.top_p < 1.0 {
            self.drawable.sort_by(|a, b| b.1.total_cmp(&a.1));
            let total: f64 = self.drawable.iter().map(|(_, p)| p).sum();
            let mut before = 0.0;
            // A token stays while those before it do not reach top-p; the best always stays.
            let keep = self.drawable.iter().take_while(|(_, p)| {
                let stays = before < options.top_p * total;
                before += p;
                stays
            });
            let keep = keep.count().max(1);
            self.drawable.truncate(keep);
            self.drawable.sort_unstable_by_key(|(id, _)| *id);
        }
        // The weight of the best token is 1.
        self.drawable.retain(|(_, p)| *p >= options.min_p);
    }
}

/// Divides positive scores of `seen` tokens by the penalty and multiplies negative ones.
pub(super) fn apply_penalty(scores: &mut [f32], seen: &[u32], penalty: f64) {
    let penalty = penalty as f32;
    for &id in seen {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// `ln(sum(exp(x)))`
pub(super) fn log_sum_exp(x: &[f32]) -> f64 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + x.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln()
}

/// The logarithm of a token's probability.
pub(super) fn log_prob(logits: &[f32], id: u32) -> f32 {
    logits.get(id as usize).map_or(f32::NEG_INFINITY, |&score| (f64::from(score) - log_sum_exp(logits)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Cases {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        repetition_penalty: f64,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        min_p: f64,
        logits: Vec<f32>,
        history: Vec<u32>,
        probabilities: Vec<f64>,
    }

    #[test]
    fn filters_leave_what_the_reference_leaves() {
        let cases: Cases = serde_json::from_str(include_str!("../../tests/data/filters.json")).unwrap();
        let mut filtered = 0;
        for (i, case) in cases.cases.iter().enumerate() {
            let options = Options {
                repetition_penalty: case.repetition_penalty,
                temperature: case.temperature,
                top_k: case.top_k,
                top_p: case.top_p,
                min_p: case.min_p,
                ..Options::default()
            };
            let mut sampler = Sampler::default();
            sampler.penalise(&case.logits, &super::super::distinct(&case.history), case.repetition_penalty).unwrap();
            sampler.filter(&options);
            let total: f64 = sampler.drawable.iter().map(|(_, p)| p).sum();
            let mut found = vec![0.0; case.logits.len()];
            sampler.drawable.iter().for_each(|&(id, p)| found[id as usize] = p / total);
            filtered += usize::from(found.contains(&0.0));
            for (id, (found, expected)) in found.iter().zip(&case.probabilities).enumerate() {
                assert!((found - expected).abs() < 1e-5, "case {i}, token {id}: {found}, expected {expected}");
            }
        }
        assert!(filtered > 10, "{filtered}");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 2f32.ln(), f32::NEG_INFINITY, 5f32.ln()];
        let options = Options { temperature: 1.0, ..Options::default() };
        let (mut sampler, mut rng) = (Sampler::default(), Rng::new(4));
        let mut counts = [0; 4];
        for _ in 0..80_000 {
            counts[sampler.choose(&logits, &[], &options, &mut rng).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([10_000i32, 20_000, 0, 50_000]) {
            assert!((count - expected).abs() < 600, "{counts:?}");
        }
    }

    #[test]
    fn scores_that_are_not_finite_are_refused() {
        let (mut sampler, mut rng) = (Sampler::default(), Rng::new(1));
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
            assert_eq!(sampler.choose(logits, &[], &Options::default(), &mut rng), None, "{logits:?}");
        }
        // The first of equal scores, and no overflow at a tiny temperature.
        let cold = Options { temperature: 1e-300, top_p: 0.5, ..Options::default() };
        assert_eq!(sampler.choose(&[1.0, 3.0, 3.0], &[], &Options::default(), &mut rng), Some(1));
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.0], &[], &cold, &mut rng), Some(1));
    }

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let logits = [1.0f32, 2.0, 3.0];
        assert!((log_prob(&logits, 2) - -0.407_605_96).abs() < 1e-6);
        assert_eq!(log_prob(&logits, 9), f32::NEG_INFINITY);
    }
}
