//! The baselines and the measures of an evaluation.

use crate::forecaster::Interval;

/// The simplest forecasts there are; a model that loses to them is of no use on that series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Baseline {
    /// The last period again and again.
    SeasonalNaive,
    /// The last value.
    Naive,
    /// The line through the first and the last value.
    Drift,
}

impl Baseline {
    /// All of them, in the order of the tables.
    pub const ALL: [Baseline; 3] = [Baseline::SeasonalNaive, Baseline::Naive, Baseline::Drift];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Baseline::SeasonalNaive => "seasonal-naive",
            Baseline::Naive => "naive",
            Baseline::Drift => "drift",
        }
    }

    /// Forecasts `horizon` values from a history without missing values. A history shorter than the period is continued by
    /// its last value; an empty one by zeros.
    pub fn forecast(self, history: &[f32], period: usize, horizon: usize) -> Vec<f32> {
        let (Some(&first), Some(&last)) = (history.first(), history.last()) else { return vec![0.0; horizon] };
        match self {
            Baseline::SeasonalNaive if (1..=history.len()).contains(&period) => {
                let season = &history[history.len() - period..];
                season.iter().copied().cycle().take(horizon).collect()
            }
            Baseline::SeasonalNaive | Baseline::Naive => vec![last; horizon],
            Baseline::Drift => {
                let slope = (last - first) / history.len().saturating_sub(1).max(1) as f32;
                (1..=horizon).map(|step| last + slope * step as f32).collect()
            }
        }
    }
}

/// Replaces missing values (NaN): between observed values by a line, before the first by the first, after the last by the
/// last. False where nothing is observed.
pub(super) fn interpolate(values: &mut [f32]) -> bool {
    let known: Vec<usize> = (0..values.len()).filter(|&t| values[t].is_finite()).collect();
    let (Some(&first), Some(&last)) = (known.first(), known.last()) else { return false };
    let (head, tail) = (values[first], values[last]);
    values[..first].fill(head);
    values[last + 1..].fill(tail);
    for pair in known.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let (low, high) = (values[from], values[to]);
        for (step, value) in values[from + 1..to].iter_mut().enumerate() {
            *value = low + (high - low) * (step + 1) as f32 / (to - from) as f32;
        }
    }
    true
}

/// The scale of MASE (Hyndman and Koehler, 2006): the mean absolute difference of history values one period apart, over
/// the pairs of which both are observed. Where that is 0 or there is no pair, the same one step apart; None where that is 0
/// too.
pub(super) fn scale(history: &[f32], period: usize) -> Option<f64> {
    let apart = |lag: usize| {
        let pairs = history.iter().zip(history.get(lag..).unwrap_or_default());
        let (sum, count) = pairs
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
            .filter(|d| d.is_finite())
            .fold((0.0, 0), |(sum, count), d| (sum + d, count + 1));
        (sum > 0.0).then(|| sum / f64::from(count))
    };
    apart(period.max(1)).or_else(|| apart(1))
}

/// How far one forecast was off, over the observed values of its future.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Errors {
    /// Sum of |y - f|.
    absolute: f64,
    /// Sum of (y - f)^2.
    square: f64,
    /// Sum of 2 |y - f| / (|y| + |f|), 0 where both are 0.
    symmetric: f64,
    /// Observed values.
    count: usize,
}

impl Errors {
    pub(super) fn of(forecast: &[f32], actual: &[f32]) -> Self {
        let mut errors = Errors::default();
        for (&f, &y) in forecast.iter().zip(actual).filter(|(_, y)| y.is_finite()) {
            let (f, y) = (f64::from(f), f64::from(y));
            let (error, size) = ((y - f).abs(), y.abs() + f.abs());
            errors.absolute += error;
            errors.square += error * error;
            errors.symmetric += if size > 0.0 { 2.0 * error / size } else { 0.0 };
            errors.count += 1;
        }
        errors
    }

    /// Mean absolute error in units of `scale`.
    pub(super) fn mase(&self, scale: f64) -> f64 {
        self.absolute / self.count.max(1) as f64 / scale
    }
}

/// The measures of one method on one series.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Score {
    /// Mean absolute scaled error, averaged over the origins; 1 is the in-sample error of seasonal-naive one period ahead.
    pub mase: f64,
    /// Symmetric mean absolute percentage error, 0 to 200.
    pub smape: f64,
    /// Root mean square error over all origins and steps, in the unit of the series.
    pub rmse: f64,
}

/// How the intervals of one series did, over all origins.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Coverage {
    /// The share of values that was asked for.
    pub level: f64,
    /// The share that lay inside.
    pub covered: f64,
    /// Observed future values.
    pub count: usize,
    /// Mean distance between the ends, in units of the scale of MASE.
    pub width: f64,
}

/// The coverage of intervals, each with what came true and its scale; None without any.
pub(super) fn coverage<'a>(origins: impl Iterator<Item = (&'a Interval, &'a [f32], f64)>) -> Option<Coverage> {
    let (mut level, mut inside, mut count, mut width) = (None, 0usize, 0usize, 0.0);
    for (interval, actual, scale) in origins {
        level = Some(interval.level);
        for ((&low, &high), &y) in interval.lower.iter().zip(&interval.upper).zip(actual).filter(|(_, y)| y.is_finite())
        {
            inside += usize::from((low..=high).contains(&y));
            width += (f64::from(high) - f64::from(low)) / scale;
            count += 1;
        }
    }
    let of_all = |sum: f64| sum / count.max(1) as f64;
    level.map(|level| Coverage { level, covered: of_all(inside as f64), count, width: of_all(width) })
}

/// The score of one method over the origins of one series: (scale, errors) each.
pub(super) fn score(origins: &[(f64, Errors)]) -> Score {
    let count = origins.iter().map(|(_, e)| e.count).sum::<usize>().max(1) as f64;
    let sum = |part: fn(&Errors) -> f64| origins.iter().map(|(_, e)| part(e)).sum::<f64>();
    Score {
        mase: origins.iter().map(|(scale, e)| e.mase(*scale)).sum::<f64>() / origins.len().max(1) as f64,
        smape: 100.0 * sum(|e| e.symmetric) / count,
        rmse: (sum(|e| e.square) / count).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn baselines_by_hand() {
        let history = [1.0, 4.0, 2.0, 7.0, 3.0];
        assert_eq!(Baseline::SeasonalNaive.forecast(&history, 2, 5), [7.0, 3.0, 7.0, 3.0, 7.0]);
        assert_eq!(Baseline::SeasonalNaive.forecast(&history, 5, 2), [1.0, 4.0]);
        assert_eq!(Baseline::SeasonalNaive.forecast(&history, 6, 2), [3.0, 3.0]);
        assert_eq!(Baseline::Naive.forecast(&history, 2, 3), [3.0, 3.0, 3.0]);
        // (3 - 1) / 4 a step.
        assert_eq!(Baseline::Drift.forecast(&history, 2, 3), [3.5, 4.0, 4.5]);
        assert_eq!(Baseline::Drift.forecast(&[5.0], 1, 2), [5.0, 5.0]);
        for baseline in Baseline::ALL {
            assert_eq!(baseline.forecast(&[], 3, 2), [0.0, 0.0]);
        }
    }

    #[test]
    fn measures_by_hand() {
        // Errors 1, missing, 2; sizes 3, -, 6; a step where both are 0 counts as 0 %.
        let errors = Errors::of(&[1.0, 9.0, 4.0, 0.0], &[2.0, NAN, 2.0, 0.0]);
        assert_eq!(errors, Errors { absolute: 3.0, square: 5.0, symmetric: 2.0 / 3.0 + 4.0 / 6.0, count: 3 });
        assert_eq!(errors.mase(0.5), 2.0);
        let other = Errors::of(&[0.0], &[3.0]);
        let score = score(&[(0.5, errors), (1.5, other)]);
        // MASE (2 + 2) / 2; sMAPE 100 (4/3 + 2) / 4; RMSE sqrt((5 + 9) / 4).
        assert_eq!(score.mase, 2.0);
        assert!((score.smape - 250.0 / 3.0).abs() < 1e-12);
        assert!((score.rmse - 3.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn coverage_by_hand() {
        let interval = |lower: &[f32], upper: &[f32]| Interval { level: 0.8, lower: lower.into(), upper: upper.into() };
        let (a, b) = (interval(&[0.0, 0.0, 1.0], &[2.0, 2.0, 3.0]), interval(&[5.0], &[5.0]));
        let origins: [(&Interval, &[f32], f64); 2] = [(&a, &[2.0, NAN, 4.0], 2.0), (&b, &[5.0], 1.0)];
        let found = coverage(origins.into_iter()).unwrap();
        assert_eq!((found.level, found.covered, found.count), (0.8, 2.0 / 3.0, 3));
        assert_eq!(found.width, (1.0 + 1.0 + 0.0) / 3.0);
        assert_eq!(coverage(std::iter::empty()), None);
    }

    #[test]
    fn the_scale_by_hand_and_its_fallbacks() {
        // |2-1|, |5-3| a period of 2 apart; the pair with the missing value is left out.
        assert_eq!(scale(&[1.0, 3.0, 2.0, 5.0, NAN], 2), Some(1.5));
        // Exactly periodic: the error is 0, so one step apart counts.
        assert_eq!(scale(&[1.0, 3.0, 1.0, 3.0], 2), Some(2.0));
        // Shorter than the period.
        assert_eq!(scale(&[1.0, 3.0, 4.0], 7), Some(1.5));
        assert_eq!(scale(&[2.0, 2.0, 2.0], 1), None);
        assert_eq!(scale(&[], 1), None);
    }

    #[test]
    fn missing_values_are_interpolated() {
        let mut values = [NAN, 1.0, NAN, NAN, 4.0, NAN];
        assert!(interpolate(&mut values));
        assert_eq!(values, [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        assert!(!interpolate(&mut [NAN, NAN]) && !interpolate(&mut []));
    }
}
