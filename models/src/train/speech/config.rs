//! The TOML file of a training run.

use std::path::PathBuf;

use candle_core::{DType, Error, Result, bail};
use moesaic_encoders::audio::{AudioOptions, read_audio};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{AdamWConfig, Plan};
use super::augment::{Noise, NoiseSource};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of batches and all that is drawn.
    pub seed: u64,
    /// A folder with the whole model: what it holds of projectors and adapters is not looked at, unless `tune` says so.
    pub base: PathBuf,
    /// What learns.
    #[serde(default)]
    pub train: Part,
    /// Go on from what `base` holds of that, instead of starting from the seed.
    #[serde(default)]
    pub tune: bool,
    /// A folder with the AV-HuBERT, in place of the one in `base`: as [`units`](super::units) trains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<PathBuf>,
    /// Keys of `config.json` that this run has otherwise than `base`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// Write the whole model at the end, into `whole`: a folder that is used without `base`, in bf16.
    #[serde(default)]
    pub whole: bool,
    /// Dtype in which encoders and language model are held: `f32`, `bf16` or `f16`.
    #[serde(default = "f32_name")]
    pub base_dtype: String,
    /// Add the sink loss, with the factor of the model's config.
    #[serde(default)]
    pub sink: bool,
    /// Add the CTC loss of the projected tokens, with this factor: each is to be a token of the text, or nothing.
    #[serde(default)]
    pub ctc: f64,
    /// So many of the last checkpoints are averaged at the end, into `averaged`; 0 for none.
    #[serde(default)]
    pub average: usize,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default = "optimiser")]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

fn f32_name() -> String {
    "f32".to_string()
}

/// What the authors train with: no warm-up, a cosine down to zero.
fn optimiser() -> AdamWConfig {
    AdamWConfig {
        learning_rate: 1e-3,
        final_learning_rate: 0.0,
        warmup: 0,
        beta2: 0.98,
        weight_decay: 0.1,
        clip: 10.0,
        ..AdamWConfig::default()
    }
}

/// What of a speech model learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Projectors and adapters, as in the papers.
    #[default]
    Connector,
    /// Projectors by the CTC loss alone: the language model is not run, which takes a fraction of the time.
    Projector,
    /// The language model, too, which then starts from the seed as they do, unless `tune` says otherwise: for models that are
    /// small enough.
    Language,
}

/// One noise or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a noise is a sound file or white, or a list of such")]
pub enum Noises {
    /// One.
    One(PathBuf),
    /// Several, or none.
    Many(Vec<PathBuf>),
}

impl Default for Noises {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Noises {
    /// All of them.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }

    fn is_empty(&self) -> bool {
        self.paths().is_empty()
    }
}

/// Clips, and what is done to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The clips ([`Manifest`](super::Manifest)).
    pub clips: PathBuf,
    /// Frames of 40 ms in a batch at most, without padding.
    #[serde(default = "frames")]
    pub max_frames: usize,
    /// Clips in a batch at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Ranges of length that clips are sorted into.
    #[serde(default = "buckets")]
    pub buckets: usize,
    /// Mask sound and lips over time, and crop lips at random.
    #[serde(default = "yes")]
    pub mask: bool,
    /// Mask and crop lips at random, where that is not as `mask` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_lips: Option<bool>,
    /// Modality dropout (AV-HuBERT, section 3.2 of arXiv 2201.02184): the share of batches whose sound the model does not hear.
    #[serde(default)]
    pub drop_audio: f64,
    /// The share of batches whose lips it does not see.
    #[serde(default)]
    pub drop_video: f64,
    /// Megabytes of memory for what the encoders make, which is the same in every epoch: of lips where frames are not masked (`mask`
    /// then means the encoded ones), of sound without masks and noise.
    #[serde(default)]
    pub cache_mb: usize,
    /// Clips that are not trained on: how many words in a hundred the model gets wrong there is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Clips of them that are transcribed for that.
    #[serde(default = "valid_clips")]
    pub valid_clips: usize,
    /// Steps between measurements.
    #[serde(default = "valid_every")]
    pub valid_every: u64,
    /// A recording of noise, or `white`, or a list of such.
    #[serde(default, skip_serializing_if = "Noises::is_empty")]
    pub noise: Noises,
    /// Ratios of signal to noise to draw from, in decibels. Beside them a clip may stay clean.
    #[serde(default = "levels")]
    pub snr: Vec<f64>,
}

fn frames() -> usize {
    1000
}

fn valid_clips() -> usize {
    100
}

fn valid_every() -> u64 {
    500
}

fn buckets() -> usize {
    50
}

fn yes() -> bool {
    true
}

fn levels() -> Vec<f64> {
    Noise::LEVELS.into_iter().flatten().collect()
}

impl DataConfig {
    /// Checks what does not need the clips.
    ///
    /// # Errors
    /// A setting that is out of range: the message names it.
    pub fn validate(&self) -> Result<()> {
        if self.max_frames == 0 || self.buckets == 0 || self.rows == Some(0) {
            bail!("data: max_frames, buckets and rows must be at least 1");
        }
        if self.snr.iter().any(|snr| !(-100.0..=100.0).contains(snr)) {
            bail!("data.snr is {:?}, expected decibels from -100 to 100", self.snr);
        }
        let shares = [self.drop_audio, self.drop_video];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || shares.iter().sum::<f64>() > 1.0 {
            bail!("data: drop_audio and drop_video are shares of the batches, which together cannot exceed 1");
        }
        if self.valid_clips == 0 || self.valid_every == 0 {
            bail!("data: valid_clips and valid_every must be at least 1");
        }
        Ok(())
    }

    /// Whether lips are masked and cropped at random.
    pub(super) fn masks_lips(&self) -> bool {
        self.mask_lips.unwrap_or(self.mask)
    }

    /// The noise, where there is some.
    pub(super) fn noise(&self) -> Result<Option<Noise>> {
        if self.noise.is_empty() {
            return Ok(None);
        }
        let levels = self.snr.iter().map(|&snr| Some(snr)).chain([None]).collect();
        let sources = self.noise.paths().iter().map(|path| match path.to_str() {
            Some("white") => Ok(NoiseSource::White),
            _ => read_audio(path, AudioOptions::default()).map(NoiseSource::Recording).map_err(Error::wrap),
        });
        Ok(Some(Noise::of(sources.collect::<Result<_>>()?, levels)?))
    }
}

impl TrainConfig {
    /// Checks what does not need the model.
    ///
    /// # Errors
    /// A setting that is out of range: the message names it.
    pub fn validate(&self) -> Result<()> {
        self.optimiser.validate()?;
        self.dtype()?;
        self.data.validate()?;
        if !(0.0..=1e6).contains(&self.ctc) {
            bail!("ctc is {}, expected a factor from 0 on", self.ctc);
        }
        if self.sink && self.train == Part::Projector {
            bail!(
                "sink looks into the language model, which `train = \"projector\"` does not run: leave one of them out"
            );
        }
        if self.average > self.plan.keep.max(2) {
            bail!(
                "average wants {} checkpoints, plan.keep leaves {}: raise plan.keep",
                self.average,
                self.plan.keep.max(2)
            );
        }
        Ok(())
    }

    /// That of `base_dtype`.
    pub(super) fn dtype(&self) -> Result<DType> {
        Ok(match self.base_dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => bail!("base_dtype is {other:?}, expected f32, bf16 or f16"),
        })
    }
}
