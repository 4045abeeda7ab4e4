//! Training a speech model ([`Avsr`]): encoders and language model stay as they are, projectors and adapters are trained.
//!
//! The loss is that of the model: cross entropy of the text, over all scales of a Matryoshka model, and the losses of a mixture
//! of projectors; on request the sink loss. Sound is masked over time and mixed with noise, lips are cropped and masked at
//! random, clips of about one length stand in a batch.
//!
//! The base is a folder in the layout of the authors' checkpoints ([`crate::avsr`]). What is trained is saved alone, under the
//! same names; [`load`] puts the two together. The mean of the last checkpoints is written where it is wanted.

pub mod augment;
mod batches;
mod clips;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::audio::{AudioOptions, read_audio};
use moesaic_encoders::video::{CROP, LipFrames, LipVariant};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

pub use batches::Buckets;
pub use clips::{Clip, Clips, Frames, Manifest};

use self::augment::{Noise, TimeMask, random_crop};
use super::average::average;
use super::data::text::Tokenise;
use super::{AdamWConfig, Ended, Format, Plan, Report, StepLoss, Trainable, Trainer, checkpoints};
use crate::avsr::{Avsr, AvsrConfig, Media, Sources, Task, Vocabulary, fit_to_video};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of batches and all that is drawn.
    pub seed: u64,
    /// A folder with the whole model: what it holds of projectors and adapters is not looked at, unless `tune` says so.
    pub base: PathBuf,
    /// Go on from the projectors and adapters of `base`, instead of starting from the seed.
    #[serde(default)]
    pub tune: bool,
    /// Dtype in which encoders and language model are held: `f32`, `bf16` or `f16`.
    #[serde(default = "f32_name")]
    pub base_dtype: String,
    /// Add the sink loss, with the factor of the model's config.
    #[serde(default)]
    pub sink: bool,
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

/// Clips, and what is done to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The clips ([`Manifest`]).
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
    /// A recording of noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<PathBuf>,
    /// Ratios of signal to noise to draw from, in decibels. Beside them a clip may stay clean.
    #[serde(default = "levels")]
    pub snr: Vec<f64>,
}

fn frames() -> usize {
    1000
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

impl TrainConfig {
    /// Checks what does not need the model.
    ///
    /// # Errors
    /// A setting that is out of range: the message names it.
    pub fn validate(&self) -> Result<()> {
        self.optimiser.validate()?;
        self.dtype()?;
        if self.data.max_frames == 0 || self.data.buckets == 0 || self.data.rows == Some(0) {
            bail!("data: max_frames, buckets and rows must be at least 1");
        }
        if self.data.snr.iter().any(|snr| !(-100.0..=100.0).contains(snr)) {
            bail!("data.snr is {:?}, expected decibels from -100 to 100", self.data.snr);
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

    fn dtype(&self) -> Result<DType> {
        Ok(match self.base_dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => bail!("base_dtype is {other:?}, expected f32, bf16 or f16"),
        })
    }
}

/// What training draws for a clip.
#[derive(Clone, Debug)]
pub struct Augment {
    /// Masks over time and random crops.
    pub mask: bool,
    /// Noise in the sound.
    pub noise: Option<Noise>,
}

/// A speech model and its clips.
pub struct Speech {
    model: Avsr,
    clips: Box<dyn Clips>,
    buckets: Buckets,
    augment: Augment,
    sink: Option<f64>,
    seed: u64,
    accumulation: u64,
}

/// A batch as the model takes it.
#[derive(Debug)]
pub struct Batch {
    /// Sound for the encoder.
    pub sound: Option<Tensor>,
    /// `[b, t, 1, 88, 88]`
    pub lips: Option<Tensor>,
    /// Token ids, without first and last token.
    pub texts: Vec<Vec<u32>>,
}

impl Speech {
    /// Trains `model`, whose projectors and adapters stand on variables. `sink` is the factor of the sink loss, where it is
    /// wanted.
    pub fn new(
        model: Avsr,
        clips: Box<dyn Clips>,
        buckets: Buckets,
        augment: Augment,
        sink: Option<f64>,
        (seed, accumulation): (u64, usize),
    ) -> Self {
        Self { model, clips, buckets, augment, sink, seed, accumulation: accumulation.max(1) as u64 }
    }

    /// The batch of some clips; each draws from a random stream of its own.
    ///
    /// # Errors
    /// A clip cannot be read, or lacks what the model needs.
    pub fn make(&self, clips: &[usize], index: u64) -> Result<Batch> {
        let task = self.model.config().task;
        let (mut sounds, mut frames, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &clip) in clips.iter().enumerate() {
            let mut rng = Rng::keyed(&[self.seed, index, row as u64]);
            let Clip { sound, lips, text } = self.clips.clip(clip)?;
            let lips = match (task.sees(), lips) {
                (false, _) => None,
                (true, Some(lips)) => Some(lips),
                (true, None) => bail!("clip {clip} has no video, which this model needs"),
            };
            if task.hears() {
                let Some(mut sound) = sound else { bail!("clip {clip} has no sound, which this model needs") };
                if let Some(lips) = &lips {
                    sound = fit_to_video(&sound, lips.size.0);
                }
                // One AV-HuBERT for both is trained on clean sound, as the authors do.
                if !matches!(task, Task::AvHubert { .. }) {
                    if self.augment.mask {
                        TimeMask::SOUND.apply(&mut sound, 1, 0.0, &mut rng);
                    }
                    if let Some(noise) = &self.augment.noise {
                        noise.apply(&mut sound, &mut rng)?;
                    }
                }
                sounds.push(sound);
            }
            if let Some(lips) = lips {
                frames.push(self.see(&lips, &mut rng)?);
            }
            texts.push(text);
        }
        let clips: Vec<&[f32]> = sounds.iter().map(Vec::as_slice).collect();
        let sound = if clips.is_empty() { None } else { Some(self.model.sound(&clips)?) };
        Ok(Batch { sound, lips: stack(&frames, self.model.llm().decoder().device())?, texts })
    }

    /// Pixels of one clip, `t * 88 * 88` values.
    fn see(&self, lips: &Frames, rng: &mut Rng) -> Result<Vec<f32>> {
        let (prepare, (t, h, w)) = (LipFrames::new(LipVariant::LlamaAvsr), lips.size);
        if !self.augment.mask {
            return prepare.pixels(&lips.rgb, (t, h, w));
        }
        let crop = random_crop(&lips.rgb, (h, w), CROP, rng)?;
        let mut pixels = prepare.pixels(&crop, (t, CROP, CROP))?;
        // Masked frames are black, before they are normalised.
        let black = prepare.pixels(&[0; CROP * CROP * 3], (1, CROP, CROP))?.first().copied().unwrap_or(0.0);
        TimeMask::LIPS.apply(&mut pixels, CROP * CROP, black, rng);
        Ok(pixels)
    }
}

/// Clips filled up with zeros to the longest.
fn stack(clips: &[Vec<f32>], device: &Device) -> Result<Option<Tensor>> {
    let Some(longest) = clips.iter().map(Vec::len).max() else { return Ok(None) };
    let mut all = Vec::with_capacity(clips.len() * longest);
    for clip in clips {
        all.extend_from_slice(clip);
        all.resize(all.len() + longest - clip.len(), 0.0);
    }
    let shape = (clips.len(), longest / (CROP * CROP), 1, CROP, CROP);
    Ok(Some(Tensor::from_vec(all, shape, device)?))
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

impl Trainable for Speech {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.accumulation + part as u64;
        self.make(self.buckets.batch(self.seed, index), index)
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let media = Media { audio: batch.sound.as_ref(), video: batch.lips.as_ref() };
        let losses = self.model.loss(media, &batch.texts, self.sink)?;
        let mut parts = vec![("cross_entropy".to_string(), scalar(&losses.cross_entropy)?)];
        for (name, loss) in [("balance", &losses.balance), ("z", &losses.z), ("sink", &losses.sink)] {
            if let Some(loss) = loss {
                parts.push((name.to_string(), scalar(loss)?));
            }
        }
        let tokens = batch.texts.iter().map(|text| text.len() + 2).sum();
        Ok(StepLoss { total: losses.total, parts, tokens })
    }

    fn config_json(&self) -> Result<String> {
        let published = &self.model.config().published;
        Ok(serde_json::to_string_pretty(published).map_err(|e| Error::Msg(e.to_string()))? + "\n")
    }

    /// What is trained is small, and stays in f32.
    fn format(&self) -> Format {
        Format { dtype: DType::F32, ..Format::default() }
    }
}

/// A model of the encoders and the language model in `base`, and of the projectors and adapters in `trained`: a folder or
/// file that training wrote.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn load(base: &Path, trained: &Path, vocabulary: Vocabulary, dtype: DType, device: &Device) -> Result<Avsr> {
    let (base_file, trained_file) = (Checkpoint::open(base)?, Checkpoint::open(trained)?);
    let (base_params, trained_params) =
        (Params::load(&base_file, dtype, device), Params::load(&trained_file, dtype, device));
    let sources = Sources { audio: &base_params, video: &base_params, llm: &base_params, trained: &trained_params };
    let model = Avsr::new(AvsrConfig::load(base)?, vocabulary, sources, Some(&base_file))?;
    match trained_params.unused().first() {
        None => Ok(model),
        Some(name) => bail!("{}: tensor {name} has no place in the model of {}", trained_file.label(), base.display()),
    }
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds checkpoints
/// already is refused rather than overwritten. `tokenise` gives the token ids of a text, with or without first and last token.
///
/// # Errors
/// A setting makes no sense, a file cannot be read or does not fit, or a step fails.
pub fn run(
    config: &TrainConfig,
    vocabulary: Vocabulary,
    tokenise: &Tokenise<'_>,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let out = &config.plan.out;
    let newest = super::newest(out, resume)?;
    let (device, base) = (Device::Cpu, Checkpoint::open(&config.base)?);
    let avsr = AvsrConfig::load(&config.base)?;
    let bare = |text: &str| Ok(vocabulary.bare(tokenise(text)?));
    let clips = Manifest::load(&config.data.clips, avsr.task.hears(), avsr.task.sees(), &bare)?;
    let data = &config.data;
    let buckets = Buckets::new(clips.lengths(), data.max_frames, data.buckets, data.rows)?;
    let noise = match &data.noise {
        None => None,
        Some(path) => {
            let levels = data.snr.iter().map(|&snr| Some(snr)).chain([None]).collect();
            Some(Noise::new(read_audio(path, AudioOptions::default()).map_err(Error::wrap)?, levels)?)
        }
    };

    // Gradients pass through the language model, and through AV-HuBERT where it has adapters; elsewhere weights are packed.
    let frozen = Params::frozen(&base, config.dtype()?, &device);
    let packed = Params::load(&base, config.dtype()?, &device);
    let params = match (&newest, config.tune) {
        (Some(dir), _) => Params::resume(&Checkpoint::open(&dir.join(Format::default().weights))?, &device),
        (None, true) => Params::resume(&base, &device),
        (None, false) => Params::init(config.seed, &device),
    };
    let video = if avsr.av_hubert_lora { &frozen } else { &packed };
    let sources = Sources { audio: &packed, video, llm: &frozen, trained: &params };
    let sink = config.sink.then_some(avsr.sink_factor);
    let model = Avsr::new(avsr, vocabulary, sources, Some(&base))?;
    let augment = Augment { mask: data.mask, noise };
    let numbers = (config.seed, config.plan.accumulation);
    let speech = Speech::new(model, Box::new(clips), buckets, augment, sink, numbers);
    let ended = Trainer::start(&speech, &params, config.plan.clone(), config.optimiser, newest.as_deref())?
        .run(stop, report)?;
    if ended == Ended::Finished && config.average > 0 {
        let all = checkpoints(out)?;
        let last = all.get(all.len().saturating_sub(config.average)..).unwrap_or_default();
        let files: Vec<PathBuf> = last.iter().map(|dir| dir.join(Format::default().weights)).collect();
        let folder = out.join("averaged");
        average(&files, &folder.join(Format::default().weights))?;
        let path = folder.join(Format::default().config);
        std::fs::write(&path, speech.config_json()?).map_err(|e| super::at(&path, e))?;
    }
    Ok(ended)
}
