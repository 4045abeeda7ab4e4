//! `moesaic eval forecast`

use std::path::PathBuf;

use anyhow::Result;
use moesaic::eval::{Answer, Plan};
use moesaic::{Forecast, ForecastOptions, Series};

use super::model::ModelArgs;
use super::{CombineArgs, percent, print};

/// Score forecasts against naive, seasonal-naive and drift.
///
/// Cuts each series of the plan at several origins, forecasts from the values before each, and scores the values after
/// it: MASE, sMAPE, RMSE, and the ratio of MASE to that of the baselines.
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let plan = Plan::read(&args.plan)?;
    let model = args.model.open()?;
    let mut options = ForecastOptions::default();
    options.intervals.extend(args.interval);
    options.combine = args.combine.choice();
    let evaluation = plan.evaluate(&model.info().source, |request| {
        let series: Vec<Series> = request.pasts.iter().map(|past| Series::new("history", past.as_slice())).collect();
        let forecasts = model.forecast(&series, request.horizon, &options.clone().context(request.context))?;
        let answer =
            |forecast: Forecast| Answer { values: forecast.values, interval: forecast.intervals.into_iter().next() };
        Ok(forecasts.into_iter().map(answer).collect())
    })?;
    let text = if args.json { serde_json::to_string_pretty(&evaluation)? } else { evaluation.to_string() };
    Ok(print(&(text.trim_end().to_string() + "\n"))?)
}
