//! How good forecast distributions are: quantile losses, CRPS and coverage, and a distribution for the seasonal-naive forecast.
//!
//! * **Quantile loss** at level `q`: `2 |(y - f) ((y <= f) - q)|`, summed over the observed future values of all origins, over the
//!   sum of `|y|` (GluonTS `weighted_sum_quantile_loss`).
//! * **CRPS**: the mean of it over the levels. GluonTS and the papers that measure with it call this
//!   `mean_weighted_sum_quantile_loss`, utilsforecast `scaled_crps`. It tends to the sum of the continuous ranked probability
//!   scores over the sum of `|y|` as levels grow dense.
//! * **CRPS of samples**: `mean |x - y| - mean |x - x'| / 2` over the sample paths of a step (the energy form of Gneiting and Raftery,
//!   2007), summed and divided in the same way.

use super::Cut;
use super::metrics::{Coverage, coverage};
use crate::error::{Error, Result};
use crate::forecaster::{Interval, Quantile};
use serde::Serialize;

/// The levels that the published tables of forecasters measure at.
pub const LEVELS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Residuals of a seasonal-naive forecast below this number say nothing about how they spread.
const FEWEST: usize = 10;

/// How the forecast distributions of one series did, over all origins.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DistributionScore {
    /// The mean of the levels' losses.
    pub crps: f64,
    /// Each level, ascending as the forecast gave them.
    pub levels: Vec<LevelScore>,
    /// Observed future values.
    pub count: usize,
    /// The values between the lowest and the highest level.
    pub inside: Option<Coverage>,
    /// The CRPS of the sample paths, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_crps: Option<f64>,
}

/// One level of a [`DistributionScore`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LevelScore {
    /// The share of values that should not exceed the quantile.
    pub level: f64,
    /// The weighted quantile loss.
    pub loss: f64,
    /// The share of values that did not exceed it (GluonTS `coverage`).
    pub below: f64,
}

/// The distributions of a model and of seasonal-naive on one series.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DistributionResult {
    /// Origins at which the model gave a distribution; both are scored there.
    pub origins: usize,
    /// The model's.
    pub model: DistributionScore,
    /// That of seasonal-naive, from its own errors in the past.
    pub seasonal_naive: DistributionScore,
    /// The model's CRPS over that of seasonal-naive; `None` where the latter is 0.
    pub ratio: Option<f64>,
}

/// The distributions of a model against those of seasonal-naive, over all series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DistributionSummary {
    /// Geometric mean of the ratios of CRPS; below 1 the model is better. `None` where no series has a ratio.
    pub ratio: Option<f64>,
    /// Series on which the model's CRPS is lower.
    pub won: usize,
    /// Series on which it is not.
    pub lost: usize,
}

/// The quantiles of sample paths, as GluonTS takes them: of `n` ascending samples the one at place `(n - 1) q`, rounded to the nearest,
/// halves to the even one.
pub(super) fn of_samples(samples: &[Vec<f32>], levels: &[f64]) -> Vec<Quantile> {
    let steps = samples.iter().map(Vec::len).min().unwrap_or(0);
    let sorted: Vec<Vec<f32>> = (0..steps)
        .map(|step| {
            let mut all: Vec<f32> = samples.iter().map(|path| path[step]).collect();
            all.sort_by(f32::total_cmp);
            all
        })
        .collect();
    let at = |all: &Vec<f32>, q: f64| {
        let place = ((all.len() - 1) as f64 * q).round_ties_even() as usize;
        all[place.min(all.len() - 1)]
    };
    levels.iter().map(|&level| Quantile { level, values: sorted.iter().map(|all| at(all, level)).collect() }).collect()
}

/// The distribution of the seasonal-naive forecast: what it says, and around it the errors that it made as far ahead in the past.
///
/// A step in season `s` after the origin is forecast by the value `s` periods before it, so its errors are the differences of
/// values that far apart. Where there are fewer than ten of those, the differences one period apart stand for them, times the
/// square root of `s`, as for a random walk of seasons. `past` is everything before the origin, NaN where missing; `forecast` is what
/// seasonal-naive says; `seasonal` where it repeats a season rather than the last value.
pub(super) fn seasonal_naive(
    past: &[f32],
    forecast: &[f32],
    period: usize,
    seasonal: bool,
    levels: &[f64],
) -> Vec<Quantile> {
    let period = if seasonal { period.max(1) } else { 1 };
    let errors = |lag: usize| -> Vec<f64> {
        let pairs = past.iter().zip(past.get(lag..).unwrap_or_default());
        let mut all: Vec<f64> =
            pairs.map(|(a, b)| f64::from(*b) - f64::from(*a)).filter(|difference| difference.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let near = errors(period);
    let mut quantiles: Vec<Quantile> = levels.iter().map(|&level| Quantile { level, values: Vec::new() }).collect();
    let (mut season, mut far) = (1, near.clone());
    for (step, &value) in forecast.iter().enumerate() {
        let now = step / period + 1;
        if now != season {
            (season, far) = (now, errors(now.saturating_mul(period)));
        }
        let (all, factor) = if far.len() >= FEWEST { (&far, 1.0) } else { (&near, (season as f64).sqrt()) };
        for quantile in &mut quantiles {
            let error = factor * interpolated(all, quantile.level);
            quantile.values.push((f64::from(value) + error) as f32);
        }
    }
    quantiles
}

/// The quantile of ascending values, interpolated between neighbours; 0 of nothing.
fn interpolated(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = q * last as f64;
    let below = (place as usize).min(last);
    sorted[below] + (sorted[(below + 1).min(last)] - sorted[below]) * place.fract()
}

/// The energy form of the CRPS of one step.
fn crps_of(mut samples: Vec<f64>, y: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let n = samples.len() as f64;
    let away = samples.iter().map(|x| (x - y).abs()).sum::<f64>() / n;
    // Of ascending samples, the sum of |x - x'| over all pairs is 2 sum (2 i + 1 - n) x_i.
    let apart = samples.iter().enumerate().map(|(i, x)| (2.0 * i as f64 + 1.0 - n) * x).sum::<f64>();
    away - apart / (n * n)
}

/// Paths that a forecast drew.
type Paths<'a> = &'a [Vec<f32>];
/// Quantiles and paths of a forecast, and what came true with its scale.
type Origin<'a> = (&'a [Quantile], Paths<'a>, &'a Cut);

/// The score of the distributions at several origins. `None` where nothing
/// observed differs from 0, or where no origin has a distribution.
pub(super) fn score(origins: &[Origin<'_>]) -> Option<DistributionScore> {
    let levels: Vec<f64> = origins.first()?.0.iter().map(|quantile| quantile.level).collect();
    let (mut loss, mut below) = (vec![0f64; levels.len()], vec![0usize; levels.len()]);
    let (mut size, mut count, mut energy, mut sampled) = (0.0, 0usize, 0.0, true);
    for (quantiles, samples, cut) in origins {
        for (step, &y) in cut.actual.iter().enumerate().filter(|(_, y)| y.is_finite()) {
            let y = f64::from(y);
            size += y.abs();
            count += 1;
            for (i, quantile) in quantiles.iter().enumerate() {
                let forecast = f64::from(*quantile.values.get(step)?);
                let under = y <= forecast;
                let slope = f64::from(u8::from(under)) - quantile.level;
                *loss.get_mut(i)? += 2.0 * ((y - forecast) * slope).abs();
                *below.get_mut(i)? += usize::from(under);
            }
            let paths: Vec<f64> = samples.iter().filter_map(|path| path.get(step).copied().map(f64::from)).collect();
            sampled &= !paths.is_empty();
            energy += if paths.is_empty() { 0.0 } else { crps_of(paths, y) };
        }
    }
    if levels.is_empty() || count == 0 || size == 0.0 {
        return None;
    }
    let of = |((&level, loss), &below): ((&f64, &f64), &usize)| LevelScore {
        level,
        loss: loss / size,
        below: below as f64 / count as f64,
    };
    let scores: Vec<LevelScore> = levels.iter().zip(&loss).zip(&below).map(of).collect();
    let bands: Vec<Option<Interval>> = origins.iter().map(|(quantiles, ..)| band(quantiles)).collect();
    Some(DistributionScore {
        crps: scores.iter().map(|score| score.loss).sum::<f64>() / scores.len() as f64,
        levels: scores,
        count,
        inside: coverage(
            bands.iter().zip(origins).filter_map(|(band, (.., cut))| Some((band.as_ref()?, &*cut.actual, cut.scale))),
        ),
        sample_crps: sampled.then(|| energy / size),
    })
}

/// What lies between the lowest and the highest level.
fn band(quantiles: &[Quantile]) -> Option<Interval> {
    let by_level = |a: &&Quantile, b: &&Quantile| a.level.total_cmp(&b.level);
    let (low, high) = (quantiles.iter().min_by(by_level)?, quantiles.iter().max_by(by_level)?);
    // To nine digits: 0.9 - 0.1 is not 0.8 in binary.
    let level = ((high.level - low.level) * 1e9).round() / 1e9;
    (level > 0.0).then(|| Interval { level, lower: low.values.clone(), upper: high.values.clone() })
}

/// Both distributions of one series; `None` where the model gave none. `naive` is what seasonal-naive says at each origin, and
/// whether it repeats a season there.
///
/// # Errors
/// The model's levels differ between origins.
pub(super) fn compare(
    answers: &[super::Answer],
    cuts: &[Cut],
    naive: &[(Vec<f32>, bool)],
    period: usize,
) -> Result<Option<DistributionResult>> {
    let of_model: Vec<(Vec<Quantile>, Paths<'_>, usize)> = answers
        .iter()
        .enumerate()
        .filter_map(|(at, answer)| match (&answer.quantiles[..], &answer.samples[..]) {
            ([], []) => None,
            ([], samples) => Some((of_samples(samples, &LEVELS), samples, at)),
            (quantiles, samples) => Some((quantiles.to_vec(), samples, at)),
        })
        .collect();
    let levels = |quantiles: &[Quantile]| -> Vec<f64> { quantiles.iter().map(|quantile| quantile.level).collect() };
    let Some(wanted) = of_model.first().map(|(quantiles, ..)| levels(quantiles)) else { return Ok(None) };
    if of_model.iter().any(|(quantiles, ..)| levels(quantiles) != wanted) {
        return Err(Error::Compute("the model gave quantiles of other levels at other origins".into()));
    }
    let of_naive: Vec<Vec<Quantile>> = of_model
        .iter()
        .filter_map(|(.., at)| Some((cuts.get(*at)?, naive.get(*at)?)))
        .map(|(cut, (forecast, seasonal))| seasonal_naive(&cut.raw, forecast, period, *seasonal, &wanted))
        .collect();
    let own: Vec<Origin<'_>> = of_model
        .iter()
        .filter_map(|(quantiles, samples, at)| Some((&quantiles[..], *samples, cuts.get(*at)?)))
        .collect();
    let no_paths: Paths<'_> = &[];
    let theirs: Vec<Origin<'_>> =
        of_naive.iter().zip(&own).map(|(quantiles, (.., cut))| (&quantiles[..], no_paths, *cut)).collect();
    let (Some(model), Some(seasonal_naive)) = (score(&own), score(&theirs)) else { return Ok(None) };
    let ratio = (seasonal_naive.crps > 0.0).then(|| model.crps / seasonal_naive.crps);
    Ok(Some(DistributionResult { origins: own.len(), model, seasonal_naive, ratio }))
}

/// All series together; `None` where none has a distribution.
pub(super) fn summarise<'a>(all: impl Iterator<Item = &'a DistributionResult>) -> Option<DistributionSummary> {
    let (mut logs, mut won, mut lost) = (Vec::new(), 0, 0);
    for result in all {
        // As for MASE, a thousandth is perfect enough.
        logs.extend(result.ratio.map(|ratio| ratio.max(1e-3).ln()));
        let better = result.model.crps < result.seasonal_naive.crps;
        won += usize::from(better);
        lost += usize::from(!better);
    }
    let ratio = (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp());
    (won + lost > 0).then_some(DistributionSummary { ratio, won, lost })
}
