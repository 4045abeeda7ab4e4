//! candle's side of `benches/language/run.py`: `candle-transformers`' Qwen3-MoE, with the commands of `ours.rs`.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3_moe::{Config, ModelForCausalLM};

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [folder, ids, out] = &paths[..] else { bail!("run benches/language/run.py: it starts all sides") };
    let ids: Vec<u32> =
        std::fs::read(ids)?.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut model: Option<ModelForCausalLM> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["load", dtype] => {
                let start = Instant::now();
                model = Some(load(folder, dtype)?);
                format!("{{\"seconds\": {}}}", start.elapsed().as_secs_f64())
            }
            ["run", streams, prompt, steps] => {
                let model = model.as_mut().context("load comes first")?;
                let (prefill, decode) = run(model, &ids, (streams.parse()?, prompt.parse()?, steps.parse()?), out)?;
                format!("{{\"prefill\": {prefill}, \"decode\": {decode}}}")
            }
            _ => bail!("unknown command {line:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn load(folder: &Path, dtype: &str) -> Result<ModelForCausalLM> {
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("unknown dtype {other}"),
    };
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    // SAFETY: nobody writes the file while this process runs.
    let weights =
        unsafe { VarBuilder::from_mmaped_safetensors(&[folder.join("model.safetensors")], dtype, &Device::Cpu)? };
    Ok(ModelForCausalLM::new(&config, weights)?)
}

fn run(
    model: &mut ModelForCausalLM,
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
    model.clear_kv_cache();
    let start = Instant::now();
    let mut scores = model.forward(&tokens(0, prompt)?, 0)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for at in prompt..length {
        scores = model.forward(&tokens(at, at + 1)?, at)?;
    }
    let decode = start.elapsed().as_secs_f64();
    let scores = scores.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    std::fs::write(out, scores.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    Ok((prefill, decode))
}
