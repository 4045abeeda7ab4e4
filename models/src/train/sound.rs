//! Training a model that listens ([`Usam`]) from seeded weights on clips and questions about them: `moesaic train sound CONFIG.toml`.
//!
//! All of it learns: encoders, Q-Former, the mixture of projectors that the prompt weighs, and the language model, whose layers may be
//! sparse. The loss is cross entropy over answers, with the balance loss of the language model as its config weighs it, the weighted
//! contrastive loss between sound and answers (arXiv 2505.13880, section 2.4), and, for answers that are said in the clip, the CTC
//! loss of the sound's tokens: without it digits are not learnt from a few thousand clips.
//!
//! A batch has clips that are about equally long, with some of the questions about each: a clip is encoded once for all of them. The
//! result is a folder that `AudioChat` loads.

mod config;
mod manifest;
mod score;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Error, Result, Tensor, bail};
use moesaic_encoders::audio::CedFeatures;
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::with_dropout;
use moesaic_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

pub use config::{DataConfig, TrainConfig};
pub use manifest::{Manifest, ManifestError, Question};
pub use score::{Scored, score};

use super::data::text::Tokenise;
use super::speech::Buckets;
use super::{Ended, Format, Report, StepLoss, Trainable, Trainer, scalar};
use crate::folder::BESIDE;
use crate::usam::{Beside, Layout, Prompt, Saclm, Sources, Usam, UsamConfig, Vocabulary};

/// What the run's folder says of the run, so that it is resumed with the same.
const RUN_FILE: &str = "sound.json";
/// Clips whose bands say how CED's features are scaled, at most.
const MEASURED: usize = 256;

/// A model that listens, and what it is asked.
struct Listening<'a> {
    model: Usam,
    train: Manifest,
    valid: Option<Manifest>,
    buckets: Buckets,
    config: &'a TrainConfig,
}

/// A batch as the model takes it.
struct Batch {
    /// `[clips, samples]`
    samples: Tensor,
    /// Of each question its clip.
    clips: Vec<u32>,
    prompts: Vec<Prompt>,
    texts: Vec<Vec<u32>>,
    negatives: Vec<u32>,
    /// Questions whose answers are said in their clips.
    said: Vec<u32>,
    index: u64,
}

impl Trainable for Listening<'_> {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.config.plan.accumulation as u64 + part as u64;
        let (seed, data) = (self.config.seed, &self.config.data);
        let chosen = self.buckets.mixed(seed, index);
        let (mut sounds, mut clips) = (Vec::with_capacity(chosen.len()), Vec::new());
        let (mut prompts, mut texts, mut said) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &clip) in (0u32..).zip(&chosen) {
            let mut rng = Rng::keyed(&[seed, index, u64::from(row)]);
            let mut sound = self.train.sound(clip)?;
            let gain = 10f64.powf(rng.range(-data.gain, data.gain) / 20.0) as f32;
            sound.iter_mut().for_each(|v| *v = (*v * gain).clamp(-1.0, 1.0));
            sounds.push(sound);
            let mut questions: Vec<&Question> = self.train.questions(clip)?.iter().collect();
            for i in 0..questions.len().min(data.questions) {
                let other = i + rng.below(questions.len() - i);
                questions.swap(i, other);
            }
            for question in questions.into_iter().take(data.questions) {
                if data.said.iter().any(|task| **task == *question.task) {
                    said.push(clips.len() as u32);
                }
                clips.push(row);
                prompts.push(question.prompt.clone());
                texts.push(question.text.clone());
            }
        }
        let rows: Vec<&[f32]> = sounds.iter().map(Vec::as_slice).collect();
        let negatives = Saclm::negatives(clips.len(), &mut Rng::keyed(&[seed, index, 0x6e65_6761]));
        Ok(Batch { samples: self.model.sound(&rows)?, clips, prompts, texts, negatives, said, index })
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let Batch { samples, clips, prompts, texts, negatives, said, index } = batch;
        let weighed = |rows, weight: f64| (weight > 0.0).then_some((rows, weight));
        let beside = Beside {
            contrast: weighed(negatives.as_slice(), self.config.contrastive),
            said: weighed(said.as_slice(), self.config.ctc),
        };
        with_dropout(Rng::keyed(&[self.config.seed, *index]).next_u64(), || {
            let encoded = self.model.repeated(&self.model.encode(samples, None)?, clips)?;
            let losses = self.model.answer_loss(&encoded, prompts, texts, beside)?;
            let mut parts = vec![("cross_entropy".to_string(), scalar(&losses.cross_entropy)?)];
            if let Some(balance) = &losses.balance {
                parts.push(("balance".into(), scalar(balance)?));
            }
            if let Some(contrastive) = &losses.contrastive {
                parts.push(("triplet".into(), scalar(&contrastive.triplet)?));
                parts.push(("ratio".into(), scalar(&contrastive.ratio)?));
            }
            if let Some(ctc) = &losses.ctc {
                parts.push(("ctc".into(), scalar(ctc)?));
            }
            let tokens = prompts.iter().zip(texts).map(|(p, text)| p.left.len() + p.right.len() + text.len() + 2).sum();
            Ok(StepLoss { total: losses.total, parts, tokens })
        })
    }

    fn config_json(&self) -> Result<String> {
        let published = &self.model.config().published;
        Ok(serde_json::to_string_pretty(published).map_err(|e| Error::Msg(e.to_string()))? + "\n")
    }

    fn format(&self) -> Format {
        let beside = BESIDE.iter().map(|name| self.config.base.join(name)).filter(|file| file.is_file()).collect();
        Format { beside, ..Format::default() }
    }

    /// The share of held-out questions that are answered right, of all and of each task.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        let (Some(valid), data) = (&self.valid, &self.config.data) else { return Ok(Vec::new()) };
        if step == 0 || !step.is_multiple_of(data.valid_every) && step != steps {
            return Ok(Vec::new());
        }
        let count = valid.len().min(data.valid_clips);
        let mut shares: Vec<(String, usize, usize)> = vec![("right".into(), 0, 0)];
        for i in 0..count {
            for Scored { task, right, .. } in score(&self.model, valid, i * valid.len() / count, false)? {
                if !shares.iter().any(|(name, ..)| **name == *task) {
                    shares.push((task.to_string(), 0, 0));
                }
                for (name, of, sum) in &mut shares {
                    if name == "right" || **name == *task {
                        *of += 1;
                        *sum += usize::from(right);
                    }
                }
            }
        }
        Ok(shares.into_iter().map(|(name, of, sum)| (name, sum as f64 / of.max(1) as f64)).collect())
    }
}

/// The model's config: that of the base, with the run's own keys.
///
/// # Errors
/// As [`UsamConfig::load`].
pub fn settings(config: &TrainConfig) -> Result<UsamConfig> {
    let mut keys = crate::folder::config(&config.base.join("config.json"))?;
    keys.extend(config.settings.clone());
    let text = serde_json::to_string(&keys).map_err(|e| Error::Msg(e.to_string()))?;
    UsamConfig::from_json(&text).map_err(|e| crate::folder::at(&config.base.join("config.json"), e))
}

/// What must be the same when a run is taken up again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    config: TrainConfig,
    clips: usize,
    fingerprint: String,
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds checkpoints already
/// is refused rather than overwritten. `tokenise` gives the token ids of a text, with or without first and last token.
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
    let (usam, data) = (settings(config)?, &config.data);
    let load = |path: &Path| Manifest::load(path, &usam, &vocabulary, tokenise);
    let train = load(&data.clips)?;
    let valid = data.valid.as_deref().map(load).transpose()?;
    let tasks = train.tasks();
    if let Some(other) = data.said.iter().find(|task| !tasks.contains(task.as_str())) {
        let tasks = tasks.into_iter().collect::<Vec<_>>().join(", ");
        bail!("data.said names the task {other:?}, but {} has {tasks}", data.clips.display());
    }
    let longest = train.lengths().iter().copied().max().unwrap_or(1);
    let buckets = Buckets::new(train.lengths(), longest.saturating_mul(data.rows), 50, Some(data.rows))?;

    let start = newest.as_deref().or(config.init.as_deref());
    let checkpoint = start.map(Checkpoint::open).transpose()?;
    let (params, layout) = match &checkpoint {
        Some(checkpoint) => (Params::resume(checkpoint, &Device::Cpu), Layout::of(checkpoint)),
        None => (Params::init(config.seed, &Device::Cpu), Layout::PLAIN),
    };
    let model = Usam::new(usam, vocabulary, Sources::one(&params), layout, checkpoint.as_ref())?;
    model.llm().by_gradients()?;
    if checkpoint.is_none() {
        scale_bands(model.config(), &params, &train)?;
    }
    let now = Run { config: config.clone(), clips: train.len(), fingerprint: format!("{:016x}", train.fingerprint()) };
    if let Some((then, now)) = super::remember(out, RUN_FILE, now, resume)? {
        bail!(
            "{}: the run was started with another config or other clips ({} clips, now {}); resume with the same, or start anew \
             elsewhere",
            out.join(RUN_FILE).display(),
            then.clips,
            now.clips
        );
    }
    let listening = Listening { model, train, valid, buckets, config };
    Trainer::start(&listening, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

/// Sets the statistics by which CED norms its bands, which no gradient changes, to those of the clips.
fn scale_bands(config: &UsamConfig, params: &Params, clips: &Manifest) -> Result<()> {
    let Some(ced) = &config.ced else { return Ok(()) };
    let features = CedFeatures::with_bands(ced.n_mels).map_err(Error::wrap)?;
    let (mut sums, mut count) = (vec![[0f64; 2]; ced.n_mels], 0usize);
    let measured = clips.len().min(MEASURED);
    for i in 0..measured {
        let mut sound = clips.sound(i * clips.len() / measured)?;
        sound.resize(sound.len().max(257), 0.0); // the shortest that it takes
        let bands = features.extract(&sound).map_err(Error::wrap)?;
        for (sum, band) in sums.iter_mut().zip(bands.values.chunks(bands.cols.max(1))) {
            for &value in band {
                sum[0] += f64::from(value);
                sum[1] += f64::from(value).powi(2);
            }
        }
        count += bands.cols;
    }
    let n = count.max(1) as f64;
    let means: Vec<f32> = sums.iter().map(|[sum, _]| (sum / n) as f32).collect();
    // A band without any sound is not blown up.
    let variances: Vec<f32> =
        sums.iter().map(|[sum, squares]| (squares / n - (sum / n).powi(2)).max(1.0) as f32).collect();
    for (name, var) in params.variables() {
        let values = match name.rsplit_once(".init_bn.1.") {
            Some((_, "running_mean")) => &means,
            Some((_, "running_var")) => &variances,
            _ => continue,
        };
        var.set(&Tensor::from_slice(values, values.len(), var.device())?)?;
    }
    Ok(())
}
