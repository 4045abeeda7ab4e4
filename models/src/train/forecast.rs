//! Training a Time-MoE from a TOML file: `moesaic train forecast CONFIG.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Error, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::{Params, one_line};
use serde::{Deserialize, Serialize};

use super::data::csv::{CsvFolder, CsvOptions, read_csv};
use super::data::synthetic::{Shares, Synthetic};
use super::data::{Batch, Mixture, Source, Windowing, contamination};
use super::{AdamWConfig, Ended, Plan, Report, StepLoss, Trainable, Trainer};
use crate::time_moe::{Config, Context, Targets, TimeMoe};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights and data.
    pub seed: u64,
    /// The model, as in its `config.json`.
    pub model: Config,
    /// A folder with a model of the same config whose weights the run starts from: fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// What a forecaster is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Context lengths; each batch has one of them in turn, so short contexts are learnt without padding.
    pub context: Vec<usize>,
    /// Values in one batch, context only: a batch of shorter contexts has more rows.
    pub tokens: usize,
    /// Threshold of the Huber loss, in standard deviations of the context.
    #[serde(default = "reference_delta")]
    pub huber_delta: f64,
    /// If given, a series' loss is divided by how far the best of its own lags is from the series (the mean absolute
    /// difference, in standard deviations), or by this floor where that is smaller: errors then count as MASE counts them,
    /// and a series that repeats itself exactly is not drowned by noise that nobody can predict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_floor: Option<f64>,
    /// Relative share of synthetic series.
    pub synthetic: f64,
    /// Factors on how often the generator draws its kinds of series, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recipes: BTreeMap<String, f64>,
    /// Folders of CSV files.
    #[serde(default)]
    pub folders: Vec<FolderConfig>,
    /// Folders of series that the model will be evaluated on: a training series that shares a window with one of them is
    /// refused.
    #[serde(default)]
    pub evaluation: Vec<PathBuf>,
}

fn reference_delta() -> f64 {
    2.0
}

/// One folder of training series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderConfig {
    /// The folder.
    pub path: PathBuf,
    /// Relative share of its series.
    pub weight: f64,
}

impl TrainConfig {
    /// Checks the settings.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.optimiser.validate()?;
        let longest = self.data.context.iter().max().copied().unwrap_or(0);
        if longest == 0 || self.data.context.iter().any(|&c| !(16..=1 << 16).contains(&c)) {
            let lengths = one_line(format!("{:?}", self.data.context));
            bail!("data.context is {lengths}, expected lengths in 16 to 65536");
        }
        if self.data.tokens < longest || self.data.tokens > 1 << 24 {
            bail!("data.tokens is {}, expected at least the longest context and at most {}", self.data.tokens, 1 << 24);
        }
        if self.data.scale_floor.is_some_and(|floor| !(floor > 0.0 && floor.is_finite())) {
            bail!("data.scale_floor must be a positive number");
        }
        Ok(())
    }
}

/// A Time-MoE and its data.
struct Forecaster {
    model: TimeMoe,
    source: Mixture,
    data: DataConfig,
    seed: u64,
    accumulation: u64,
}

impl Trainable for Forecaster {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.accumulation + part as u64;
        let context = self.data.context[(index % self.data.context.len() as u64) as usize];
        let future = self.model.config().horizon_lengths.last().copied().unwrap_or(1);
        self.source.batch(self.seed, index, self.data.tokens / context, context + future)
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let future = self.model.config().horizon_lengths.last().copied().unwrap_or(1);
        let context = batch.length - future;
        let (mut x, mut labels, mut mask, mut padding) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in 0..batch.rows {
            let values = &batch.values[row * batch.length..][..batch.length];
            let observed = &batch.mask[row * batch.length..][..batch.length];
            // What is missing at the start is padding; the last position stays, as a row must have one.
            padding.push(observed[..context - 1].iter().take_while(|&&m| m == 0.0).count());
            x.extend_from_slice(&values[..context]);
            labels.extend_from_slice(&values[1..]);
            mask.extend_from_slice(&observed[1..]);
            // Positions inside the padding predict nothing.
            let start = mask.len() - (batch.length - 1);
            let last = padding.last().copied().unwrap_or(0);
            mask[start..start + last].fill(0.0);
            if let Some(floor) = self.data.scale_floor {
                let weight = 1.0 / best_lag_distance(values, observed).max(floor) as f32;
                mask[start..].iter_mut().for_each(|m| *m *= weight);
            }
        }
        let x = Tensor::from_vec(x, (batch.rows, context), &Device::Cpu)?;
        let positions = padding.iter().flat_map(|&p| (0..context).map(move |i| i.saturating_sub(p) as u32)).collect();
        let ctx = Context { padding, positions: Some(positions), reference_padding: false };
        let targets = Targets::new(labels, Some(mask), batch.rows)?.with_delta(self.data.huber_delta)?;
        let (losses, _) = self.model.loss(&x, &ctx, &targets)?;
        let value = |t: &Tensor| Ok::<_, Error>(f64::from(t.to_scalar::<f32>()?));
        let mut parts = Vec::new();
        for (loss, horizon) in losses.heads.iter().zip(&self.model.config().horizon_lengths) {
            parts.push((format!("huber.{horizon}"), value(loss)?));
        }
        if let Some(aux) = &losses.aux {
            parts.push(("balance".to_string(), value(aux)?));
        }
        Ok(StepLoss { total: losses.total, parts, tokens: batch.rows * context })
    }

    fn config_json(&self) -> Result<String> {
        let config = self.model.config();
        Ok(serde_json::to_string_pretty(config).map_err(|e| Error::Msg(e.to_string()))? + "\n")
    }
}

/// The smallest mean absolute difference between a series and itself some steps earlier, over lags up to half its length: what
/// the best of all seasonal-naive forecasts errs by. Values where `observed` is 0 do not count.
fn best_lag_distance(values: &[f32], observed: &[f32]) -> f64 {
    let n = values.len();
    let distance = |lag: usize| {
        let (mut sum, mut count) = (0f32, 0f32);
        for ((a, b), (x, y)) in values.iter().zip(&values[lag..]).zip(observed.iter().zip(&observed[lag..])) {
            sum += x * y * (a - b).abs();
            count += x * y;
        }
        (2.0 * count >= (n - lag) as f32 && count > 0.0).then(|| f64::from(sum / count))
    };
    (1..=n / 2).filter_map(distance).fold(f64::INFINITY, f64::min).min(2.0)
}

/// Where series come from, as training files of forecasters say it.
pub(super) struct Sources<'a> {
    pub synthetic: f64,
    pub recipes: &'a BTreeMap<String, f64>,
    pub folders: &'a [FolderConfig],
    pub evaluation: &'a [PathBuf],
}

/// Sources in the shares of the config, after the check against evaluation series.
pub(super) fn sources(data: &Sources<'_>, windowing: Windowing) -> Result<Mixture> {
    let mut evaluation = Vec::new();
    for folder in data.evaluation {
        let name = folder.display();
        let entries = std::fs::read_dir(folder).map_err(|e| {
            Error::Msg(format!("cannot read the evaluation folder {name}: {e}; fetch it with tools/fetch_series.py"))
        })?;
        let mut files: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "csv"));
        files.sort();
        for file in files {
            evaluation.extend(read_csv(&file)?);
        }
    }
    let mut parts: Vec<(f64, Box<dyn Source>)> = Vec::new();
    if data.synthetic > 0.0 {
        let shares = Shares::scaled(data.recipes.iter().map(|(name, factor)| (name.as_str(), *factor)))?;
        parts.push((data.synthetic, Box::new(Synthetic { shares, windowing })));
    }
    for folder in data.folders {
        let source = CsvFolder::open(&folder.path, CsvOptions { windowing, ..CsvOptions::default() })?;
        contamination::refuse(&source.views(), &evaluation)?;
        parts.push((folder.weight, Box::new(source)));
    }
    Mixture::new(parts)
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds
/// checkpoints already is refused rather than overwritten.
pub fn run(
    config: &TrainConfig,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let newest = super::newest(&config.plan.out, resume)?;
    let data = &config.data;
    let (synthetic, recipes) = (data.synthetic, &data.recipes);
    let series = Sources { synthetic, recipes, folders: &data.folders, evaluation: &data.evaluation };
    let future = config.model.horizon_lengths.last().copied().unwrap_or(1);
    let source = sources(&series, Windowing { future, ..Windowing::default() })?;
    let params = match newest.as_ref().or(config.init.as_ref()) {
        Some(dir) => Params::resume(&Checkpoint::open(dir)?, &Device::Cpu),
        None => Params::init(config.seed, &Device::Cpu),
    };
    let trainable = Forecaster {
        model: TimeMoe::new(config.model.clone(), &params)?,
        source,
        data: config.data.clone(),
        seed: config.seed,
        accumulation: config.plan.accumulation as u64,
    };
    Trainer::start(&trainable, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_lag_is_found_among_what_was_observed() {
        let wave: Vec<f32> = (0..60).map(|t| [0.0, 1.0, 4.0, 2.0, -1.0][t % 5] + 0.1 * (t / 5 % 2) as f32).collect();
        let mut observed = vec![1.0; 60];
        // Two periods of 5 are exact, one is 0.1 off.
        assert!(best_lag_distance(&wave, &observed) < 1e-6);
        assert!((best_lag_distance(&wave[..18], &observed[..18]) - 0.1).abs() < 1e-6);
        let mut spoilt = wave.clone();
        spoilt[30] = 50.0;
        assert!(best_lag_distance(&spoilt, &observed) > 0.5);
        observed[30] = 0.0;
        assert!(best_lag_distance(&spoilt, &observed) < 1e-6);
        assert_eq!(best_lag_distance(&wave, &[0.0; 60]), 2.0);
    }
}
