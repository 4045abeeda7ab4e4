//! `moesaic eval forecast`

use std::path::PathBuf;

use anyhow::Result;
use moesaic::eval::Plan;
use moesaic::{ForecastOptions, Series};

use super::{ModelArgs, open_model, print};

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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let plan = Plan::read(&args.plan)?;
    let model = open_model(args.model.model.as_deref())?;
    let evaluation = plan.evaluate(&model.info().source, |histories, horizon| {
        let series: Vec<Series> = histories.iter().map(|history| Series::new("history", history.as_slice())).collect();
        let forecasts = model.forecast(&series, horizon, &ForecastOptions::default())?;
        Ok(forecasts.into_iter().map(|forecast| forecast.values).collect())
    })?;
    let text = if args.json { serde_json::to_string_pretty(&evaluation)? } else { evaluation.to_string() };
    Ok(print(&(text.trim_end().to_string() + "\n"))?)
}
