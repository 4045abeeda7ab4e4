//! Training a Moirai-MoE from a TOML file: `moesaic train forecast CONFIG.toml` with a `[model]` that has `patch_sizes`.
//!
//! What is minimised is the negative log-likelihood of the next patch (arXiv 2410.10469, section 3.2). Rows are packed with
//! samples of random lengths and numbers of variates (`pack`).
//!
//! Training goes in two runs, as in the paper: a dense model first (`num_experts = 1`), then a sparse one with `init` naming the
//! dense one's folder. The sparse run starts by clustering what the dense model makes of tokens of its training data: the
//! centroids, which stay fixed. Its experts are copies of the dense one's, so that it starts as the dense model; where it starts
//! is written to `{out}/start`.

mod config;
mod pack;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Error, Result, bail};
use moesaic_kernels::checkpoint::{Checkpoint, save};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Params, Routes};

use super::{Ended, Report, StepLoss, Trainable, Trainer};
use crate::folder::{at, config_text};
use crate::moirai_moe::{Config, MoiraiMoe, from_dense, k_means};

pub use config::{Centroids, DataConfig, TrainConfig};
pub use pack::{Packed, Packer};

/// A Moirai-MoE and its data.
struct Forecaster {
    model: MoiraiMoe,
    packer: Packer,
    accumulation: u64,
}

impl Trainable for Forecaster {
    type Batch = Packed;

    fn batch(&self, step: u64, part: usize) -> Result<Packed> {
        self.packer.batch(step * self.accumulation + part as u64)
    }

    fn loss(&self, batch: &Packed) -> Result<StepLoss> {
        let output = self.model.forward(&batch.patches, None)?;
        let total = output.distribution.packed_nll(&batch.patches, &batch.next)?;
        let parts = vec![("experts".to_string(), experts_at_work(&output.routes)?)];
        let tokens = batch.patches.sample_id.iter().filter(|id| **id != 0).count();
        Ok(StepLoss { total, parts, tokens })
    }

    fn config_json(&self) -> Result<String> {
        json(self.model.config())
    }
}

fn json(config: &Config) -> Result<String> {
    Ok(serde_json::to_string_pretty(config).map_err(|e| Error::Msg(e.to_string()))? + "\n")
}

/// How many experts of a layer share the work: the exponential of the entropy of their shares, averaged over the layers. All of
/// them where each has as much as the others, 1 where one has it all.
fn experts_at_work(layers: &[Routes]) -> Result<f64> {
    let of = |routes: &Routes| {
        let all = routes.len().max(1) as f64;
        let shares = routes.offsets()?.windows(2).map(|ends| (ends[1] - ends[0]) as f64 / all);
        Ok::<_, Error>(shares.filter(|share| *share > 0.0).map(|share| -share * share.ln()).sum::<f64>().exp())
    };
    Ok(layers.iter().map(of).sum::<Result<f64>>()? / layers.len().max(1) as f64)
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds checkpoints
/// already is refused rather than overwritten.
///
/// # Errors
/// Settings that do not fit each other, data or a dense model that cannot be read, a training that comes to nothing.
pub fn run(
    config: &TrainConfig,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let newest = super::newest(&config.plan.out, resume)?;
    let packer = Packer::new(&config.data, &config.model.patch_sizes, config.seed)?;
    let params = match (&newest, &config.init) {
        (Some(checkpoint), _) => Params::resume(&Checkpoint::open(checkpoint)?, &Device::Cpu),
        (None, Some(init)) => Params::resume(&start(config, init, &packer)?, &Device::Cpu),
        (None, None) => Params::init(config.seed, &Device::Cpu),
    };
    let trainable = Forecaster {
        model: MoiraiMoe::new(config.model.clone(), &params)?,
        packer,
        accumulation: config.plan.accumulation as u64,
    };
    Trainer::start(&trainable, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

/// The weights that a run starts from: those in `init`, where that is a model of the same config; where it is the dense model of
/// the config, those of the sparse model made from it.
fn start(config: &TrainConfig, init: &Path, packer: &Packer) -> Result<Checkpoint> {
    let path = init.join("config.json");
    let theirs = Config::from_json(&config_text(&path)?).map_err(|e| at(&path, e))?;
    let ours = &config.model;
    let (num_experts, num_experts_per_token) = (ours.num_experts, ours.num_experts_per_token);
    if (Config { num_experts, num_experts_per_token, ..theirs.clone() }) != *ours {
        bail!(
            "{}: the model to start from differs from [model] in more than its experts: give both the same",
            path.display()
        );
    }
    if theirs == *ours {
        return Checkpoint::open(init);
    }
    if theirs.num_experts != 1 {
        bail!(
            "{}: a run with num_experts = {num_experts}, num_experts_per_token = {num_experts_per_token} starts from a model \
             with the same, or from a dense one (num_experts = 1); this has {} and {}",
            path.display(),
            theirs.num_experts,
            theirs.num_experts_per_token
        );
    }
    let dense = MoiraiMoe::load(init, DType::F32, &Device::Cpu)?;
    let centroids = centroids(config, &dense, packer)?;
    let tensors = from_dense(&Checkpoint::open(init)?, ours, &centroids)?;
    let dir = config.plan.out.join("start");
    std::fs::create_dir_all(&dir).map_err(|e| at(&dir, e))?;
    let path = dir.join("config.json");
    std::fs::write(&path, json(ours)?).map_err(|e| at(&path, e))?;
    save(&dir.join("model.safetensors"), &tensors, &[("format", "pt")])?;
    Checkpoint::open(&dir)
}

/// The centroids of each layer, `[layers][E * D]`: clusters of what the dense model makes of batches that are not trained on.
fn centroids(config: &TrainConfig, dense: &MoiraiMoe, packer: &Packer) -> Result<Vec<Vec<f32>>> {
    let seed = Rng::named(config.seed, "centroids").next_u64();
    let packer = packer.with_seed(seed);
    let mut seen = vec![Vec::new(); config.model.num_layers];
    for index in 0..config.centroids.batches {
        let of_batch = dense.representations(&packer.batch(index)?.patches)?;
        seen.iter_mut().zip(of_batch).for_each(|(all, of_batch)| all.extend(of_batch));
    }
    let (width, k) = (config.model.d_model, config.model.num_experts);
    let layers = seen.iter().zip(0u64..);
    layers
        .map(|(points, i)| k_means(points, width, k, config.centroids.iterations, Rng::keyed(&[seed, i]).next_u64()))
        .collect()
}
