//! Forecasts as tables: for people, and as rows and columns for files.

use std::collections::HashMap;

use anyhow::Result;
use moesaic::{Forecast, Series, Stamp};

/// The future rows in at most `width` columns where that is possible: series side by side, or one long series in
/// several blocks read downwards.
pub(super) fn readable(time: Option<&str>, series: &[Series], forecasts: &[Forecast], width: usize) -> String {
    let mut blocks: Vec<Vec<String>> = Vec::new();
    let mut out = String::new();
    let mut shown: Option<&[Stamp]> = None;
    for (series, forecast) in series.iter().zip(forecasts) {
        let decimals = decimals(series, forecast);
        let own: Vec<Vec<String>> = columns(forecast)
            .map(|(name, values)| {
                let cells = values.iter().map(|value| format!("{:.decimals$}", f64::from(*value)));
                block(std::iter::once(short(name.unwrap_or(forecast.name.clone()).as_str())).chain(cells), true)
            })
            .collect();
        let wide = |blocks: &[Vec<String>]| blocks.iter().map(|block| width_of(block) + 2).sum::<usize>();
        // Series whose forecasts start elsewhere, or that do not fit beside the others, begin a table of their own.
        if shown != Some(&forecast.timestamps) || wide(&blocks) + wide(&own) > width + 2 {
            out.push_str(&beside(&std::mem::take(&mut blocks), width));
            let stamps = forecast.timestamps.iter().map(ToString::to_string);
            blocks.push(block(std::iter::once(short(time.unwrap_or("step"))).chain(stamps), time.is_none()));
            shown = Some(&forecast.timestamps);
        }
        blocks.extend(own);
    }
    out + &beside(&blocks, width)
}

/// The columns of one forecast: its values, without a name of their own, its quantiles, and the ends of its intervals.
fn columns(forecast: &Forecast) -> impl Iterator<Item = (Option<String>, &[f32])> {
    let ends = forecast.intervals.iter().flat_map(|interval| {
        let level = (interval.level * 1e4).round() / 1e2;
        [(Some(format!("lo-{level}")), &interval.lower[..]), (Some(format!("hi-{level}")), &interval.upper[..])]
    });
    let quantiles =
        forecast.quantiles.iter().map(|quantile| (Some(format!("q-{}", quantile.level)), &quantile.values[..]));
    std::iter::once((None, &forecast.values[..])).chain(quantiles).chain(ends)
}

/// Rows above which a table of one series is split into blocks.
const LONG: usize = 16;

/// Between blocks.
const RULE: &str = "  │ ";

/// Columns of text side by side, in several blocks if there is room and there are many rows.
fn beside(columns: &[Vec<String>], width: usize) -> String {
    let (Some(first), gap) = (columns.first(), "  ") else { return String::new() };
    let rows: Vec<String> = (0..first.len())
        .map(|row| {
            columns.iter().filter_map(|column| column.get(row)).map(String::as_str).collect::<Vec<_>>().join(gap)
        })
        .collect();
    let (head, body) = rows.split_at(1);
    let one = head[0].chars().count();
    let fit = ((width + RULE.chars().count()) / (one + RULE.chars().count())).max(1);
    let split = body.len().div_ceil(LONG).clamp(1, fit);
    let height = body.len().div_ceil(split).max(1);
    let split = body.len().div_ceil(height).max(1);
    let mut out = String::from("\n");
    let mut line = |parts: Vec<&str>| {
        out.push_str(parts.join(RULE).trim_end());
        out.push('\n');
    };
    line(vec![head[0].as_str(); split]);
    for row in 0..height {
        line((0..split).filter_map(|block| body.get(block * height + row)).map(String::as_str).collect());
    }
    out
}

/// Pads cells to one width, on the left if `right`.
fn block(cells: impl Iterator<Item = String>, right: bool) -> Vec<String> {
    let cells: Vec<String> = cells.collect();
    let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    cells.into_iter().map(|cell| if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }).collect()
}

fn width_of(block: &[String]) -> usize {
    block.first().map_or(0, |cell| cell.chars().count())
}

/// A name that leaves room for others.
fn short(name: &str) -> String {
    const LONGEST: usize = 24;
    let clean: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &clean[..cut]),
        None => clean,
    }
}

/// Decimals that show three digits of how the series varies.
fn decimals(series: &Series, forecast: &Forecast) -> usize {
    let from = forecast.start.saturating_sub(forecast.context);
    let recent = series.values.iter().skip(from).chain(&forecast.values).filter(|value| value.is_finite());
    let (low, high) = recent.fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let spread = f64::from(high) - f64::from(low);
    // A constant shows its own digits instead.
    let scale = if spread > 0.0 { spread } else { f64::from(high.abs()) };
    if scale > 0.0 { (2.0 - scale.log10().floor()).clamp(0.0, 9.0) as usize } else { 0 }
}

/// Forecasts as rows and columns, for files.
pub(super) struct Rows {
    /// The name of the id column and the id of each row, for a long table.
    pub ids: Option<(String, Vec<String>)>,
    /// The name of the time column.
    pub time: String,
    /// The time of each row.
    pub stamps: Vec<Stamp>,
    /// The value columns, by name; no value where a series has no forecast for the row.
    pub values: Vec<(String, Vec<Option<f32>>)>,
}

impl Rows {
    /// The time column, one column for each series, one for each of its quantiles (`y q-0.1`) and two for each of its intervals
    /// (`y lo-90`, `y hi-90`). With an `id` the
    /// table is long: one row for each series and time.
    pub fn of(id: Option<&str>, time: Option<&str>, forecasts: &[Forecast]) -> Self {
        let time = time.unwrap_or("step").to_string();
        match id {
            Some(id) => Self::long(id, time, forecasts),
            None => Self::wide(time, forecasts),
        }
    }

    fn wide(time: String, forecasts: &[Forecast]) -> Self {
        let mut stamps: Vec<Stamp> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        // All series of a table lie on one axis: the forecast that starts first, then what the others add, is in order.
        let mut by_start: Vec<&Forecast> = forecasts.iter().collect();
        by_start.sort_by_key(|forecast| forecast.start);
        for stamp in by_start.iter().flat_map(|forecast| &forecast.timestamps) {
            at.entry(stamp.to_string()).or_insert_with(|| {
                stamps.push(*stamp);
                stamps.len() - 1
            });
        }
        let mut values = Vec::new();
        for forecast in forecasts {
            let places: Vec<Option<&usize>> =
                forecast.timestamps.iter().map(|stamp| at.get(&stamp.to_string())).collect();
            for (end, own) in columns(forecast) {
                let name = end.map_or(forecast.name.clone(), |end| format!("{} {end}", forecast.name));
                let mut cells = vec![None; stamps.len()];
                for (place, value) in places.iter().zip(own) {
                    if let Some(cell) = place.and_then(|&place| cells.get_mut(place)) {
                        *cell = Some(*value);
                    }
                }
                values.push((name, cells));
            }
        }
        Rows { ids: None, time, stamps, values }
    }

    fn long(id: &str, time: String, forecasts: &[Forecast]) -> Self {
        // Short series have no intervals; the others name the columns.
        let widest = forecasts.iter().max_by_key(|forecast| forecast.intervals.len());
        let ends = widest.into_iter().flat_map(|forecast| columns(forecast).filter_map(|column| column.0));
        let mut values: Vec<(String, Vec<Option<f32>>)> =
            std::iter::once("forecast".to_string()).chain(ends).map(|name| (name, Vec::new())).collect();
        let (mut ids, mut stamps) = (Vec::new(), Vec::new());
        for forecast in forecasts {
            ids.extend(std::iter::repeat_n(forecast.name.clone(), forecast.timestamps.len()));
            stamps.extend_from_slice(&forecast.timestamps);
            let mut own = columns(forecast).map(|(_, values)| values);
            for (_, all) in &mut values {
                all.extend(own.next().unwrap_or_default().iter().copied().map(Some));
                all.resize(stamps.len(), None);
            }
        }
        Rows { ids: Some((id.to_string(), ids)), time, stamps, values }
    }

    /// The rows as CSV, with a header.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let names = self.values.iter().map(|(name, _)| name.as_str());
        let id = self.ids.as_ref().map(|(name, _)| name.as_str());
        writer.write_record(id.into_iter().chain([self.time.as_str()]).chain(names))?;
        for (row, stamp) in self.stamps.iter().enumerate() {
            let id = self.ids.as_ref().and_then(|(_, ids)| ids.get(row)).cloned();
            let cells = self
                .values
                .iter()
                .map(|(_, values)| values.get(row).copied().flatten().map_or(String::new(), |value| value.to_string()));
            writer.write_record(id.into_iter().chain([stamp.to_string()]).chain(cells))?;
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }
}
