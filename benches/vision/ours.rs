//! Our side of `run.py`: answers commands on standard input with one line of JSON each, in the folder that run.py filled.
//!
//! * `preprocess crop|pad`: seconds for one picture, the fastest of several; the pixels go to `moesaic.KIND`
//! * `load DTYPE`: loads the encoder
//! * `encode N`: seconds for N pictures, the fastest of several; the last states go to `moesaic.encode`

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use moesaic_encoders::ClipVision;
use moesaic_encoders::image::{ImageProcessor, Picture};

const SIZE: (usize, usize) = (2000, 1500);

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let Some(folder) = std::env::args().skip(1).find(|a| !a.starts_with("--")).map(PathBuf::from) else {
        println!("run benches/vision/run.py: it starts both sides");
        return Ok(());
    };
    let mut tower: Option<ClipVision> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["preprocess", kind] => preprocess(&folder, kind)?,
            ["load", dtype] => {
                let dtype = match dtype {
                    "f32" => DType::F32,
                    "bf16" => DType::BF16,
                    other => bail!("unknown dtype {other}"),
                };
                let start = Instant::now();
                tower = Some(ClipVision::load(&folder.join("model"), dtype, &Device::Cpu)?);
                start.elapsed().as_secs_f64()
            }
            ["encode", n] => {
                let tower = tower.as_ref().context("load comes first")?;
                let pixels: Vec<f32> = std::fs::read(folder.join("pixels.f32"))?
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                let pixels = Tensor::from_vec(pixels, (8, 3, 224, 224), &Device::Cpu)?.narrow(0, 0, n.parse()?)?;
                let (seconds, output) = best(3, || Ok(tower.forward(&pixels, None)?))?;
                write(&folder, "encode", &output.tokens.embeds)?;
                seconds
            }
            _ => bail!("unknown command {line:?}"),
        };
        println!("{{\"seconds\": {seconds}}}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// From bytes in memory to a tensor, as the other side does.
fn preprocess(folder: &Path, kind: &str) -> Result<f64> {
    let processor = ImageProcessor::load(&folder.join(kind))?.with_padding(kind == "pad");
    let picture = [Picture::from_rgb(SIZE.0, SIZE.1, std::fs::read(folder.join("picture.rgb"))?)?];
    let (seconds, pixels) = best(5, || Ok(processor.process(&picture)?))?;
    write(folder, kind, &pixels)?;
    Ok(seconds)
}

/// The fastest of at least `least` calls and two seconds, and what the last one gave.
fn best<T>(least: usize, call: impl Fn() -> Result<T>) -> Result<(f64, T)> {
    let (begin, mut fastest, mut count) = (Instant::now(), f64::INFINITY, 0);
    loop {
        let start = Instant::now();
        let result = call()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        count += 1;
        if count >= least && begin.elapsed().as_secs_f64() > 2.0 {
            return Ok((fastest, result));
        }
    }
}

fn write(folder: &Path, name: &str, values: &Tensor) -> Result<()> {
    let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(folder.join(format!("moesaic.{name}")), bytes)?)
}
