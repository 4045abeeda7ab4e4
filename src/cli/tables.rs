//! Forecasts as tables: for people and as CSV.

use std::collections::HashMap;

use anyhow::Result;
use moesaic::{Forecast, Series};

/// The future rows in at most `width` columns where that is possible: series side by side, or one long series in
/// several blocks read downwards.
pub(super) fn readable(time: Option<&str>, series: &[Series], forecasts: &[Forecast], width: usize) -> String {
    let mut blocks: Vec<Vec<String>> = Vec::new();
    let mut out = String::new();
    let mut shown: Option<&[moesaic::Stamp]> = None;
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

/// The columns of one forecast: its values, without a name of their own, and the ends of its intervals.
fn columns(forecast: &Forecast) -> impl Iterator<Item = (Option<String>, &[f32])> {
    let ends = forecast.intervals.iter().flat_map(|interval| {
        let level = (interval.level * 1e4).round() / 1e2;
        [(Some(format!("lo-{level}")), &interval.lower[..]), (Some(format!("hi-{level}")), &interval.upper[..])]
    });
    std::iter::once((None, &forecast.values[..])).chain(ends)
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

/// CSV with the time column, one column for each series, and two for each of its intervals (`y lo-90`, `y hi-90`). A cell is empty where a series has no forecast for the row.
/// With an `id` the table is long: one row for each series and time.
pub(super) fn csv(id: Option<&str>, time: Option<&str>, forecasts: &[Forecast]) -> Result<String> {
    if let Some(id) = id {
        return long(id, time, forecasts);
    }
    let mut rows: Vec<moesaic::Stamp> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    // All series of a table lie on one axis: the forecast that starts first, then what the others add, is in order.
    let mut by_start: Vec<&Forecast> = forecasts.iter().collect();
    by_start.sort_by_key(|forecast| forecast.start);
    for stamp in by_start.iter().flat_map(|forecast| &forecast.timestamps) {
        at.entry(stamp.to_string()).or_insert_with(|| {
            rows.push(*stamp);
            rows.len() - 1
        });
    }
    let columns: Vec<(String, &Forecast, &[f32])> = forecasts
        .iter()
        .flat_map(|forecast| {
            let named = |end: Option<String>| match end {
                Some(end) => format!("{} {end}", forecast.name),
                None => forecast.name.clone(),
            };
            columns(forecast).map(move |(end, values)| (named(end), forecast, values))
        })
        .collect();
    let mut cells = vec![vec![String::new(); columns.len()]; rows.len()];
    for (column, (_, forecast, values)) in columns.iter().enumerate() {
        for (stamp, value) in forecast.timestamps.iter().zip(*values) {
            if let Some(row) = at.get(&stamp.to_string()).and_then(|&row| cells.get_mut(row)) {
                row[column] = value.to_string();
            }
        }
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(std::iter::once(time.unwrap_or("step")).chain(columns.iter().map(|c| c.0.as_str())))?;
    for (stamp, cells) in rows.iter().zip(cells) {
        writer.write_record(std::iter::once(stamp.to_string()).chain(cells))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// One row for each series and time: id, time, value, and the ends of intervals.
fn long(id: &str, time: Option<&str>, forecasts: &[Forecast]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Short series have no intervals; the others name the columns.
    let widest = forecasts.iter().max_by_key(|forecast| forecast.intervals.len());
    let ends: Vec<String> = widest.map_or(Vec::new(), |forecast| columns(forecast).filter_map(|c| c.0).collect());
    let head = [id, time.unwrap_or("step"), "forecast"];
    writer.write_record(head.into_iter().chain(ends.iter().map(String::as_str)))?;
    for forecast in forecasts {
        for (row, stamp) in forecast.timestamps.iter().enumerate() {
            let mut cells: Vec<String> =
                columns(forecast).map(|(_, values)| values.get(row).map_or(String::new(), f32::to_string)).collect();
            cells.resize(1 + ends.len(), String::new());
            writer.write_record([forecast.name.clone(), stamp.to_string()].into_iter().chain(cells))?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
