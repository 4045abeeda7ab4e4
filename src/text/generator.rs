//! A language model and its tokenizer.

use std::path::Path;

use candle_core::DType;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::checkpoint::gguf::{Gguf, is_gguf};
use moesaic_models::decoder::{Decoder, DecoderConfig};
use moesaic_models::generate::{Beam, Finish, GenerationConfig, Memory, Prompts, beam_search};
use serde::Serialize;

use super::info::TextModelInfo;
use super::options::{Dtype, TextOptions};
use super::stream::TextStream;
use super::tokenizer::Tokenizer;
use super::{read_text, stop::StopStrings};
use crate::device::Device;
use crate::error::{Error, Place, Result, candle_message};

/// A language model that goes on with texts. It holds no state between calls: one generator behind an `Arc` serves any
/// number of threads.
///
/// ```no_run
/// use moesaic::{TextGenerator, TextOptions};
///
/// # fn main() -> moesaic::Result<()> {
/// let generator = TextGenerator::from_dir("path/to/OLMoE-1B-7B-0924")?;
/// let answer = generator.generate("Sparse experts are", &TextOptions::default())?;
/// println!("{}", answer.text);
/// # Ok(())
/// # }
/// ```
pub struct TextGenerator {
    pub(super) decoder: Decoder,
    pub(super) tokenizer: Tokenizer,
    config: GenerationConfig,
    info: TextModelInfo,
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Answer {
    /// The text, without the prompt, special tokens and the stop string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were generated, with the one that ended the text.
    pub tokens: usize,
    /// The score of a beam: its log-probability, divided by a power of its length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// With [`TextOptions::log_probs`], each generated token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_probs: Vec<TokenProbability>,
}

/// One generated token and its probability under the model alone, whatever the options.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TokenProbability {
    /// Its id.
    pub id: u32,
    /// As the vocabulary has it.
    pub token: String,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

/// How long a generation took. The first token of each row belongs to the prefill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Speed {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Those of them that a [`Memory`] held, so that they were not computed.
    pub reused_tokens: usize,
    /// Seconds until the prompts were through the model.
    pub prefill_seconds: f64,
    /// Tokens of all answers, without the first of each.
    pub decode_tokens: usize,
    /// Seconds from then on.
    pub decode_seconds: f64,
}

impl Speed {
    /// The sum of two generations.
    pub fn with(&self, other: &Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            reused_tokens: self.reused_tokens + other.reused_tokens,
            prefill_seconds: self.prefill_seconds + other.prefill_seconds,
            decode_tokens: self.decode_tokens + other.decode_tokens,
            decode_seconds: self.decode_seconds + other.decode_seconds,
        }
    }

    /// Prompt tokens per second, of those that were computed.
    pub fn prefill(&self) -> f64 {
        self.prompt_tokens.saturating_sub(self.reused_tokens) as f64 / self.prefill_seconds.max(1e-9)
    }

    /// Generated tokens per second.
    pub fn decode(&self) -> f64 {
        self.decode_tokens as f64 / self.decode_seconds.max(1e-9)
    }
}

/// The longest `config.json` and `generation_config.json`, in bytes.
const LONGEST_CONFIG: u64 = 1 << 22;

impl TextGenerator {
    /// The model in this folder, in the Hugging Face layout: `config.json`, `model.safetensors` (or its shards and their
    /// index), `tokenizer.json`, and where they are there `tokenizer_config.json` and `generation_config.json`. Weights
    /// keep the number type that they are stored in. Computes on the CPU.
    ///
    /// Or a GGUF file (of one in parts, the first), which holds all of that.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] for missing, unusable or unsupported configurations and tokenizers,
    /// [`Error::Weights`] for missing, damaged or ill-fitting weights.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load(dir.as_ref(), None, Device::Cpu)
    }

    /// The same with weights and cache converted to a number type: 16 bits take half the memory of 32.
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
        Self::of_parts(dir, Parts::load(dir)?, dtype, device)
    }

    pub(super) fn of_parts(dir: &Path, parts: Parts, dtype: Option<Dtype>, device: Device) -> Result<Self> {
        let device = device.open()?;
        let Parts { config, tokenizer, gguf } = parts;
        let generation = generation_config(dir, &config, &tokenizer)?;
        let weights = |error: candle_core::Error| Error::weights(dir, &error);
        let checkpoint = match gguf {
            Some(file) => file.into_checkpoint(),
            None => Checkpoint::open(dir).map_err(weights)?,
        };
        let info = TextModelInfo::new(dir, &config, &checkpoint);
        let dtype = dtype.map_or_else(|| stored_dtype(&checkpoint), Dtype::of);
        let decoder = Decoder::from_checkpoint(config, &checkpoint, dtype, &device).map_err(weights)?;
        Ok(Self { decoder, tokenizer, config: generation, info })
    }

    /// What the model is.
    pub fn info(&self) -> &TextModelInfo {
        &self.info
    }

    /// Most tokens of an answer, where the model's `generation_config.json` says.
    pub fn max_new_tokens(&self) -> Option<usize> {
        self.config.max_new_tokens
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Goes on with a text.
    ///
    /// # Errors
    /// [`Error::Input`] for options out of their range, an empty prompt, and one that is longer than the model's context;
    /// the message has the numbers. [`Error::Compute`] when the model fails.
    pub fn generate(&self, prompt: &str, options: &TextOptions) -> Result<Answer> {
        first(self.generate_batch(&[prompt], options)?)
    }

    /// Goes on with several texts together, which is faster than one after the other. Each gets the text that it would get
    /// alone.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); the message has the number of the prompt, from 0.
    pub fn generate_batch(&self, prompts: &[&str], options: &TextOptions) -> Result<Vec<Answer>> {
        if options.beams.is_some() {
            let found = self.search(prompts, 1, options)?;
            return found.into_iter().map(first).collect();
        }
        self.stream(prompts, options)?.answers()
    }

    /// Goes on with texts, piece by piece: an iterator over pieces of text as they are written. Dropping it ends the work.
    ///
    /// # Errors
    /// As [`generate_batch`](Self::generate_batch).
    pub fn stream(&self, prompts: &[&str], options: &TextOptions) -> Result<TextStream<'_>> {
        let rows = self.rows(prompts)?;
        self.stream_rows(rows, options, None)
    }

    pub(super) fn stream_rows(
        &self,
        rows: Vec<Vec<u32>>,
        options: &TextOptions,
        memory: Option<Memory>,
    ) -> Result<TextStream<'_>> {
        if options.beams.is_some() {
            return Err(Error::option("a beam search gives no text before its end: leave out the beams to stream"));
        }
        let mut sampling = options.sampling(&self.config)?;
        self.check(&rows)?;
        sampling.streams =
            rows.iter().enumerate().map(|(i, row)| rows.iter().take(i).filter(|r| *r == row).count() as u64).collect();
        TextStream::start(self, &rows, &sampling, &options.stop, memory)
    }

    /// The best `sequences` continuations of each text by beam search, best first.
    ///
    /// # Errors
    /// As [`generate_batch`](Self::generate_batch).
    pub fn search(&self, prompts: &[&str], sequences: usize, options: &TextOptions) -> Result<Vec<Vec<Answer>>> {
        let rows = self.rows(prompts)?;
        self.search_rows(&rows, sequences, options)
    }

    pub(super) fn search_rows(
        &self,
        rows: &[Vec<u32>],
        sequences: usize,
        options: &TextOptions,
    ) -> Result<Vec<Vec<Answer>>> {
        let search = options.search(&self.config, sequences)?;
        self.check(rows)?;
        let ids: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let found =
            beam_search(&self.decoder, Prompts::Ids(&ids), &search, &mut |_| std::ops::ControlFlow::Continue(()));
        let found = found.map_err(|error| Error::compute(&error))?;
        let answer = |prompt: &[u32], beam: Beam| self.answer(prompt, &beam, &search.eos, &options.stop);
        let answers = rows.iter().zip(found).map(|(row, beams)| beams.into_iter().map(|b| answer(row, b)).collect());
        answers.collect()
    }

    /// The text of a beam.
    fn answer(&self, prompt: &[u32], beam: &Beam, eos: &[u32], stop: &[String]) -> Result<Answer> {
        let ids: Vec<u32> = beam.tokens.iter().copied().filter(|id| !eos.contains(id)).collect();
        let mut text = super::detokenizer::whole(prompt, &ids, &self.tokenizer)?;
        let mut finish = beam.finish;
        let (shown, hit) = StopStrings::new(stop).push(&text);
        if hit {
            (text, finish) = (shown, Finish::Stopped);
        }
        let (prompt_tokens, tokens, score) = (prompt.len(), beam.tokens.len(), Some(beam.score));
        Ok(Answer { text, finish, prompt_tokens, tokens, score, log_probs: Vec::new() })
    }

    /// Token ids of texts.
    fn rows(&self, prompts: &[&str]) -> Result<Vec<Vec<u32>>> {
        if let Some(row) = prompts.iter().position(|prompt| prompt.is_empty()) {
            let name = name(row, prompts.len());
            return Err(Error::input(Place::default(), format!("{name} is empty: give at least one character")));
        }
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt)).collect()
    }

    /// Checks that there are prompts and that they leave room for an answer.
    fn check(&self, rows: &[Vec<u32>]) -> Result<()> {
        if rows.is_empty() {
            return Err(Error::option("there is no prompt: give at least one"));
        }
        let most = self.decoder.config().max_positions;
        for (row, ids) in rows.iter().enumerate() {
            let name = name(row, rows.len());
            if ids.is_empty() {
                return Err(Error::option(format!("{name} has no token: give other text")));
            }
            if ids.len() >= most {
                return Err(Error::option(format!(
                    "{name} has {} tokens and leaves no room for an answer in this model's context of {most}: shorten \
                     it to at most {}",
                    ids.len(),
                    most.saturating_sub(1)
                )));
            }
        }
        Ok(())
    }
}

/// Without the weights, which nobody wants to read.
impl std::fmt::Debug for TextGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextGenerator").field("info", &self.info).finish_non_exhaustive()
    }
}

fn first(mut answers: Vec<Answer>) -> Result<Answer> {
    answers.drain(..).next().ok_or_else(|| Error::Compute("the model gave no answer".into()))
}

fn name(row: usize, rows: usize) -> String {
    if rows == 1 { "the prompt".into() } else { format!("prompt {row}") }
}

/// What a model needs beside its weights, of a folder or of a GGUF file.
pub(super) struct Parts {
    pub config: DecoderConfig,
    pub tokenizer: Tokenizer,
    /// The file, whose weights are then taken from it.
    pub gguf: Option<Gguf>,
}

impl Parts {
    pub fn load(path: &Path) -> Result<Self> {
        if !is_gguf(path) {
            let config = decoder_config(path)?;
            return Ok(Self { config, tokenizer: Tokenizer::load(path)?, gguf: None });
        }
        let file = Gguf::open(path).map_err(|error| Error::weights(path, &error))?;
        let config = gguf_config(path, &file)?;
        let tokenizer = Tokenizer::of_gguf(path, file.metadata())?;
        Ok(Self { config, tokenizer, gguf: Some(file) })
    }
}

fn gguf_config(path: &Path, file: &Gguf) -> Result<DecoderConfig> {
    let config = DecoderConfig::from_gguf(file);
    config.map_err(|error| {
        let message = candle_message(&error);
        let name = format!("{}: ", path.display());
        Error::config(path, message.strip_prefix(&name).unwrap_or(&message))
    })
}

/// The configuration of the decoder in a folder or in a GGUF file.
pub(super) fn decoder_config(dir: &Path) -> Result<DecoderConfig> {
    if is_gguf(dir) {
        return gguf_config(dir, &Gguf::open(dir).map_err(|error| Error::weights(dir, &error))?);
    }
    if !dir.is_dir() {
        let what = if dir.exists() { "is neither a folder nor a GGUF file" } else { "does not exist" };
        let problem =
            format!("{what}: give a folder with config.json, model.safetensors and tokenizer.json, or a GGUF file");
        return Err(Error::config(dir, problem));
    }
    let path = dir.join("config.json");
    let Some(json) = read_text(&path, LONGEST_CONFIG)? else {
        return Err(Error::io("read", &path, std::io::Error::from(std::io::ErrorKind::NotFound)));
    };
    DecoderConfig::from_json(&json).map_err(|error| Error::config(&path, candle_message(&error)))
}

/// Settings of `generation_config.json`, with every token that ends a text: its own, or else those of `config.json`, and
/// the one that the tokenizer calls so (chat models end their turns with it).
pub(crate) fn generation_config(dir: &Path, config: &DecoderConfig, tokenizer: &Tokenizer) -> Result<GenerationConfig> {
    let path = dir.join("generation_config.json");
    let json = if dir.is_dir() { read_text(&path, LONGEST_CONFIG)? } else { None };
    let settings = match json {
        Some(json) => {
            GenerationConfig::from_json(&json).map_err(|error| Error::config(&path, candle_message(&error)))?
        }
        None => GenerationConfig::default(),
    };
    Ok(ended_by(settings, config, tokenizer))
}

/// These settings, with every token that ends a text as [`generation_config`] has it.
pub(crate) fn ended_by(
    mut settings: GenerationConfig,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
) -> GenerationConfig {
    if settings.eos_token_ids.is_empty() {
        settings.eos_token_ids.clone_from(&config.eos_token_ids);
    }
    settings.eos_token_ids.extend(tokenizer.eos());
    settings.eos_token_ids.sort_unstable();
    settings.eos_token_ids.dedup();
    settings
}

/// The number type that takes the most bytes of a checkpoint, blocks aside; f32 where there is none.
pub(crate) fn stored_dtype(checkpoint: &Checkpoint) -> DType {
    let bytes = |dtype: DType| -> usize {
        let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
        infos.filter(|info| info.dtype == dtype && info.blocks.is_none()).map(|info| info.bytes).sum()
    };
    let choices = [DType::F32, DType::F16, DType::BF16];
    choices.into_iter().filter(|&dtype| bytes(dtype) > 0).max_by_key(|&dtype| bytes(dtype)).unwrap_or(DType::F32)
}
