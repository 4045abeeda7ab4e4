//! The forecasts that a model does best and worst at, to be looked at.

use crate::forecaster::{Forecast, Interval};
use crate::series::Series;

use super::{Answer, Case, Cut, Evaluation};

/// One forecast of an evaluation beside what came.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Example {
    /// The history that it rests on, and behind it the values that came.
    pub series: Series,
    /// The forecast, with the interval or, of a distribution, what lies between its outermost quantiles.
    pub forecast: Forecast,
    /// The model's MASE at this origin.
    pub mase: f64,
    /// That of seasonal-naive, above 0.
    pub seasonal_naive: f64,
}

impl Example {
    /// The model's error over that of seasonal-naive.
    pub fn ratio(&self) -> f64 {
        self.mase / self.seasonal_naive
    }

    fn of(case: &Case, cut: &Cut, history: &[f32], answer: &Answer, (mase, seasonal_naive): (f64, f64)) -> Self {
        let name = format!("{}, from row {}", case.name, cut.past.len());
        let series = Series::new(name.as_str(), [history, &cut.actual].concat());
        let start = history.len();
        let timestamps = (start..start + case.horizon).filter_map(|row| series.stamp(row as i64)).collect();
        let outer = match answer.quantiles.as_slice() {
            [low, .., high] => {
                let (level, lower, upper) = (high.level - low.level, low.values.clone(), high.values.clone());
                Some(Interval { level, lower, upper })
            }
            _ => None,
        };
        let intervals = answer.interval.clone().or(outer).into_iter().collect();
        let forecast = Forecast {
            name,
            timestamps,
            values: answer.values.clone(),
            intervals,
            mean: Vec::new(),
            quantiles: Vec::new(),
            samples: Vec::new(),
            context: start,
            filled: 0,
            start,
        };
        Self { series, forecast, mase, seasonal_naive }
    }
}

/// The best and the worst origin of a series; none where seasonal-naive makes no error.
pub(super) fn extremes(
    case: &Case,
    cuts: &[Cut],
    histories: &[&[f32]],
    answers: &[Answer],
    errors: &[(f64, f64)],
) -> Option<[Example; 2]> {
    let ratio = |i: &usize| errors[*i].0 / errors[*i].1;
    let scored = || (0..errors.len()).filter(|&i| errors[i].1 > 0.0 && errors[i].0.is_finite());
    let best = scored().min_by(|a, b| ratio(a).total_cmp(&ratio(b)))?;
    let worst = scored().max_by(|a, b| ratio(a).total_cmp(&ratio(b)))?;
    Some([best, worst].map(|i| Example::of(case, &cuts[i], histories[i], &answers[i], errors[i])))
}

impl Evaluation {
    /// The forecasts with the largest errors in units of seasonal-naive's, and those with the smallest, at most so many of each and
    /// one a series; the most extreme first.
    pub fn examples(&self, most: usize) -> [Vec<&Example>; 2] {
        let all = || self.series.iter().filter_map(|series| series.extremes.as_deref());
        let mut best: Vec<&Example> = all().map(|[best, _]| best).collect();
        let mut worst: Vec<&Example> = all().map(|[_, worst]| worst).collect();
        best.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        worst.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
        best.truncate(most);
        worst.truncate(most);
        [worst, best]
    }
}
