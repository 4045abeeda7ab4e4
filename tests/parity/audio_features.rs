//! Features of sound. Each feature is computed twice: from the case's own waveform, compared as every tensor is, and from the media
//! file, compared here with the bounds of `tolerance.end_to_end`. `pcm_native_head` and `waveform_16k` exist from the file only.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use moesaic_encoders::audio::{
    AudioFile, AudioOptions, AvHubertFeatures, CedFeatures, Features, WaveNorm, WhisperFeatures, read_audio,
};

use crate::case::{Case, Got};

/// Frames of the file that `pcm_native_head` holds.
fn head(case: &Case, path: &std::path::Path) -> Result<Tensor> {
    let frames =
        case.json["expected"]["pcm_native_head"]["shape"][1].as_u64().context("pcm_native_head has no length")?;
    let mut file = AudioFile::open(path, false)?;
    let channels = file.info().channels;
    let mut samples = Vec::new();
    while let Some(block) = file.next_block()? {
        samples.extend_from_slice(block);
        if samples.len() >= channels * frames as usize {
            break;
        }
    }
    Ok(Tensor::from_vec(samples.clone(), (samples.len() / channels, channels), &Device::Cpu)?
        .narrow(0, 0, frames as usize)?
        .t()?
        .contiguous()?)
}

fn features(case: &Case, samples: &[f32]) -> Result<Got> {
    let mut got = Got::default();
    let mut put = |name: &str, features: Features| -> Result<()> {
        got.put(name, features.tensor(&Device::Cpu)?);
        Ok(())
    };
    let keep = case.json["n_keep"].as_u64().context("n_keep is missing")? as usize;
    let mut whisper = |name: &str, mels, samples: &[f32]| -> Result<()> {
        let features = WhisperFeatures::new(mels)?.extract(samples)?;
        ensure!(
            (features.rows, features.cols) == (mels, 3000),
            "{name} has shape {}, {}",
            features.rows,
            features.cols
        );
        // All frames after those that the case keeps hold one value.
        let pad = case.json["pad_values"][name].as_f64().context("pad_values lacks a name")? as f32;
        let after = features.values.chunks(3000).flat_map(|row| &row[keep..]);
        ensure!(after.into_iter().all(|v| (v - pad).abs() < 1e-3), "{name}: frames after the sound are not {pad}");
        let kept: Vec<f32> = features.values.chunks(3000).flat_map(|row| &row[..keep]).copied().collect();
        put(name, Features { values: kept, rows: mels, cols: keep })
    };
    whisper("whisper_logmel_80", 80, samples)?;
    whisper("whisper_logmel_128", 128, samples)?;
    let normal = WaveNorm::LlamaAvsr.apply(samples)?;
    whisper("whisper_logmel_80_layernorm", 80, &normal)?;
    let int16 = AvHubertFeatures::new(true);
    let banks = int16.filter_banks(samples)?;
    put("avhubert_stack104", AvHubertFeatures::stack(&banks))?;
    put("avhubert_logfbank26_int16", banks)?;
    put("avhubert_stack104_layernorm", int16.extract(samples)?)?;
    put("avhubert_stack104_layernorm_float_input", AvHubertFeatures::new(false).extract(samples)?)?;
    put("ced_mel64_db", CedFeatures::new().extract(samples)?)?;
    got.put("waveform_16k_layernorm", Tensor::new(normal, &Device::Cpu)?);
    got.put("wav2vec2_normalized", Tensor::new(WaveNorm::Wav2Vec2.apply(samples)?, &Device::Cpu)?);
    Ok(got)
}

pub fn run(case: &Case, got: &mut Got) -> Result<()> {
    let path = case.dir.join(case.json["media"]["file"].as_str().context("the case names no media file")?);
    let samples = read_audio(&path, AudioOptions::default())?;
    let mut whole = features(case, &samples)?;
    whole.put("waveform_16k", Tensor::new(samples, &Device::Cpu)?);
    whole.put("pcm_native_head", head(case, &path)?);
    let bounds = case.json["tolerance"]["end_to_end"].as_object().context("tolerance has no end_to_end")?;
    for (name, bound) in bounds {
        end_to_end(case, name, bound, whole.get(name)?).with_context(|| format!("{name} from the file"))?;
    }
    for name in ["waveform_16k", "pcm_native_head"] {
        got.put(name, whole.get(name)?.clone());
    }
    *got = features(case, &case.given("waveform_16k")?.flatten_all()?.to_vec1::<f32>()?)?.with(std::mem::take(got));
    Ok(())
}

/// `atol` bounds each value, ten times as much for the lowest hundredth of a feature in decibels or alike; `mean_abs` the mean error.
fn end_to_end(case: &Case, name: &str, bound: &serde_json::Value, got: &Tensor) -> Result<()> {
    let expected = case.given(name)?;
    ensure!(got.dims() == expected.dims(), "shape {:?}, expected {:?}", got.dims(), expected.dims());
    let (got, expected) = (got.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
    let errors: Vec<f64> = got.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs())).collect();
    if let Some(mean_abs) = bound["mean_abs"].as_f64() {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        ensure!(mean <= mean_abs, "the mean error is {mean}, allowed is {mean_abs}");
        return Ok(());
    }
    let atol = bound["atol"].as_f64().context("the bound has neither atol nor mean_abs")?;
    let mut sorted = expected.clone();
    sorted.sort_by(f32::total_cmp);
    let low = sorted[sorted.len() / 100];
    let loose = |v: f32| if name.starts_with("wav") || name.starts_with("pcm") || v > low { 1.0 } else { 10.0 };
    for (i, (error, &v)) in errors.iter().zip(&expected).enumerate() {
        ensure!(*error <= atol * loose(v), "value {i} is {}, expected {v}: {error:.2e} > {atol:.2e}", got[i]);
    }
    Ok(())
}
