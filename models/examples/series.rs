//! Writes training windows of the synthetic generator to a CSV file, one column a window, to look at them in any plotter:
//!
//!     cargo run --release -p moesaic-models --example series -- windows.csv [COUNT] [LENGTH] [SEED]

use candle_core::{Error, Result};
use moesaic_models::train::data::{Source, synthetic::Synthetic};
use std::fmt::Write;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(|| Error::msg("usage: series FILE.csv [COUNT] [LENGTH] [SEED]"))?;
    let mut number = |default: usize| {
        args.next().map_or(Ok(default), |text| text.parse().map_err(|e| Error::msg(format!("{text:?}: {e}"))))
    };
    let (count, length, seed) = (number(16)?, number(576)?, number(1)?);
    let batch = Synthetic::default().batch(seed as u64, 0, count, length)?;
    let mut text: String = (0..count).map(|row| format!("{}w{row}", if row > 0 { "," } else { "" })).collect();
    for t in 0..length {
        for row in 0..count {
            text.push(if row > 0 { ',' } else { '\n' });
            if batch.mask[row * length + t] > 0.0 {
                write!(text, "{}", batch.values[row * length + t]).map_err(Error::wrap)?;
            }
        }
    }
    std::fs::write(&path, text + "\n").map_err(|e| Error::msg(format!("cannot write {path}: {e}")))?;
    println!("wrote {count} windows of {length} values to {path} (empty cells are padding or missing values)");
    Ok(())
}
