//! Word error rates of speech models, in noise.

use std::path::Path;

use moesaic_encoders::audio::{AudioOptions, read_audio};
use moesaic_kernels::Tokens;
use moesaic_kernels::rng::Rng;
use moesaic_models::avsr::{Avsr, Media, Rates, fit_to_video};
use moesaic_models::generate::Options;
use moesaic_models::train::speech::{Clip, Clips, Frames, Manifest, augment};
pub use moesaic_models::train::speech::{Errors, word_errors};
use serde::Serialize;

use crate::error::{Error, Result, candle_message};
use crate::transcriber::{Senses, Transcriber};

/// A noise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Noise {
    /// Normal values, all alike.
    White,
    /// Parts of a recording.
    Recording {
        /// Its name.
        name: String,
        /// Samples at 16 kHz.
        samples: Vec<f32>,
    },
}

impl Noise {
    /// The noise in a sound file.
    ///
    /// # Errors
    /// [`Error::Media`] or [`Error::Io`]: it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let samples = read_audio(path, AudioOptions::default())?;
        let name = path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into());
        Ok(Self::Recording { name, samples })
    }

    fn name(&self) -> &str {
        match self {
            Self::White => "white",
            Self::Recording { name, .. } => name,
        }
    }

    /// So many samples of it, from a random place on.
    fn part(&self, samples: usize, rng: &mut Rng) -> Vec<f32> {
        match self {
            Self::White => (0..samples).map(|_| rng.normal() as f32).collect(),
            Self::Recording { samples: all, .. } => {
                let start = rng.below(all.len().saturating_sub(samples) + 1);
                all.iter().cycle().skip(start).take(samples).copied().collect()
            }
        }
    }
}

/// A noise and its level, or none.
type Condition<'a> = Option<(&'a Noise, f64)>;

/// What is measured.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Plan {
    /// Ways to take the clips; all that the model takes, where there is none.
    pub senses: Vec<Senses>,
    /// Noises, beside none.
    pub noises: Vec<Noise>,
    /// Decibels that each of them is weaker than the sound by.
    pub snr: Vec<f64>,
    /// Seed of what is random in noises.
    pub seed: u64,
    /// Each clip has the lips of the next one.
    pub other_lips: bool,
    /// At most so many clips, taken evenly from all.
    pub most: Option<usize>,
}

/// The errors of a model that takes clips in one way, in one noise.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Score {
    /// What the model took.
    pub senses: Senses,
    /// The noise, where there was one.
    pub noise: Option<String>,
    /// Decibels that it was weaker by.
    pub snr: Option<f64>,
    /// Errors in all clips.
    pub errors: Errors,
    /// Wrong words over words that were said.
    pub wer: f64,
    /// Errors in each clip.
    pub clips: Vec<Errors>,
}

impl Plan {
    /// Transcribes the clips of a CSV file (`text`, `audio`, `video`) with the likeliest word each time.
    ///
    /// # Errors
    /// [`Error::Input`] for a plan or a file of clips that makes no sense, [`Error::Compute`] when the model fails or a clip
    /// cannot be read.
    pub fn run(&self, transcriber: &Transcriber, clips: &Path) -> Result<Vec<Score>> {
        if self.snr.iter().any(|snr| !(-100.0..=100.0).contains(snr)) || self.most == Some(0) {
            return Err(Error::option(format!("noise at {:?} dB: expected -100 to 100; at least one clip", self.snr)));
        }
        let takes = transcriber.senses();
        let ways = match (self.senses.as_slice(), takes) {
            ([], Senses::AudioVisual) => vec![Senses::Audio, Senses::Video, Senses::AudioVisual],
            ([], takes) => vec![takes],
            (ways, _) => ways.to_vec(),
        };
        if let Some(way) = ways.iter().find(|w| (w.hears() && !takes.hears()) || (w.sees() && !takes.sees())) {
            return Err(Error::option(format!("the model takes {takes}, and cannot be measured by {way}")));
        }
        let (hears, sees) = (ways.iter().any(|w| w.hears()), ways.iter().any(|w| w.sees()));
        let read = |error: candle_core::Error| Error::option(candle_message(&error));
        // Words are compared, not tokens: the ids only stand for the text that is read beside them.
        let model = transcriber.model();
        let texts = std::cell::RefCell::new(Vec::new());
        let keep = |text: &str| {
            let words: Vec<String> = text.to_lowercase().split_whitespace().map(str::to_string).collect();
            texts.borrow_mut().push(words);
            Ok(vec![0])
        };
        let manifest = Manifest::load(clips, hears, sees, &keep).map_err(read)?;
        let said = texts.into_inner();
        let mut scores: Vec<Score> = Vec::new();
        let conditions: Vec<Condition<'_>> = std::iter::once(None)
            .chain(self.noises.iter().flat_map(|noise| self.snr.iter().map(move |&snr| Some((noise, snr)))))
            .collect();
        for &senses in &ways {
            let heard = if senses.hears() { conditions.len() } else { 1 };
            scores.extend(conditions.iter().take(heard).map(|condition| Score {
                senses,
                noise: condition.map(|(noise, _)| noise.name().to_string()),
                snr: condition.map(|(_, snr)| snr),
                errors: Errors::default(),
                wer: 0.0,
                clips: Vec::new(),
            }));
        }
        let (all, options) = (manifest.lengths().len(), model.options());
        let count = self.most.unwrap_or(all).min(all);
        for clip in (0..count).map(|i| i * all / count) {
            let answers =
                self.clip(transcriber, &manifest, clip, (&ways, &conditions), &options).map_err(|e| match e {
                    Error::Compute(problem) => Error::Compute(format!("clip {}: {problem}", clip + 1)),
                    Error::Device(problem) => Error::Device(format!("clip {}: {problem}", clip + 1)),
                    other => other,
                })?;
            let said = said.get(clip).map_or(&[][..], Vec::as_slice);
            for (score, answer) in scores.iter_mut().zip(answers) {
                let words: Vec<String> = answer.to_lowercase().split_whitespace().map(str::to_string).collect();
                let errors = word_errors(said, &words);
                score.errors = score.errors.plus(errors);
                score.clips.push(errors);
            }
        }
        scores.iter_mut().for_each(|score| score.wer = score.errors.rate());
        Ok(scores)
    }

    /// What the model writes of a clip, in each way and each noise. The noises of a clip go through the model together.
    fn clip(
        &self,
        transcriber: &Transcriber,
        clips: &Manifest,
        index: usize,
        (ways, conditions): (&[Senses], &[Condition<'_>]),
        options: &Options,
    ) -> Result<Vec<String>> {
        let compute = |error: candle_core::Error| Error::compute(&error);
        let model = transcriber.model();
        let (hears, sees) = (ways.iter().any(|w| w.hears()), ways.iter().any(|w| w.sees()));
        let Clip { sound, mut lips, .. } = clips.clip(index, hears, sees).map_err(compute)?;
        let length = lips.as_ref().map(|lips| lips.size.0);
        if let (true, Some(own)) = (self.other_lips, length) {
            let next = (index + 1) % clips.lengths().len();
            lips = clips.clip(next, false, true).map_err(compute)?.lips.map(|other| fitted(other, own));
        }
        let seen = match &lips {
            Some(lips) => Some(seen(model, lips).map_err(compute)?),
            None => None,
        };
        let mut heard = None;
        if let Some(sound) = sound {
            let sound = length.map_or_else(|| sound.clone(), |frames| fit_to_video(&sound, frames));
            let mut noisy = Vec::with_capacity(conditions.len());
            for (i, condition) in conditions.iter().enumerate() {
                let mut sound = sound.clone();
                if let Some((noise, snr)) = condition {
                    let part = noise.part(sound.len(), &mut Rng::keyed(&[self.seed, index as u64, i as u64]));
                    augment::add_noise(&mut sound, &part, *snr).map_err(compute)?;
                }
                noisy.push(sound);
            }
            let noisy: Vec<&[f32]> = noisy.iter().map(Vec::as_slice).collect();
            let audio = model.sound(&noisy).map_err(compute)?;
            heard = model.encode(Media { audio: Some(&audio), video: None }, None).map_err(compute)?.into_iter().next();
        }
        let mut texts = Vec::new();
        for way in ways {
            let rows = if way.hears() { conditions.len() } else { 1 };
            let mut encoded: Vec<Tokens> = Vec::new();
            if way.hears() {
                encoded.extend(heard.clone());
            }
            if let (true, Some(seen)) = (way.sees(), &seen) {
                let embeds = seen.embeds.repeat((rows, 1, 1)).map_err(compute)?;
                encoded.push(Tokens { embeds, ..seen.clone() });
            }
            for answer in model.transcribe_of(&encoded, Rates::default(), options).map_err(compute)? {
                texts.push(transcriber.tokenizer().decode(&model.vocabulary().bare(answer.tokens))?);
            }
        }
        Ok(texts)
    }
}

/// Lips of a clip, encoded.
fn seen(model: &Avsr, lips: &Frames) -> candle_core::Result<Tokens> {
    let video = model.lips(&lips.rgb, lips.size)?;
    let encoded = model.encode(Media { audio: None, video: Some(&video) }, None)?;
    encoded.into_iter().next().ok_or_else(|| candle_core::Error::Msg("the lips were not encoded".into()))
}

/// Frames cut, or repeated from the start, to a number.
fn fitted(lips: Frames, frames: usize) -> Frames {
    let Frames { rgb, size: (_, rows, columns) } = lips;
    let bytes = frames * rows * columns * 3;
    Frames { rgb: rgb.iter().cycle().take(bytes).copied().collect(), size: (frames, rows, columns) }
}
