//! Forecasts the series of a CSV file from Rust, without the command line.
//!
//! ```console
//! cargo run --release --example forecast -- examples/data/sunspots.csv 12
//! cargo run --release --example forecast -- examples/data/sunspots.csv 12 path/to/TimeMoE-50M
//! ```

use anyhow::Context;
use moesaic::{ForecastOptions, Forecaster, Table, TableOptions};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().context("usage: forecast FILE.csv [HORIZON] [MODEL_DIR]")?;
    let horizon = arguments.next().map_or(Ok(12), |text| text.parse()).context("the horizon must be a number")?;

    // A table is one series for each column of numbers, on one calendar. Series can also be made from plain values:
    // `Series::new("visits", vec![12.0, 15.0, f32::NAN, 14.0])`.
    let table = Table::read_csv(&file, &TableOptions::default())?;
    for note in &table.notes {
        eprintln!("note: {note}");
    }

    let forecaster = match arguments.next() {
        Some(dir) => Forecaster::from_dir(dir)?,
        None => Forecaster::embedded()?,
    };
    let info = forecaster.info();
    println!("{}: {} of {} parameters active", info.architecture, info.parameters.active, info.parameters.total);

    for forecast in forecaster.forecast(&table.series, horizon, &ForecastOptions::default())? {
        println!("{}, from the last {} values:", forecast.name, forecast.context);
        for (stamp, value) in forecast.timestamps.iter().zip(&forecast.values) {
            println!("  {stamp}  {value:.2}");
        }
    }
    Ok(())
}
