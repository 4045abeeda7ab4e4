//! `config.json` of `model_type: omni`, a layout of this workspace.

use std::path::Path;

use candle_core::{Error, Result, bail};
use moesaic_encoders::audio::SAMPLE_RATE;
use moesaic_kernels::{Modality, one_line};
use serde::{Deserialize, Serialize};

use crate::folder::{at, config_text};
use crate::moma;

/// The sizes of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `omni`
    pub model_type: String,
    /// The decoder; it has experts for the modalities that the model takes.
    pub backbone: moma::Config,
    /// Pictures, where the model takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// Sound, where the model takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<AudioConfig>,
    /// Time series, where the model takes and forecasts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<SeriesConfig>,
    /// Tokens of a conversation at most: as many as it was trained on.
    pub context: usize,
    /// First token of a sequence, as the tokenizer writes it.
    pub bos_token: String,
    /// Last token of an answer.
    pub eos_token: String,
}

/// Pictures as tokens: squares of `size` pixels in patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Pixels a side.
    pub size: usize,
    /// Pixels of a patch's side; divides `size`.
    pub patch: usize,
}

/// Sound as tokens: frames of a spectrogram in decibels, every 10 ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioConfig {
    /// Bands of the spectrogram.
    pub bands: usize,
    /// Frames of a token.
    pub frames: usize,
    /// What is taken from decibels before they are divided by `std`.
    pub mean: f64,
    /// See `mean`.
    pub std: f64,
    /// Seconds of a sound that are heard at most: as many as it was trained on.
    pub longest: f64,
}

/// Time series as tokens: values of a series, scaled by the mean and deviation of what is known of it, in patches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesConfig {
    /// Values of a token.
    pub patch: usize,
    /// Quantiles that are forecast, rising, the median among them.
    pub levels: Vec<f64>,
    /// Values of a series that are read at most, the newest: as many as it was trained on.
    pub longest: usize,
    /// The word that says that a patch of a forecast comes next.
    pub forecast_token: String,
}

impl ImageConfig {
    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        (self.size / self.patch.max(1)).pow(2)
    }
}

impl AudioConfig {
    /// Samples at 16 kHz of a sound at most.
    pub fn samples(&self) -> usize {
        (self.longest * f64::from(SAMPLE_RATE)).round() as usize
    }
}

impl SeriesConfig {
    /// What is read of the values of a series: the newest.
    pub fn newest<'a>(&self, values: &'a [f32]) -> &'a [f32] {
        values.get(values.len().saturating_sub(self.longest)..).unwrap_or(values)
    }

    /// Where the median stands among the levels.
    pub fn median(&self) -> usize {
        self.levels.iter().position(|level| *level == 0.5).unwrap_or(0)
    }
}

/// Tokens, and values, above which a config is taken for a mistake.
const MOST: usize = 1 << 20;

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// Not JSON, a key that is missing or not known, or values that do not fit each other.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json).map_err(|e| Error::Msg(one_line(e)))?;
        config.validate()?;
        Ok(config)
    }

    /// Reads the `config.json` of a folder.
    ///
    /// # Errors
    /// The file cannot be read, and as [`from_json`](Self::from_json): the message names it.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        Self::from_json(&config_text(&path)?).map_err(|e| at(&path, e))
    }

    /// The text of a `config.json`.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(Error::wrap)
    }

    /// Checks values before anything is made of them.
    pub fn validate(&self) -> Result<()> {
        if self.model_type != "omni" {
            bail!("model_type is {:?}, expected \"omni\"", one_line(&self.model_type));
        }
        self.backbone.validate().map_err(|e| Error::Msg(format!("backbone: {e}")))?;
        if self.backbone.image_token_ids[0] != self.backbone.image_token_ids[1] {
            bail!("backbone.image_token_ids must be empty: pictures are patches here, not ids");
        }
        for (modality, takes) in [
            (Modality::Image, self.image.is_some()),
            (Modality::Audio, self.audio.is_some()),
            (Modality::Series, self.series.is_some()),
        ] {
            if takes != (self.backbone.experts(modality) > 0) {
                let name = modality.name();
                bail!("{name} and backbone.{name}_experts must both be there, or neither");
            }
        }
        if !(2..=MOST).contains(&self.context) {
            bail!("context is {}, expected 2 to {MOST} tokens", self.context);
        }
        if let Some(ImageConfig { size, patch }) = self.image
            && !((1..=4096).contains(&size) && patch > 0 && size.is_multiple_of(patch) && size / patch <= 64)
        {
            bail!("pictures of {size} pixels in patches of {patch}: patches must divide a side, into 64 at most");
        }
        if self.image.is_some() && !self.backbone.hidden_size.is_multiple_of(4) {
            bail!("backbone.hidden_size is {}: places of patches begin as four parts of it", self.backbone.hidden_size);
        }
        if let Some(AudioConfig { bands, frames, mean, std, longest }) = self.audio {
            if !((8..=512).contains(&bands) && (1..=100).contains(&frames)) {
                bail!("tokens of {frames} frames of {bands} bands: expected 1 to 100 frames of 8 to 512 bands");
            }
            if !(mean.is_finite() && std > 0.0 && std.is_finite()) {
                bail!("decibels of mean {mean} and deviation {std}: expected numbers, the second above 0");
            }
            if !(longest > 0.0 && longest <= 3600.0) {
                bail!("audio.longest is {longest}, expected seconds, above 0 and up to an hour");
            }
        }
        if let Some(SeriesConfig { patch, levels, longest, forecast_token }) = &self.series {
            if !(1..=1024).contains(patch) || !(*patch..=MOST).contains(longest) {
                bail!(
                    "series of up to {longest} values in patches of {patch}: expected 1 to 1024, and at least one patch"
                );
            }
            if [&self.bos_token, &self.eos_token].contains(&forecast_token) {
                bail!("series.forecast_token is {forecast_token:?}, which has another meaning");
            }
            let rising = levels.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
            if !rising || !inside || levels.len() > 99 || !levels.contains(&0.5) {
                bail!("series.levels are {levels:?}: expected rising quantiles between 0 and 1, 0.5 among them");
            }
        }
        // What cannot be asked about is no use to read.
        for (what, tokens) in [
            ("a picture", self.image.map(|image| image.tokens())),
            ("the longest sound", self.audio.map(|audio| (audio.samples() / 160 + 1).div_ceil(audio.frames))),
            ("the longest series", self.series.as_ref().map(|series| series.longest.div_ceil(series.patch))),
        ] {
            if let Some(tokens) = tokens.filter(|&tokens| tokens + 2 > self.context) {
                bail!(
                    "{what} has {tokens} tokens, which a context of {} has no room for beside a question",
                    self.context
                );
            }
        }
        Ok(())
    }
}
