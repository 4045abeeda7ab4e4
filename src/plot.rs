//! Pictures: of a series and its forecast in the terminal and as SVG, of a matrix as SVG.

mod heat;
mod svg;
mod terminal;
mod ticks;

pub use heat::{HeatMap, heat_maps};
pub use svg::svg;
pub use terminal::terminal;

use crate::forecaster::{Forecast, Interval};
use crate::series::Series;

/// What a picture shows: a series and its continuation.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// The history; what it has behind the start of the forecast is drawn beside it.
    pub series: &'a Series,
    /// Its forecast.
    pub forecast: &'a Forecast,
    /// A remark under the title: the step, the model. May be empty.
    pub caption: &'a str,
}

/// The points of a panel; x counts rows of the series.
struct Lines {
    /// The tail of the history, in runs without missing values.
    history: Vec<Vec<(f64, f64)>>,
    /// What came where the forecast is, in the same runs.
    actual: Vec<Vec<(f64, f64)>>,
    /// The last observed value, then the forecast.
    forecast: Vec<(f64, f64)>,
    /// The intervals, widest first: lower and upper ends, both from the last observed value on.
    bands: Vec<[Vec<(f64, f64)>; 2]>,
    /// Where the history ends and the forecast begins.
    boundary: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Panel<'_> {
    /// The points to draw, with so many rows of history that the forecast takes a fair part, but at least `least`.
    fn lines(&self, least: usize) -> Lines {
        let start = self.forecast.start.min(self.series.values.len());
        let rows = (3 * self.forecast.values.len()).max(least);
        let tail = start.saturating_sub(rows);
        let observed = |row: usize| self.series.values.get(row).copied().filter(|value| value.is_finite());
        let runs = |rows: std::ops::Range<usize>| {
            let mut runs: Vec<Vec<(f64, f64)>> = vec![Vec::new()];
            for row in rows {
                match (observed(row), runs.last_mut()) {
                    (Some(value), Some(run)) => run.push((row as f64, f64::from(value))),
                    (None, Some(run)) if !run.is_empty() => runs.push(Vec::new()),
                    _ => {}
                }
            }
            runs.retain(|run| !run.is_empty());
            runs
        };
        let (history, actual) = (runs(tail..start), runs(start..start + self.forecast.values.len()));
        let last = history.last().and_then(|run| run.last()).copied();
        let ahead = self.forecast.values.iter().enumerate().map(|(at, &value)| ((start + at) as f64, f64::from(value)));
        let forecast: Vec<(f64, f64)> = last.into_iter().chain(ahead).collect();
        let mut intervals: Vec<&Interval> = self.forecast.intervals.iter().collect();
        intervals.sort_by(|a, b| b.level.total_cmp(&a.level));
        let end = |values: &[f32]| -> Vec<(f64, f64)> {
            let ahead = values.iter().enumerate().map(|(at, &value)| ((start + at) as f64, f64::from(value)));
            last.into_iter().chain(ahead).collect()
        };
        let bands: Vec<_> = intervals.into_iter().map(|i| [end(&i.lower), end(&i.upper)]).collect();
        let lines = history.iter().chain(&actual).flatten();
        let values = lines.chain(&forecast).chain(bands.iter().flatten().flatten()).map(|point| point.1);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let end = (start + self.forecast.values.len()).saturating_sub(1).max(tail + 1);
        Lines {
            history,
            actual,
            forecast,
            bands,
            boundary: last.map_or(start as f64, |point| point.0),
            x: (tail as f64, end as f64),
            y: padded(low, high),
        }
    }
}

/// A little room above and below, and some height for a flat line.
fn padded(low: f64, high: f64) -> (f64, f64) {
    if low > high {
        return (0.0, 1.0);
    }
    let room =
        if high - low > 1e-6 * high.abs().max(low.abs()) { 0.06 * (high - low) } else { high.abs().max(1.0) * 0.1 };
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Calendar, Frequency};

    /// A wave on an hourly calendar, and its continuation.
    pub(super) fn wave(rows: usize, horizon: usize) -> (Series, Forecast) {
        let calendar = Calendar::new("2024-01-01".parse().unwrap(), Frequency::HOURLY);
        let value = |row: usize| 20.0 + 5.0 * (row as f32 * std::f32::consts::TAU / 24.0).sin();
        let series = Series::new("temperature", (0..rows).map(value).collect::<Vec<_>>()).with_calendar(calendar);
        let timestamps = (rows..rows + horizon).map(|row| series.stamp(row as i64).unwrap()).collect();
        let values = (rows..rows + horizon).map(value).collect();
        let name = series.name.clone();
        let (intervals, mean, quantiles, samples) = Default::default();
        let (context, start, filled) = (rows, rows, 0);
        (series, Forecast { name, timestamps, values, intervals, mean, quantiles, samples, context, filled, start })
    }

    #[test]
    fn the_forecast_starts_at_the_last_observed_value() {
        let (mut series, mut forecast) = wave(100, 10);
        series.values[99] = f32::NAN;
        series.values[50] = f32::NAN;
        forecast.start = 99;
        let lines = (Panel { series: &series, forecast: &forecast, caption: "" }).lines(80);
        assert_eq!(lines.history.len(), 2);
        assert_eq!(lines.forecast[0], (98.0, f64::from(series.values[98])));
        assert_eq!((lines.forecast.len(), lines.forecast[1].0, lines.x), (11, 99.0, (19.0, 108.0)));
        assert!(lines.y.0 < 15.0 && lines.y.1 > 25.0);
    }

    #[test]
    fn what_came_is_drawn_beside_the_forecast() {
        let (series, forecast) = wave(100, 10);
        let mut longer = Series::new("temperature", wave(110, 1).0.values);
        (longer.values[104], longer.values[109]) = (f32::NAN, 90.0);
        let lines = (Panel { series: &longer, forecast: &forecast, caption: "" }).lines(80);
        assert_eq!(lines.history, (Panel { series: &series, forecast: &forecast, caption: "" }).lines(80).history);
        assert_eq!(lines.actual.iter().map(Vec::len).collect::<Vec<_>>(), [4, 5]);
        assert_eq!((lines.actual[0][0].0, lines.actual[1][4]), (100.0, (109.0, 90.0)));
        assert!(lines.y.1 > 90.0);
    }

    #[test]
    fn bands_belong_to_the_picture() {
        let (series, mut forecast) = wave(100, 10);
        let interval = |level: f64, half: f32| {
            let shifted = |by: f32| forecast.values.iter().map(|v| v + by).collect::<Vec<_>>();
            Interval { level, lower: shifted(-half), upper: shifted(half) }
        };
        forecast.intervals = vec![interval(0.5, 3.0), interval(0.9, 30.0)];
        let lines = (Panel { series: &series, forecast: &forecast, caption: "" }).lines(80);
        // The widest first, from the last observed value on, and inside the picture.
        let [lower, upper] = &lines.bands[0];
        assert_eq!((lower[0], lower.len(), upper[10].1), (lines.forecast[0], 11, f64::from(forecast.values[9] + 30.0)));
        assert!(lines.bands[1][1][10].1 < upper[10].1);
        assert!(lines.y.1 > 45.0 && lines.y.0 < -5.0, "{:?}", lines.y);
    }
}
