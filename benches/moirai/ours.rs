//! Our side of `run.py`: loads a Moirai-MoE and answers commands on standard input with one line of JSON each, so that both
//! sides take turns within one run.
//!
//! * `load`: seconds, and the peak of resident memory of the process in bytes
//! * `forecast N MODE`: continues the first N series of 1,000 values by 96 with 100 sample paths (`cached` or `exact`), writes the paths
//!   `[N, 100, 96]` to OUT; seconds, and the peak
//! * `first N`: writes the quantiles 0.1 to 0.9 of the first patch, `[N, 9, 16]`, to OUT

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use moesaic_models::moirai_moe::{Mode, MoiraiMoe, Options, Paths, Request};

const CONTEXT: usize = 1000;
const HORIZON: usize = 96;
const PATCH: usize = 16;
const PATHS: usize = 100;

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let paths: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let [folder, series, out] = &paths[..] else {
        println!("run benches/moirai/run.py: it starts both sides");
        return Ok(());
    };
    let values: Vec<f32> =
        std::fs::read(series)?.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut model: Option<MoiraiMoe> = None;
    let mut seed = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let start = Instant::now();
        let seconds = match words[..] {
            ["load"] => {
                model = Some(MoiraiMoe::load(folder, DType::F32, &Device::Cpu)?);
                start.elapsed()
            }
            ["forecast", count, mode] => {
                let mode = match mode {
                    "cached" => Mode::Cached,
                    "exact" => Mode::Exact,
                    other => bail!("unknown mode {other}"),
                };
                let model = model.as_ref().context("load comes first")?;
                let requests = requests(&values, count.parse()?)?;
                seed += 1;
                let paths = Paths::Samples { count: PATHS, seed };
                let options = Options { mode, paths, keep_paths: true, ..options(HORIZON) };
                let start = Instant::now();
                let forecasts = model.forecast(&requests, &options, None)?;
                let seconds = start.elapsed();
                write(out, forecasts.iter().flat_map(|forecast| forecast.paths.iter().flatten().flatten()))?;
                seconds
            }
            ["first", count] => {
                let model = model.as_ref().context("load comes first")?;
                let quantiles = (1..10).map(|tenth| f64::from(tenth) / 10.0).collect();
                let options = Options { quantiles, ..options(PATCH) };
                let forecasts = model.forecast(&requests(&values, count.parse()?)?, &options, None)?;
                write(out, forecasts.iter().flat_map(|forecast| forecast.quantiles.iter().flatten().flatten()))?;
                start.elapsed()
            }
            _ => bail!("unknown command {line:?}"),
        };
        println!("{{\"seconds\": {}, \"peak\": {}}}", seconds.as_secs_f64(), peak().unwrap_or(0));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// As the reference does: in its patches, without rescaling what it would not rescale.
fn options(horizon: usize) -> Options {
    Options { patch: Some(PATCH), rescale: false, ..Options::new(CONTEXT, horizon) }
}

fn requests(values: &[f32], count: usize) -> Result<Vec<Request<'_>>> {
    let series = values.get(..count * CONTEXT).context("not so many series")?;
    Ok(series.chunks_exact(CONTEXT).map(Request::univariate).collect())
}

fn write<'a>(path: &Path, values: impl Iterator<Item = &'a f32>) -> Result<()> {
    Ok(std::fs::write(path, values.flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?)
}

/// The most memory this process has held, as Linux counts it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
