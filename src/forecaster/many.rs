//! Many series in one call, with a word after each few.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Forecast, ForecastOptions, Forecaster};
use crate::error::Result;
use crate::series::Series;

/// Parts of a call grow while they take less than this, up to some batches; parts below a batch are slow for their size, so
/// they are made only where a batch takes very long.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Batches in the largest part: enough for similar lengths to meet.
const MOST_BATCHES: usize = 8;

impl Forecaster {
    /// As [`Forecaster::forecast`], in parts of some seconds where the model allows. After each part `progress` is told how many
    /// series are done; if it breaks off, the answers so far are returned, fewer than there are series.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use moesaic::{ForecastOptions, Forecaster, Series};
    ///
    /// let series: Vec<Series> = (0..40).map(|at| Series::new(format!("{at}"), [1.0, 2.0, at as f32])).collect();
    /// let forecasts = Forecaster::embedded()?.forecast_with(&series, 2, &ForecastOptions::default(), |done| {
    ///     eprintln!("{done} of {}", series.len());
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert_eq!(forecasts.len(), 40);
    /// # Ok::<(), moesaic::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Forecaster::forecast`]. A series that cannot be used is met when its part is reached.
    pub fn forecast_with(
        &self,
        series: &[Series],
        horizon: usize,
        options: &ForecastOptions,
        mut progress: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Forecast>> {
        let mut forecasts = Vec::with_capacity(series.len());
        let most = options.batch.saturating_mul(MOST_BATCHES).max(1);
        // Intervals ask for some twenty forecasts of each series.
        let mut part = if options.intervals.is_empty() { options.batch.max(1) } else { 1 };
        let mut rest = series;
        loop {
            let (now, later) = rest.split_at(part.min(rest.len()));
            let start = Instant::now();
            // Also for no series at all, so that options are checked.
            forecasts.extend(self.forecast(now, horizon, options)?);
            let took = start.elapsed();
            if progress(forecasts.len()).is_break() || later.is_empty() {
                return Ok(forecasts);
            }
            part = match took {
                took if took < SHORTEST => (2 * part).min(most),
                took if took > LONGEST => (part / 2).max(1),
                _ => part,
            };
            rest = later;
        }
    }
}
