//! Measures forecasts on series with a known future, against the simplest baselines.
//!
//! A [`Plan`], read from a TOML file, lists series; each is cut at several origins, forecast from the values before the
//! origin alone, and scored on those after it. How, in full:
//!
//! * **Origins** stand evenly from the middle of the series to `length - horizon`, both included.
//! * **History** of a forecast: at most `context` values before the origin, for the model and the baselines alike.
//! * **Missing values** are interpolated in the history (a line between neighbours, the nearest value at the ends), for all
//!   methods alike, and left out of the scores.
//! * **MASE**: the mean absolute error of an origin over its scale, averaged over the origins. The scale is the mean absolute
//!   difference one period apart over all values before that origin; where that is 0, one step apart. An origin without a
//!   scale (a constant history) or without an observed future is left out.
//! * **Ratio**: the model's MASE over a baseline's. Ratios of series are averaged geometrically.
//! * **Coverage**: the share of observed future values inside the model's interval. Its **width** is the mean distance between
//!   the ends in units of the scale. Intervals may be calibrated on everything before the origin.
//! * **CRPS** and quantile losses of forecast distributions, against seasonal-naive with the distribution of its own past errors:
//!   see [`DistributionScore`], whose formulas are those of GluonTS and utilsforecast.

mod distribution;
mod examples;
mod metrics;
mod report;
#[cfg(feature = "audio")]
pub mod wer;

pub use distribution::{DistributionResult, DistributionScore, DistributionSummary, LEVELS, LevelScore};
pub use examples::Example;
pub use metrics::{Baseline, Coverage, Score};

use crate::error::{Error, Place, Result, quoted};
use crate::forecaster::{Interval, Quantile};
use crate::settings;
use crate::table::{Table, TableOptions};
use metrics::Errors;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What to evaluate: the content of a TOML file such as `benches/zero_shot.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Plan {
    /// Forecasts a series.
    pub origins: usize,
    /// Most values a forecast may look at.
    pub context: usize,
    /// The command that writes the files, for the message when one is not there.
    pub fetch: Option<String>,
    /// The series.
    pub series: Vec<Case>,
    /// The folder that the files are relative to: that of the TOML file.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// One series of a [`Plan`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Case {
    /// The name in the tables.
    pub name: String,
    /// A CSV file, relative to the plan.
    pub file: PathBuf,
    /// The column that is forecast. Rows count as evenly spaced, whatever their time stamps say.
    pub column: String,
    /// Steps of one season, for the seasonal baseline and the scale; 1 where there is none.
    pub period: usize,
    /// Steps that are forecast.
    pub horizon: usize,
}

/// What a model is asked for: forecasts of one series from several origins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// Everything before each origin, at least one value, none missing.
    pub pasts: Vec<Vec<f32>>,
    /// The newest values that a forecast may rest on; those before them may calibrate an interval.
    pub context: usize,
    /// Values to forecast.
    pub horizon: usize,
}

/// Values of the histories of all origins of a series.
const MOST_VALUES: usize = 1 << 28;

impl Request {
    /// The histories that forecasts may rest on.
    pub fn histories(&self) -> impl Iterator<Item = &[f32]> {
        self.pasts.iter().map(|past| &past[past.len().saturating_sub(self.context)..])
    }
}

/// What a model answers for one origin.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// As many values as the horizon.
    pub values: Vec<f32>,
    /// An interval of the same length, if the model gives one.
    pub interval: Option<Interval>,
    /// Quantiles of the same length, if the model gives a distribution, of the same levels at each origin.
    pub quantiles: Vec<Quantile>,
    /// Sample paths of the same length, if it gives some; without `quantiles` theirs are measured.
    pub samples: Vec<Vec<f32>>,
}

/// What a model did on all series of a plan.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The model's name.
    pub model: String,
    /// One entry a series, in the order of the plan.
    pub series: Vec<SeriesResult>,
    /// The model against each baseline.
    pub summary: Vec<Summary>,
    /// Its distributions against those of seasonal-naive, where it gave some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<DistributionSummary>,
}

/// What a model did on one series.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SeriesResult {
    /// As in the plan.
    pub name: String,
    /// Values, missing ones included.
    pub length: usize,
    /// Missing values.
    pub missing: usize,
    /// As in the plan.
    pub period: usize,
    /// As in the plan.
    pub horizon: usize,
    /// Origins that were scored.
    pub origins: usize,
    /// Origins at which the model's error was below that of seasonal-naive.
    pub origins_won: usize,
    /// The model's measures.
    pub model: Score,
    /// The baselines' measures, seasonal-naive first.
    pub baselines: Vec<BaselineScore>,
    /// The model's MASE over that of seasonal-naive; `None` where the latter is 0.
    pub ratio: Option<f64>,
    /// How the model's intervals did; `None` where it gave none.
    pub interval: Option<Coverage>,
    /// How the model's distributions did; `None` where it gave none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution: Option<DistributionResult>,
    /// Its best and its worst forecast against seasonal-naive ([`Evaluation::examples`]).
    #[serde(skip)]
    extremes: Option<Box<[Example; 2]>>,
}

/// What one baseline did on one series.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct BaselineScore {
    /// The baseline.
    pub baseline: Baseline,
    /// Its measures.
    #[serde(flatten)]
    pub score: Score,
}

/// A model against one baseline, over all series.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The baseline.
    pub baseline: Baseline,
    /// Geometric mean of the ratios of MASE; below 1 the model is better. `None` where no series has a ratio.
    pub ratio: Option<f64>,
    /// Series on which the model's MASE is lower.
    pub won: usize,
    /// Series on which it is higher.
    pub lost: usize,
    /// Series on which it is the same.
    pub equal: usize,
}

/// One forecast to make and to score.
struct Cut {
    /// Everything before the origin; NaN is missing.
    raw: Vec<f32>,
    /// The same, gaps filled.
    past: Vec<f32>,
    actual: Vec<f32>,
    scale: f64,
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Config`] when it is no plan, or has a count of 0 or no series.
    pub fn read(path: impl AsRef<Path>) -> Result<Plan> {
        let path = path.as_ref();
        settings::read::<Plan>(path)?.checked(path)
    }

    /// The plan in the text of a file; `path` is what messages call it, and its folder is that of the series.
    ///
    /// # Errors
    /// [`Error::Config`], as [`Plan::read`].
    pub fn parse(path: impl AsRef<Path>, text: &[u8]) -> Result<Plan> {
        let path = path.as_ref();
        settings::parse::<Plan>(path, text)?.checked(path)
    }

    fn checked(mut self, path: &Path) -> Result<Plan> {
        self.folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        self.check().map_err(|problem| Error::config(path, problem))?;
        Ok(self)
    }

    fn check(&self) -> std::result::Result<(), String> {
        /// Far beyond any sensible plan, and far below what could exhaust memory.
        const MOST: usize = 1_000_000;
        let count = |what: &str, n: usize| match n {
            1..=MOST => Ok(()),
            _ => Err(format!("{what} is {n}; it must be between 1 and {MOST}")),
        };
        count("origins", self.origins)?;
        count("context", self.context)?;
        for case in &self.series {
            count(&format!("the period of {}", quoted(&case.name)), case.period)?;
            count(&format!("the horizon of {}", quoted(&case.name)), case.horizon)?;
        }
        if self.series.is_empty() { Err("lists no series: add [[series]] entries".into()) } else { Ok(()) }
    }

    /// Evaluates a model on every series.
    ///
    /// `predict` is called once a series and answers for each of its origins.
    ///
    /// # Errors
    /// Those of reading the files; [`Error::Input`] when a series is too short for its horizon or has no usable origin;
    /// [`Error::Compute`] when `predict` returns another shape than asked for or values that are not finite; errors of
    /// `predict`.
    pub fn evaluate(
        &self,
        model: &str,
        mut predict: impl FnMut(&Request) -> Result<Vec<Answer>>,
    ) -> Result<Evaluation> {
        let mut series = Vec::with_capacity(self.series.len());
        for case in &self.series {
            let values = self.load(case)?;
            series.push(self.evaluate_series(case, &values, &mut predict)?);
        }
        let summary = Baseline::ALL.iter().enumerate().map(|(index, _)| summarise(&series, index)).collect();
        let distribution = distribution::summarise(series.iter().filter_map(|s| s.distribution.as_ref()));
        Ok(Evaluation { model: model.to_owned(), series, summary, distribution })
    }

    /// The values of a series; NaN is missing.
    fn load(&self, case: &Case) -> Result<Vec<f32>> {
        let path = self.folder.join(&case.file);
        if let (false, Some(command)) = (path.exists(), &self.fetch) {
            let problem = format!("is not there; write it with `{command}`");
            return Err(Error::input(Place::file(path.display().to_string()), problem));
        }
        // Business hours have holes in their time stamps; their rows follow each other all the same.
        let options = TableOptions { columns: vec![case.column.clone()], number_rows: true, ..TableOptions::default() };
        let table = Table::read_csv(&path, &options)?;
        let found = table.series.into_iter().find(|series| series.name == case.column);
        found.map(|series| series.values).ok_or_else(|| {
            Error::input(Place::file(path.display().to_string()).column(&case.column), "holds no numbers")
        })
    }

    fn evaluate_series(
        &self,
        case: &Case,
        values: &[f32],
        predict: &mut impl FnMut(&Request) -> Result<Vec<Answer>>,
    ) -> Result<SeriesResult> {
        let cuts = self.cuts(case, values)?;
        let pasts = cuts.iter().map(|cut| cut.past.clone()).collect();
        let request = Request { pasts, context: self.context, horizon: case.horizon };
        let histories: Vec<&[f32]> = request.histories().collect();
        let answers = predict(&request)?;
        let parts = |answer: &Answer| {
            let ends = answer.interval.iter().flat_map(|i| [i.lower.clone(), i.upper.clone()]);
            let quantiles = answer.quantiles.iter().map(|quantile| quantile.values.clone());
            let all = std::iter::once(answer.values.clone()).chain(ends).chain(quantiles);
            all.chain(answer.samples.iter().cloned()).collect::<Vec<_>>()
        };
        let all: Vec<Vec<f32>> = answers.iter().flat_map(parts).collect();
        let shaped = answers.len() == cuts.len() && all.iter().all(|values| values.len() == case.horizon);
        if !shaped || all.iter().flatten().any(|v| !v.is_finite()) {
            let problem = if shaped { "values that are not finite" } else { "another number of values than asked for" };
            return Err(Error::Compute(format!("the model forecast {problem} for {}", quoted(&case.name))));
        }
        let errors = |forecast: &dyn Fn(usize) -> Vec<f32>| -> Vec<(f64, Errors)> {
            cuts.iter().enumerate().map(|(i, cut)| (cut.scale, Errors::of(&forecast(i), &cut.actual))).collect()
        };
        let of_model = errors(&|i| answers[i].values.clone());
        let of_baselines = Baseline::ALL.map(|b| errors(&|i| b.forecast(histories[i], case.period, case.horizon)));
        let naive: Vec<(Vec<f32>, bool)> = histories
            .iter()
            .map(|history| {
                let values = Baseline::SeasonalNaive.forecast(history, case.period, case.horizon);
                (values, case.period <= history.len())
            })
            .collect();
        let distribution = distribution::compare(&answers, &cuts, &naive, case.period)?;
        let model = metrics::score(&of_model);
        let baselines = Baseline::ALL.into_iter().zip(&of_baselines);
        let baselines: Vec<BaselineScore> =
            baselines.map(|(baseline, errors)| BaselineScore { baseline, score: metrics::score(errors) }).collect();
        let mase = |(scale, errors): &(f64, Errors)| errors.mase(*scale);
        let pairs: Vec<(f64, f64)> = of_model.iter().zip(&of_baselines[0]).map(|(m, b)| (mase(m), mase(b))).collect();
        let extremes = examples::extremes(case, &cuts, &histories, &answers, &pairs).map(Box::new);
        Ok(SeriesResult {
            name: case.name.clone(),
            length: values.len(),
            missing: values.iter().filter(|v| !v.is_finite()).count(),
            period: case.period,
            horizon: case.horizon,
            origins: cuts.len(),
            origins_won: pairs.iter().filter(|(model, naive)| model < naive).count(),
            model,
            ratio: ratio(model, baselines[0].score),
            interval: metrics::coverage(
                answers.iter().zip(&cuts).filter_map(|(a, cut)| Some((a.interval.as_ref()?, &*cut.actual, cut.scale))),
            ),
            distribution,
            baselines,
            extremes,
        })
    }

    /// The histories and futures of all usable origins of a series.
    fn cuts(&self, case: &Case, values: &[f32]) -> Result<Vec<Cut>> {
        let (n, first) = (values.len(), values.len() / 2);
        let place = || Place::file(case.file.display().to_string()).column(&case.column);
        let Some(last) = n.checked_sub(case.horizon).filter(|last| *last >= first && first > 0) else {
            let problem =
                format!("{n} values are too few for a horizon of {}: half must stay as history", case.horizon);
            return Err(Error::input(place(), problem));
        };
        let mut origins: Vec<usize> =
            (0..self.origins).map(|i| first + (last - first) * i / self.origins.saturating_sub(1).max(1)).collect();
        // A short series has fewer places than origins were asked for.
        origins.dedup();
        if origins.len().saturating_mul(n) > MOST_VALUES {
            let problem = format!(
                "{} origins of {n} values are more than {MOST_VALUES} values of history: take fewer origins, or cut the series",
                origins.len()
            );
            return Err(Error::input(place(), problem));
        }
        let mut cuts = Vec::with_capacity(origins.len());
        for origin in origins {
            let (past, future) = values.split_at(origin);
            let (mut filled, actual) = (past.to_vec(), future[..case.horizon].to_vec());
            let observed = metrics::interpolate(&mut filled) && actual.iter().any(|v| v.is_finite());
            if let (true, Some(scale)) = (observed, metrics::scale(past, case.period)) {
                cuts.push(Cut { raw: past.to_vec(), past: filled, actual, scale });
            }
        }
        if cuts.is_empty() {
            return Err(Error::input(place(), "every history is constant or missing: nothing can be scored"));
        }
        Ok(cuts)
    }
}

fn ratio(model: Score, baseline: Score) -> Option<f64> {
    (baseline.mase > 0.0).then(|| model.mase / baseline.mase)
}

fn summarise(series: &[SeriesResult], index: usize) -> Summary {
    let baseline = Baseline::ALL[index];
    let pairs: Vec<(Score, Score)> =
        series.iter().filter_map(|s| s.baselines.get(index).map(|b| (s.model, b.score))).collect();
    // A perfect forecast would make the whole mean 0; a thousandth is perfect enough.
    let logs: Vec<f64> = pairs.iter().filter_map(|(m, b)| ratio(*m, *b)).map(|r| r.max(1e-3).ln()).collect();
    let count = |order: std::cmp::Ordering| pairs.iter().filter(|(m, b)| m.mase.total_cmp(&b.mase) == order).count();
    Summary {
        baseline,
        ratio: (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp()),
        won: count(std::cmp::Ordering::Less),
        lost: count(std::cmp::Ordering::Greater),
        equal: count(std::cmp::Ordering::Equal),
    }
}

#[cfg(test)]
mod tests;
