//! Our side of `run.py`: loads a Time-MoE and answers commands on standard input with one line of JSON each, so that both
//! sides take turns within one run.
//!
//! * `load DTYPE`: seconds, and the peak of resident memory of the process in bytes
//! * `forecast N DTYPE`: forecasts the first N series of 512 values by 96, writes the values to OUT; seconds

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use moesaic_models::time_moe::TimeMoe;

const CONTEXT: usize = 512;
const HORIZON: usize = 96;

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let paths: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let [folder, series, out] = &paths[..] else {
        println!("run benches/side_by_side/run.py: it starts both sides");
        return Ok(());
    };
    let values: Vec<f32> =
        std::fs::read(series)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut model: Option<(DType, TimeMoe)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["load", dtype] => {
                let start = Instant::now();
                load(&mut model, folder, dtype)?;
                let seconds = start.elapsed().as_secs_f64();
                format!("{{\"seconds\": {seconds}, \"peak\": {}}}", peak().unwrap_or(0))
            }
            ["forecast", count, dtype] => {
                let model = load(&mut model, folder, dtype)?;
                let count: usize = count.parse()?;
                let series = values.get(..count * CONTEXT).context("not so many series")?;
                let rows: Vec<&[f32]> = series.chunks_exact(CONTEXT).collect();
                let start = Instant::now();
                let forecasts = model.forecast(&rows, HORIZON)?;
                let seconds = start.elapsed().as_secs_f64();
                let bytes: Vec<u8> = forecasts.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
                std::fs::write(out, bytes)?;
                format!("{{\"seconds\": {seconds}}}")
            }
            _ => bail!("unknown command {line:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn load<'a>(model: &'a mut Option<(DType, TimeMoe)>, folder: &Path, dtype: &str) -> Result<&'a TimeMoe> {
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("unknown dtype {other}"),
    };
    if model.as_ref().is_none_or(|(held, _)| *held != dtype) {
        *model = None; // two models at once would count as one's peak
        *model = Some((dtype, TimeMoe::load(folder, dtype, &Device::Cpu)?));
    }
    Ok(&model.as_ref().context("just loaded")?.1)
}

/// The most memory this process has held, as Linux counts it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
