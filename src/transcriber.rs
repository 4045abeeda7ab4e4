//! Speech recognition by ear, by eye or by both: a recording in, words out.

mod embedded;
mod input;
mod routes;
mod words;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::DType;
use moesaic_kernels::Tokens;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::avsr::{Avsr, AvsrConfig, Media, Rates, Vocabulary, fit_to_video};
use moesaic_models::generate::Options;
use serde::{Deserialize, Serialize};

use crate::atlas::RouteMap;
use crate::device::Device;
use crate::error::{Error, Result, candle_message};
use crate::text::{Dtype, Tokenizer, stored_dtype};

pub use input::Recording;
pub use moesaic_models::train::speech::Frames as MouthFrames;
pub use words::Word;

/// What of a recording is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Senses {
    /// Its sound.
    Audio,
    /// The lips of the speaker.
    Video,
    /// Both.
    AudioVisual,
}

impl Senses {
    /// Whether sound is used.
    pub fn hears(self) -> bool {
        self != Self::Video
    }

    /// Whether lips are used.
    pub fn sees(self) -> bool {
        self != Self::Audio
    }

    /// What is used of sound and lips; `None` for neither.
    fn of(hears: bool, sees: bool) -> Option<Self> {
        match (hears, sees) {
            (true, true) => Some(Self::AudioVisual),
            (true, false) => Some(Self::Audio),
            (false, true) => Some(Self::Video),
            (false, false) => None,
        }
    }
}

/// `audio`, `video`, `audiovisual`
impl std::fmt::Display for Senses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::AudioVisual => "audiovisual",
        })
    }
}

/// How recordings are transcribed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TranscribeOptions {
    /// What of a recording is used; all that the model takes and the file has, where this is not said.
    pub senses: Option<Senses>,
    /// Continuations that are kept in a search; 1 takes the likeliest word each time. As the model's config says, where this is
    /// not said.
    pub beams: Option<usize>,
    /// Tokens of a window's transcript at most; as the model's config says, where this is not said.
    pub max_new_tokens: Option<usize>,
    /// Seconds that the model takes at once; as its config says, where this is not said. Longer recordings are cut into windows.
    pub window: Option<f64>,
    /// Seconds that windows have in common, in which the next one starts at the quietest place.
    pub overlap: f64,
    /// Takes what can be decoded of a damaged file, with silence and repeated frames for the rest, instead of failing.
    pub lenient: bool,
    /// Where the mouth is.
    #[cfg(feature = "video")]
    pub mouth: moesaic_encoders::video::MouthOptions,
}

impl Default for TranscribeOptions {
    fn default() -> Self {
        Self {
            senses: None,
            beams: None,
            max_new_tokens: None,
            window: None,
            overlap: 1.0,
            lenient: false,
            #[cfg(feature = "video")]
            mouth: Default::default(),
        }
    }
}

/// What was said in a part of a recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Segment {
    /// Seconds from the start of the recording to that of the part.
    pub start: f64,
    /// Seconds to its end.
    pub end: f64,
    /// The text.
    pub text: String,
    /// Its words.
    pub words: Vec<Word>,
}

/// What was said in a recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Transcript {
    /// The text, without what windows have in common.
    pub text: String,
    /// What of the recording was used.
    pub senses: Senses,
    /// Seconds of the recording.
    pub seconds: f64,
    /// The text by windows.
    pub segments: Vec<Segment>,
    /// What is worth knowing of how the mouth was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// A speech model: Llama-AVSR, Llama-SMoP, Llama-MTSK ([`moesaic_models::avsr`]), or one that `moesaic train speech` made. It holds no
/// state between calls: one behind an `Arc` serves any number of threads.
///
/// ```no_run
/// use moesaic::{TranscribeOptions, Transcriber};
///
/// # fn main() -> moesaic::Result<()> {
/// let transcriber = Transcriber::embedded()?; // or Transcriber::from_dir("path/to/Llama-AVSR")
/// let transcript = transcriber.transcribe("clip.wav", &TranscribeOptions::default())?;
/// println!("{}", transcript.text);
/// # Ok(())
/// # }
/// ```
pub struct Transcriber {
    model: Avsr,
    tokenizer: Tokenizer,
    place: PathBuf,
}

impl Transcriber {
    /// The model in this folder: `config.json` ([`AvsrConfig`]), weights under the names of the authors' checkpoints, and the
    /// tokenizer that was saved with it. Computes on the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] for missing, unusable or unsupported configurations and tokenizers;
    /// [`Error::Weights`] for missing, damaged or ill-fitting weights.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load(dir.as_ref(), None, Device::Cpu)
    }

    /// The same with weights converted to a number type.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_dir_as(dir: impl AsRef<Path>, dtype: Dtype) -> Result<Self> {
        Self::load(dir.as_ref(), Some(dtype), Device::Cpu)
    }

    /// The same on a device, with weights and cache converted to a number type or as they are stored.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir), and [`Error::Device`] where the device cannot be used.
    pub fn from_dir_on(dir: impl AsRef<Path>, dtype: Option<Dtype>, device: Device) -> Result<Self> {
        Self::load(dir.as_ref(), dtype, device)
    }

    fn load(dir: &Path, dtype: Option<Dtype>, device: Device) -> Result<Self> {
        Error::unless_folder(dir)?;
        let device = device.open()?;
        let config = AvsrConfig::load(dir).map_err(|error| config_error(dir, &error))?;
        let tokenizer = Tokenizer::load(dir)?;
        let checkpoint = Checkpoint::open_any(dir).map_err(|error| Error::weights(dir, &error))?;
        let dtype = dtype.map_or_else(|| stored_dtype(&checkpoint), Dtype::of);
        Self::of(dir, config, tokenizer, &checkpoint, (dtype, &device))
    }

    fn of(
        place: &Path,
        config: AvsrConfig,
        tokenizer: Tokenizer,
        checkpoint: &Checkpoint,
        (dtype, device): (DType, &candle_core::Device),
    ) -> Result<Self> {
        let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
        let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token), encode)
            .map_err(|error| Error::config(&place.join("tokenizer.json"), candle_message(&error)))?;
        let model = Avsr::from_checkpoint(config, checkpoint, vocabulary, dtype, device)
            .map_err(|error| Error::weights(place, &error))?;
        Ok(Self { model, tokenizer, place: place.to_path_buf() })
    }

    /// The model itself.
    pub fn model(&self) -> &Avsr {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the model takes of a recording.
    pub fn senses(&self) -> Senses {
        let task = self.model.config().task;
        Senses::of(task.hears(), task.sees()).unwrap_or(Senses::Audio)
    }

    /// Transcribes a file: sound, a video with sound, frames of a mouth or of a face.
    ///
    /// # Errors
    /// [`Error::Media`] or [`Error::Io`]: the file cannot be read, or does not have what is asked for. [`Error::Input`]: options
    /// out of their range. [`Error::Compute`] when the model fails.
    pub fn transcribe(&self, path: impl AsRef<Path>, options: &TranscribeOptions) -> Result<Transcript> {
        let path = path.as_ref();
        self.transcribe_with(self.open(path, None, options)?, options, |_| ControlFlow::Continue(()))
    }

    /// Opens a recording for [`transcribe_with`](Self::transcribe_with): a file, and the lips from another one, where they are not
    /// in it.
    ///
    /// # Errors
    /// As [`transcribe`](Self::transcribe).
    pub fn open(&self, path: &Path, lips: Option<&Path>, options: &TranscribeOptions) -> Result<Recording> {
        let takes = self.senses();
        if let Some(asked) = options.senses
            && ((asked.hears() && !takes.hears()) || (asked.sees() && !takes.sees()))
        {
            let place = self.place.display();
            return Err(Error::option(format!("{place}: this model takes {takes}, and cannot transcribe by {asked}")));
        }
        Recording::open(path, lips, takes, options)
    }

    /// Transcribes a recording window by window, and tells of each; `Break` ends it with what there is.
    ///
    /// # Errors
    /// As [`transcribe`](Self::transcribe).
    pub fn transcribe_with(
        &self,
        mut recording: Recording,
        options: &TranscribeOptions,
        mut each: impl FnMut(&Segment) -> ControlFlow<()>,
    ) -> Result<Transcript> {
        let senses = recording.senses();
        let window = options.window.unwrap_or(self.model.config().window);
        if !(0.2..=600.0).contains(&window) || !(0.0..=window / 2.0).contains(&options.overlap) {
            return Err(Error::option(format!(
                "windows of {window} s that have {} s in common: expected 0.2 to 600 s, and at most half of it in common",
                options.overlap
            )));
        }
        let (mut segments, mut all): (Vec<Segment>, Vec<Word>) = (Vec::new(), Vec::new());
        let mut part = recording.next(window, options.overlap)?;
        let mut seconds = recording.seconds();
        while let Some(current) = part.take() {
            // The next window is decoded, and faces are looked for in it, while the model writes down this one.
            let (words, ahead) = std::thread::scope(|scope| {
                let ahead = scope.spawn(|| recording.next(window, options.overlap));
                (self.words(current.sound.as_deref(), current.lips.as_ref(), options), ahead.join())
            });
            let words = words?;
            let text = words::text(&words);
            let segment = Segment { start: current.start, end: current.end, text, words };
            words::join(&mut all, &segment.words, current.common);
            let told = each(&segment);
            segments.push(segment);
            if told.is_break() {
                break;
            }
            let died = |_| Error::Compute("a thread that reads died; please report this as a bug".into());
            part = ahead.map_err(died)??;
            seconds = recording.seconds();
        }
        let remarks = recording.remarks();
        Ok(Transcript { text: words::text(&all), senses, seconds, segments, remarks })
    }

    /// Where the tokens of a recording's first window go, in projectors and language model, up to where the text would begin. Segments
    /// have `segment` tokens ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// As [`transcribe_with`](Self::transcribe_with), and [`Error::Input`] where the model has no sparse layer.
    pub fn routes(&self, recording: Recording, options: &TranscribeOptions, segment: usize) -> Result<RouteMap> {
        routes::map(self, recording, options, segment)
    }

    /// The words in sound at 16 kHz, in -1 to 1, or in lips, or in both: at most what the model takes at once.
    ///
    /// # Shapes
    /// lips: frames of 88 to 8192 pixels a side
    ///
    /// # Errors
    /// [`Error::Input`] for neither of both, lips of another size and options out of their range; [`Error::Compute`] when the model
    /// fails.
    pub fn words(
        &self,
        sound: Option<&[f32]>,
        lips: Option<&MouthFrames>,
        options: &TranscribeOptions,
    ) -> Result<Vec<Word>> {
        let compute = |error: candle_core::Error| Error::compute(&error);
        let encoded = self.encode(sound, lips)?;
        let beams = options.beams.unwrap_or(self.model.config().beams);
        if beams == 0 {
            return Err(Error::option("a search needs at least one beam"));
        }
        let most = options.max_new_tokens.unwrap_or(self.model.config().max_new_tokens);
        let (tokens, log_probs) = if beams == 1 {
            let greedy = Options { max_new_tokens: most, log_probs: true, ..self.model.options() };
            let answers = self.model.transcribe_of(&encoded, Rates::default(), &greedy).map_err(compute)?;
            answers.into_iter().next().map(|answer| (answer.tokens, answer.log_probs)).unwrap_or_default()
        } else {
            let mut search = self.model.beam_options();
            (search.beams, search.max_new_tokens) = (beams, most);
            let found = self.model.search_of(&encoded, Rates::default(), &search).map_err(compute)?;
            let tokens = found.into_iter().flatten().next().map(|beam| beam.tokens).unwrap_or_default();
            let log_probs = self.model.log_probs_of(&encoded, Rates::default(), &tokens).map_err(compute)?;
            (tokens, log_probs)
        };
        words::of(&self.tokenizer, &tokens, &log_probs, self.model.vocabulary().eos)
    }

    /// What the encoders make of sound, lips, or both.
    fn encode(&self, sound: Option<&[f32]>, lips: Option<&MouthFrames>) -> Result<Vec<Tokens>> {
        let compute = |error: candle_core::Error| Error::compute(&error);
        let unfit = |error: candle_core::Error| Error::option(candle_message(&error));
        let fitted = match (sound, lips) {
            (Some(sound), Some(lips)) => Some(fit_to_video(sound, lips.size.0)),
            (Some(sound), None) => Some(sound.to_vec()),
            (None, _) => None,
        };
        if fitted.as_ref().is_some_and(|sound| sound.iter().any(|v| !v.is_finite())) {
            return Err(Error::Media("the sound has samples that are no numbers".into()));
        }
        let audio = fitted.as_deref().map(|sound| self.model.sound(&[sound])).transpose().map_err(compute)?;
        let video = lips.map(|lips| self.model.lips(&lips.rgb, lips.size)).transpose().map_err(unfit)?;
        self.model.encode(Media { audio: audio.as_ref(), video: video.as_ref() }, None).map_err(compute)
    }
}

fn config_error(dir: &Path, error: &candle_core::Error) -> Error {
    let (path, message) = (dir.join("config.json"), candle_message(error));
    let names = [format!("{}: ", path.display()), format!("{}: ", dir.display()), "config.json: ".to_string()];
    let bare = names.iter().fold(message.as_str(), |text, name| text.strip_prefix(name.as_str()).unwrap_or(text));
    Error::config(&path, bare.to_string())
}

/// Without the weights, which nobody wants to read.
impl std::fmt::Debug for Transcriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transcriber").field("place", &self.place).finish_non_exhaustive()
    }
}
