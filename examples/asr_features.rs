//! What speech encoders hear of a sound file: prints the features that each family of them takes, and draws them.
//!
//! ```console
//! cargo run --release --example asr_features
//! cargo run --release --example asr_features -- speech.mp3 features.svg
//! ```

use std::path::Path;

use moesaic::plot::{HeatMap, heat_maps};
use moesaic_encoders::audio::{
    AudioOptions, AudioReader, AvHubertFeatures, CedFeatures, Features, SAMPLE_RATE, WaveNorm, WhisperFeatures,
};

/// One line about a feature.
fn describe(name: &str, features: &Features) {
    let n = features.values.len().max(1) as f32;
    let mean = features.values.iter().sum::<f32>() / n;
    let (low, high) = features.values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    println!("{name:<32} [{}, {}]  mean {mean:.3}, from {low:.3} to {high:.3}", features.rows, features.cols);
}

/// The first `cols` columns of each row.
fn first(features: &Features, cols: usize) -> Vec<f32> {
    features.values.chunks(features.cols).flat_map(|row| &row[..cols.min(features.cols)]).copied().collect()
}

/// Rows become columns.
fn turned(features: &Features) -> Vec<f32> {
    let column = |c: usize| features.values.iter().skip(c).step_by(features.cols).copied();
    (0..features.cols).flat_map(column).collect()
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or_else(|| "examples/data/tones.wav".to_string());
    let picture = arguments.next().unwrap_or_else(|| "features.svg".to_string());

    // Long files come in windows, so memory does not grow; here the first one is enough.
    let extractor = WhisperFeatures::new(80)?;
    let reader = AudioReader::open(Path::new(&file), AudioOptions::default())?;
    let info = reader.info().clone();
    let length = info.seconds.map_or(String::new(), |s| format!(", {s:.2} s"));
    println!("{file}: {}, {} channel(s) of {} Hz{length}", info.container, info.channels, info.sample_rate);
    let samples = reader.windows(extractor.window()).next().unwrap_or_else(|| Ok(Vec::new()))?;
    let seconds = samples.len() as f64 / f64::from(SAMPLE_RATE);
    println!("first window: {} samples at {SAMPLE_RATE} Hz, {seconds:.2} s", samples.len());

    let whisper = extractor.extract(&samples)?;
    let av_hubert = AvHubertFeatures::new(true);
    let banks = av_hubert.filter_banks(&samples)?;
    let stacked = av_hubert.extract(&samples)?;
    let ced = CedFeatures::new().extract(&samples)?;
    let wave = WaveNorm::Wav2Vec2.apply(&samples)?;
    describe("Whisper log-mel", &whisper);
    describe("Whisper log-mel, 128 bands", &WhisperFeatures::new(128)?.extract(&samples)?);
    describe("AV-HuBERT filter banks", &banks);
    describe("AV-HuBERT, stacked and normed", &stacked);
    describe("CED mel in dB", &ced);
    describe("wav2vec 2.0 samples", &Features { rows: 1, cols: wave.len(), values: wave });

    // 100 columns a second, and only those with sound.
    let columns = samples.len() / 160;
    let (whisper, banks) = (first(&whisper, columns.max(1)), turned(&banks));
    let map =
        |title, caption, values, rows| HeatMap { title, caption, values, rows, x: (0.0, seconds), unit: "seconds" };
    let maps = [
        map("Whisper", "log-mel, 80 bands by column of 10 ms", &whisper[..], 80),
        map("AV-HuBERT", "log energies of 26 filters, before stacking", &banks, 26),
        map("CED", "mel in dB, 64 bands", &ced.values, ced.rows),
    ];
    std::fs::write(&picture, heat_maps(&maps))?;
    println!("wrote {picture}");
    Ok(())
}
