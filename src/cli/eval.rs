//! `moesaic eval forecast`

use std::path::PathBuf;

use anyhow::Result;
use moesaic::eval::{Answer, Evaluation, Example, LEVELS, Plan};
use moesaic::plot::{self, Panel};
use moesaic::{Forecast, ForecastOptions, Quantile, Series};

use super::model::ModelArgs;
use super::output::Output;
use super::{CombineArgs, percent, print};

/// Score forecasts against naive, seasonal-naive and drift.
///
/// Cuts each series of the plan at several origins, forecasts from the values before each, and scores the values after
/// it: MASE, sMAPE, RMSE, and the ratio of MASE to that of the baselines. With --crps or --samples also what a forecast says of its
/// own uncertainty: CRPS (mean weighted quantile loss) and coverage, against seasonal-naive with the errors of its past.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plan: which series, periods, horizons and origins (see benches/zero_shot.toml)
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    combine: CombineArgs,
    /// Give each forecast an interval that should hold this share of values, in percent, and measure what it holds; takes 20
    /// times as long
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    interval: Option<f64>,
    /// Measure the quantiles 0.1 to 0.9: those of the predicted distribution, or the ends of intervals of 80, 60, 40 and 20 percent
    /// where the model predicts none; the latter takes 20 times as long
    #[arg(long)]
    crps: bool,
    /// Measure this many sample paths too, for models that predict a distribution
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// With a model that predicts a distribution: compute each patch from the whole sequence, as the reference does
    #[arg(long)]
    exact: bool,
    /// Draw the three worst and the three best forecasts beside what came, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Forecasts of each kind that a picture shows.
const EXAMPLES: usize = 3;

/// The worst and the best forecasts of an evaluation.
fn draw(evaluation: &Evaluation) -> String {
    let mut all: Vec<(String, &Example)> = Vec::new();
    for (kind, examples) in ["worst", "best"].into_iter().zip(evaluation.examples(EXAMPLES)) {
        for (i, example) in examples.into_iter().enumerate() {
            let Example { mase, seasonal_naive, .. } = example;
            all.push((format!("{kind} {}: MASE {mase:.3}, seasonal-naive {seasonal_naive:.3}", i + 1), example));
        }
    }
    let panels: Vec<Panel> = all
        .iter()
        .map(|(caption, example)| Panel { series: &example.series, forecast: &example.forecast, caption })
        .collect();
    plot::svg(&panels)
}

/// The intervals between the levels that are measured, from the outside in.
const BANDS: [f64; 4] = [0.8, 0.6, 0.4, 0.2];

/// The quantiles of a forecast that has the median and the [`BANDS`] only, in the order of the [`LEVELS`]; empty without the bands.
fn quantiles(forecast: &Forecast, bands: usize) -> Vec<Quantile> {
    let bands = forecast.intervals.get(bands..).unwrap_or_default();
    if bands.len() != BANDS.len() {
        return Vec::new();
    }
    let (lower, upper) = (bands.iter().map(|band| &band.lower), bands.iter().rev().map(|band| &band.upper));
    let values = lower.chain([&forecast.values]).chain(upper);
    LEVELS.into_iter().zip(values).map(|(level, values)| Quantile::new(level, values.as_slice())).collect()
}

pub(super) fn run(args: &Args) -> Result<()> {
    let plan = Plan::read(&args.plan)?;
    let picture = args.plot.as_deref().map(Output::picture).transpose()?;
    let model = args.model.open()?;
    let mut options = ForecastOptions::default();
    options.intervals.extend(args.interval);
    options.combine = args.combine.choice();
    let predicts = model.predicts_distributions();
    match predicts {
        true if args.crps || args.samples.is_some() => options.quantiles.extend(LEVELS),
        false if args.crps => options.intervals.extend(BANDS),
        _ => {}
    }
    (options.samples, options.exact) = (args.samples, args.exact);
    let before = usize::from(args.interval.is_some());
    let evaluation = plan.evaluate(&model.info().source, |request| {
        let series: Vec<Series> = request.pasts.iter().map(|past| Series::new("history", past.as_slice())).collect();
        let forecasts = model.forecast(&series, request.horizon, &options.clone().context(request.context))?;
        let answer = |forecast: Forecast| Answer {
            quantiles: if predicts { forecast.quantiles } else { quantiles(&forecast, before) },
            interval: forecast.intervals.into_iter().next().filter(|_| before > 0),
            values: forecast.values,
            samples: forecast.samples,
        };
        Ok(forecasts.into_iter().map(answer).collect())
    })?;
    if let Some(picture) = picture {
        picture.write(draw(&evaluation).as_bytes())?;
    }
    let text = if args.json { serde_json::to_string_pretty(&evaluation)? } else { evaluation.to_string() };
    Ok(print(&(text.trim_end().to_string() + "\n"))?)
}
