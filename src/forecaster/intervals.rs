//! Prediction intervals by split conformal calibration on a series' own past.
//!
//! The model forecasts the series from several origins in its past; how far the truth was from those forecasts says how far
//! it may be from this one. Lower and upper ends are calibrated separately, since errors of demand or sunspots are not
//! symmetric. Sources: split conformal prediction, Vovk et al., "Algorithmic Learning in a Random World" (2005); for forecasts
//! of several steps, Stankeviciute et al., "Conformal Time-series Forecasting" (NeurIPS 2021), which calibrates on other
//! series and each step apart. Here the calibration set is rolling origins of one history, too few for a quantile per step, so
//! residuals of all steps are pooled in units of their step's mean size. Origins of one history are not exchangeable, so coverage is measured, not guaranteed.

use serde::Serialize;

use super::context::Context;

/// A band that should hold the truth in a given share of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Interval {
    /// The share of rows, 0 to 1, that should lie inside.
    pub level: f64,
    /// The lower end at each row of the forecast.
    pub lower: Vec<f32>,
    /// The upper end at each row.
    pub upper: Vec<f32>,
}

/// Origins in the past that the model is asked to forecast from. Each costs as much as the forecast itself.
const ORIGINS: usize = 20;

/// Fewer origins than this say nothing about how errors spread.
const FEWEST: usize = 5;

/// The shortest history worth forecasting from.
const SHORTEST: usize = 8;

/// The forecasts of the past that calibrate the intervals of one series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Calibration {
    /// Positions in the context's values, ascending, that a forecast of the past starts at.
    pub origins: Vec<usize>,
    /// Values that each of them forecasts; at most the horizon.
    pub steps: usize,
}

impl Calibration {
    /// Values before the forecast's own context that calibration looks at.
    pub fn reach(horizon: usize) -> usize {
        horizon + (ORIGINS - 1) * stride(horizon)
    }

    /// Where to forecast from in a history of `n` values of which the model sees at most `limit`; `None` when the history
    /// is too short for anything that deserves the name of an interval.
    pub fn plan(n: usize, limit: usize, horizon: usize) -> Option<Self> {
        // Half of a short history stays unforecast, and of the other half a third is left for origins to differ in.
        let first = (n / 2).max(SHORTEST).min(limit.max(SHORTEST));
        let open = n.checked_sub(first)?;
        let steps = horizon.min(open.saturating_sub((open / 3).max(FEWEST - 1)));
        let last = n.checked_sub(steps)?;
        if steps == 0 || last < first {
            return None;
        }
        let first = first.max(last.saturating_sub((ORIGINS - 1) * stride(steps)));
        let mut origins: Vec<usize> = (0..ORIGINS).map(|i| first + (last - first) * i / (ORIGINS - 1)).collect();
        origins.dedup();
        (origins.len() >= FEWEST).then_some(Self { origins, steps })
    }

    /// The intervals around `forecast`, from what the model said at each origin.
    pub fn intervals(&self, context: &Context, past: &[Vec<f32>], forecast: &[f32], levels: &[f64]) -> Vec<Interval> {
        // residuals[i][k]: truth minus forecast, only where the truth was observed rather than filled.
        let residuals: Vec<Vec<Option<f64>>> = self
            .origins
            .iter()
            .zip(past)
            .map(|(&origin, said)| {
                let truth = context.values.iter().zip(&context.observed).skip(origin);
                truth.zip(said).map(|((&y, &seen), &f)| seen.then(|| f64::from(y) - f64::from(f))).collect()
            })
            .collect();
        let sizes = sizes(&residuals, self.steps, forecast.len());
        let mut scores: Vec<f64> = residuals
            .iter()
            .flat_map(|row| row.iter().zip(&sizes))
            .filter_map(|(residual, size)| residual.map(|r| if *size > 0.0 { r / size } else { 0.0 }))
            .collect();
        scores.sort_by(f64::total_cmp);
        let count = self.origins.len() as f64;
        levels
            .iter()
            .map(|&level| {
                // The (n + 1) of conformal prediction, with the origins as n: residuals of one forecast go together.
                let tail = 0.5 * (1.0 - (level * (count + 1.0) / count).min(1.0));
                let (low, high) = (quantile(&scores, tail), quantile(&scores, 1.0 - tail));
                let end = |score: f64| -> Vec<f32> {
                    let limit = f64::from(f32::MAX);
                    let ends = forecast.iter().zip(&sizes).map(|(&f, size)| f64::from(f) + score * size);
                    ends.map(|end| end.clamp(-limit, limit) as f32).collect()
                };
                // A forecast that always erred to one side still lies inside its own interval.
                Interval { level, lower: end(low.min(0.0)), upper: end(high.max(0.0)) }
            })
            .collect()
    }
}

/// Rows between origins: half a forecast, so that neighbours share at most half of their truth.
fn stride(horizon: usize) -> usize {
    horizon.div_ceil(2).max(1)
}

/// The mean absolute residual of each of `horizon` steps: averaged with neighbouring steps, never falling (what is further
/// away is not better known), and growing with the square root of the distance, as a random walk's, beyond `steps`.
fn sizes(residuals: &[Vec<Option<f64>>], steps: usize, horizon: usize) -> Vec<f64> {
    let at = |k: usize| residuals.iter().filter_map(move |row| row.get(k).copied().flatten()).map(f64::abs);
    let half = (steps / 6).max(1);
    let mut sizes: Vec<f64> = Vec::with_capacity(horizon);
    for k in 0..steps.min(horizon) {
        // Symmetric also at the ends, or the first steps would borrow the size of later ones.
        let reach = half.min(k).min(steps - 1 - k);
        let (sum, count) =
            (k - reach..=k + reach).flat_map(at).fold((0.0, 0u32), |(sum, count), size| (sum + size, count + 1));
        let mean = if count > 0 { sum / f64::from(count) } else { 0.0 };
        sizes.push(mean.max(sizes.last().copied().unwrap_or(0.0)));
    }
    let last = sizes.last().copied().unwrap_or(0.0);
    sizes.extend((sizes.len()..horizon).map(|k| last * ((k + 1) as f64 / steps.max(1) as f64).sqrt()));
    sizes
}

/// The quantile of ascending values, interpolated between neighbours; 0 of nothing.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecaster::Missing;
    use crate::series::Series;
    use moesaic_kernels::rng::Rng;

    fn context(values: &[f32]) -> Context {
        Context::of(&Series::new("y", values), usize::MAX, Missing::Interpolate).unwrap()
    }

    #[test]
    fn origins_leave_room_on_both_sides() {
        for n in 0..600 {
            for (limit, horizon) in [(512, 1), (512, 24), (512, 96), (50, 96), (1, 4)] {
                let Some(plan) = Calibration::plan(n, limit, horizon) else {
                    assert!(n < SHORTEST + FEWEST, "{n} {limit} {horizon}");
                    continue;
                };
                assert!((1..=horizon).contains(&plan.steps));
                assert!(plan.origins.windows(2).all(|pair| pair[0] < pair[1]));
                assert!(plan.origins[0] >= SHORTEST && plan.origins.last().unwrap() + plan.steps <= n, "{n} {plan:?}");
            }
        }
        // A long history: full contexts, the newest truth up to the last value.
        let plan = Calibration::plan(512 + Calibration::reach(96), 512, 96).unwrap();
        assert_eq!((plan.origins.len(), plan.steps, plan.origins[0]), (20, 96, 512));
    }

    #[test]
    fn independent_errors_are_covered_as_often_as_asked() {
        // Truth is noise, the forecast is always 0: the share of new noise inside must be near the level.
        let mut rng = Rng::new(3);
        let (mut inside, mut all) = ([0u32; 2], 0u32);
        for _ in 0..300 {
            let values: Vec<f32> = (0..120).map(|_| rng.normal() as f32).collect();
            let plan = Calibration::plan(120, 512, 10).unwrap();
            let past = vec![vec![0.0; plan.steps]; plan.origins.len()];
            let bands = plan.intervals(&context(&values), &past, &[0.0; 10], &[0.5, 0.9]);
            for k in 0..10 {
                let truth = rng.normal() as f32;
                for (count, band) in inside.iter_mut().zip(&bands) {
                    *count += u32::from((band.lower[k]..=band.upper[k]).contains(&truth));
                }
                all += 1;
            }
        }
        let share = inside.map(|count| f64::from(count) / f64::from(all));
        assert!((0.47..0.58).contains(&share[0]) && (0.87..0.96).contains(&share[1]), "{share:?}");
    }

    #[test]
    fn sides_are_calibrated_apart_and_filled_values_do_not_count() {
        // The truth lies 0, 1 or 2 above the forecast, never below.
        let mut values: Vec<f32> = (0..90).map(|t| (t % 3) as f32).collect();
        values[60] = f32::NAN;
        let context = context(&values);
        assert!(!context.observed[60]);
        let plan = Calibration::plan(90, 512, 6).unwrap();
        let mut past = vec![vec![0.0; plan.steps]; plan.origins.len()];
        let bands = plan.intervals(&context, &past, &[5.0; 8], &[0.9]);
        assert!(bands[0].lower.iter().all(|v| *v == 5.0), "{bands:?}");
        assert!(bands[0].upper.iter().all(|v| (6.5..8.0).contains(v)), "{bands:?}");
        // What the model said about the filled value makes no difference.
        for (said, origin) in past.iter_mut().zip(&plan.origins) {
            if let Some(value) = 60usize.checked_sub(*origin).and_then(|k| said.get_mut(k)) {
                *value = -100.0;
            }
        }
        assert_eq!(plan.intervals(&context, &past, &[5.0; 8], &[0.9]), bands);
    }

    #[test]
    fn bands_widen_with_the_distance_and_the_level() {
        let values: Vec<f32> = (0..200).map(|t| t as f32).collect();
        let plan = Calibration::plan(200, 512, 20).unwrap();
        // Naive on a line errs by the distance.
        let past: Vec<Vec<f32>> = plan.origins.iter().map(|&o| vec![o as f32 - 1.0; plan.steps]).collect();
        let bands = plan.intervals(&context(&values), &past, &[199.0; 30], &[0.5, 0.99]);
        for band in &bands {
            assert!(band.upper.windows(2).all(|pair| pair[1] >= pair[0]));
            assert!(band.upper[29] > band.upper[19] && band.lower[0] == 199.0);
        }
        assert!((0..30).all(|k| bands[1].upper[k] >= bands[0].upper[k]));
        assert!((bands[1].upper[9] - 209.0).abs() < 1.5, "{}", bands[1].upper[9]);
    }

    #[test]
    fn perfect_and_huge_forecasts_stay_finite() {
        let values = [1e30f32; 40];
        let plan = Calibration::plan(40, 512, 5).unwrap();
        let said = |v: f32| vec![vec![v; plan.steps]; plan.origins.len()];
        let exact = plan.intervals(&context(&values), &said(1e30), &[1e30; 5], &[0.9]);
        assert_eq!((exact[0].lower[4], exact[0].upper[4]), (1e30, 1e30));
        let far = plan.intervals(&context(&[3e38; 40]), &said(-3e38), &[3e38; 5], &[0.9]);
        assert!(far[0].lower.iter().chain(&far[0].upper).all(|v| v.is_finite()));
    }
}
