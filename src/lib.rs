//! Multimodal sparse mixture-of-experts models in Rust, without Python. What works today is forecasting, text,
//! and questions about pictures and sound.
//!
//! [`Forecaster`] continues any time series without being trained on it. It runs Time-MoE, a decoder-only transformer
//! whose feed-forward layers are sparse mixtures of experts: a small model trained by this project and compiled into the
//! library, or any Time-MoE in a folder in the Hugging Face layout or on the Hub. It runs Moirai-MoE too, which predicts
//! distributions (quantiles, sample paths), also of several series together and with covariates ([`Group`]).
//!
//! ```
//! use moesaic::{ForecastOptions, Forecaster, Table, TableOptions};
//!
//! # fn main() -> moesaic::Result<()> {
//! let table = Table::read_csv("examples/data/co2.csv", &TableOptions::default())?;
//! let forecaster = Forecaster::embedded()?; // or Forecaster::from_dir("path/to/TimeMoE-50M")
//! for forecast in forecaster.forecast(&table.series, 52, &ForecastOptions::default())? {
//!     for (stamp, value) in forecast.timestamps.iter().zip(&forecast.values) {
//!         println!("{stamp} {value}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`TextGenerator`] goes on with texts and [`Chat`] answers in conversations, with language models of fourteen families
//! ([`moesaic_models::decoder`]) from a folder or a GGUF file; [`write_gguf`] makes such a file of a folder.
//!
//! `VisionChat` (feature `image`) answers questions about pictures with MoE-LLaVA, CuMo, LLaVA-1.5, models trained by this
//! project ([`moesaic_models::vision`]), Aria ([`moesaic_models::aria`]) and Qwen3-VL ([`moesaic_models::qwen3_vl`]).
//!
//! `AudioChat` (feature `audio`) answers questions about speech, sounds and music with U-SAM ([`moesaic_models::usam`]).
//!
//! [`Omni`] reads text, pictures, sound and series in one conversation, and answers in words and in forecasts
//! ([`moesaic_models::omni`]); [`Media`] opens any of them by its content.
//!
//! `Transcriber` (feature `audio`) writes down what is said, by ear, by eye (feature `video`) or by both, with Llama-AVSR,
//! Llama-SMoP and Llama-MTSK ([`moesaic_models::avsr`]).
//!
//! * [`Series`] holds values and what its rows are called: a [`Calendar`] with a [`Frequency`], or row numbers.
//! * [`Table`] reads series from CSV files, and from Parquet files and Arrow record batches with feature `table`.
//! * [`convert`] writes checkpoints of torch as model folders, and executes nothing of them.
//! * [`eval`] scores forecasts against baselines on series with a known future.
//! * `hub` (feature `hub`) fetches models from the Hugging Face Hub by their id.
//! * `plot` (feature `cli`) draws a series and its forecast in a terminal or as SVG.
//! * [`Error`] is one typed error; every message is one line that says what to do.
//!
//! # Features
//! * `cli` (default): the `moesaic` program and the module `plot`. Embedders use `default-features = false`.
//! * `hub` (default): the module `hub` and `Forecaster::from_hub`. Nothing uses the network unless it is given a Hub id.
//! * `image` (default): picture files, and models that look at them.
//! * `audio` (default): sound files, and models that listen to them.
//! * `table`: Parquet files and Arrow record batches.

mod atlas;
#[cfg(feature = "audio")]
mod audio;
mod calendar;
mod convert;
mod device;
mod error;
pub mod eval;
mod forecaster;
#[cfg(feature = "hub")]
pub mod hub;
mod media;
mod omni;
#[cfg(feature = "cli")]
pub mod plot;
pub mod prompts;
mod series;
#[doc(hidden)] // for the program, which reads the settings of training runs
pub mod settings;
mod table;
mod text;
#[cfg(feature = "audio")]
mod transcriber;
#[cfg(feature = "image")]
mod vision;

pub use atlas::{LayerRoutes, RouteMap, SEGMENT};
pub use calendar::{Calendar, Frequency, Grid, Irregular, Moment, MonthDay, Precision};
pub use convert::{Converted, convert};
pub use device::Device;
#[doc(hidden)] // for the program, which trains through the models crate
pub use error::candle_message;
pub use error::{Error, Place, Result};
#[doc(hidden)] // apart from the files that it reads, for tests of damaged configurations
pub use forecaster::parse_config;
pub use forecaster::{
    DEFAULT_CONTEXT, Forecast, ForecastOptions, ForecastSession, Forecaster, Group, Interval, MAX_HORIZON, Missing,
    ModelFile, ModelInfo, Parameters, Quantile,
};
pub use media::{FileKind, Media};
pub use omni::{Conversation, Omni, OmniAnswer, OmniModelInfo, OmniOptions};
pub use series::{Index, Series, Stamp};
#[cfg(feature = "table")]
#[doc(hidden)] // for the program's panic hook
pub use table::reading as reading_parquet;
pub use table::{Table, TableOptions};
#[doc(hidden)] // for the program, which tokenises what it trains on
pub use text::guarded;
pub use text::{
    Answer, Chat, ChatTemplate, Dtype, Finish, LayerParameters, Memory, Message, Perplexity, Piece, Speed,
    TemplateOptions, TextGenerator, TextModelInfo, TextOptions, TextStream, TokenProbability, Tokenizer,
    gguf_tokenizer, quantise, write_gguf,
};

#[cfg(feature = "audio")]
pub use audio::{AudioChat, AudioModelInfo, Heard};
#[cfg(feature = "audio")]
pub use moesaic_encoders::audio::{AudioError, AudioOptions, AudioReader, Windows};
#[cfg(feature = "image")]
pub use moesaic_encoders::image::{DecodeOptions, ImageError, Limits, Picture};
#[cfg(feature = "video")]
pub use moesaic_encoders::video::{
    FaceChoice, FaceOptions, FaceReport, MouthOptions, MouthReader, Roi, VideoError, VideoOptions, VideoReader,
};
#[cfg(feature = "audio")]
pub use transcriber::{MouthFrames, Recording, Segment, Senses, TranscribeOptions, Transcriber, Transcript, Word};
#[cfg(feature = "image")]
pub use vision::{VisionBackend, VisionChat, VisionModelInfo};

/// Compiles and runs the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
