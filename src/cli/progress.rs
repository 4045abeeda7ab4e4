//! A bar on the terminal while many series are computed.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moesaic::{Forecast, ForecastOptions, Forecaster, Series};

/// Quicker calls show no bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Forecasts all series. Where people look on, a bar shows how many are done; it leaves nothing behind. Ctrl-C ends the
/// program as always.
pub(super) fn forecast(
    model: &Forecaster,
    series: &[Series],
    horizon: usize,
    options: &ForecastOptions,
) -> Result<Vec<Forecast>> {
    let watched = io::stderr().is_terminal() && io::stdout().is_terminal();
    let bar = watched.then(|| bar(series.len()));
    let start = Instant::now();
    let forecasts = model.forecast_with(series, horizon, options, |done| {
        if let Some(bar) = bar.as_ref().filter(|_| done < series.len() && start.elapsed() > PATIENCE) {
            bar.set_position(done as u64);
        }
        ControlFlow::Continue(())
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(forecasts?)
}

/// Draws nothing before its first position.
fn bar(series: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(series as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:30} {pos} of {len} series, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_template_is_valid() {
        assert!(ProgressStyle::with_template("{bar:30} {pos} of {len} series, {eta} left").is_ok());
        let bar = bar(3);
        bar.set_position(1);
        assert_eq!((bar.position(), bar.length()), (1, Some(3)));
    }
}
