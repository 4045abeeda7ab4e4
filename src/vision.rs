//! Models that look at pictures: pictures and questions in, text out.

mod adapters;
mod backend;
mod embedded;
mod info;
mod processor;
mod prompt;
mod routes;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::DType;
use moesaic_encoders::image::{ImageError, Picture};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::generate::{Generation, GenerationConfig, Prompts};
use moesaic_models::vision::{self, Concerned, Row, Spliced};

use crate::atlas::RouteMap;
use crate::device::Device;
use crate::error::{Error, Result, candle_message};
use crate::prompts::Turn;
use crate::text::{Answer, Dtype, TextOptions, TextStream, Tokenizer, generation_config, stored_dtype};
pub use backend::VisionBackend;
use backend::{Config, OTHERS};
pub use info::VisionModelInfo;
use prompt::Prompting;

/// A model that answers questions about pictures. It holds no state between calls: one behind an `Arc` serves any number of
/// threads.
///
/// ```no_run
/// use moesaic::{Picture, TextOptions, VisionChat};
///
/// # fn main() -> moesaic::Result<()> {
/// let chat = VisionChat::from_dir("path/to/MoE-LLaVA-StableLM-1.6B-4e")?;
/// let photo = Picture::open("photo.jpg")?;
/// let answer = chat.ask(&[photo], "What shape is it?", &TextOptions::default())?;
/// println!("{}", answer.text);
/// # Ok(())
/// # }
/// ```
pub struct VisionChat {
    model: VisionBackend,
    tokenizer: Tokenizer,
    prompting: Prompting,
    config: GenerationConfig,
    info: VisionModelInfo,
    weights: Weights,
    /// Adapters, each with its strength.
    attached: Vec<(PathBuf, f64)>,
    /// The one of them that brought parts of its own.
    whole: Option<(PathBuf, Concerned)>,
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Read { path, source } => Error::io("read", &path, source),
            ImageError::Tensor(error) => Error::compute(&error),
            other => Error::Media(other.to_string()),
        }
    }
}

/// Where a model's weights come from, and what they became.
struct Weights {
    /// The folder, or what stands for it in messages.
    place: PathBuf,
    dtype: DType,
    /// Weights that no folder has.
    in_memory: Option<Checkpoint>,
}

impl Weights {
    fn open(&self) -> Result<Checkpoint> {
        match &self.in_memory {
            Some(checkpoint) => Ok(checkpoint.clone()),
            None => Checkpoint::open(&self.place).map_err(|error| Error::weights(&self.place, &error)),
        }
    }
}

/// A question, its pictures between its words.
struct Asked {
    spliced: Spliced,
    /// The ids behind the last picture.
    tail: Vec<u32>,
}

impl VisionChat {
    /// The model in this folder: `config.json` of a supported family ([`moesaic_models::vision`], [`moesaic_models::aria`],
    /// [`moesaic_models::qwen3_vl`]), `model.safetensors` or its shards and their index, the files of a
    /// [`Tokenizer`], and where they are there `preprocessor_config.json`, a chat template and `generation_config.json`.
    /// Without a `preprocessor_config.json`, pictures are prepared as the tower's family has it; without a chat template, the
    /// conversation is written as the family's code does. Computes on the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] for missing, unusable or unsupported configurations and tokenizers, and for a model
    /// that has no vision tower; [`Error::Weights`] for missing, damaged or ill-fitting weights.
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
        let config = Config::load(dir)?;
        // Weights take long to read: all else comes first.
        let tokenizer = Tokenizer::load(dir)?;
        let prompting = Prompting::of(dir, &config, &tokenizer)?;
        let generation = generation_config(dir, config.decoder(), &tokenizer)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        let dtype = dtype.map_or_else(|| stored_dtype(&checkpoint), Dtype::of);
        let info = VisionModelInfo::new(dir, &config, &checkpoint);
        let model = config.with_processor(dir)?.model(dir, &checkpoint, dtype, &device)?;
        let weights = Weights { place: dir.to_path_buf(), dtype, in_memory: None };
        Ok(Self { model, tokenizer, prompting, config: generation, info, weights, attached: Vec::new(), whole: None })
    }

    /// What the model is.
    pub fn info(&self) -> &VisionModelInfo {
        &self.info
    }

    /// The model itself.
    pub fn model(&self) -> &VisionBackend {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Scales pictures down to so many pixels at most, for models that take pictures of any size (Qwen3-VL): fewer tokens, and an
    /// answer that comes sooner. Others are left as they are. Never less than the least that the model takes.
    pub fn limit_pixels(&mut self, most: usize) {
        if let VisionBackend::Qwen3Vl(_, processor) = &mut self.model {
            let (least, before) = processor.pixels;
            processor.pixels = (least, before.min(most).max(least));
        }
    }

    /// Most tokens of an answer, where the model's `generation_config.json` says.
    pub fn max_new_tokens(&self) -> Option<usize> {
        self.config.max_new_tokens
    }

    /// The text that the model is given for a conversation about so many pictures, with `<image>` where they stand.
    ///
    /// # Errors
    /// [`Error::Input`]: no question, an empty one, a question before the last without its answer, or more `<image>` marks than
    /// pictures or the reverse; where there is no mark at all, the pictures stand in front of the first question.
    pub fn prompt(&self, pictures: usize, turns: &[Turn<'_>]) -> Result<String> {
        self.prompting.prompt(pictures, turns, &self.tokenizer)
    }

    /// The answer to a question about pictures.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`stream`](Self::stream).
    pub fn ask(&self, pictures: &[Picture], question: &str, options: &TextOptions) -> Result<Answer> {
        let answers = self.stream(pictures, &[Turn { question, answer: None }], options)?.answers()?;
        answers.into_iter().next().ok_or_else(|| Error::Compute("the model gave no answer".into()))
    }

    /// The answer to the last question of a conversation about pictures, piece by piece. A question says with `<image>` where
    /// a picture stands.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt); [`Error::Media`] for a picture that cannot be prepared, [`Error::Input`] for options out of
    /// their range and a conversation that is longer than the model's context, [`Error::Compute`] when the model fails.
    pub fn stream(&self, pictures: &[Picture], turns: &[Turn<'_>], options: &TextOptions) -> Result<TextStream<'_>> {
        if options.beams.is_some() {
            return Err(Error::option("there is no beam search for questions about pictures: leave out the beams"));
        }
        let sampling = options.sampling(&self.config)?;
        let mut stop = options.stop.clone();
        stop.extend(self.prompting.stop().map(String::from));
        let start = Instant::now();
        let asked = self.look(pictures, turns, None)?;
        let tokens = asked.spliced.embeds.dim(1).map_err(|error| Error::compute(&error))?;
        let prompts = Prompts::Embeds(&asked.spliced.embeds, &asked.spliced.context);
        let generation =
            Generation::new(self.model.backbone(), prompts, &sampling).map_err(|error| Error::compute(&error))?;
        let rows = std::iter::once((&asked.tail[..], tokens));
        TextStream::of(&self.tokenizer, generation, rows, &stop, true, start)
    }

    /// Where the tokens of a conversation go, in tower, projector and language model. The answer is not among them. Segments have
    /// `segment` tokens ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and [`Error::Input`] where the model has no sparse layer.
    pub fn routes(&self, pictures: &[Picture], turns: &[Turn<'_>], segment: usize) -> Result<RouteMap> {
        routes::map(self, pictures, turns, segment)
    }

    /// Pictures and words as the decoder takes them.
    fn look(&self, pictures: &[Picture], turns: &[Turn<'_>], probe: Option<&moesaic_kernels::Probe>) -> Result<Asked> {
        let prompt = self.prompt(pictures.len(), turns)?;
        let mark = self.model.picture_token();
        let ids = self.prompting.ids(&prompt, mark, &self.tokenizer)?;
        let compute = |error: candle_core::Error| Error::compute(&error);
        let tokens = self.model.encode(pictures, probe)?;
        let row = Row { ids: &ids, labels: &[], pictures: &tokens };
        let spliced = self.model.splice(row).map_err(|error| match error {
            vision::Error::Model(error) => Error::compute(&error),
            other => Error::option(other.to_string()),
        })?;
        let (n, most) = (spliced.embeds.dim(1).map_err(compute)?, self.model.backbone().max_positions());
        if n >= most {
            return Err(Error::option(format!(
                "pictures and question have {n} tokens and leave no room for an answer in this model's context of {most}: \
                 give fewer pictures or a shorter question"
            )));
        }
        let tail = ids.rsplit(|id| *id == mark).next().unwrap_or_default().to_vec();
        Ok(Asked { spliced, tail })
    }
}

/// Without the weights, which nobody wants to read.
impl std::fmt::Debug for VisionChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VisionChat").field("info", &self.info).finish_non_exhaustive()
    }
}

/// An error of a folder's configuration, behind the name of its file.
fn config_error(dir: &Path, error: vision::Error) -> Error {
    let path = dir.join("config.json");
    let message = match error {
        vision::Error::Model(error) => candle_message(&error),
        other => other.to_string(),
    };
    let name = format!("{}: ", path.display());
    Error::config(&path, message.strip_prefix(&name).unwrap_or(&message))
}

#[cfg(test)]
mod tests;
