//! `moesaic train vision` and `moesaic eval vision`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use moesaic::prompts::{Template, Turn, labelled};
use moesaic_encoders::image::ImageProcessor;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::lora::Adapter;
use moesaic_models::train::data::pictures::{self, Corpus, Loader, Shuffle};
use moesaic_models::train::vision::{self, TrainConfig};
use moesaic_models::vision::VisionModel;
use tokenizers::Tokenizer;

use super::share::Share;
use super::{print, train};

/// Train a model that looks at pictures, on conversations about them.
///
/// Joins a vision tower and a language model, tunes a model, or makes experts of its dense parts first, as the file says.
/// Ctrl-C finishes the step, saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that
/// an uninterrupted run would have had.
#[derive(Debug, clap::Args)]
pub(super) struct TrainArgs {
    /// The run: model, pictures, what is trained, optimiser, length (see examples/vision/look.toml)
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

pub(super) fn run(args: &TrainArgs) -> Result<()> {
    let config: TrainConfig = moesaic::settings::read(&args.config)?;
    let Some(file) = config.file("tokenizer.json") else {
        bail!("there is no tokenizer.json: name it in files");
    };
    let encode = encoder(&file, &config.template)?;
    train::follow(&config.plan.out, |stop, report| vision::run(&config, &encode, args.resume, stop, report))
}

/// Measure how many questions about pictures a model answers right.
///
/// An answer counts as right where each of its words is what greedy generation gives. Prints the share by source and kind of
/// question, and of all.
#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    /// Folder of a vision model
    model: PathBuf,
    /// Files of conversations about pictures, in JSON lines or as LLaVA publishes them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder that pictures are named relative to, where it is not that of the file
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Folder of an adapter (LoRA) to answer with, as PEFT and `moesaic train vision` write it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Name of the conversation template, where config.json does not name one
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Questions that are answered at once
    #[arg(long, default_value_t = 64, value_name = "N")]
    rows: usize,
    /// At most so many questions, taken evenly from all
    #[arg(long, value_name = "N")]
    most: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    if args.rows == 0 || args.most == Some(0) {
        bail!("--rows and --most must be at least 1");
    }
    let said = |e: candle_core::Error| anyhow!(moesaic::candle_message(&e));
    let mut model = VisionModel::load(&args.model, DType::F32, &Device::Cpu).map_err(|e| said(e.into()))?;
    if let Some(dir) = &args.adapter {
        let adapter = Adapter::open(dir).map_err(said)?;
        let weights = Checkpoint::open(&args.model).and_then(|own| adapter.over(&own)).map_err(said)?;
        model.reload(&weights, model.concerned(&adapter), DType::F32).map_err(said)?;
        model.attach(&adapter, "adapter", 1.0).map_err(said)?;
    }
    let named = model.config().published.get("conversation").and_then(|name| name.as_str());
    let template =
        args.template.as_deref().or(named).context("the model names no conversation template: give --template")?;
    let encode = encoder(&args.model.join("tokenizer.json"), template)?;
    let processor = ImageProcessor::load(&args.model)?;
    let corpus = Corpus::open(&args.files, args.folder.as_deref())?;
    let loader = Loader::new(corpus, processor, Shuffle { seed: 0, together: 1 }, 0);
    let all = loader.corpus().rows();
    let count = args.most.unwrap_or(usize::MAX).min(all.len());
    let chosen: Vec<usize> = (0..count).map(|i| i * all.len() / count).collect();
    let mut shares: BTreeMap<(String, String), Share> = BTreeMap::new();
    let mut total = Share::default();
    for rows in chosen.chunks(args.rows) {
        for (&row, right) in rows.iter().zip(vision::right(&model, &encode, &loader, rows).map_err(said)?) {
            let Some(row) = all.get(row) else { continue };
            shares.entry((row.source.to_string(), row.kind.to_string())).or_default().add(right);
            total.add(right);
        }
    }
    if args.json {
        let parts: Vec<_> = shares
            .iter()
            .map(|((source, kind), share)| serde_json::json!({ "source": source, "kind": kind, "share": share }))
            .collect();
        let json = serde_json::json!({ "all": total, "parts": parts });
        return Ok(print(&(serde_json::to_string_pretty(&json)? + "\n"))?);
    }
    let mut text = String::new();
    let mut line = |source: &str, kind: &str, share: &Share| {
        text += &format!("{source:<12}{kind:<14}{:>8}{:>9.2} %\n", share.questions, 100.0 * share.accuracy);
    };
    let mut of_source: BTreeMap<&str, Share> = BTreeMap::new();
    for ((source, kind), share) in &shares {
        line(source, kind, share);
        of_source.entry(source).or_default().join(share);
    }
    for (source, share) in &of_source {
        line(source, "all kinds", share);
    }
    line("all", "", &total);
    Ok(print(&text)?)
}

/// Ids of a conversation, and a label for each.
type Encoded = candle_core::Result<(Vec<u32>, Vec<i64>)>;

/// Ids and labels of conversations, by a tokenizer and a template.
fn encoder(tokenizer: &Path, template: &str) -> Result<impl Fn(&[pictures::Turn], u32) -> Encoded + Sync + use<>> {
    let name = tokenizer.display();
    let tokenizer = moesaic::guarded(|| Tokenizer::from_file(tokenizer).map_err(|e| e.to_string()));
    let tokenizer = tokenizer.map_err(|e| anyhow!("{name}: not a tokenizer.json: {e}"))?;
    let Some(found) = Template::named(template) else {
        bail!("the conversation template {template:?} is not known; known are {}", Template::NAMES.join(", "));
    };
    Ok(move |turns: &[pictures::Turn], mark: u32| {
        let turns: Vec<Turn<'_>> =
            turns.iter().map(|t| Turn { question: &t.question, answer: Some(&t.answer) }).collect();
        labelled(&found, &tokenizer, &turns, mark).map_err(|e| candle_core::Error::Msg(e.to_string()))
    })
}
