//! Models that listen: sound and a question in, text out.

mod info;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use moesaic_encoders::audio::{AudioError, AudioOptions, AudioReader, Downmix, SAMPLE_RATE, Windows};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Modality, Probe};
use moesaic_models::decoder::Input;
use moesaic_models::generate::{Backbone, Generation, GenerationConfig, Prompts, beam_search};
use moesaic_models::usam::{Prompt, Task, Usam, UsamConfig, Vocabulary};
use serde::Serialize;

use crate::atlas::{Atlas, RouteMap};
use crate::device::Device;
use crate::error::{Error, Result, candle_message};
use crate::text::{
    Answer, Dtype, Finish, TextOptions, TextStream, Tokenizer, adapters, generation_config, stored_dtype,
};
pub use info::AudioModelInfo;

/// A model that answers questions about speech, sounds and music: U-SAM ([`moesaic_models::usam`]). It holds no state between
/// calls: one behind an `Arc` serves any number of threads.
///
/// ```no_run
/// use moesaic::{AudioChat, TextOptions};
///
/// # fn main() -> moesaic::Result<()> {
/// let chat = AudioChat::from_dir("path/to/U-SAM")?;
/// for heard in chat.ask("street.wav", "What can be heard?", &TextOptions::default())? {
///     println!("{:.0} s: {}", heard.start, heard.answer.text);
/// }
/// # Ok(())
/// # }
/// ```
pub struct AudioChat {
    model: Usam,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    info: AudioModelInfo,
}

/// The answer about one window of a sound.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Heard {
    /// Seconds from the start of the sound to that of the window.
    pub start: f64,
    /// Seconds to its end.
    pub end: f64,
    /// The answer.
    pub answer: Answer,
}

impl Heard {
    /// An answer about what is heard between two times, in seconds.
    pub fn new(start: f64, end: f64, answer: Answer) -> Self {
        Self { start, end, answer }
    }
}

impl From<AudioError> for Error {
    fn from(error: AudioError) -> Self {
        match error {
            AudioError::Io { label, source } => Error::io("read", Path::new(&label), source),
            other => Error::Media(other.to_string()),
        }
    }
}

impl AudioChat {
    /// The model in this folder: `config.json` ([`UsamConfig`]), weights under the names of the authors' checkpoints
    /// (`model.safetensors` or its shards; `moesaic convert` makes them of `pytorch_model.bin`), the files of a [`Tokenizer`], and where it
    /// is there `generation_config.json`. Computes on the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] for missing, unusable or unsupported configurations and tokenizers;
    /// [`Error::Weights`] for missing, damaged or ill-fitting weights.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load(dir.as_ref(), None, Device::Cpu)
    }

    /// The same with weights and cache converted to a number type.
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
        let config = read_config(dir)?;
        // Weights take long to read: all else comes first.
        let tokenizer = Tokenizer::load(dir)?;
        let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token))
            .map_err(|error| Error::config(&dir.join("tokenizer.json"), candle_message(&error)))?;
        let mut generation = generation_config(dir, &config.llm, &tokenizer)?;
        generation.eos_token_ids.push(vocabulary.eos);
        generation.eos_token_ids.sort_unstable();
        generation.eos_token_ids.dedup();
        generation.num_beams = generation.num_beams.or(Some(config.beams));
        generation.max_new_tokens = generation.max_new_tokens.or(Some(config.new_tokens[1]));
        let weights = |error: candle_core::Error| Error::weights(dir, &error);
        let checkpoint = Checkpoint::open(dir).map_err(weights)?;
        let dtype = dtype.map_or_else(|| stored_dtype(&checkpoint), Dtype::of);
        let info = AudioModelInfo::new(dir, &config, &checkpoint);
        let model = Usam::from_checkpoint(config, &checkpoint, vocabulary, dtype, &device).map_err(weights)?;
        Ok(Self { model, tokenizer, config: generation, info })
    }

    /// Attaches an adapter to the language model, as [`TextGenerator::attach`](crate::TextGenerator::attach) does, beside those
    /// that the model has.
    ///
    /// # Errors
    /// [`Error::Weights`] where it cannot be read or is of another model: nothing is attached then.
    pub fn attach(&mut self, adapter: impl AsRef<Path>, strength: f64) -> Result<()> {
        adapters::attach(self.model.llm_mut(), adapter.as_ref(), strength)
    }

    /// Takes an adapter off that [`attach`](Self::attach) brought from this folder.
    pub fn detach(&mut self, adapter: impl AsRef<Path>) {
        adapters::detach(self.model.llm_mut(), adapter.as_ref());
    }

    /// What the model is.
    pub fn info(&self) -> &AudioModelInfo {
        &self.info
    }

    /// The model itself.
    pub fn model(&self) -> &Usam {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Samples at 16 kHz that the model hears at once, 30 seconds of the published model: what Whisper's encoder takes. Longer sound
    /// goes through it window by window.
    pub fn window(&self) -> usize {
        self.model.config().window()
    }

    /// The first channel of a sound file at 16 kHz, as U-SAM was trained, in windows: memory does not grow with its length.
    ///
    /// # Errors
    /// [`Error::Media`] or [`Error::Io`]: the file cannot be read or decoded.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Windows> {
        let options = AudioOptions { downmix: Downmix::First, ..AudioOptions::default() };
        Ok(AudioReader::open(path.as_ref(), options)?.windows(self.window()))
    }

    /// The prompt of a question: a task of the model by its name ([`Task::name`]), or any text, in which
    /// [`SOUND`](moesaic_models::usam::SOUND) may say where the sound stands.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty question, or one with several places for the sound.
    pub fn prompt(&self, question: &str) -> Result<Prompt> {
        if question.trim().is_empty() {
            return Err(Error::option(
                "there is no question: ask one, or name a task: AAC (sounds), ASR (transcript), S2TT (Chinese translation), MC \
                 (music)",
            ));
        }
        let text = Task::from_name(question.trim()).map_or(question, |task| task.prompt());
        let encode = |text: &str| self.tokenizer.encode(text).map_err(candle_core::Error::wrap);
        let prompt = self.model.vocabulary().prompt(text, encode);
        prompt.map_err(|error| Error::option(candle_message(&error)))
    }

    /// The answers to a question about a sound file, one for each [window](Self::window) of it.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`answer`](Self::answer).
    pub fn ask(&self, path: impl AsRef<Path>, question: &str, options: &TextOptions) -> Result<Vec<Heard>> {
        let (mut all, mut from) = (Vec::new(), 0);
        for window in self.open(path)? {
            let samples = window?;
            let answer = self.answer(&samples, question, options)?;
            all.push(Heard::new(seconds(from), seconds(from + samples.len()), answer));
            from += samples.len();
        }
        Ok(all)
    }

    /// The answer to a question about samples at 16 kHz, in -1 to 1, at most a [window](Self::window) of them. With
    /// [`TextOptions::beams`] by beam search, which is what the model was published with (3 beams).
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`stream`](Self::stream).
    pub fn answer(&self, samples: &[f32], question: &str, options: &TextOptions) -> Result<Answer> {
        if options.beams.is_none() {
            let answers = self.stream(samples, question, options)?.answers()?;
            return answers.into_iter().next().ok_or_else(|| Error::Compute("the model gave no answer".into()));
        }
        let mut search = options.search(&self.config, 1)?;
        search.min_new_tokens = self.model.config().new_tokens[0].min(search.max_new_tokens);
        let prompt = self.prompt(question)?;
        let sound = self.sound(samples)?;
        let compute = |error: candle_core::Error| Error::compute(&error);
        let (embeds, context) = self.model.prompt(&sound, std::slice::from_ref(&prompt)).map_err(compute)?;
        let prompts = Prompts::Embeds(&embeds, &context);
        let beams = beam_search(self.model.llm(), prompts, &search, &mut |_| ControlFlow::Continue(()));
        let Some(best) = beams.map_err(compute)?.into_iter().flatten().next() else {
            return Err(Error::Compute("the model gave no answer".into()));
        };
        let mut text = match best.tokens.split_last() {
            Some((_, text)) if best.finish == Finish::Eos => self.tokenizer.decode(text)?,
            _ => self.tokenizer.decode(&best.tokens)?,
        };
        if let Some(end) = options.stop.iter().filter_map(|stop| text.find(stop)).min() {
            text.truncate(end);
        }
        Ok(Answer {
            text: text.trim_start().to_string(),
            finish: best.finish,
            prompt_tokens: embeds.dim(1).map_err(compute)?,
            tokens: best.tokens.len(),
            score: Some(best.score),
            log_probs: Vec::new(),
        })
    }

    /// Where the tokens of a question about samples at 16 kHz go, in projector and language model. The answer is not among them.
    /// Segments have `segment` tokens ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and [`Error::Input`] where the model has no sparse layer.
    pub fn routes(&self, samples: &[f32], question: &str, segment: usize) -> Result<RouteMap> {
        let prompt = [self.prompt(question)?];
        let sound = self.sound(samples)?;
        let (hearing, reading) = (Probe::new(), Probe::new());
        let mut atlas = Atlas::default();
        let mut pass = || -> candle_core::Result<()> {
            let projected = self.model.project(&self.model.encode(&sound, None)?, &prompt, Some(&hearing))?;
            let Some(heard) = projected.tokens.first() else { candle_core::bail!("the projector gave no tokens") };
            let (embeds, context) = self.model.prompt_of(heard, &prompt)?;
            let llm = self.model.llm();
            llm.forward(Input::Embeds(&embeds), &context, None, Some(&reading))?;
            let tokens = embeds.dim(1)?;
            let of = context.modality.as_deref();
            let modality = |token: usize| of.and_then(|all| all.get(token)).copied().unwrap_or(Modality::Text);
            // A mixture of one projector has no routes to show.
            if self.model.projector().config().experts > 1 {
                atlas.add_probe(&hearing, &|_| Modality::Audio)?;
            }
            atlas.add_probe(&reading, &modality)?;
            let audio = heard.embeds.dim(1)?;
            atlas.count(Modality::Audio, audio);
            atlas.count(Modality::Text, tokens.saturating_sub(audio));
            Ok(())
        };
        pass().map_err(|error| Error::compute(&error))?;
        atlas.finish(segment)
    }

    /// The answer to a question about samples at 16 kHz, in -1 to 1, piece by piece.
    ///
    /// # Errors
    /// [`Error::Media`] for no samples, or ones that are no numbers, [`Error::Input`] for more than a [window](Self::window), for
    /// options out of their range and a question that is longer than the model's context, [`Error::Compute`] when the model fails.
    pub fn stream(&self, samples: &[f32], question: &str, options: &TextOptions) -> Result<TextStream<'_>> {
        if options.beams.is_some() {
            return Err(Error::option("a beam search gives no text before its end: leave out the beams to stream"));
        }
        let sampling = options.sampling(&self.config)?;
        let start = Instant::now();
        let prompt = self.prompt(question)?;
        let sound = self.sound(samples)?;
        let compute = |error: candle_core::Error| Error::compute(&error);
        let (embeds, context) = self.model.prompt(&sound, std::slice::from_ref(&prompt)).map_err(compute)?;
        let tokens = embeds.dim(1).map_err(compute)?;
        let most = self.model.llm().config().max_positions;
        if tokens >= most {
            return Err(Error::option(format!(
                "sound and question have {tokens} tokens and leave no room for an answer in this model's context of {most}: ask a \
                 shorter question"
            )));
        }
        let model: &(dyn Backbone + Sync) = self.model.llm();
        let generation = Generation::new(model, Prompts::Embeds(&embeds, &context), &sampling).map_err(compute)?;
        let rows = std::iter::once((&prompt.right[..], tokens));
        TextStream::of(&self.tokenizer, generation, rows, &options.stop, true, start)
    }

    /// Samples as the model takes them, checked.
    fn sound(&self, samples: &[f32]) -> Result<candle_core::Tensor> {
        if samples.len() > self.window() {
            return Err(Error::option(format!(
                "{} samples are more than the {} that the model hears at once: cut them into windows, as AudioChat::ask does",
                samples.len(),
                self.window()
            )));
        }
        match samples.iter().position(|v| !v.is_finite()) {
            Some(index) => {
                let value = samples.get(index).copied().unwrap_or(f32::NAN);
                Err(AudioError::NotFinite { label: "the sound".into(), index: index as u64, value }.into())
            }
            None if samples.is_empty() => Err(AudioError::Empty { label: "the sound".into() }.into()),
            None => self.model.sound(&[samples]).map_err(|error| Error::compute(&error)),
        }
    }
}

/// Without the weights, which nobody wants to read.
impl std::fmt::Debug for AudioChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioChat").field("info", &self.info).finish_non_exhaustive()
    }
}

fn seconds(samples: usize) -> f64 {
    samples as f64 / f64::from(SAMPLE_RATE)
}

fn read_config(dir: &Path) -> Result<UsamConfig> {
    UsamConfig::load(dir).map_err(|error| {
        let (path, message) = (dir.join("config.json"), candle_message(&error));
        let names = [format!("{}: ", path.display()), format!("{}: ", dir.display())];
        let bare = names.iter().fold(message.as_str(), |text, name| text.strip_prefix(name.as_str()).unwrap_or(text));
        Error::config(&path, bare.to_string())
    })
}
