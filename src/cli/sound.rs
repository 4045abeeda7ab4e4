//! `moesaic train sound` and `moesaic eval sound`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device};
use moesaic::Tokenizer;
use moesaic_models::train::sound::{self, Manifest, TrainConfig, score};
use moesaic_models::usam::{Usam, UsamConfig, Vocabulary};
use serde::Serialize;

use super::share::Share;
use super::{print, train};

/// Train a model that listens, from nothing, on clips of sound and questions about them.
///
/// Encoders, projectors and language model learn together. The result is a folder for `moesaic listen`. Ctrl-C finishes the step,
/// saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that an uninterrupted run would have
/// had.
#[derive(Debug, clap::Args)]
pub(super) struct TrainArgs {
    /// The run: model, clips, losses, optimiser, length (see examples/sound/train.toml)
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
    let tokenizer = Tokenizer::load(&config.base)?;
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let model = sound::settings(&config).map_err(said)?;
    let vocabulary = Vocabulary::new(&model, |token| tokenizer.id(token)).map_err(said)?;
    train::follow(&config.plan.out, |stop, report| sound::run(&config, vocabulary, &encode, args.resume, stop, report))
}

/// Measure how many questions about sounds a model answers right, and where their tokens go.
///
/// An answer counts as right where each of its words is what greedy generation gives. Prints the share by task and part of the data,
/// and of all; in JSON also the weight of each projector and the share of each expert, by task.
#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    /// Folder of a model that listens
    model: PathBuf,
    /// Files of questions about clips, in JSON lines with audio, task, question and answer
    #[arg(required = true, value_name = "FILE.jsonl")]
    files: Vec<PathBuf>,
    /// At most so many clips of each file, taken evenly from all
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where the tokens of a task's questions go, the mean over its questions.
#[derive(Debug, Default, Serialize)]
struct Routed {
    questions: usize,
    /// Of each projector, its weight over the tokens of sound.
    projectors: Vec<f64>,
    /// Of each sparse layer of the language model, the share of each expert.
    layers: Vec<Vec<f64>>,
}

impl Routed {
    fn add(&mut self, projectors: &[f64], layers: &[Vec<f64>]) {
        self.questions += 1;
        let n = self.questions as f64;
        let mean = |means: &mut Vec<f64>, values: &[f64]| {
            means.resize(values.len(), 0.0);
            means.iter_mut().zip(values).for_each(|(mean, value)| *mean += (value - *mean) / n);
        };
        mean(&mut self.projectors, projectors);
        self.layers.resize(layers.len(), Vec::new());
        self.layers.iter_mut().zip(layers).for_each(|(means, values)| mean(means, values));
    }
}

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    if args.most == Some(0) {
        bail!("--most must be at least 1");
    }
    let config = UsamConfig::load(&args.model).map_err(said)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let vocabulary = Vocabulary::new(&config, |token| tokenizer.id(token)).map_err(said)?;
    let load = |file: &PathBuf| Manifest::load(file, &config, &vocabulary, &encode).map_err(said);
    // What is wrong with the questions is said before the model is read, which takes longer.
    let all = args.files.iter().map(load).collect::<Result<Vec<_>>>()?;
    let model = Usam::load(&args.model, vocabulary.clone(), DType::F32, &Device::Cpu).map_err(said)?;
    let (mut shares, mut total) = (BTreeMap::<(String, String), Share>::new(), Share::default());
    let mut routed = BTreeMap::<String, Routed>::new();
    for clips in &all {
        let count = args.most.unwrap_or(usize::MAX).min(clips.len());
        for i in 0..count {
            for one in score(&model, clips, i * clips.len() / count, true).map_err(said)? {
                shares.entry((one.task.to_string(), one.group.to_string())).or_default().add(one.right);
                routed.entry(one.task.to_string()).or_default().add(&one.projectors, &one.layers);
                total.add(one.right);
            }
        }
    }
    if args.json {
        let parts: Vec<_> = shares
            .iter()
            .map(|((task, group), share)| serde_json::json!({ "task": task, "group": group, "share": share }))
            .collect();
        let json = serde_json::json!({ "all": total, "parts": parts, "routes": routed });
        return Ok(print(&(serde_json::to_string_pretty(&json)? + "\n"))?);
    }
    let mut text = String::new();
    let mut line = |task: &str, group: &str, share: &Share| {
        text += &format!("{task:<14}{group:<10}{:>8}{:>9.2} %\n", share.questions, 100.0 * share.accuracy);
    };
    for ((task, group), share) in &shares {
        line(task, group, share);
    }
    line("all", "", &total);
    Ok(print(&text)?)
}
