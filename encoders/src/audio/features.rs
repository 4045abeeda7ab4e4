//! What speech encoders see of a waveform: each extractor reproduces the one that its model was trained with.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::error::{AudioError, AudioResult, finite};
use super::mel::Bank;
use super::spectrum::{Spectrum, hann, reflected};

/// Samples a second that all extractors here expect.
pub const SAMPLE_RATE: u32 = 16_000;

/// Feature values in rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `rows * cols` values, row after row.
    pub values: Vec<f32>,
    /// Number of rows.
    pub rows: usize,
    /// Values in a row.
    pub cols: usize,
}

impl Features {
    /// As a tensor `[rows, cols]`.
    ///
    /// # Errors
    /// The device does not take it.
    pub fn tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.values, (self.rows, self.cols), device)
    }

    /// Rows and columns exchanged.
    fn transposed(&self) -> Self {
        let mut values = vec![0f32; self.values.len()];
        // In blocks, so that both sides stay in the cache.
        const BLOCK: usize = 32;
        for r0 in (0..self.rows).step_by(BLOCK) {
            for c0 in (0..self.cols).step_by(BLOCK) {
                for c in c0..(c0 + BLOCK).min(self.cols) {
                    for r in r0..(r0 + BLOCK).min(self.rows) {
                        values[c * self.rows + r] = self.values[r * self.cols + c];
                    }
                }
            }
        }
        Self { values, rows: self.cols, cols: self.rows }
    }
}

fn checked(samples: &[f32]) -> AudioResult<()> {
    if samples.is_empty() {
        return Err(AudioError::Empty { label: "the waveform".to_string() });
    }
    finite(samples, "the waveform", 0)
}

/// The log-mel spectrogram of Whisper (Radford et al., arXiv 2212.04356): 25 ms Hann windows every 10 ms, Slaney's mel bank,
/// `log10` with everything more than 80 dB below the loudest value raised to there, scaled to about -1 to 1.
#[derive(Clone)]
pub struct WhisperFeatures {
    spectrum: Spectrum<f32>,
    samples: usize,
}

/// The keys of `preprocessor_config.json` that matter.
#[derive(Deserialize)]
struct Preprocessor {
    feature_size: usize,
    sampling_rate: Option<u32>,
    hop_length: Option<usize>,
    chunk_length: Option<usize>,
    n_fft: Option<usize>,
}

impl WhisperFeatures {
    /// Of 30 s windows, with 80 bands (128 from large-v3 on).
    ///
    /// # Errors
    /// There are no bands, or more than the spectrum has bins.
    pub fn new(mels: usize) -> AudioResult<Self> {
        Self::with_window(mels, 30 * SAMPLE_RATE as usize)
    }

    /// Of windows of another length, for encoders with fewer positions (two frames of 160 samples for each).
    ///
    /// # Errors
    /// As [`new`](Self::new), or the window is no multiple of 160 from 320 to ten minutes.
    pub fn with_window(mels: usize, samples: usize) -> AudioResult<Self> {
        if !(1..=201).contains(&mels) {
            return Err(AudioError::Input(format!(
                "Whisper features of {mels} bands: expected 1 to 201, usual are 80 and 128"
            )));
        }
        if !samples.is_multiple_of(160) || !(320..=600 * SAMPLE_RATE as usize).contains(&samples) {
            return Err(AudioError::Input(format!(
                "Whisper features of windows of {samples} samples: expected a multiple of 160 from 320 to 9600000"
            )));
        }
        let bank = Bank::slaney(mels, 201, f64::from(SAMPLE_RATE) / 2.0);
        Ok(Self { spectrum: Spectrum::new(400, hann(400), 160, bank), samples })
    }

    /// As the `preprocessor_config.json` of a model's folder says.
    ///
    /// # Errors
    /// The file cannot be read, or asks for something that no Whisper model has.
    pub fn load(dir: &Path) -> AudioResult<Self> {
        let config: Preprocessor = read_config(&dir.join("preprocessor_config.json"))?;
        let (rate, hop, size) = (config.sampling_rate, config.hop_length, config.n_fft);
        if rate.unwrap_or(16_000) != 16_000 || hop.unwrap_or(160) != 160 || size.unwrap_or(400) != 400 {
            return Err(AudioError::Input(format!(
                "{}: Whisper features are made at 16000 Hz with n_fft 400 and hop_length 160, the file asks for others",
                dir.join("preprocessor_config.json").display()
            )));
        }
        let seconds = config.chunk_length.unwrap_or(30);
        Self::with_window(config.feature_size, seconds.saturating_mul(SAMPLE_RATE as usize))
    }

    /// Samples of a window.
    pub fn window(&self) -> usize {
        self.samples
    }

    /// One window: shorter sound is filled up with zeros, longer sound is cut. Cut long sound into windows beforehand
    /// ([`AudioReader::windows`](super::AudioReader::windows)).
    ///
    /// # Shapes
    /// `samples [n]` at 16 kHz to `[mels, window / 160]`, so `[80, 3000]`
    ///
    /// # Errors
    /// There is no sample, or one is no number.
    pub fn extract(&self, samples: &[f32]) -> AudioResult<Features> {
        let samples = &samples[..samples.len().min(self.samples)];
        checked(samples)?;
        let mut padded = samples.to_vec();
        padded.resize(self.samples, 0.0);
        let (signal, frames, mels) = (reflected(&padded, 200), self.samples / 160, self.spectrum.bands());
        let mut values = self.spectrum.energies(&signal, frames, |row| {
            row.iter_mut().for_each(|v| *v = v.max(1e-10).log10());
        });
        let floor = values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - 8.0;
        values.iter_mut().for_each(|v| *v = (v.max(floor) + 4.0) / 4.0);
        Ok(Features { values, rows: frames, cols: mels }.transposed())
    }
}

fn read_config<T: for<'a> Deserialize<'a>>(path: &Path) -> AudioResult<T> {
    let label = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| AudioError::Io { label: label.clone(), source })?;
    serde_json::from_str(&text)
        .map_err(|e| AudioError::Input(format!("{label}: {e}; take the file from the model's hub page")))
}

/// What AV-HuBERT hears (Shi et al., arXiv 2201.02184): 26 log filter bank energies every 10 ms as `python_speech_features` makes
/// them (pre-emphasis 0.97, no window, FFT of 512), four frames side by side, and each such row normalised: 25 rows a second.
#[derive(Clone)]
pub struct AvHubertFeatures {
    spectrum: Spectrum<f64>,
    int16: bool,
}

impl AvHubertFeatures {
    /// `int16` takes the samples as 16-bit integers, as AV-HuBERT was trained; without it they stay in -1 to 1, as Llama-AVSR has
    /// them. The last normalisation all but cancels the difference.
    pub fn new(int16: bool) -> Self {
        let bank = Bank::speech(26, 512, f64::from(SAMPLE_RATE));
        Self { spectrum: Spectrum::new(512, vec![1.0; 400], 160, bank), int16 }
    }

    /// Log energies.
    ///
    /// # Shapes
    /// `samples [n]` at 16 kHz to `[1 + ceil((n - 400) / 160), 26]`, the last frame filled up with zeros
    ///
    /// # Errors
    /// There is no sample, or one is no number.
    pub fn filter_banks(&self, samples: &[f32]) -> AudioResult<Features> {
        checked(samples)?;
        let frames = 1 + samples.len().saturating_sub(400).div_ceil(160);
        let signal = self.emphasised(samples);
        let values = self.spectrum.energies(&signal, frames, |row| {
            for v in row {
                let power = *v / 512.0;
                *v = if power == 0.0 { f64::EPSILON } else { power }.ln();
            }
        });
        Ok(Features { values: values.into_iter().map(|v| v as f32).collect(), rows: frames, cols: 26 })
    }

    /// `x[i] - 0.97 x[i - 1]`, in the precision of the reference: f64 for integers, f32 for floats.
    fn emphasised(&self, samples: &[f32]) -> Vec<f64> {
        let mut out = Vec::with_capacity(samples.len());
        if self.int16 {
            let mut before = 0.0;
            for &v in samples {
                let v = (f64::from(v) * 32768.0).round_ties_even().clamp(-32768.0, 32767.0);
                out.push(v - 0.97 * before);
                before = v;
            }
        } else {
            let mut before = 0f32;
            for &v in samples {
                out.push(f64::from(v - 0.97 * before));
                before = v;
            }
        }
        out
    }

    /// Four frames side by side, 25 rows a second; the last row is filled up with zeros.
    ///
    /// # Shapes
    /// `[f, 26]` to `[ceil(f / 4), 104]`
    pub fn stack(banks: &Features) -> Features {
        let (rows, cols) = (banks.rows.div_ceil(4), 4 * banks.cols);
        let mut values = banks.values.clone();
        values.resize(rows * cols, 0.0);
        Features { values, rows, cols }
    }

    /// Input of the model: stacked energies, each row with mean 0 and variance 1.
    ///
    /// # Shapes
    /// `samples [n]` at 16 kHz to `[t, 104]`
    ///
    /// # Errors
    /// There is no sample, or one is no number.
    pub fn extract(&self, samples: &[f32]) -> AudioResult<Features> {
        let mut stacked = Self::stack(&self.filter_banks(samples)?);
        stacked.values.chunks_exact_mut(stacked.cols).for_each(|row| standardise(row, 1e-5));
        Ok(stacked)
    }
}

/// The mel spectrogram of CED (Dinkel et al., arXiv 2308.11957): 32 ms Hann windows every 10 ms, 64 HTK mels, in decibels. The model
/// limits it to 120 dB below its loudest value; for a batch that is the batch's loudest.
#[derive(Clone)]
pub struct CedFeatures {
    spectrum: Spectrum<f32>,
}

impl Default for CedFeatures {
    fn default() -> Self {
        Self::new()
    }
}

impl CedFeatures {
    /// Decibels below the loudest value that are kept.
    pub const RANGE: f32 = 120.0;

    /// 64 bands to 8 kHz.
    pub fn new() -> Self {
        Self::of(64)
    }

    /// Another number of bands to 8 kHz.
    ///
    /// # Errors
    /// There are no bands, or more than the spectrum has bins.
    pub fn with_bands(bands: usize) -> AudioResult<Self> {
        match bands {
            1..=257 => Ok(Self::of(bands)),
            _ => Err(AudioError::Input(format!("CED features of {bands} bands: expected 1 to 257, usual are 64"))),
        }
    }

    fn of(bands: usize) -> Self {
        let bank = Bank::htk(bands, 257, f64::from(SAMPLE_RATE) / 2.0);
        Self { spectrum: Spectrum::new(512, hann(512), 160, bank) }
    }

    /// Clips as the model takes a batch of them: limited to 120 dB below the loudest value of all.
    ///
    /// # Errors
    /// As [`extract`](Self::extract).
    pub fn batch(&self, clips: &[&[f32]]) -> AudioResult<Vec<Features>> {
        let mut features = clips.iter().map(|clip| self.decibels(clip)).collect::<AudioResult<Vec<_>>>()?;
        Self::limit(&mut features);
        Ok(features)
    }

    /// A single clip, limited to 120 dB below its own loudest value.
    ///
    /// # Shapes
    /// `samples [n]` at 16 kHz to `[64, 1 + n / 160]`
    ///
    /// # Errors
    /// There are fewer than 257 samples (16 ms), or one is no number.
    pub fn extract(&self, samples: &[f32]) -> AudioResult<Features> {
        let mut features = self.decibels(samples)?;
        Self::limit(std::slice::from_mut(&mut features));
        Ok(features)
    }

    /// As [`extract`](Self::extract) without the limit, for clips that [`limit`](Self::limit) then takes together.
    ///
    /// # Errors
    /// As [`extract`](Self::extract).
    pub fn decibels(&self, samples: &[f32]) -> AudioResult<Features> {
        checked(samples)?;
        if samples.len() <= 256 {
            return Err(AudioError::Input(format!(
                "{} samples are too short for CED, which mirrors 256 at each end; give at least 257 (16 ms)",
                samples.len()
            )));
        }
        let (frames, signal) = (1 + samples.len() / 160, reflected(samples, 256));
        let values = self.spectrum.energies(&signal, frames, |row| {
            row.iter_mut().for_each(|v| *v = 10.0 * v.max(1e-10).log10());
        });
        Ok(Features { values, rows: frames, cols: self.spectrum.bands() }.transposed())
    }

    /// Raises what is more than 120 dB below the loudest value of all clips to there.
    pub fn limit(clips: &mut [Features]) {
        let loudest = clips.iter().flat_map(|c| &c.values).copied().fold(f32::NEG_INFINITY, f32::max);
        for value in clips.iter_mut().flat_map(|c| &mut c.values) {
            *value = value.max(loudest - Self::RANGE);
        }
    }
}

/// How a waveform is scaled before an encoder that takes samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaveNorm {
    /// As it is: base models of wav2vec 2.0, HuBERT and WavLM.
    None,
    /// Mean 0 and variance 1 with 1e-7 added to the variance: where `preprocessor_config.json` has `do_normalize`.
    Wav2Vec2,
    /// The same with 1e-8: what Llama-AVSR does to every clip before Whisper features or WavLM.
    LlamaAvsr,
}

impl WaveNorm {
    /// As the `preprocessor_config.json` of a model's folder says: [`Wav2Vec2`](Self::Wav2Vec2) or [`None`](Self::None).
    ///
    /// # Errors
    /// The file cannot be read, or the model wants another rate than 16 kHz.
    pub fn load(dir: &Path) -> AudioResult<Self> {
        #[derive(Deserialize)]
        struct Keys {
            #[serde(default = "yes")]
            do_normalize: bool,
            sampling_rate: Option<u32>,
        }
        fn yes() -> bool {
            true
        }
        let path = dir.join("preprocessor_config.json");
        let keys: Keys = read_config(&path)?;
        match keys.sampling_rate {
            None | Some(SAMPLE_RATE) => Ok(if keys.do_normalize { Self::Wav2Vec2 } else { Self::None }),
            Some(rate) => Err(AudioError::Input(format!(
                "{}: the model wants {rate} Hz, these encoders are for 16000 Hz",
                path.display()
            ))),
        }
    }

    /// The scaled clip. The whole of it counts, so cut it beforehand. Silence stays silence.
    ///
    /// # Errors
    /// There is no sample, or one is no number.
    pub fn apply(&self, samples: &[f32]) -> AudioResult<Vec<f32>> {
        checked(samples)?;
        let mut samples = samples.to_vec();
        match self {
            Self::None => {}
            Self::Wav2Vec2 => standardise(&mut samples, 1e-7),
            Self::LlamaAvsr => standardise(&mut samples, 1e-8),
        }
        Ok(samples)
    }
}

/// `(x - mean) / sqrt(biased variance + eps)`, with sums in f64.
fn standardise(values: &mut [f32], eps: f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + eps).sqrt();
    values.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
}
