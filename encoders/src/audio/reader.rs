//! Sound as models want it: one channel at one rate.

use std::path::Path;

use super::decode::{AudioFile, AudioInfo};
use super::error::{AudioError, AudioResult};
use super::resample::Resampler;

/// How several channels become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Downmix {
    /// Their mean.
    #[default]
    Mean,
    /// The first one, as U-SAM does.
    First,
}

/// How sound is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AudioOptions {
    /// Samples a second that are wanted.
    pub sample_rate: u32,
    /// How channels become one.
    pub downmix: Downmix,
    /// Seconds that [`read_audio`] holds in memory at most. [`AudioReader`] has no limit, as it holds one block.
    pub max_seconds: f64,
    /// Takes what can be decoded of a truncated or damaged file, with silence for damaged packets, instead of failing.
    pub lenient: bool,
}

impl Default for AudioOptions {
    /// The mean of all channels at 16 kHz, up to four hours (920 MB) at once.
    fn default() -> Self {
        Self { sample_rate: 16_000, downmix: Downmix::Mean, max_seconds: 4.0 * 3600.0, lenient: false }
    }
}

/// A sound file as one channel at the wanted rate, block by block: memory does not grow with its length.
pub struct AudioReader {
    file: AudioFile,
    options: AudioOptions,
    resampler: Resampler,
    mono: Vec<f32>,
    out: Vec<f32>,
    over: bool,
}

impl AudioReader {
    /// Opens a file.
    ///
    /// # Errors
    /// The file cannot be read or decoded, or cannot be resampled to the wanted rate.
    pub fn open(path: &Path, options: AudioOptions) -> AudioResult<Self> {
        Self::new(AudioFile::open(path, options.lenient)?, options)
    }

    /// A file that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(label: &str, bytes: impl Into<Vec<u8>>, options: AudioOptions) -> AudioResult<Self> {
        Self::new(AudioFile::from_bytes(label, bytes, options.lenient)?, options)
    }

    fn new(file: AudioFile, options: AudioOptions) -> AudioResult<Self> {
        let resampler = Resampler::new(file.info().sample_rate, options.sample_rate)
            .map_err(|e| AudioError::Input(format!("{}: {e}", file.label())))?;
        Ok(Self { file, options, resampler, mono: Vec::new(), out: Vec::new(), over: false })
    }

    /// What the file is.
    pub fn info(&self) -> &AudioInfo {
        self.file.info()
    }

    /// The next samples, at least one; `None` at the end.
    ///
    /// # Errors
    /// The file is damaged or truncated, or a sample is no number.
    pub fn next_block(&mut self) -> AudioResult<Option<&[f32]>> {
        self.out.clear();
        while self.out.is_empty() && !self.over {
            let channels = self.file.info().channels;
            match self.file.next_block()? {
                Some(block) => {
                    self.mono.clear();
                    let frames = block.chunks_exact(channels.max(1));
                    match self.options.downmix {
                        Downmix::Mean if channels > 1 => {
                            self.mono.extend(frames.map(|f| f.iter().sum::<f32>() / channels as f32));
                        }
                        _ => self.mono.extend(frames.map(|f| f[0])),
                    }
                    self.resampler.push(&self.mono, &mut self.out);
                }
                None => {
                    self.resampler.finish(&mut self.out);
                    self.over = true;
                }
            }
        }
        Ok((!self.out.is_empty()).then_some(&self.out))
    }

    /// What is left in windows of `n` samples, the last one shorter.
    pub fn windows(self, n: usize) -> Windows {
        Windows { reader: self, size: n.max(1), pending: Vec::new(), over: false }
    }
}

/// Windows of a fixed number of samples; the last one may be shorter. An error ends them.
pub struct Windows {
    reader: AudioReader,
    size: usize,
    pending: Vec<f32>,
    over: bool,
}

impl Iterator for Windows {
    type Item = AudioResult<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.pending.len() < self.size && !self.over {
            match self.reader.next_block() {
                Ok(Some(block)) => self.pending.extend_from_slice(block),
                Ok(None) => self.over = true,
                Err(e) => {
                    self.over = true;
                    self.pending.clear();
                    return Some(Err(e));
                }
            }
        }
        if self.pending.is_empty() {
            return None;
        }
        let rest = self.pending.split_off(self.size.min(self.pending.len()));
        Some(Ok(std::mem::replace(&mut self.pending, rest)))
    }
}

/// A whole file as one channel at the wanted rate.
///
/// # Errors
/// The file cannot be read or decoded, or is longer than [`AudioOptions::max_seconds`].
pub fn read_audio(path: &Path, options: AudioOptions) -> AudioResult<Vec<f32>> {
    all(AudioReader::open(path, options)?)
}

/// [`read_audio`] of a file that is in memory; `label` names it in errors.
///
/// # Errors
/// As [`read_audio`].
pub fn read_audio_bytes(label: &str, bytes: impl Into<Vec<u8>>, options: AudioOptions) -> AudioResult<Vec<f32>> {
    all(AudioReader::from_bytes(label, bytes, options)?)
}

fn all(mut reader: AudioReader) -> AudioResult<Vec<f32>> {
    let limit = reader.options.max_seconds;
    let most = (limit * f64::from(reader.options.sample_rate)) as usize;
    let mut samples = Vec::new();
    while let Some(block) = reader.next_block()? {
        if samples.len() + block.len() > most {
            return Err(AudioError::TooLong { label: reader.file.label().to_string(), limit });
        }
        samples.extend_from_slice(block);
    }
    Ok(samples)
}
