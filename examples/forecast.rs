//! Forecasts from Rust, without the command line: plain values, a table, covariates, many series at once, a series that grows.
//!
//! ```console
//! cargo run --release --example forecast
//! cargo run --release --example forecast -- examples/data/sunspots.csv 12
//! cargo run --release --example forecast -- examples/data/sunspots.csv 12 path/to/model # Time-MoE or Moirai-MoE
//! ```

use std::f32::consts::TAU;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use jiff::{ToSpan, civil::date};
use moesaic::{Forecast, ForecastOptions, Forecaster, Group, Series, Table, TableOptions};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/sunspots.csv");
const MOIRAI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moirai");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or_else(|| FILE.into());
    let horizon = arguments.next().map_or(Ok(12), |text| text.parse()).context("the horizon must be a number")?;

    // The small model that is part of the library, and the one that was given, if any.
    let built_in = Forecaster::embedded()?;
    let given = arguments.next().map(Forecaster::from_dir).transpose()?;
    let forecaster = given.as_ref().unwrap_or(&built_in);
    let info = forecaster.info();
    println!("{}: {} of {} parameters active", info.architecture, info.parameters.active, info.parameters.total);

    table(forecaster, &file, horizon)?;
    values(forecaster)?;
    // Covariates take a Moirai-MoE: the one that was given, or that of this repository.
    let own = Path::new(MOIRAI).exists().then(|| Forecaster::from_dir(MOIRAI)).transpose()?;
    match given.iter().chain(&own).find(|model| model.predicts_distributions()) {
        Some(moirai) => covariates(moirai)?,
        None => println!("covariates take a Moirai-MoE: give the folder of one after file and horizon"),
    }
    many(&built_in)?;
    growing(&built_in)
}

/// A table is one series for each column of numbers, on one calendar.
fn table(forecaster: &Forecaster, file: &str, horizon: usize) -> anyhow::Result<()> {
    let table = Table::read_csv(file, &TableOptions::default())?;
    for note in &table.notes {
        eprintln!("note: {note}");
    }
    for forecast in forecaster.forecast(&table.series, horizon, &ForecastOptions::default())? {
        print(&forecast);
    }
    Ok(())
}

/// Values from anywhere, NaN where one is missing, with an interval that should hold 80 % of the future.
fn values(forecaster: &Forecaster) -> anyhow::Result<()> {
    let visits = [12.0, 15.0, 19.0, f32::NAN, 14.0, 16.0, 20.0, 11.0, 13.0, 17.0, 21.0, 12.0, 15.0, 18.0, 22.0, 13.0];
    let series = [Series::new("visits", &visits[..])];
    let forecasts = forecaster.forecast(&series, 4, &ForecastOptions::default().interval(0.8))?;
    print(&forecasts[0]);
    for interval in &forecasts[0].intervals {
        println!("  the last one between {:.1} and {:.1}", interval.lower[3], interval.upper[3]);
    }
    Ok(())
}

/// A table whose price is known a week ahead, and whose number of visitors is known up to now.
fn covariates(moirai: &Forecaster) -> anyhow::Result<()> {
    let (days, ahead) = (84, 7);
    let mut csv = String::from("date,price,sold,visitors\n");
    for (day, date) in date(2024, 1, 1).series(1.day()).take(days + ahead).enumerate() {
        let price = if day % 10 < 3 { 8 } else { 10 };
        let visitors = 50 + day * 5 % 7 + if day % 7 == 5 { 10 } else { 0 };
        let seen = if day < days { format!("{},{visitors}", visitors * (15 - price) / 6) } else { ",".into() };
        csv += &format!("{date},{price},{seen}\n");
    }
    let mut series = Table::parse_csv("sales.csv", csv.as_bytes(), &TableOptions::default())?.series.into_iter();
    let mut next = || series.next().context("the table has three columns of numbers");
    let (price, mut sold, mut visitors) = (next()?, next()?, next()?);
    // The last rows hold nothing but the price.
    sold.values.truncate(days);
    visitors.values.truncate(days);
    let group = Group::new([sold]).with_known([price]).with_past([visitors]);
    let options = ForecastOptions::default().quantile(0.1).quantile(0.9);
    for forecast in moirai.forecast_groups(&[group], ahead, &options)?.iter().flatten() {
        print(forecast);
        for quantile in &forecast.quantiles {
            println!("  on the first day {} of outcomes lie below {:.2}", quantile.level, quantile.values[0]);
        }
    }
    Ok(())
}

/// A thousand series of different lengths in one call.
fn many(forecaster: &Forecaster) -> anyhow::Result<()> {
    let shop = |at: usize| {
        let sold = |t: usize| at as f32 + 20.0 + 5.0 * (t as f32 * TAU / (7 + at % 17) as f32).sin();
        Series::new(format!("shop {at}"), (0..60 + at % 40).map(sold).collect::<Vec<_>>())
    };
    let series: Vec<Series> = (0..1000).map(shop).collect();
    let start = Instant::now();
    // By the model alone: combined with seasonal forecasts, as by default, it takes several times as long.
    let options = ForecastOptions::default().combine(false).batch(100);
    let forecasts = forecaster.forecast(&series, 12, &options)?;
    let seconds = start.elapsed().as_secs_f32();
    let sum: f32 = forecasts.iter().map(|forecast| forecast.values[0]).sum();
    println!("{} series in {seconds:.1} s; {sum:.0} will be sold at the next step", forecasts.len());
    Ok(())
}

/// A series that is forecast after each value that comes: the model sees the history once, then new values alone.
fn growing(forecaster: &Forecaster) -> anyhow::Result<()> {
    let load = |hour: usize| 50.0 + 10.0 * (hour as f32 * TAU / 24.0).sin();
    let history = Series::new("load", (0..96).map(load).collect::<Vec<_>>());
    let mut session = forecaster.session(&history, 24, &ForecastOptions::default())?;
    for hour in 96..100 {
        let next = session.forecast(1)?;
        session.push(&[load(hour)])?;
        println!("load at {}: {:.2} expected, {:.2} came", next.timestamps[0], next.values[0], load(hour));
    }
    print(&session.forecast(6)?);
    Ok(())
}

fn print(forecast: &Forecast) {
    println!("{}, from the last {} values:", forecast.name, forecast.context);
    for (stamp, value) in forecast.timestamps.iter().zip(&forecast.values) {
        println!("  {stamp}  {value:.2}");
    }
}
