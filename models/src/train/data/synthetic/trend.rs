//! Trends: how the level of a series moves over the window.

use super::process::{slow, walk};
use moesaic_kernels::rng::Rng;

/// A trend that spans about 1 over the window, rising or falling; starts anywhere.
pub(super) fn trend(rng: &mut Rng, n: usize) -> Vec<f64> {
    let x = |t: usize| t as f64 / n as f64;
    let sign = if rng.chance(0.6) { 1.0 } else { -1.0 };
    let mut out: Vec<f64> = match rng.below(20) {
        // Linear.
        0..=4 => (0..n).map(x).collect(),
        // Linear, bent at 1 to 4 points.
        5..=7 => piecewise(rng, n),
        // Logistic growth.
        8 => {
            let (centre, rate) = (rng.range(-0.2, 1.2), rng.log_range(3.0, 40.0));
            (0..n).map(|t| 1.0 / (1.0 + (-rate * (x(t) - centre)).exp())).collect()
        }
        // Damped: towards an asymptote.
        9..=10 => {
            let rate = rng.log_range(0.5, 12.0);
            (0..n).map(|t| 1.0 - (-rate * x(t)).exp()).collect()
        }
        // Exponential growth or decay.
        11..=12 => {
            let rate = rng.log_range(0.5, 4.0);
            (0..n).map(|t| ((rate * x(t)).exp() - 1.0) / (rate.exp() - 1.0)).collect()
        }
        // Quadratic: a slope that grows.
        13..=14 => {
            let (slope, bend) = (rng.range(0.0, 1.0), rng.range(-1.5, 1.0));
            (0..n).map(|t| slope * x(t) + bend * x(t) * x(t)).collect()
        }
        // A random walk with drift, or one that was integrated (a slope that wanders).
        15..=17 => walk(rng, n),
        18 => {
            let mut level = 0.0;
            let slope = walk(rng, n);
            slope
                .iter()
                .map(|s| {
                    level += 2.0 * s / n as f64;
                    level
                })
                .collect()
        }
        _ => slow(rng, n),
    };
    out.iter_mut().for_each(|v| *v *= sign);
    out
}

fn piecewise(rng: &mut Rng, n: usize) -> Vec<f64> {
    let bends = 1 + rng.below(4);
    let mut knots: Vec<usize> = (0..bends).map(|_| rng.below(n)).collect();
    knots.sort_unstable();
    let mut slope = rng.normal() / n as f64;
    let mut level = 0.0;
    let mut next = knots.into_iter().peekable();
    (0..n)
        .map(|t| {
            while next.next_if(|k| *k <= t).is_some() {
                slope = rng.normal() * 1.5 / n as f64;
            }
            level += slope;
            level
        })
        .collect()
}

/// Adds 1 to 3 lasting jumps of the level, of the order of `size`.
pub(super) fn level_shifts(rng: &mut Rng, values: &mut [f64], size: f64) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(values.len());
        let jump = size * rng.normal() * 1.5;
        // Some changes take a while.
        let ramp = if rng.chance(0.3) { rng.log_range(2.0, 30.0) } else { 1.0 };
        for (step, value) in values[at..].iter_mut().enumerate() {
            *value += jump * ((step + 1) as f64 / ramp).min(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trends_span_about_1_and_differ() {
        let mut spans: Vec<f64> = (0..500)
            .map(|seed| {
                let values = trend(&mut Rng::new(seed), 300);
                assert!(values.len() == 300 && values.iter().all(|v| v.is_finite()));
                values.iter().fold(f64::MIN, |m, v| m.max(*v)) - values.iter().fold(f64::MAX, |m, v| m.min(*v))
            })
            .collect();
        spans.sort_by(f64::total_cmp);
        assert!(spans[10] > 0.01 && (0.5..2.0).contains(&spans[250]) && spans[499] < 50.0, "{spans:?}");
    }

    #[test]
    fn level_shifts_last() {
        let mut values = vec![0.0; 200];
        level_shifts(&mut Rng::new(2), &mut values, 1.0);
        assert!(values[199] != 0.0 && (values[199] - values[198]).abs() < 0.2);
    }
}
