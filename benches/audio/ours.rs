//! Our side of `run.py`: answers commands on standard input with one line of JSON each.
//!
//! * `file FILE`: Whisper features of a whole file in windows of 30 s, streamed; seconds, windows, peak of resident memory in bytes
//! * `whisper MELS`, `avhubert`, `ced`, `resample`: features of the samples in WAVE.f32 (windows of 30 s for Whisper and CED), and
//!   those samples from 44.1 to 16 kHz; seconds, and the last window's values to OUT
//! * `load DTYPE`, `encode BATCH`: Whisper's encoder on the last Whisper features; seconds, and the last row's values to OUT
//! * `part NAME DTYPE`, `listen BATCH`: U-SAM's encoder of sounds on the features of the first ten seconds, or its Q-Former on ten
//!   seconds of tokens; seconds, and the last row's values to OUT
//! * `chat FOLDER`: seconds to load a model that listens, and to ask it about each window of the first minute
//! * `smop CLIPS`: a mixture of projectors of which a token takes two experts, and a dense projector of the size of both, on the
//!   tokens of CLIPS clips of 30 s; the fastest seconds of both

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use moesaic::{AudioChat, TextOptions};
use moesaic_encoders::audio::{AudioOptions, AudioReader, AvHubertFeatures, CedFeatures, WhisperFeatures, resample};
use moesaic_encoders::speech::{Ced, CedConfig, WhisperEncoder};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::{Activation, Init, Modality, Params, Tokens};
use moesaic_projectors::{
    Compression, Intake, Projector, ProjectorInput, Sharing, Smop, SmopConfig, TwoLayer, WindowQFormer,
    WindowQFormerConfig,
};

/// 30 s.
const WINDOW: usize = 480_000;

/// A part of U-SAM and what it is run on, one row.
enum Part {
    Ced(Box<Ced>, Tensor),
    QFormer(Box<WindowQFormer>, Tensor),
}

impl Part {
    fn load(folder: &Path, name: &str, dtype: DType, samples: &[f32]) -> Result<Self> {
        let open = |name: &str| Checkpoint::open(&folder.join(format!("{name}.safetensors")));
        let checkpoint = open(name)?;
        let params = Params::load(&checkpoint, dtype, &Device::Cpu);
        Ok(match name {
            "ced" => {
                let sizes = r#"{"embed_dim": 768, "depth": 12, "num_heads": 12, "target_length": 1012}"#;
                let config: CedConfig = serde_json::from_str(sizes)?;
                let mels = CedFeatures::new().extract(&samples[..160_000])?.tensor(&Device::Cpu)?.unsqueeze(0)?;
                Self::Ced(Box::new(Ced::new(config.named_as(&checkpoint, ""), &params)?), mels)
            }
            _ => {
                let config = WindowQFormerConfig {
                    inputs: 2304,
                    hidden: 768,
                    inner: 3072,
                    heads: 12,
                    layers: 2,
                    cross_attention_freq: 1,
                    queries: 1,
                    window: 17,
                    eps: 1e-12,
                    activation: Activation::Gelu,
                };
                let tokens = open("tokens")?.read("tokens", &[1, 252, 2304], DType::F32, &Device::Cpu)?;
                Self::QFormer(Box::new(WindowQFormer::load(config, &params)?), tokens)
            }
        })
    }

    /// Seconds of a pass over so many rows, and the values of the last.
    fn run(&self, rows: usize) -> Result<(f64, Vec<f32>)> {
        let (Self::Ced(_, one) | Self::QFormer(_, one)) = self;
        let input = Tensor::cat(&vec![one; rows], 0)?;
        let start = Instant::now();
        let tokens = match self {
            Self::Ced(ced, _) => ced.forward(&input, None)?,
            Self::QFormer(qformer, _) => qformer.project_one(&Tokens::new(input, Modality::Audio), None)?.0,
        };
        Ok((start.elapsed().as_secs_f64(), tokens.embeds.get(rows - 1)?.flatten_all()?.to_vec1::<f32>()?))
    }
}

/// Seconds to load a model that listens, seconds of sound, and seconds to ask about each window of it.
fn chat(folder: &Path, samples: &[f32]) -> Result<(f64, f64, f64)> {
    let start = Instant::now();
    let chat = AudioChat::from_dir(folder)?;
    let load = start.elapsed().as_secs_f64();
    let samples = &samples[..samples.len().min(960_000)];
    let start = Instant::now();
    for window in samples.chunks(chat.window()) {
        chat.answer(window, "Is anyone speaking?", &TextOptions::default())?;
    }
    Ok((load, samples.len() as f64 / 16_000.0, start.elapsed().as_secs_f64()))
}

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let paths: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    let [folder, wave, out] = &paths[..] else {
        println!("run benches/audio/run.py: it starts both sides");
        return Ok(());
    };
    let samples = floats(wave)?;
    let (mut model, mut listens): (Option<WhisperEncoder>, Option<Part>) = (None, None);
    let kind = |name: &str| match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        other => bail!("unknown dtype {other}"),
    };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let start = Instant::now();
        let values = match words[..] {
            ["file", path] => {
                let windows = file(Path::new(path))?;
                let seconds = start.elapsed().as_secs_f64();
                answer(&format!("\"seconds\": {seconds}, \"windows\": {windows}, \"peak\": {}", peak().unwrap_or(0)))?;
                continue;
            }
            ["whisper", mels] => {
                let extractor = WhisperFeatures::new(mels.parse()?)?;
                last(&samples, |window| Ok(extractor.extract(window)?.values))?
            }
            ["avhubert"] => AvHubertFeatures::new(true).extract(&samples)?.values,
            ["ced"] => {
                let extractor = CedFeatures::new();
                last(&samples, |window| Ok(extractor.extract(window)?.values))?
            }
            ["resample"] => resample(&samples, 44_100, 16_000)?,
            ["load", dtype] => {
                model = Some(WhisperEncoder::load(folder, kind(dtype)?, &Device::Cpu)?);
                Vec::new()
            }
            ["encode", batch] => {
                let model = model.as_ref().context("load comes first")?;
                let features = WhisperFeatures::new(80)?.extract(&samples[..WINDOW])?.tensor(&Device::Cpu)?;
                let features = Tensor::stack(&vec![features; batch.parse()?], 0)?;
                let start = Instant::now();
                let tokens = model.forward(&features, None)?;
                let seconds = start.elapsed().as_secs_f64();
                write(out, &tokens.embeds.get(0)?.flatten_all()?.to_vec1::<f32>()?)?;
                answer(&format!("\"seconds\": {seconds}"))?;
                continue;
            }
            ["part", name, dtype] => {
                listens = Some(Part::load(folder, name, kind(dtype)?, &samples)?);
                Vec::new()
            }
            ["listen", batch] => {
                let (seconds, values) = listens.as_ref().context("part comes first")?.run(batch.parse()?)?;
                write(out, &values)?;
                answer(&format!("\"seconds\": {seconds}"))?;
                continue;
            }
            ["chat", folder] => {
                let (load, sound, seconds) = chat(Path::new(folder), &samples)?;
                answer(&format!("\"seconds\": {seconds}, \"load\": {load}, \"sound\": {sound}"))?;
                continue;
            }
            ["smop", clips] => {
                let (sparse, dense) = projectors(clips.parse()?, &out.with_file_name("projectors.safetensors"))?;
                answer(&format!("\"sparse\": {sparse}, \"dense\": {dense}"))?;
                continue;
            }
            _ => bail!("unknown command {line:?}"),
        };
        let seconds = start.elapsed().as_secs_f64();
        write(out, &values)?;
        answer(&format!("\"seconds\": {seconds}"))?;
    }
    Ok(())
}

fn answer(fields: &str) -> Result<()> {
    println!("{{{fields}}}");
    Ok(std::io::stdout().flush()?)
}

fn floats(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn write(path: &Path, values: &[f32]) -> Result<()> {
    Ok(std::fs::write(path, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?)
}

/// Seconds of Llama-SMoP's projector (4 experts of width 1,024, 2 a token) and of Llama-AVSR's at the active width of 2,048, both with
/// a norm behind, from Whisper-medium's tokens stacked by 4 to the width of Llama-3.2-1B; in turns, the fastest of 20.
fn projectors(clips: usize, file: &Path) -> Result<(f64, f64)> {
    let audio = Intake { modality: Modality::Audio, width: 1024, compression: Some(Compression::Stack(4)) };
    let (sharing, inputs) = (Sharing::Jejr, vec![audio]);
    let config = SmopConfig { sharing, inputs, inner: 1024, outputs: 2048, experts: 4, k: 2 };
    let load = |p: &Params| {
        let dense = TwoLayer::load(&p.pp("dense"), audio, 2048, 2048, true)?;
        Ok::<_, candle_core::Error>((Smop::load(config.clone(), &p.pp("sparse"))?, dense))
    };
    // Random weights, read again as a checkpoint's: what trains is laid out otherwise than what answers.
    let made = Params::init(1, &Device::Cpu);
    load(&made)?;
    save(file, &made.published(|variable| Some(variable.as_tensor().clone()))?, &[])?;
    let (sparse, dense) = load(&Params::load(&Checkpoint::open(file)?, DType::F32, &Device::Cpu))?;
    let embeds = Params::init(2, &Device::Cpu).tensor("tokens", [clips, 1500, 1024], Init::Normal(1.0))?.detach();
    let tokens = [Tokens::new(embeds, Modality::Audio)];
    let time = |projector: &dyn Projector| -> Result<f64> {
        let start = Instant::now();
        let made = projector.project(&ProjectorInput::new(&tokens), None)?;
        let seconds = start.elapsed().as_secs_f64();
        anyhow::ensure!(made.tokens[0].embeds.dims() == [clips, 375, 2048]);
        Ok(seconds)
    };
    let mut fastest = (f64::INFINITY, f64::INFINITY);
    for _ in 0..20 {
        fastest = (fastest.0.min(time(&sparse)?), fastest.1.min(time(&dense)?));
    }
    Ok(fastest)
}

/// What `of` makes of each window, the last one kept.
fn last(samples: &[f32], of: impl Fn(&[f32]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for window in samples.chunks(WINDOW) {
        values = of(window)?;
    }
    Ok(values)
}

fn file(path: &Path) -> Result<usize> {
    let extractor = WhisperFeatures::new(80)?;
    let mut windows = 0;
    for window in AudioReader::open(path, AudioOptions::default())?.windows(WINDOW) {
        let features = extractor.extract(&window?)?;
        anyhow::ensure!(features.cols == 3000);
        windows += 1;
    }
    Ok(windows)
}

/// Peak of resident memory in bytes, where the system tells it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
