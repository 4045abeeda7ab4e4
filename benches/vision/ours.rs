//! Our side of `run.py`: answers commands on standard input with one line of JSON each, in the folder that run.py filled.
//!
//! * `preprocess crop|pad`: seconds for one picture, the fastest of several; the pixels go to `moesaic.KIND`
//! * `load DTYPE`: loads the encoder
//! * `encode N`: seconds for N pictures, the fastest of several; the last states go to `moesaic.encode`

//! * `chat-load DTYPE`, `chat-run PROMPT STEPS`: a model of MoE-LLaVA's shape; seconds from pixels to tokens, of a prompt with one
//!   picture and PROMPT words, and of STEPS words after it; the last scores go to `moesaic.chat`

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use moesaic_encoders::ClipVision;
use moesaic_encoders::image::{ImageProcessor, Picture};
use moesaic_models::decoder::{Cache, Context, Input, Side};
use moesaic_models::generate::Backbone;
use moesaic_models::vision::{Row, VisionModel};

const SIZE: (usize, usize) = (2000, 1500);

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let Some(folder) = std::env::args().skip(1).find(|a| !a.starts_with("--")).map(PathBuf::from) else {
        println!("run benches/vision/run.py: it starts both sides");
        return Ok(());
    };
    let (mut tower, mut chat): (Option<ClipVision>, Option<VisionModel>) = (None, None);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let seconds = match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["preprocess", kind] => preprocess(&folder, kind)?,
            ["load", dtype] => {
                let start = Instant::now();
                tower = Some(ClipVision::load(&folder.join("model"), named(dtype)?, &Device::Cpu)?);
                start.elapsed().as_secs_f64()
            }
            ["encode", n] => {
                let tower = tower.as_ref().context("load comes first")?;
                let pixels = read(&folder, "pixels.f32", [8, 3, 224, 224])?.narrow(0, 0, n.parse()?)?;
                let (seconds, output) = best(3, || Ok(tower.forward(&pixels, None)?))?;
                write(&folder, "encode", &output.tokens.embeds)?;
                seconds
            }
            ["chat-load", dtype] => {
                tower = None;
                drop(chat.take()); // two models at once need not fit
                let start = Instant::now();
                chat = Some(VisionModel::load(&folder.join("chat"), named(dtype)?, &Device::Cpu)?);
                start.elapsed().as_secs_f64()
            }
            ["chat-run", prompt, steps] => {
                let model = chat.as_ref().context("chat-load comes first")?;
                let [encode, prefill, decode] = answer(&folder, model, prompt.parse()?, steps.parse()?)?;
                println!("{{\"encode\": {encode}, \"prefill\": {prefill}, \"decode\": {decode}}}");
                std::io::stdout().flush()?;
                continue;
            }
            _ => bail!("unknown command {line:?}"),
        };
        println!("{{\"seconds\": {seconds}}}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn named(dtype: &str) -> Result<DType> {
    match dtype {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        other => bail!("unknown dtype {other}"),
    }
}

fn read(folder: &Path, name: &str, shape: [usize; 4]) -> Result<Tensor> {
    let bytes = std::fs::read(folder.join(name))?;
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Tensor::from_vec(values, &shape, &Device::Cpu)?)
}

/// Seconds of the picture, of the prompt and of the steps after it.
fn answer(folder: &Path, model: &VisionModel, prompt: usize, steps: usize) -> Result<[f64; 3]> {
    let pixels = read(folder, "chat.f32", [1, 3, 336, 336])?;
    let vocabulary = model.decoder().config().vocab_size - 3;
    let words: Vec<u32> = (0..prompt + steps).map(|i| ((17 * i * i + 5 * i) % vocabulary + 3) as u32).collect();
    let start = Instant::now();
    let pictures = model.encode(&pixels, None)?.pictures()?;
    let encode = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut ids = words[..prompt].to_vec();
    ids.insert(1, model.picture_token());
    let rows = model.splice(&[Row { ids: &ids, labels: &[], pictures: &pictures }], Side::Left, None)?;
    let mut cache = Cache::with_capacity(rows.embeds.dim(1)? + steps);
    let mut scores = model.next_logits(Input::Embeds(&rows.embeds), &rows.context, &mut cache)?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for word in &words[prompt..] {
        let word = Tensor::from_slice(&[*word], (1, 1), &Device::Cpu)?;
        scores = model.next_logits(Input::Ids(&word), &Context::default(), &mut cache)?;
    }
    let decode = start.elapsed().as_secs_f64();
    write(folder, "chat", &scores)?;
    Ok([encode, prefill, decode])
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
