//! What happens to a series on its way to a table: outliers, gaps, rounding, aggregation, caps.

use super::process::poisson;
use moesaic_kernels::rng::Rng;

/// Adds a few spikes of `size` times 2 to 8, single or a few steps long.
pub(super) fn outliers(rng: &mut Rng, values: &mut [f64], size: f64) {
    let rate = rng.log_range(0.001, 0.02) * values.len() as f64;
    let one_sided = rng.chance(0.5);
    for _ in 0..=poisson(rng, rate) as usize {
        let at = rng.below(values.len());
        let length = 1 + if rng.chance(0.2) { rng.below(5) } else { 0 };
        let sign = if one_sided || rng.chance(0.5) { 1.0 } else { -1.0 };
        let spike = sign * size * rng.range(2.0, 8.0);
        values.iter_mut().skip(at).take(length).for_each(|v| *v += spike);
    }
}

/// Takes out stretches or single values: NaN, or what a careless export puts there (the last value, a line, 0).
pub(super) fn gaps(rng: &mut Rng, values: &mut [f64]) {
    let n = values.len();
    let mut gone = vec![false; n];
    if rng.chance(0.4) {
        let rate = rng.log_range(0.005, 0.2);
        gone.iter_mut().for_each(|g| *g = rng.chance(rate));
    } else {
        for _ in 0..=rng.below(3) {
            let (at, length) = (rng.below(n), 1 + rng.log_range(1.0, n as f64 / 6.0) as usize);
            gone.iter_mut().skip(at).take(length).for_each(|g| *g = true);
        }
    }
    match rng.below(10) {
        0..=5 => values.iter_mut().zip(&gone).filter(|(_, g)| **g).for_each(|(v, _)| *v = f64::NAN),
        6 => {
            for t in 1..n {
                if gone[t] {
                    values[t] = values[t - 1];
                }
            }
        }
        7 => values.iter_mut().zip(&gone).filter(|(_, g)| **g).for_each(|(v, _)| *v = 0.0),
        _ => {
            let known: Vec<usize> = (0..n).filter(|t| !gone[*t]).collect();
            for pair in known.windows(2) {
                let (from, to) = (pair[0], pair[1]);
                let (low, high) = (values[from], values[to]);
                for (step, value) in values[from + 1..to].iter_mut().enumerate() {
                    *value = low + (high - low) * (step + 1) as f64 / (to - from) as f64;
                }
            }
        }
    }
}

/// How a finer series becomes a coarser one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aggregate {
    Mean,
    Last,
    Max,
}

/// Reduces every `factor` values to one; a tail shorter than `factor` is left out.
pub(super) fn aggregate(values: &[f64], factor: usize, how: Aggregate) -> Vec<f64> {
    let factor = factor.max(1);
    values
        .chunks_exact(factor)
        .map(|part| match how {
            Aggregate::Mean => part.iter().sum::<f64>() / factor as f64,
            Aggregate::Last => part[factor - 1],
            Aggregate::Max => part.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
        .collect()
}

/// Rounds to a grid of 4 to 200 steps over the range, as instruments and reports do.
pub(super) fn round(rng: &mut Rng, values: &mut [f64]) {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let grid = (high - low) / rng.log_range(4.0, 200.0);
    if grid > 0.0 && grid.is_finite() {
        values.iter_mut().for_each(|v| *v = (*v / grid).round() * grid);
    }
}

/// Cuts the series at a quantile below, above or both: saturation and capacity.
pub(super) fn caps(rng: &mut Rng, values: &mut [f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| sorted[((sorted.len() - 1) as f64 * q) as usize];
    let (low, high) = (quantile(rng.range(0.02, 0.5)), quantile(rng.range(0.6, 0.98)));
    let which = rng.below(3);
    for value in values {
        if which != 1 {
            *value = value.max(low);
        }
        if which != 0 {
            *value = value.min(high);
        }
    }
}

/// A second series at a random place in the same window, linearly stretched or squeezed: other sampling of one pattern.
pub(super) fn resample(values: &[f64], n: usize, start: f64, rate: f64) -> Vec<f64> {
    let last = values.len().saturating_sub(1);
    (0..n)
        .map(|t| {
            let place = (start + rate * t as f64).clamp(0.0, last as f64);
            let below = place as usize;
            let part = place.fract();
            values[below] * (1.0 - part) + values[(below + 1).min(last)] * part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregation_and_resampling() {
        let values = [1.0, 3.0, 5.0, 9.0, 2.0];
        assert_eq!(aggregate(&values, 2, Aggregate::Mean), [2.0, 7.0]);
        assert_eq!(aggregate(&values, 2, Aggregate::Last), [3.0, 9.0]);
        assert_eq!(aggregate(&values, 2, Aggregate::Max), [3.0, 9.0]);
        assert_eq!(resample(&values, 4, 0.5, 1.0), [2.0, 4.0, 7.0, 5.5]);
        assert_eq!(resample(&values, 2, 4.0, 1.0), [2.0, 2.0]);
    }

    #[test]
    fn gaps_take_values_out_and_caps_bound_them() {
        let mut missing = 0;
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let mut values: Vec<f64> = (0..100).map(|t| f64::from(t) + 1.0).collect();
            gaps(&mut rng, &mut values);
            missing += values.iter().filter(|v| v.is_nan()).count();
            let mut values: Vec<f64> = (0..100).map(f64::from).collect();
            caps(&mut rng, &mut values);
            assert!(values[99] < 99.0 || values[0] > 0.0);
            outliers(&mut rng, &mut values, 100.0);
            assert!(values.iter().any(|v| v.abs() > 150.0));
            round(&mut rng, &mut values);
            assert!(values.iter().all(|v| v.is_finite()));
        }
        assert!(missing > 200);
    }
}
