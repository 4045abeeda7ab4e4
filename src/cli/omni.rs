//! `moesaic train omni` and `moesaic eval omni`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use moesaic::Tokenizer;
use moesaic_models::omni::{Omni, Senses};
use moesaic_models::train::omni::{self, Items, TrainConfig, score};
use serde::Serialize;

use super::share::Share;
use super::{print, train};

/// Train a model that reads text, pictures, sound and series together, from nothing, on questions about them.
///
/// Two runs make a model: the second one, with `auxiliary = true`, trains the routers that decide for each token by itself. Ctrl-C
/// finishes the step, saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that an uninterrupted run
/// would have had.
#[derive(Debug, clap::Args)]
pub(super) struct TrainArgs {
    /// The run: model, questions, optimiser, length
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

fn said(error: impl Into<candle_core::Error>) -> anyhow::Error {
    anyhow!(moesaic::candle_message(&error.into()))
}

pub(super) fn run(args: &TrainArgs) -> Result<()> {
    let config: TrainConfig = moesaic::settings::read(&args.config)?;
    let base = config.init.as_ref().filter(|_| config.auxiliary).unwrap_or(&config.base);
    let tokenizer = Tokenizer::load(base)?;
    let encode = |text: &str| tokenizer.encode_rendered(text).map_err(candle_core::Error::wrap);
    let id = |token: &str| tokenizer.id(token);
    train::follow(&config.plan.out, |stop, report| omni::run(&config, &id, &encode, args.resume, stop, report))
}

/// Measure how many questions about pictures, sounds and series a model answers right, and how far its forecasts are off.
///
/// An answer counts as right where it is the one of the file, word by word. A forecast's error is its mean absolute error, beside that of
/// the series' last value; their ratio is the geometric mean over questions, but for those that the last value answers exactly. Prints both by task and part of the data.
#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    /// Folder of a model
    model: PathBuf,
    /// Files of questions, in JSON lines
    #[arg(required = true, value_name = "FILE.jsonl")]
    files: Vec<PathBuf>,
    /// At most so many pictures, sounds and series of each file, taken evenly from all
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    /// Ask all questions about the same thing in one conversation, not each alone
    #[arg(long)]
    together: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Errors of forecasts beside those of the last value.
#[derive(Debug, Default, Serialize)]
struct Errors {
    forecasts: usize,
    /// Geometric mean of the ratios.
    ratio: f64,
    #[serde(skip)]
    logs: f64,
}

impl Errors {
    fn add(&mut self, (own, naive): (f64, f64)) {
        // No ratio says how much worse than exact a forecast is.
        if naive <= 0.0 {
            return;
        }
        self.forecasts += 1;
        // An exact forecast counts as a millionth of the error.
        self.logs += (own / naive).max(1e-6).ln();
        self.ratio = (self.logs / self.forecasts as f64).exp();
    }
}

/// What is counted of a task.
#[derive(Debug, Default, Serialize)]
struct Part {
    task: String,
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Errors>,
}

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    if args.most == Some(0) {
        bail!("--most must be at least 1");
    }
    let tokenizer = Tokenizer::load(&args.model)?;
    let encode = |text: &str| tokenizer.encode_rendered(text).map_err(candle_core::Error::wrap);
    let model = Omni::load(&args.model, |token| tokenizer.id(token), DType::F32, &Device::Cpu).map_err(said)?;
    let senses = Senses::new(model.config()).map_err(said)?;
    let load = |file: &PathBuf| Items::load(file, model.config(), &encode).map_err(said);
    let all = args.files.iter().map(load).collect::<Result<Vec<_>>>()?;
    let (mut parts, mut total) = (BTreeMap::<(String, String), Part>::new(), Share::default());
    for (items, file) in all.iter().zip(&args.files) {
        let count = args.most.unwrap_or(usize::MAX).min(items.len());
        for i in 0..count {
            let item = i * items.len() / count;
            let scored = score(&model, &senses, items, item, args.together).map_err(said);
            for one in scored.with_context(|| format!("{}: item {}", file.display(), item + 1))? {
                let key = (one.task.to_string(), one.group.to_string());
                let part = parts.entry(key.clone()).or_insert(Part { task: key.0, group: key.1, ..Part::default() });
                if let Some(right) = one.right {
                    part.share.get_or_insert_default().add(right);
                    total.add(right);
                }
                if let Some(errors) = one.errors {
                    part.errors.get_or_insert_default().add(errors);
                }
            }
        }
    }
    if args.json {
        let parts: Vec<&Part> = parts.values().collect();
        let json = serde_json::json!({ "all": total, "parts": parts });
        return Ok(print(&(serde_json::to_string_pretty(&json)? + "\n"))?);
    }
    let mut text = String::new();
    for Part { task, group, share, errors } in parts.values() {
        if let Some(share) = share {
            text += &format!("{task:<14}{group:<10}{:>8}{:>9.2} %\n", share.questions, 100.0 * share.accuracy);
        }
        if let Some(errors) = errors {
            text += &format!(
                "{task:<14}{group:<10}{:>8}{:>9.3} of the last value's error\n",
                errors.forecasts, errors.ratio
            );
        }
    }
    text += &format!("{:<24}{:>8}{:>9.2} %\n", "all in words", total.questions, 100.0 * total.accuracy);
    Ok(print(&text)?)
}
