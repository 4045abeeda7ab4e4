//! Training a speech model ([`Avsr`]): encoders and language model stay as they are, projectors and adapters are trained; a small
//! language model may be trained with them.
//!
//! The loss is that of the model: cross entropy of the text, over all scales of a Matryoshka model, and the losses of a mixture
//! of projectors; on request the sink loss, and the CTC loss of projected tokens as text, by which projectors learn what is said
//! before a language model that stays as it is listens to them. Sound is masked over time and mixed with noise, lips are cropped
//! and masked at random, clips of about one length stand in a batch. A model of sound and lips may be trained to do without one of
//! them (modality dropout).
//!
//! The base is a folder in the layout of the authors' checkpoints ([`crate::avsr`]). What is trained is saved alone, under the
//! same names; [`load`] puts the two together, and so does the folder `whole`, where it is wanted. The mean of the last
//! checkpoints is written where it is wanted. [`units`] trains the encoder.

pub mod augment;
mod batches;
pub(super) mod clips;
mod config;
mod score;
pub mod units;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::video::{CROP, LipFrames, LipVariant};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Modality, Params, Tokens};

pub use batches::Buckets;
pub use clips::{Clip, Clips, Frames, Manifest};
pub use config::{DataConfig, Noises, Part, TrainConfig};
pub use score::{Errors, word_errors};

use self::augment::{Noise, TimeMask, random_crop};
use super::average::average;
use super::data::text::Tokenise;
use super::{Ended, Format, Report, StepLoss, Trainable, Trainer, checkpoints, scalar};
use crate::avsr::{Avsr, AvsrConfig, Extra, Media, Sources, Task, Vocabulary, fit_to_video};

/// What training draws for a clip and for a batch.
#[derive(Clone, Debug)]
pub struct Augment {
    /// Masks over the time of sound.
    pub mask: bool,
    /// Masks over the time of lips, and random crops.
    pub mask_lips: bool,
    /// Noise in the sound.
    pub noise: Option<Noise>,
    /// Shares of batches whose sound is not heard and whose lips are not seen.
    pub drop: [f64; 2],
}

/// A speech model and its clips.
pub struct Speech {
    model: Avsr,
    clips: Box<dyn Clips>,
    buckets: Buckets,
    augment: Augment,
    extra: Extra,
    seed: u64,
    accumulation: u64,
    cache: Option<Cache>,
    valid: Option<Valid>,
}

/// Clips that are not trained on.
struct Valid {
    clips: Box<dyn Clips>,
    count: usize,
    every: u64,
}

/// Encoded sound and lips by the first clip of their batch: batches are the same in every epoch.
struct Cache {
    room: usize,
    /// Whether sound is the same in every epoch, and whether lips are.
    same: [bool; 2],
    held: Mutex<Held>,
}

/// Bytes, and tokens by the first clip of their batch and whether they are of lips.
type Held = (usize, BTreeMap<(usize, bool), Tokens>);

impl Cache {
    fn get(&self, first: usize, lips: bool) -> Option<Tokens> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).1.get(&(first, lips)).cloned()
    }

    fn put(&self, first: usize, tokens: &Tokens) {
        let lips = tokens.modality == Modality::Video;
        if !self.same[usize::from(lips)] {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = held.0 + tokens.embeds.elem_count() * size_of::<f32>();
        if bytes <= self.room {
            held.0 = bytes;
            held.1.insert((first, lips), tokens.clone());
        }
    }
}

/// A batch as the model takes it.
#[derive(Debug)]
pub struct Batch {
    /// Sound for the encoder.
    pub sound: Option<Tensor>,
    /// `[b, t, 1, 88, 88]`
    pub lips: Option<Tensor>,
    /// Sound and lips that were encoded before.
    pub known: Vec<Tokens>,
    /// Token ids, without first and last token.
    pub texts: Vec<Vec<u32>>,
    /// Its first clip.
    first: usize,
    /// Its number.
    index: u64,
}

impl Speech {
    /// Trains `model`, whose projectors and adapters stand on variables, with the losses of `extra`.
    pub fn new(
        model: Avsr,
        clips: Box<dyn Clips>,
        buckets: Buckets,
        augment: Augment,
        extra: Extra,
        (seed, accumulation): (u64, usize),
    ) -> Self {
        let accumulation = accumulation.max(1) as u64;
        Self { model, clips, buckets, augment, extra, seed, accumulation, cache: None, valid: None }
    }

    /// Holds what the encoders make in so many megabytes of memory: of lips unless they are masked or cropped at random, which are
    /// then masked over time instead of the frames; of sound where it has neither masks nor noise.
    pub fn with_cache(mut self, megabytes: usize) -> Self {
        let room = megabytes.saturating_mul(1 << 20);
        // What one pass makes of both is of neither alone.
        let apart = self.model.config().task != Task::AvHubert { fused: true };
        let same = [apart && !self.augment.mask && self.augment.noise.is_none(), apart && !self.augment.mask_lips];
        self.cache = (room > 0 && same.contains(&true)).then(|| Cache { room, same, held: Mutex::default() });
        self
    }

    /// Transcribes `count` of these clips every so many steps.
    pub fn with_valid(mut self, clips: Box<dyn Clips>, count: usize, every: u64) -> Self {
        self.valid = Some(Valid { clips, count, every: every.max(1) });
        self
    }

    /// Whether the model hears and sees a batch.
    fn senses(&self, index: u64) -> [bool; 2] {
        let task = self.model.config().task;
        let drawn = Rng::keyed(&[self.seed, index, 0x6472_6f70]).uniform();
        let [sound, lips] = self.augment.drop;
        let both = task.hears() && task.sees();
        [task.hears() && !(both && drawn < sound), task.sees() && !(both && (sound..sound + lips).contains(&drawn))]
    }

    /// The batch of some clips; each draws from a random stream of its own.
    ///
    /// # Errors
    /// A clip cannot be read, or lacks what the model needs.
    pub fn make(&self, clips: &[usize], index: u64) -> Result<Batch> {
        let [hears, sees] = self.senses(index);
        let first = clips.first().copied().unwrap_or(0);
        let held = |wanted, lips| self.cache.as_ref().filter(|_| wanted).and_then(|cache| cache.get(first, lips));
        let (heard_before, seen) = (held(hears, false), held(sees, true));
        let (hears, sees) = (hears && heard_before.is_none(), sees && seen.is_none());
        let (mut sounds, mut frames, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &clip) in clips.iter().enumerate() {
            let mut rng = Rng::keyed(&[self.seed, index, row as u64]);
            let Clip { sound, lips, text } = self.clips.clip(clip, hears, sees)?;
            if hears {
                let mut sound = heard(clip, sound)?;
                if self.model.config().task.sees() {
                    let length = self.clips.lengths().get(clip).copied().unwrap_or(0);
                    sound = fit_to_video(&sound, lips.as_ref().map_or(length, |lips| lips.size.0));
                }
                self.augment.sound(&mut sound, &mut rng)?;
                sounds.push(sound);
            }
            if sees {
                let Some(lips) = lips else { bail!("clip {clip} has no video, which this model needs") };
                frames.push(self.augment.lips(&lips, &mut rng)?);
            }
            texts.push(text);
        }
        let clips: Vec<&[f32]> = sounds.iter().map(Vec::as_slice).collect();
        let sound = if clips.is_empty() { None } else { Some(self.model.sound(&clips)?) };
        let known = heard_before.into_iter().chain(seen).collect();
        Ok(Batch { sound, lips: stack(&frames, self.model.llm().decoder().device())?, known, texts, first, index })
    }

    /// What the encoders make of a batch.
    fn encode(&self, batch: &Batch) -> Result<Vec<Tokens>> {
        let media = Media { audio: batch.sound.as_ref(), video: batch.lips.as_ref() };
        let there = media.audio.is_some() || media.video.is_some();
        let mut encoded = if there { self.model.encode(media, None)? } else { Vec::new() };
        let Some(cache) = &self.cache else { return Ok(encoded) };
        encoded.iter().for_each(|tokens| cache.put(batch.first, tokens));
        encoded.extend(batch.known.iter().cloned());
        // Sound stands before lips.
        encoded.sort_by_key(|tokens| tokens.modality == Modality::Video);
        if self.augment.mask && cache.same[1] {
            for tokens in encoded.iter_mut().filter(|tokens| tokens.modality == Modality::Video) {
                tokens.embeds = masked(&tokens.embeds, &mut Rng::keyed(&[self.seed, batch.index, 0x6c69_7073]))?;
            }
        }
        Ok(encoded)
    }
}

/// Encoded lips, of which parts are nothing: what masks of the frames themselves are where lips are not encoded anew.
fn masked(embeds: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    let (b, t, _) = embeds.dims3()?;
    let mut keep = vec![1f32; b * t];
    keep.chunks_exact_mut(t.max(1)).for_each(|row| TimeMask::LIPS.apply(row, 1, 0.0, rng));
    embeds.broadcast_mul(&Tensor::from_vec(keep, (b, t, 1), embeds.device())?.to_dtype(embeds.dtype())?)
}

fn heard(clip: usize, sound: Option<Vec<f32>>) -> Result<Vec<f32>> {
    match sound {
        Some(sound) => Ok(sound),
        None => bail!("clip {clip} has no sound, which this model needs"),
    }
}

impl Augment {
    /// Masks sound, and mixes noise into it.
    fn sound(&self, sound: &mut [f32], rng: &mut Rng) -> Result<()> {
        if self.mask {
            TimeMask::SOUND.apply(sound, 1, 0.0, rng);
        }
        if let Some(noise) = &self.noise {
            noise.apply(sound, rng)?;
        }
        Ok(())
    }

    /// Pixels of one clip, `t * 88 * 88` values.
    fn lips(&self, lips: &Frames, rng: &mut Rng) -> Result<Vec<f32>> {
        let (prepare, (t, h, w)) = (LipFrames::new(LipVariant::LlamaAvsr), lips.size);
        if !self.mask_lips {
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

impl Trainable for Speech {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.accumulation + part as u64;
        self.make(self.buckets.batch(self.seed, index), index)
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let losses = self.model.loss_of(&self.encode(batch)?, &batch.texts, self.extra)?;
        let mut parts = vec![("cross_entropy".to_string(), scalar(&losses.cross_entropy)?)];
        let named = [
            ("balance", &losses.balance),
            ("z", &losses.z),
            ("load", &losses.load),
            ("sink", &losses.sink),
            ("ctc", &losses.ctc),
        ];
        for (name, loss) in named {
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

    /// Wrong tokens in a hundred of held-out clips, by what the model hears and sees of them.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        match &self.valid {
            Some(valid) if step > 0 && (step.is_multiple_of(valid.every) || step == steps) => {
                score::measure(&self.model, valid.clips.as_ref(), valid.count)
            }
            _ => Ok(Vec::new()),
        }
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

/// The model's settings: those in the base, with the run's own.
///
/// # Errors
/// As [`AvsrConfig::load`].
pub fn settings(config: &TrainConfig) -> Result<AvsrConfig> {
    let base = AvsrConfig::load(&config.base)?;
    if config.settings.is_empty() {
        return Ok(base);
    }
    let mut keys = base.published;
    keys.extend(config.settings.clone());
    AvsrConfig::from_json(&serde_json::to_string(&keys).map_err(|e| Error::Msg(e.to_string()))?)
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
    let (device, dtype) = (Device::Cpu, config.dtype()?);
    let parts = whole::Parts::open(config)?;
    let avsr = settings(config)?;
    let (hears, sees) = (avsr.task.hears(), avsr.task.sees());
    let data = &config.data;
    if data.drop_audio + data.drop_video > 0.0 && !(hears && sees) {
        bail!("data: drop_audio and drop_video are for models of sound and lips");
    }
    let bare = |text: &str| Ok(vocabulary.bare(tokenise(text)?));
    let clips = Manifest::load(&data.clips, hears, sees, &bare)?;
    let valid = match &data.valid {
        None => None,
        Some(path) => Some(Manifest::load(path, hears, sees, &bare)?),
    };
    let buckets = Buckets::new(clips.lengths(), data.max_frames, data.buckets, data.rows)?;
    let noise = data.noise()?;

    // Gradients pass through the language model, and through AV-HuBERT where it has adapters; elsewhere weights are packed.
    let (base, encoder) = (parts.base.as_ref(), parts.encoder.as_ref());
    let packed = base.map(|base| Params::load(base, dtype, &device));
    let learns = config.train == Part::Language;
    let trained = match (&newest, config.tune) {
        (Some(dir), _) => Params::resume(&Checkpoint::open(&dir.join(Format::default().weights))?, &device),
        (None, true) => Params::resume(parts.whole()?, &device),
        (None, false) => Params::init(config.seed, &device),
    };
    let llm = if learns { trained.clone() } else { Params::frozen(parts.whole()?, dtype, &device) };
    let video = match encoder {
        Some(encoder) if avsr.av_hubert_lora => whole::within(&Params::frozen(encoder, dtype, &device)),
        Some(encoder) => whole::within(&Params::load(encoder, dtype, &device)),
        None if avsr.av_hubert_lora => Params::frozen(parts.whole()?, dtype, &device),
        None => Params::load(parts.whole()?, dtype, &device),
    };
    let sources = Sources { audio: packed.as_ref().unwrap_or(&video), video: &video, llm: &llm, trained: &trained };
    let alone = config.train == Part::Projector;
    let ctc = if alone { Some(1.0) } else { Some(config.ctc).filter(|factor| *factor > 0.0) };
    let extra = Extra { sink: config.sink.then_some(avsr.sink_factor), balance: learns, ctc, alone };
    let model = Avsr::new(avsr, vocabulary, sources, base)?;
    if learns {
        model.llm().decoder().by_gradients()?;
    }
    let augment =
        Augment { mask: data.mask, mask_lips: data.masks_lips(), noise, drop: [data.drop_audio, data.drop_video] };
    // Adapters in the encoder change what it makes of lips.
    let cache = if model.config().av_hubert_lora { 0 } else { data.cache_mb };
    let numbers = (config.seed, config.plan.accumulation);
    let mut speech = Speech::new(model, Box::new(clips), buckets, augment, extra, numbers).with_cache(cache);
    if let Some(valid) = valid {
        speech = speech.with_valid(Box::new(valid), data.valid_clips, data.valid_every);
    }
    let ended = Trainer::start(&speech, &trained, config.plan.clone(), config.optimiser, newest.as_deref())?
        .run(stop, report)?;
    if ended == Ended::Finished {
        let mut finished = out.join("model").join(Format::default().weights);
        if config.average > 0 {
            let all = checkpoints(out)?;
            let last = all.get(all.len().saturating_sub(config.average)..).unwrap_or_default();
            let files: Vec<PathBuf> = last.iter().map(|dir| dir.join(Format::default().weights)).collect();
            let folder = out.join("averaged");
            finished = folder.join(Format::default().weights);
            average(&files, &finished)?;
            let path = folder.join(Format::default().config);
            std::fs::write(&path, speech.config_json()?).map_err(|e| super::at(&path, e))?;
        }
        if config.whole {
            parts.write(&Checkpoint::open(&finished)?, &speech.config_json()?, &config.base, &out.join("whole"))?;
        }
    }
    Ok(ended)
}
