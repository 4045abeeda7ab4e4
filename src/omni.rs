//! One model for text, pictures, sound and time series, which answers in words and in numbers.

mod info;

use std::path::Path;

use candle_core::{DType, Tensor};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Modality, Routes};
use moesaic_models::omni::{self, Answer, Config, Memory, Part, Row, Wanted};
use serde::Serialize;

use crate::atlas::{Atlas, RouteMap};
use crate::device::Device;
use crate::error::{Error, Place, Result, candle_message};
use crate::forecaster::{Forecast, Quantile, future};
use crate::media::Media;
use crate::series::Series;
use crate::table::TableOptions;
use crate::text::Tokenizer;
pub use info::OmniModelInfo;

/// A model that reads text, pictures, sound and time series in one sequence, answers in words and forecasts numbers
/// ([`moesaic_models::omni`]). It holds no state between calls: one behind an `Arc` serves any number of threads, and a [`Conversation`]
/// holds what was said.
///
/// ```no_run
/// use moesaic::{Conversation, Omni, OmniOptions, TableOptions};
///
/// # fn main() -> moesaic::Result<()> {
/// let (omni, options) = (Omni::from_dir("assets/omni")?, OmniOptions::default());
/// let mut talk = Conversation::default();
/// let (picture, _) = omni.open("scene.png", &TableOptions::default())?;
/// println!("{}", omni.ask(&mut talk, &[picture], "How many circles are there?", &options)?.text);
/// let (series, _) = omni.open("sales.csv", &TableOptions::default())?;
/// println!("{}", omni.ask(&mut talk, &[series], "Is it rising?", &options)?.text);
/// if let Some(forecast) = omni.ask(&mut talk, &[], "Forecast 24 steps.", &options)?.forecast {
///     println!("{:?}", forecast.values);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Omni {
    model: omni::Omni,
    senses: omni::Senses,
    tokenizer: Tokenizer,
    info: OmniModelInfo,
}

/// What was shown and said so far.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    memory: Memory,
    series: Option<Shown>,
}

/// The series that a forecast goes on with.
#[derive(Clone, Debug)]
struct Shown {
    /// Without its values.
    series: Series,
    rows: usize,
    context: usize,
    filled: usize,
}

impl Conversation {
    /// Tokens so far, of [`OmniModelInfo::context`].
    pub fn tokens(&self) -> usize {
        self.memory.tokens()
    }
}

/// How to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OmniOptions {
    /// Forecast so many rows of the last series that was shown. `None`: the model decides whether it answers with words or with
    /// a forecast, and how long that is.
    pub horizon: Option<usize>,
    /// Most tokens of an answer; as many as the model's context holds if `None`. A forecast's token is a patch of values.
    pub max_tokens: Option<usize>,
}

impl OmniOptions {
    /// A forecast of so many rows.
    pub fn horizon(mut self, rows: usize) -> Self {
        self.horizon = Some(rows);
        self
    }

    /// At most so many tokens of an answer.
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OmniAnswer {
    /// Its words; may be empty beside a forecast.
    pub text: String,
    /// The values that follow the last series that was shown, with the quantiles that the model predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// It ended of itself, rather than at the most tokens or at the end of the context.
    pub finished: bool,
    /// Tokens of the conversation with it.
    pub tokens: usize,
}

/// What a prompt holds until its parts borrow from it.
enum Held {
    Ids(Vec<u32>),
    #[cfg(feature = "image")]
    Image(Tensor),
    Audio(Tensor),
    Series(Vec<f32>),
}

impl Omni {
    /// The model in this folder: `config.json` of `model_type: omni`, `model.safetensors`, `auxiliary.safetensors` where experts choose
    /// their tokens in training, and the files of a [`Tokenizer`], all as `moesaic train omni` writes them. Computes on the CPU.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] for missing or unusable configurations and tokenizers, [`Error::Weights`] for missing, damaged or
    /// ill-fitting weights.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::from_dir_on(dir, Device::Cpu)
    }

    /// The same on a device.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir), and [`Error::Device`] where the device cannot be used.
    pub fn from_dir_on(dir: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        Error::unless_folder(dir)?;
        let device = device.open()?;
        let config = read_config(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let weights = |error: candle_core::Error| Error::weights(dir, &error);
        let info = OmniModelInfo::new(dir, &config, &Checkpoint::open(dir).map_err(weights)?);
        let senses = omni::Senses::new(&config).map_err(|error| Error::config(dir, candle_message(&error)))?;
        let id = |token: &str| tokenizer.id(token);
        let model = omni::Omni::load(dir, id, DType::F32, &device).map_err(weights)?;
        Ok(Self { model, senses, tokenizer, info })
    }

    /// What the model is.
    pub fn info(&self) -> &OmniModelInfo {
        &self.info
    }

    /// The model itself.
    pub fn model(&self) -> &omni::Omni {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Reads a file by its content, as much of it as the model takes ([`Media::open`]). The second value are remarks, one line each.
    ///
    /// # Errors
    /// As [`Media::open`].
    pub fn open(&self, path: impl AsRef<Path>, options: &TableOptions) -> Result<(Media, Vec<String>)> {
        let path = path.as_ref();
        let config = self.model.config();
        let (media, mut notes) = Media::open(path, config.audio.map_or(1.0, |audio| audio.longest), options)?;
        if let (Media::Series(series), Some(own)) = (&media, &config.series)
            && series.values.len() > own.longest
        {
            let (count, longest) = (series.values.len(), own.longest);
            notes.push(format!("{}: the newest {longest} of {count} values are read", path.display()));
        }
        Ok((media, notes))
    }

    /// Words of a text that the model has never seen, where its tokenizer says so.
    pub fn unknown_words(&self, text: &str) -> Vec<String> {
        let Some(unknown) = self.tokenizer.id("<unk>") else { return Vec::new() };
        let strange = |word: &&str| self.tokenizer.encode_rendered(word).is_ok_and(|ids| ids.contains(&unknown));
        text.split_whitespace().filter(strange).map(ToString::to_string).collect()
    }

    /// The answer to a question, which goes on with a conversation; what is `shown` comes first. A forecast continues the last series that
    /// was shown in the conversation, from the first row after its last observed value. On an error the conversation stays as it was.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty question with nothing shown, for what the model does not take, for a horizon where no series was shown,
    /// for a series without a number or with an infinite one, and where the conversation or the forecast is longer than the model's
    /// context; [`Error::Media`] for a picture or a sound that cannot be prepared; [`Error::Compute`] when the model fails.
    pub fn ask(
        &self,
        conversation: &mut Conversation,
        shown: &[Media],
        question: &str,
        options: &OmniOptions,
    ) -> Result<OmniAnswer> {
        let held = self.hold(shown, question)?;
        let wanted = options.horizon.map_or(Wanted::Any, Wanted::Values);
        if options.horizon == Some(0) || options.max_tokens == Some(0) {
            return Err(Error::option("an answer of nothing: ask for at least 1 row and 1 token"));
        }
        let series = shown.iter().rev().find_map(|media| match media {
            Media::Series(series) => Some(self.series(series)),
            _ => None,
        });
        let series = series.or_else(|| conversation.series.clone());
        if options.horizon.is_some() && series.is_none() {
            return Err(Error::option("a forecast follows a series: show one before it"));
        }
        let mut memory = conversation.memory.clone();
        let prompt: Vec<Part<'_>> = held.iter().map(Held::part).collect();
        self.check_context(&prompt, memory.tokens())?;
        let reply = self.model.reply(&prompt, wanted, options.max_tokens.unwrap_or(usize::MAX), &mut memory);
        let reply = reply.map_err(|error| Error::compute(&error))?;
        if let Some(rows) = options.horizon.filter(|&rows| reply.steps() < rows && options.max_tokens.is_none()) {
            let (room, context) = (reply.steps(), self.info.context);
            return Err(Error::option(format!(
                "{rows} rows are more than this model's context of {context} tokens holds: ask for up to {room}"
            )));
        }
        let forecast = match (&series, reply.steps()) {
            (Some(series), 1..) => Some(self.forecast(series, reply.quantiles)?),
            _ => None,
        };
        let text = self.tokenizer.decode(&reply.words)?.trim().to_string();
        *conversation = Conversation { memory, series };
        Ok(OmniAnswer { text, forecast, finished: reply.finished, tokens: conversation.tokens() })
    }

    /// Where the tokens of what is shown and a question go. The answer is not among them. Segments have `segment` tokens
    /// ([`RouteMap::segment`]).
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and [`Error::Input`] where the model has no sparse layer.
    pub fn routes(&self, shown: &[Media], question: &str, segment: usize) -> Result<RouteMap> {
        let held = self.hold(shown, question)?;
        let prompt: Vec<Part<'_>> = held.iter().map(Held::part).collect();
        self.check_context(&prompt, 0)?;
        let mut atlas = Atlas::default();
        let pass = || -> candle_core::Result<()> {
            let sequence = self.model.sequence(&[Row::one(prompt, Answer::Open)])?;
            let output = self.model.forward(&sequence, None)?;
            let backbone = &self.model.config().backbone;
            let (mut routes, mut depth) = (output.routes.iter(), output.depth_routes.iter());
            for layer in 0..backbone.num_hidden_layers {
                // Of layers that tokens pass by, those that go through are the ones with routes.
                let through: Option<Vec<usize>> = match backbone.is_deep(layer) {
                    true => depth
                        .next()
                        .map(Routes::choices)
                        .transpose()?
                        .map(|choices| (0..choices.len()).filter(|&token| !choices[token].is_empty()).collect()),
                    false => None,
                };
                if through.as_ref().is_some_and(Vec::is_empty) {
                    continue;
                }
                let token = |i: usize| through.as_ref().map_or(Some(i), |through| through.get(i).copied());
                let modality = |i: usize| token(i).and_then(|token| sequence.modality.get(token)).copied();
                if let Some(routes) = routes.next() {
                    let modality = |i: usize| modality(i).unwrap_or(Modality::Text);
                    atlas.add(&format!("layer {layer}"), routes, 1, &modality)?;
                }
            }
            sequence.modality.iter().for_each(|modality| atlas.count(*modality, 1));
            Ok(())
        };
        pass().map_err(|error| Error::compute(&error))?;
        atlas.finish(segment)
    }

    /// Whether a prompt and at least one token of an answer have room behind what was said.
    fn check_context(&self, prompt: &[Part<'_>], seen: usize) -> Result<()> {
        let config = self.model.config();
        // The first token of a conversation, or the last one of the answer before.
        let tokens = 1 + prompt.iter().map(|part| part.tokens(config)).sum::<usize>();
        if seen + tokens < config.context {
            return Ok(());
        }
        let advice = if seen == 0 { "show less, or ask more briefly" } else { "begin a new conversation" };
        let context = config.context;
        Err(Error::option(format!(
            "{tokens} tokens behind {seen} leave no room for an answer in this model's context of {context}: {advice}"
        )))
    }

    /// What a question holds, ready for the model.
    fn hold(&self, shown: &[Media], question: &str) -> Result<Vec<Held>> {
        let sense = |error: candle_core::Error| Error::Media(candle_message(&error));
        let ids = |text: &str| Ok(Held::Ids(self.tokenizer.encode_rendered(text)?));
        let config = self.model.config();
        let takes = |takes: bool, what: &str| match takes {
            true => Ok(()),
            false => Err(Error::option(format!("this model takes no {what}"))),
        };
        let hold = |media: &Media| match media {
            Media::Text(text) => ids(text),
            #[cfg(feature = "image")]
            Media::Picture(picture) => {
                takes(config.image.is_some(), "pictures")?;
                Ok(Held::Image(self.senses.picture(picture).map_err(sense)?))
            }
            Media::Sound(samples) => {
                takes(config.audio.is_some(), "sound")?;
                match samples.iter().position(|v| !v.is_finite()) {
                    Some(at) => Err(Error::Media(format!("sample {at} of the sound is no number"))),
                    None => Ok(Held::Audio(self.senses.sound(samples).map_err(sense)?)),
                }
            }
            Media::Series(series) => {
                takes(config.series.is_some(), "series")?;
                let problem = |text: &str| Err(Error::input(Place::series(&series.name), text));
                match self.observed(series) {
                    [] => problem("there is no number in what the model reads of it"),
                    values if values.iter().any(|v| v.is_infinite()) => problem("a value is infinite: leave it out"),
                    values => Ok(Held::Series(values.to_vec())),
                }
            }
        };
        let mut held = shown.iter().map(hold).collect::<Result<Vec<_>>>()?;
        if !question.trim().is_empty() {
            held.push(ids(question)?);
        }
        if held.is_empty() {
            return Err(Error::option("there is no question: ask one"));
        }
        Ok(held)
    }

    /// What is read of a series: the newest values up to the last observed one. Empty where none is.
    fn observed<'a>(&self, series: &'a Series) -> &'a [f32] {
        let end = series.values.iter().rposition(|v| !v.is_nan()).map_or(0, |last| last + 1);
        let values = series.values.get(..end).unwrap_or_default();
        self.model.config().series.as_ref().map_or(&[], |config| config.newest(values))
    }

    /// What a forecast needs to know of a series.
    fn series(&self, series: &Series) -> Shown {
        let observed = self.observed(series);
        Shown {
            series: Series::new(&*series.name, []).with_index(series.index.clone()),
            rows: series.values.iter().rposition(|v| !v.is_nan()).map_or(0, |last| last + 1),
            context: observed.len(),
            filled: observed.iter().filter(|v| v.is_nan()).count(),
        }
    }

    fn forecast(&self, shown: &Shown, quantiles: Vec<Vec<f32>>) -> Result<Forecast> {
        let config = self.model.config().series.as_ref();
        let median = config.map_or(0, |series| series.median());
        let levels = config.map_or(&[][..], |series| &series.levels);
        let values = quantiles.get(median).cloned().unwrap_or_default();
        Ok(Forecast {
            name: shown.series.name.clone(),
            timestamps: future(&shown.series, shown.rows, values.len())?,
            values,
            intervals: Vec::new(),
            mean: Vec::new(),
            quantiles: levels.iter().zip(quantiles).map(|(level, values)| Quantile::new(*level, values)).collect(),
            samples: Vec::new(),
            context: shown.context,
            filled: shown.filled,
            start: shown.rows,
        })
    }
}

impl Held {
    fn part(&self) -> Part<'_> {
        match self {
            Self::Ids(ids) => Part::Text(ids),
            #[cfg(feature = "image")]
            Self::Image(image) => Part::Image(image),
            Self::Audio(sound) => Part::Audio(sound),
            Self::Series(values) => Part::Series(values),
        }
    }
}

/// Without the weights, which nobody wants to read.
impl std::fmt::Debug for Omni {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Omni").field("info", &self.info).finish_non_exhaustive()
    }
}

fn read_config(dir: &Path) -> Result<Config> {
    Config::load(dir).map_err(|error| {
        let (path, message) = (dir.join("config.json"), candle_message(&error));
        let bare = message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message).to_string();
        Error::config(&path, bare)
    })
}
