//! `moesaic forecast`

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moesaic::plot::{self, Panel};
use moesaic::{Forecast, ForecastOptions, Forecaster, ModelInfo, Series, Table, TableOptions};
use serde::Serialize;

use super::covariates::CovariateArgs;
use super::model::ModelArgs;
use super::output::Output;
use super::{CombineArgs, colour, count, note, percent, print, progress, tables};

/// Continue the series of a CSV or Parquet file.
///
/// Finds the time column and forecasts every column of numbers. Prints the future rows and draws history and forecast;
/// --json and --csv print for programs instead, --output writes a file. Works offline, unless --model is the id of a model on
/// the Hub. Parquet takes a program built with `--features table`.
///
/// Missing values (empty cells, NA, NaN, -, ...) and missing rows are filled by a straight line between their
/// neighbours; after the last observed value they are forecast, so a forecast starts at the first row after it.
///
/// Dates that fit both month/day and day/month are read as month/day; a note says so.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A CSV or Parquet file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Column to forecast; may be given several times [default: every column of numbers]
    #[arg(long, value_name = "NAME")]
    column: Vec<String>,
    /// Time column [default: found by its name and content]
    #[arg(long, value_name = "NAME")]
    time: Option<String>,
    /// Column that tells series apart, for a long table [default: found where times repeat]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Time zone (IANA name, such as Europe/Berlin). Times without an offset from UTC are what clocks there show, others are put
    /// there; hours go on through daylight saving, days keep the time of day [default: as the file says]
    #[arg(long, value_name = "NAME", conflicts_with = "steps")]
    zone: Option<String>,
    /// Ignore times and number the rows 1, 2, 3, ...
    #[arg(long)]
    steps: bool,
    /// Rows to forecast [default: by the step, for example 48 hours, 28 days, 24 months]
    #[arg(long, value_name = "N")]
    horizon: Option<usize>,
    /// Most values of history that the model sees [default: 512]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Raise negative forecasts to zero
    #[arg(long)]
    non_negative: bool,
    #[command(flatten)]
    company: CovariateArgs,
    #[command(flatten)]
    combine: CombineArgs,
    /// Give an interval that should hold this share of the future, in percent; may be given several times. Calibrated on
    /// forecasts of each series' own past, which takes 20 times as long
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    interval: Vec<f64>,
    /// Give the value that this share of outcomes should not exceed, such as 0.1; may be given several times. For models that
    /// predict a distribution (Moirai-MoE)
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    quantile: Vec<f64>,
    /// Give this many sample paths, in JSON. For models that predict a distribution
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Seed of the random numbers behind the distribution of later rows
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Compute every patch of a Moirai-MoE's forecast from the whole sequence, as its reference does; slow
    #[arg(long)]
    exact: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON: the model, remarks, and for each series its stamps and values
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV: the time column and one column for each series; long if the table was
    #[arg(long)]
    csv: bool,
    /// Write the forecast into a file instead of printing it: as CSV, JSON or Parquet by the end of its name
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "csv"])]
    output: Option<PathBuf>,
    /// Draw history and forecast into an SVG file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Panels of one SVG, and pictures in the terminal; more would not be looked at.
const MOST_PANELS: usize = 24;
const MOST_PICTURES: usize = 4;

pub(super) fn run(args: &Args) -> Result<()> {
    // What can fail cheaply fails before the model runs.
    if args.horizon == Some(0) {
        bail!("the horizon is 0: ask for at least 1 step");
    }
    let output = args.output.as_deref().map(|path| open_output(path, &args.file)).transpose()?;
    if args.samples.is_some() && !(args.json || matches!(output, Some((_, Form::Json)))) {
        bail!("sample paths are written as JSON: add --json, or give --output a name that ends in .json");
    }
    let picture = args.plot.as_deref().map(Output::picture).transpose()?;
    let read_as = options_of(args);
    let mut table = read(args, &read_as)?;
    let company = args.company.take(&mut table, &read_as)?;
    let empty = leave_out_empty(&mut table);
    let model = args.model.open()?;
    let horizon = args.horizon.unwrap_or_else(|| usual_horizon(&table).min(model.max_horizon()));
    let mut options = ForecastOptions::default().non_negative(args.non_negative);
    options.context = args.context;
    options.intervals.clone_from(&args.interval);
    options.combine = args.combine.choice();
    options.quantiles.clone_from(&args.quantile);
    (options.samples, options.seed, options.exact) = (args.samples, args.seed, args.exact);
    let forecasts = match &company {
        Some(company) => company.forecast(&model, &table.series, horizon, &options)?,
        None => progress::forecast(&model, &table.series, horizon, &options)?,
    };
    let caption = caption(&table, model.info(), horizon, &forecasts);

    let mut notes = table.notes.clone();
    notes.extend(empty);
    notes.extend(about_filled(&forecasts));
    notes.extend(about_intervals(&args.interval, &forecasts));
    if let Some(picture) = picture {
        if forecasts.len() > MOST_PANELS {
            notes.push(format!("the picture shows the first {MOST_PANELS} of {} series", forecasts.len()));
        }
        picture.write(plot::svg(&panels(&table.series, &forecasts, &caption, MOST_PANELS)).as_bytes())?;
    }
    let json = || json(&table, &model, horizon, &notes, &forecasts);
    let rows = || tables::Rows::of(table.id.as_deref(), table.time.as_deref(), &forecasts);
    if args.json {
        return Ok(print(&json()?)?);
    }
    // JSON holds the remarks.
    if !matches!(output, Some((_, Form::Json))) {
        notes.iter().for_each(|text| note(text));
    }
    if let Some((output, form)) = output {
        return output.write(&match form {
            Form::Csv => rows().csv()?.into_bytes(),
            Form::Json => json()?.into_bytes(),
            #[cfg(feature = "table")]
            Form::Parquet => super::parquet::write(&rows(), zone_of(&table.series))?,
        });
    }
    if args.csv {
        return Ok(print(&rows().csv()?)?);
    }
    let mut text = tables::readable(table.time.as_deref(), &table.series, &forecasts, WIDTH);
    for panel in panels(&table.series, &forecasts, &caption, MOST_PICTURES) {
        text.push('\n');
        text.push_str(&plot::terminal(&panel, WIDTH, 14, colour()));
    }
    if forecasts.len() > MOST_PICTURES {
        text.push_str(&format!(
            "\n{} more series are not drawn; --plot FILE.svg draws them\n",
            forecasts.len() - MOST_PICTURES
        ));
    }
    Ok(print(&text)?)
}

/// Columns of a terminal that nobody has made narrower.
const WIDTH: usize = 80;

/// A level of a quantile.
fn level(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(level) if level > 0.0 && level < 1.0 => Ok(level),
        _ => Err("a quantile has a level between 0 and 1: give, for example, 0.1".into()),
    }
}

/// What a file is written as.
#[derive(Debug, Clone, Copy)]
enum Form {
    Csv,
    Json,
    #[cfg(feature = "table")]
    Parquet,
}

fn open_output(path: &Path, input: &Path) -> Result<(Output, Form)> {
    let shown = path.display();
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    let form = match extension.as_deref() {
        Some("csv") => Form::Csv,
        Some("json") => Form::Json,
        #[cfg(feature = "table")]
        Some("parquet") => Form::Parquet,
        #[cfg(not(feature = "table"))]
        Some("parquet") => {
            bail!("cannot write {shown}: build with `--features table` for Parquet, or give a name that ends in .csv")
        }
        _ => bail!("cannot write {shown}: give a name that ends in .csv, .json or .parquet"),
    };
    if let (Ok(input), Ok(output)) = (input.canonicalize(), path.canonicalize())
        && input == output
    {
        bail!("cannot write {shown}: it is the table that is read; give another name");
    }
    Ok((Output::open(path)?, form))
}

/// The IANA name of the zone that all series stand in, if they do.
#[cfg(feature = "table")]
fn zone_of(series: &[Series]) -> Option<&str> {
    fn name(series: &Series) -> Option<&str> {
        series.calendar()?.zone()?.iana_name()
    }
    series.first().and_then(name).filter(|first| series.iter().all(|series| name(series) == Some(first)))
}

/// How the table is read.
fn options_of(args: &Args) -> TableOptions {
    let mut options = TableOptions::default().columns(args.company.columns(&args.column));
    options.time.clone_from(&args.time);
    options.id.clone_from(&args.id);
    options.zone.clone_from(&args.zone);
    options.number_rows = args.steps;
    options
}

fn read(args: &Args, options: &TableOptions) -> Result<Table> {
    if args.file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        return Ok(Table::parse("standard input", bytes, options)?);
    }
    Ok(Table::read(&args.file, options)?)
}

/// What people usually want to see at this step, but not more than half of what is known.
fn usual_horizon(table: &Table) -> usize {
    let known = table.series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    table.frequency.map_or(24, |frequency| frequency.usual_horizon()).min(known / 2).max(1)
}

fn caption(table: &Table, model: &ModelInfo, horizon: usize, forecasts: &[Forecast]) -> String {
    let step = table.frequency.map_or(String::new(), |frequency| format!("{frequency} · "));
    let context = forecasts.iter().map(|forecast| forecast.context).max().unwrap_or(0);
    let active = count(model.parameters.active);
    format!("{step}{horizon} ahead from {context} values · {} ({active} active parameters)", model.architecture)
}

fn panels<'a>(series: &'a [Series], forecasts: &'a [Forecast], caption: &'a str, most: usize) -> Vec<Panel<'a>> {
    let pairs = series.iter().zip(forecasts).take(most);
    pairs.map(|(series, forecast)| Panel { series, forecast, caption }).collect()
}

/// Takes series without a value out of a table that has others, with a remark.
fn leave_out_empty(table: &mut Table) -> Option<String> {
    let empty = |series: &Series| series.values.iter().all(|value| value.is_nan());
    let first = table.series.iter().find(|series| empty(series))?.name.clone();
    let count = table.series.iter().filter(|series| empty(series)).count();
    if count == table.series.len() {
        return None; // the forecaster says so, and fails
    }
    table.series.retain(|series| !empty(series));
    Some(match count {
        1 => format!("'{first}' has only missing values and is left out"),
        _ => format!("{count} series have only missing values and are left out; the first is '{first}'"),
    })
}

/// Remarks of one kind that are worth showing; a table of thousands of series has as many.
const MOST_REMARKS: usize = 3;

/// A remark about forecasts that rest mostly on filled values.
fn about_filled(forecasts: &[Forecast]) -> Vec<String> {
    let thin: Vec<&Forecast> = forecasts.iter().filter(|forecast| 2 * forecast.filled > forecast.context).collect();
    let remark = |forecast: &&Forecast| {
        let (name, filled, all) = (&forecast.name, forecast.filled, forecast.context);
        format!("'{name}' rests on {} observed values, {filled} of {all} are filled: trust it little", all - filled)
    };
    let mut remarks: Vec<String> = thin.iter().take(MOST_REMARKS).map(remark).collect();
    if let Some(more @ 1..) = thin.len().checked_sub(MOST_REMARKS) {
        remarks.push(format!("{more} more series rest mostly on filled values"));
    }
    remarks
}

/// A remark about series that are too short for the intervals that were asked for.
fn about_intervals(levels: &[f64], forecasts: &[Forecast]) -> Option<String> {
    let without: Vec<&str> =
        forecasts.iter().filter(|f| f.intervals.len() < levels.len()).map(|f| f.name.as_str()).collect();
    match without[..] {
        [] => None,
        [name] => Some(format!("'{name}' has no interval: its history is too short to calibrate one")),
        [first, ..] => Some(format!(
            "{} series have no interval ('{first}' is the first): their history is too short to calibrate one",
            without.len()
        )),
    }
}

fn json(table: &Table, model: &Forecaster, horizon: usize, notes: &[String], forecasts: &[Forecast]) -> Result<String> {
    #[derive(Serialize)]
    struct Answer<'a> {
        model: &'a ModelInfo,
        frequency: Option<String>,
        horizon: usize,
        notes: &'a [String],
        forecasts: &'a [Forecast],
    }
    let frequency = table.frequency.map(|frequency| frequency.to_string());
    let answer = Answer { model: model.info(), frequency, horizon, notes, forecasts };
    Ok(serde_json::to_string_pretty(&answer)? + "\n")
}
