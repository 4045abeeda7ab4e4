//! Our side of `run.py` here and in `benches/gguf`: a language model that answers commands on standard input with one line of JSON each.
//!
//! * `load DTYPE`: seconds, and the peak of resident memory of the process in bytes
//! * `run STREAMS PROMPT STEPS`: a pass over PROMPT tokens of each stream, then STEPS passes over one token each, all from
//!   the file of ids; seconds of both, and the last scores `[STREAMS, V]` to OUT
//! * `read`: GB/s at which two threads read a buffer of 1 GiB

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use moesaic_models::decoder::{Cache, Context, Decoder, Input};
use moesaic_models::generate::Backbone;

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let paths: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let [folder, ids, out] = &paths[..] else {
        println!("run benches/language/run.py: it starts all sides");
        return Ok(());
    };
    let ids: Vec<u32> =
        std::fs::read(ids)?.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut model: Option<Decoder> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["load", dtype] => {
                let start = Instant::now();
                drop(model.take()); // two models at once would count as one's peak
                model = Some(load(folder, dtype)?);
                let seconds = start.elapsed().as_secs_f64();
                format!("{{\"seconds\": {seconds}, \"peak\": {}}}", peak().unwrap_or(0))
            }
            ["run", streams, prompt, steps] => {
                let model = model.as_ref().context("load comes first")?;
                let (prefill, decode) = run(model, &ids, (streams.parse()?, prompt.parse()?, steps.parse()?), out)?;
                format!("{{\"prefill\": {prefill}, \"decode\": {decode}}}")
            }
            ["read"] => format!("{{\"read\": {}}}", read()),
            _ => bail!("unknown command {line:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn load(folder: &Path, dtype: &str) -> Result<Decoder> {
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("unknown dtype {other}"),
    };
    Ok(Decoder::load(folder, dtype, &Device::Cpu)?)
}

/// Seconds of the prompt and of the steps. Stream `s` has the tokens from `s * (prompt + steps)` on.
fn run(
    model: &Decoder,
    ids: &[u32],
    (streams, prompt, steps): (usize, usize, usize),
    out: &Path,
) -> Result<(f64, f64)> {
    let length = prompt + steps;
    let rows: Vec<&[u32]> = ids.chunks_exact(length).take(streams).collect();
    if rows.len() < streams {
        bail!("not so many ids");
    }
    let tokens = |from: usize, to: usize| {
        let part: Vec<u32> = rows.iter().flat_map(|row| row[from..to].iter().copied()).collect();
        Tensor::from_vec(part, (streams, to - from), &Device::Cpu)
    };
    let (mut cache, context) = (Cache::with_capacity(length), Context::default());
    let start = Instant::now();
    let mut scores = model.next_logits(Input::Ids(&tokens(0, prompt)?), &context, &mut cache)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for at in prompt..length {
        scores = model.next_logits(Input::Ids(&tokens(at, at + 1)?), &context, &mut cache)?;
    }
    let decode = start.elapsed().as_secs_f64();
    let scores = scores.flatten_all()?.to_vec1::<f32>()?;
    std::fs::write(out, scores.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    Ok((prefill, decode))
}

/// GB/s of two threads that sum up 1 GiB, the best of five times.
fn read() -> f64 {
    let buffer = vec![1u64; 1 << 27];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for half in buffer.chunks(buffer.len() / 2) {
                scope.spawn(|| std::hint::black_box(half.iter().fold(0u64, |sum, v| sum.wrapping_add(*v))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..5).map(|_| pass()).fold(f64::INFINITY, f64::min);
    size_of_val(&buffer[..]) as f64 / best / 1e9
}

/// The most memory this process has held, as Linux counts it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
