//! Forecasts of a model that predicts distributions.

use moesaic_models::moirai_moe::{Mode, MoiraiMoe, Options, Paths, Request};
use serde::Serialize;

use super::bounds::Bounds;
use super::context::{Context, constant};
use super::{Forecast, ForecastOptions, Interval, future};
use crate::error::{Error, Place, Result, quoted};
use crate::series::Series;

/// One quantile of a forecast.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Quantile {
    /// The share of outcomes, 0 to 1, that should not exceed the values.
    pub level: f64,
    /// The quantile at each row of the forecast.
    pub values: Vec<f32>,
}

impl Quantile {
    /// A quantile of some other forecast, to be measured by an [evaluation](crate::eval).
    pub fn new(level: f64, values: impl Into<Vec<f32>>) -> Self {
        Quantile { level, values: values.into() }
    }
}

/// Sample paths behind a forecast unless told otherwise: as many as the reference of Moirai-MoE takes.
const PATHS: usize = 100;
/// The most sample paths that can be asked for.
const MOST_PATHS: usize = 10_000;
const MEDIAN: f64 = 0.5;

/// Checks what only a model with a distribution takes, and what such a model does not take.
pub(super) fn check(options: &ForecastOptions) -> Result<()> {
    if options.combine == Some(true) {
        return Err(Error::option("this model's forecasts are distributions, which are not combined: leave that out"));
    }
    if options.samples.is_some_and(|count| !(1..=MOST_PATHS).contains(&count)) {
        let count = options.samples.unwrap_or_default();
        return Err(Error::option(format!("{count} sample paths: ask for 1 to {MOST_PATHS}")));
    }
    Ok(())
}

/// Series measured at the same rows, to be continued together, and what is known beside them.
///
/// ```
/// use moesaic::{Group, Series};
///
/// let sales = [Series::new("north", [3.0, 5.0, 4.0]), Series::new("south", [1.0, f32::NAN, 2.0])];
/// // Two rows ahead, the price is decided already.
/// let group = Group::new(sales).with_known([Series::new("price", [9.0, 9.0, 8.0, 8.0, 8.0])]);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Group {
    /// The series to continue, all with the same number of values; NaN is missing. The forecast starts after the last of them.
    pub targets: Vec<Series>,
    /// Covariates known over the horizon too: at least as many values as the targets and the horizon.
    pub known: Vec<Series>,
    /// Covariates known up to now: as many values as the targets.
    pub past: Vec<Series>,
}

impl Group {
    /// Series to continue together.
    pub fn new(targets: impl Into<Vec<Series>>) -> Self {
        Group { targets: targets.into(), ..Self::default() }
    }

    /// With covariates that are known over the horizon.
    pub fn with_known(mut self, known: impl Into<Vec<Series>>) -> Self {
        self.known = known.into();
        self
    }

    /// With covariates that are known up to now.
    pub fn with_past(mut self, past: impl Into<Vec<Series>>) -> Self {
        self.past = past.into();
        self
    }

    /// Checks lengths and values; the answer is the number of rows.
    fn check(&self, horizon: usize) -> Result<usize> {
        let Some(first) = self.targets.first() else {
            return Err(Error::option("a group has no series to continue: give at least one"));
        };
        let rows = first.values.len();
        let (needed, name) = (rows.saturating_add(horizon), quoted(&first.name));
        for (kind, all) in [(Kind::Target, &self.targets), (Kind::Known, &self.known), (Kind::Past, &self.past)] {
            for series in all {
                let refuse = |problem: String| Err(Error::input(Place::series(&series.name), problem));
                let has = series.values.len();
                if kind == Kind::Known && has < needed {
                    return refuse(format!(
                        "has {has} values and stops before the horizon: give {rows} of history and {horizon} ahead"
                    ));
                }
                if kind != Kind::Known && has != rows {
                    return refuse(format!("has {has} values, {name} has {rows}: give as many, missing ones as NaN"));
                }
                if let Some(row) = series.values.iter().position(|value| value.is_infinite()) {
                    return refuse(format!("value {} is infinite: correct it or mark it missing (NaN)", row + 1));
                }
            }
        }
        Ok(rows)
    }
}

/// What a series of a group is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Target,
    Known,
    Past,
}

/// Continues each series by `horizon` rows, of which the model sees at most `limit` values of history.
pub(super) fn forecast(
    model: &MoiraiMoe,
    series: &[Series],
    horizon: usize,
    limit: usize,
    options: &ForecastOptions,
) -> Result<Vec<Forecast>> {
    let levels = Levels::of(options);
    let contexts =
        series.iter().map(|series| Context::of(series, limit, options.missing)).collect::<Result<Vec<_>>>()?;
    // The model takes gaps as they are, and looks at what lies before its window to bridge them.
    let history = |(series, context): (&'_ Series, &Context)| -> Vec<f32> {
        series.values[..context.end].iter().copied().skip_while(|value| value.is_nan()).collect()
    };
    let histories: Vec<Vec<f32>> = series.iter().zip(&contexts).map(history).collect();
    let constants: Vec<Option<f32>> = contexts.iter().map(|context| constant(&context.values)).collect();
    let open = histories.iter().zip(&constants).filter(|(_, constant)| constant.is_none());
    let requests: Vec<Request<'_>> = open.map(|(history, _)| Request::univariate(history)).collect();
    let mut answers = levels.ask(model, &requests, limit, horizon)?.into_iter();
    let rows = series.iter().zip(&contexts).zip(constants);
    rows.map(|((series, context), constant)| {
        let answer = match constant {
            Some(value) => levels.flat(value, horizon),
            None => answers.next().and_then(|mut variates| variates.pop()).unwrap_or_default(),
        };
        levels.dress(answer, series, context, limit)
    })
    .collect()
}

/// Continues the series of each group together.
pub(super) fn forecast_groups(
    model: &MoiraiMoe,
    groups: &[Group],
    horizon: usize,
    limit: usize,
    options: &ForecastOptions,
) -> Result<Vec<Vec<Forecast>>> {
    let levels = Levels::of(options);
    let mut contexts = Vec::with_capacity(groups.len());
    for group in groups {
        let end = group.check(horizon)?;
        let of = |series| Ok::<_, Error>(Context { end, ..Context::of(series, limit, options.missing)? });
        let all = group.targets.iter().map(of).collect::<Result<Vec<Context>>>()?;
        let seen = |series: &Series| series.values.iter().rev().take(limit).any(|value| !value.is_nan());
        if let Some(series) = group.targets.iter().find(|series| !seen(series)) {
            let problem = format!("has no value among the last {limit} rows that the model sees: raise the context");
            return Err(Error::input(Place::series(&series.name), problem));
        }
        contexts.push(all);
    }
    let requests: Vec<Request<'_>> = groups
        .iter()
        .map(|group| Request { target: slices(&group.targets), known: slices(&group.known), past: slices(&group.past) })
        .collect();
    let answers = levels.ask(model, &requests, limit, horizon)?;
    let groups = groups.iter().zip(&contexts).zip(answers);
    groups
        .map(|((group, contexts), answers)| {
            let rows = group.targets.iter().zip(contexts).zip(answers);
            rows.map(|((series, context), answer)| levels.dress(answer, series, context, limit)).collect()
        })
        .collect()
}

fn slices(all: &[Series]) -> Vec<&[f32]> {
    all.iter().map(|series| &series.values[..]).collect()
}

/// What the model said of one variate.
#[derive(Clone, Default)]
struct Answer {
    mean: Vec<f32>,
    /// Of each level.
    quantiles: Vec<Vec<f32>>,
    samples: Vec<Vec<f32>>,
}

/// The levels that the model is asked for: the median, the quantiles wanted, and the ends of the intervals.
struct Levels<'a> {
    all: Vec<f64>,
    options: &'a ForecastOptions,
}

impl<'a> Levels<'a> {
    fn of(options: &'a ForecastOptions) -> Self {
        let ends = options.intervals.iter().flat_map(|level| [0.5 * (1.0 - level), 0.5 * (1.0 + level)]);
        let all = std::iter::once(MEDIAN).chain(options.quantiles.iter().copied()).chain(ends).collect();
        Self { all, options }
    }

    /// What the model says of each request and its variates.
    fn ask(
        &self,
        model: &MoiraiMoe,
        requests: &[Request<'_>],
        limit: usize,
        horizon: usize,
    ) -> Result<Vec<Vec<Answer>>> {
        let options = Options {
            mode: if self.options.exact { Mode::Exact } else { Mode::Cached },
            paths: Paths::Samples { count: self.options.samples.unwrap_or(PATHS), seed: self.options.seed },
            quantiles: self.all.clone(),
            keep_paths: self.options.samples.is_some(),
            ..Options::new(limit, horizon)
        };
        let said = model.forecast(requests, &options, None).map_err(|error| Error::compute(&error))?;
        let variates = |said: moesaic_models::moirai_moe::Forecast| {
            let of = |v: usize, all: &[Vec<Vec<f32>>]| all.iter().filter_map(|rows| rows.get(v).cloned()).collect();
            let means = said.mean.into_iter().enumerate();
            means
                .map(|(v, mean)| Answer { mean, quantiles: of(v, &said.quantiles), samples: of(v, &said.paths) })
                .collect()
        };
        Ok(said.into_iter().map(variates).collect())
    }

    /// What is said of a constant.
    fn flat(&self, value: f32, horizon: usize) -> Answer {
        let row = vec![value; horizon];
        let samples = vec![row.clone(); self.options.samples.unwrap_or_default()];
        Answer { mean: row.clone(), quantiles: vec![row; self.all.len()], samples }
    }

    /// The forecast of a series from what the model said.
    fn dress(&self, mut answer: Answer, series: &Series, context: &Context, limit: usize) -> Result<Forecast> {
        let mut bounds = if self.options.bounds { Bounds::of(context.newest(limit)) } else { Bounds::default() };
        if self.options.non_negative {
            bounds.floor = Some(bounds.floor.unwrap_or(0.0).max(0.0));
        }
        let Answer { mean, quantiles, samples } = &mut answer;
        bounds.apply(mean.iter_mut().chain(quantiles.iter_mut().chain(samples).flatten()));
        let timestamps = future(series, context.end, answer.mean.len())?;
        let (name, start) = (series.name.clone(), context.end);
        let (length, filled) = (context.newest(limit).len(), context.filled(limit));
        let Some((values, intervals, quantiles)) = self.split(answer.quantiles) else {
            return Err(Error::Compute(format!("the model did not answer for series {}", quoted(&series.name))));
        };
        let (mean, samples) = (answer.mean, answer.samples);
        Ok(Forecast { name, timestamps, values, intervals, mean, quantiles, samples, context: length, filled, start })
    }

    /// The median, the intervals and the quantiles, of values in the order of the levels.
    fn split(&self, values: Vec<Vec<f32>>) -> Option<(Vec<f32>, Vec<Interval>, Vec<Quantile>)> {
        let mut values = values.into_iter();
        let median = values.next()?;
        let quantile = |&level| Some(Quantile { level, values: values.next()? });
        let quantiles = self.options.quantiles.iter().map(quantile).collect::<Option<Vec<_>>>()?;
        let interval = |&level| Some(Interval { level, lower: values.next()?, upper: values.next()? });
        let intervals = self.options.intervals.iter().map(interval).collect::<Option<Vec<_>>>()?;
        Some((median, intervals, quantiles))
    }
}

#[cfg(test)]
mod tests;
