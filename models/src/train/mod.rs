//! Training: written once, for every model of the workspace.
//!
//! A model says what its loss is ([`Trainable`]); [`Trainer`] does the rest: accumulation, clipping, AdamW with warm-up and
//! cosine, progress, checkpoints in the Hugging Face layout with published tensor names, and resuming with the same
//! losses as a run that was never interrupted. [`forecast`] trains Time-MoE from a TOML file, [`moirai`] Moirai-MoE, [`language`]
//! a decoder or adapters of one, [`speech`] what stands between encoders and a language model, [`sound`] a model that listens,
//! `vision` (feature `image`) a model that looks at pictures.

mod average;
pub mod data;
pub mod forecast;
pub mod language;
pub mod moirai;
pub mod omni;
mod optimiser;
mod passes;
pub mod sound;
pub mod speech;
#[cfg(feature = "image")]
pub mod vision;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Error, Result, Tensor, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, save};
use serde::{Deserialize, Serialize};

use crate::folder::at;

pub use average::average;
pub use optimiser::{AdamW, AdamWConfig};
use passes::passes;

/// The loss of one batch.
pub struct StepLoss {
    /// What is minimised; a scalar with gradients.
    pub total: Tensor,
    /// Named parts to report.
    pub parts: Vec<(String, f64)>,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// A model that can be trained.
///
/// Accumulated parts of a step are computed at the same time, so a model is shared between threads.
pub trait Trainable: Sync {
    /// What one forward pass takes.
    type Batch;

    /// The batch of a step; a pure function of its arguments, so that resuming needs no data state. `part` counts the
    /// batches that are accumulated for one step.
    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch>;

    /// The loss of a batch.
    fn loss(&self, batch: &Self::Batch) -> Result<StepLoss>;

    /// What is moved after each step beside what gradients move; nothing for most models.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }

    /// The text of the `config.json` that goes beside the weights.
    fn config_json(&self) -> Result<String>;

    /// How weights and config are saved.
    fn format(&self) -> Format {
        Format::default()
    }

    /// What is measured after `step` of `steps` steps, 0 being before the first, on data that is not trained on; empty where
    /// it is not time for that.
    fn measure(&self, _step: u64, _steps: u64) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
}

/// How a model is saved.
#[derive(Clone, Debug)]
pub struct Format {
    /// File of the tensors.
    pub weights: &'static str,
    /// File of the configuration.
    pub config: &'static str,
    /// Dtype of the finished model; checkpoints are in f32.
    pub dtype: DType,
    /// Files that are copied beside them, such as a tokenizer.
    pub beside: Vec<PathBuf>,
}

impl Default for Format {
    /// A model in the Hugging Face layout, in bf16.
    fn default() -> Self {
        Self { weights: "model.safetensors", config: "config.json", dtype: DType::BF16, beside: Vec::new() }
    }
}

/// How long to train and how often to report and save.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Optimiser steps.
    pub steps: u64,
    /// Batches accumulated for one step.
    pub accumulation: usize,
    /// Threads that each compute an accumulated batch at the same time; results have the same bits for any number. It pays
    /// with `CANDLE_NUM_THREADS=1` in the environment: candle's own thread pool serves one caller at a time.
    pub workers: usize,
    /// Steps between reports.
    pub log_every: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that stay, the newest; at least two.
    pub keep: usize,
    /// Where checkpoints and the finished model go.
    pub out: PathBuf,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            steps: 1000,
            accumulation: 1,
            workers: 1,
            log_every: 20,
            checkpoint_every: 500,
            keep: 2,
            out: "runs/train".into(),
        }
    }
}

/// What a report says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Steps done. 0 for what was measured before the first, where anything was.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean loss since the last report; not a number before the first step.
    pub loss: f64,
    /// Means of its parts since the last report; after them what was measured now ([`Trainable::measure`]).
    pub parts: Vec<(String, f64)>,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Norm of the last step's gradients before clipping.
    pub gradient_norm: f64,
    /// Tokens per second since the last report.
    pub tokens_per_second: f64,
    /// Estimate of the time left, seconds.
    pub seconds_left: f64,
}

impl Report {
    /// What was measured before the first step.
    fn before(steps: u64, parts: Vec<(String, f64)>) -> Self {
        let (nothing, none) = (f64::NAN, 0.0);
        Self {
            step: 0,
            steps,
            loss: nothing,
            parts,
            learning_rate: none,
            gradient_norm: none,
            tokens_per_second: none,
            seconds_left: nothing,
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done; the model is in `{out}/model`.
    Finished,
    /// Stopped on request after this many steps; a checkpoint was saved.
    Stopped(u64),
}

/// The part of a checkpoint that is not tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    step: u64,
    updates: u64,
    plan: Plan,
    optimiser: AdamWConfig,
}

/// Runs the training loop for one model.
pub struct Trainer<'a, T> {
    model: &'a T,
    params: &'a Params,
    plan: Plan,
    config: AdamWConfig,
    optimiser: AdamW,
    step: u64,
}

/// Rows of a step: far beyond what any memory holds as well.
const MOST_ROWS: usize = 1 << 20;
/// Threads that share a step, and passes of one: far beyond what any plan needs.
const MOST_WORKERS: usize = 1 << 10;
const MOST_PASSES: usize = 1 << 20;

impl<'a, T: Trainable> Trainer<'a, T> {
    /// A trainer at step 0.
    pub fn new(model: &'a T, params: &'a Params, plan: Plan, config: AdamWConfig) -> Result<Self> {
        if plan.steps == 0
            || plan.accumulation == 0
            || plan.workers == 0
            || plan.log_every == 0
            || plan.checkpoint_every == 0
        {
            bail!("steps, accumulation, workers, log_every and checkpoint_every must be at least 1");
        }
        if plan.workers > MOST_WORKERS || plan.accumulation > MOST_PASSES {
            bail!(
                "{} workers and {} passes of a step: at most {MOST_WORKERS} and {MOST_PASSES} are supported",
                plan.workers,
                plan.accumulation
            );
        }
        let optimiser = AdamW::new(config, params)?;
        Ok(Self { model, params, plan, config, optimiser, step: 0 })
    }

    /// Takes up a checkpoint: the parameters must have been loaded from it with [`Params::resume`].
    pub fn resume(&mut self, checkpoint: &Path) -> Result<()> {
        let progress: Progress = read_json(&checkpoint.join("trainer.json"))?;
        if progress.plan != self.plan || progress.optimiser != written(&self.config)? {
            bail!(
                "{}: the run was started with other settings ({:?}, {:?}); resume with the same, or start anew elsewhere",
                checkpoint.display(),
                progress.plan,
                progress.optimiser
            );
        }
        self.optimiser.restore(&Checkpoint::open(&checkpoint.join("optimiser.safetensors"))?, progress.updates)?;
        self.step = progress.step;
        Ok(())
    }

    /// A trainer at step 0, or where the checkpoint `newest` stands.
    fn start(model: &'a T, params: &'a Params, plan: Plan, config: AdamWConfig, newest: Option<&Path>) -> Result<Self> {
        let mut trainer = Self::new(model, params, plan, config)?;
        if let Some(checkpoint) = newest {
            trainer.resume(checkpoint)?;
        }
        Ok(trainer)
    }

    /// Trains until done or until `stop` is set, reporting as it goes. The last checkpoint is always that of the last step.
    pub fn run(&mut self, stop: &AtomicBool, report: &mut dyn FnMut(&Report) -> Result<()>) -> Result<Ended> {
        let mut since = Instant::now();
        let (mut loss_sum, mut tokens, mut count) = (0.0, 0usize, 0u32);
        let mut parts: Vec<(String, f64, u32)> = Vec::new();
        if self.step == 0 {
            let measured = self.model.measure(0, self.plan.steps)?;
            if !measured.is_empty() {
                report(&Report::before(self.plan.steps, measured))?;
            }
            since = Instant::now();
        }
        let started = (Instant::now(), self.step);
        while self.step < self.plan.steps {
            let optimiser = &mut self.optimiser;
            passes(self.model, self.step, self.plan.accumulation, self.plan.workers, &mut |loss, gradients| {
                optimiser.accumulate(&gradients)?;
                loss_sum += f64::from(loss.total.to_dtype(DType::F32)?.to_scalar::<f32>()?);
                tokens += loss.tokens;
                count += 1;
                // Not every batch has every part.
                for (name, value) in loss.parts {
                    match parts.iter_mut().find(|(known, ..)| *known == name) {
                        Some((_, sum, of)) => (*sum, *of) = (*sum + value, *of + 1),
                        None => parts.push((name, value, 1)),
                    }
                }
                Ok(())
            })?;
            let learning_rate = self.config.rate(self.step, self.plan.steps);
            let gradient_norm = self.optimiser.step(learning_rate)?;
            self.model.after_step()?;
            self.step += 1;
            let trained = since.elapsed().as_secs_f64();
            let measured = self.model.measure(self.step, self.plan.steps)?;
            let due = self.step.is_multiple_of(self.plan.log_every) || self.step == self.plan.steps;
            if due || !measured.is_empty() {
                let each = started.0.elapsed().as_secs_f64() / (self.step - started.1) as f64;
                let means =
                    parts.drain(..).map(|(name, sum, of)| (name, sum / f64::from(of))).chain(measured).collect();
                report(&Report {
                    step: self.step,
                    steps: self.plan.steps,
                    loss: loss_sum / f64::from(count),
                    parts: means,
                    learning_rate,
                    gradient_norm,
                    tokens_per_second: tokens as f64 / trained,
                    seconds_left: each * (self.plan.steps - self.step) as f64,
                })?;
                if !loss_sum.is_finite() {
                    bail!(
                        "the loss is not finite after step {}; lower the learning rate and resume from the last checkpoint",
                        self.step
                    );
                }
                (loss_sum, tokens, count, since) = (0.0, 0, 0, Instant::now());
            }
            let stopped = stop.load(Ordering::Relaxed) && self.step < self.plan.steps;
            if stopped || self.step.is_multiple_of(self.plan.checkpoint_every) || self.step == self.plan.steps {
                self.save()?;
            }
            if stopped {
                return Ok(Ended::Stopped(self.step));
            }
        }
        self.export(&self.plan.out.join("model"), self.model.format().dtype)?;
        Ok(Ended::Finished)
    }

    /// Saves a checkpoint, then drops all but the newest.
    fn save(&self) -> Result<()> {
        let dir = self.plan.out.join(format!("checkpoint-{:08}", self.step));
        let partial = self.plan.out.join("checkpoint.partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(|e| at(&partial, e))?;
        }
        self.export(&partial, DType::F32)?;
        save(&partial.join("optimiser.safetensors"), &self.optimiser.state()?, &[])?;
        let (plan, optimiser) = (self.plan.clone(), self.config);
        let progress = Progress { step: self.step, updates: self.optimiser.updates(), plan, optimiser };
        write_json(&partial.join("trainer.json"), &progress)?;
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|e| at(&dir, e))?;
        }
        // Renamed when complete, so that a checkpoint is never half-written.
        std::fs::rename(&partial, &dir).map_err(|e| at(&dir, e))?;
        let all = checkpoints(&self.plan.out)?;
        for old in all.iter().rev().skip(self.plan.keep.max(2)) {
            std::fs::remove_dir_all(old).map_err(|e| at(old, e))?;
        }
        Ok(())
    }

    /// Writes the model in its format.
    fn export(&self, dir: &Path, dtype: DType) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| at(dir, e))?;
        let format = self.model.format();
        let mut tensors = self.params.published(|var| var.to_dtype(dtype).ok())?;
        tensors.extend(self.params.kept(dtype)?);
        save(&dir.join(format.weights), &tensors, &[("format", "pt")])?;
        for file in &format.beside {
            let Some(name) = file.file_name() else { continue };
            std::fs::copy(file, dir.join(name)).map_err(|e| at(file, e))?;
        }
        let path = dir.join(format.config);
        std::fs::write(&path, self.model.config_json()?).map_err(|e| at(&path, e))
    }
}

/// The checkpoints in a run's folder, oldest first.
pub fn checkpoints(out: &Path) -> Result<Vec<PathBuf>> {
    if !out.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(out).map_err(|e| at(out, e))? {
        let path = entry.map_err(|e| at(out, e))?.path();
        let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("checkpoint-"));
        if number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint of the run in `out`, where it is to be taken up again.
///
/// # Errors
/// There is none, or there are some and the run is to start anew.
fn newest(out: &Path, resume: bool) -> Result<Option<PathBuf>> {
    match (resume, checkpoints(out)?.pop()) {
        (true, None) => bail!("{}: no checkpoint to resume from; start without --resume", out.display()),
        (false, Some(path)) => {
            bail!("{} holds a run already; add --resume, or choose another plan.out", path.display())
        }
        (_, newest) => Ok(newest),
    }
}

/// Writes down in the run's folder what it is made of; or, where it is taken up again, gives what was written where that is not
/// the same.
fn remember<R>(out: &Path, file: &str, now: R, resume: bool) -> Result<Option<(R, R)>>
where
    R: PartialEq + Serialize + serde::de::DeserializeOwned,
{
    let path = out.join(file);
    if !resume {
        std::fs::create_dir_all(out).map_err(|e| at(out, e))?;
        write_json(&path, &now)?;
        return Ok(None);
    }
    let (then, now): (R, R) = (read_json(&path)?, written(&now)?);
    Ok((then != now).then_some((then, now)))
}

/// The value of a loss.
fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_dtype(DType::F32)?.to_scalar::<f32>()?))
}

fn read_json<D: serde::de::DeserializeOwned>(path: &Path) -> Result<D> {
    let text = std::fs::read_to_string(path).map_err(|e| at(path, e))?;
    serde_json::from_str(&text).map_err(|e| at(path, e))
}

/// A value as it is after it was written and read: the JSON parser may round a number's last bit.
fn written<D: Serialize + serde::de::DeserializeOwned>(value: &D) -> Result<D> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Msg(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| Error::Msg(e.to_string()))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| at(path, e))?;
    std::fs::write(path, text + "\n").map_err(|e| at(path, e))
}
