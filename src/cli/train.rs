//! `moesaic train forecast`, `language`, `encoder` and `speech`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use moesaic_models::avsr::Vocabulary;
use moesaic_models::train::data::text::Tokenise;
use moesaic_models::train::{Ended, Report, forecast, language, moirai, speech};
use tokenizers::Tokenizer;

use super::{INTERRUPTED, note, print};

/// Train a Time-MoE or a Moirai-MoE.
///
/// A [model] with patch_sizes is a Moirai-MoE: first a dense one, then a sparse one that starts from it, its centroids being clusters
/// of the tokens of the dense one. Prints a line of progress now and then, and saves a checkpoint in the Hugging Face layout every so many steps. Ctrl-C
/// finishes the step, saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that an
/// uninterrupted run would have had.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run: model, data, optimiser, length (see assets/forecaster/train.toml; for Moirai-MoE examples/moirai/dense.toml and
    /// sparse.toml)
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

/// Train a language model, or LoRA adapters of one, on text files.
///
/// The text is packed into rows of one length; a part of it can be held out, whose perplexity is printed now and then. The
/// result is a model folder in the Hugging Face layout, or an adapter folder that PEFT reads. Ctrl-C finishes the step,
/// saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that an uninterrupted run
/// would have had.
#[derive(Debug, clap::Args)]
pub(super) struct LanguageArgs {
    /// The run: model, text, adapters, optimiser, length (see examples/language.toml and examples/lora.toml)
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// What of a sparse model is trained, whatever the file says: the routers, the experts with their routers, or all
    #[arg(long, value_name = "PART", value_enum)]
    train: Option<TrainedPart>,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

/// The values of `--train`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TrainedPart {
    Router,
    Experts,
    All,
}

/// Train projectors and adapters of a speech model: Llama-AVSR, Llama-SMoP, Llama-MTSK.
///
/// Encoders and language model, which stand in one folder, stay as they are, unless the language model is small and the file says
/// that it learns, too. The result holds what was trained alone, and where the file says so a folder with all of it. Ctrl-C
/// finishes the step, saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that an
/// uninterrupted run would have had.
#[derive(Debug, clap::Args)]
pub(super) struct SpeechArgs {
    /// The run: model, clips, noise, optimiser, length (see examples/speech.toml)
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

/// Train an AV-HuBERT from nothing to name the phoneme of each frame by ear, by eye or by both.
///
/// The clips say which unit each frame of 40 ms has. The result is the folder of an encoder, which a speech model is then trained
/// on. Ctrl-C finishes the step, saves a checkpoint and stops; --resume goes on from the newest checkpoint, with the losses that
/// an uninterrupted run would have had.
#[derive(Debug, clap::Args)]
pub(super) struct EncoderArgs {
    /// The run: encoder, clips, noise, optimiser, length (see examples/speech/encoder.toml)
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Go on from the newest checkpoint of this run
    #[arg(long)]
    resume: bool,
}

pub(super) fn encoder(args: &EncoderArgs) -> Result<()> {
    let config: speech::units::TrainConfig = moesaic::settings::read(&args.config)?;
    follow(&config.plan.out, |stop, report| speech::units::run(&config, args.resume, stop, report))
}

pub(super) fn speech(args: &SpeechArgs) -> Result<()> {
    let config: speech::TrainConfig = moesaic::settings::read(&args.config)?;
    let tokenizer = moesaic::Tokenizer::load(&config.base)?;
    let encode = |text: &str| tokenizer.encode(text).map_err(candle_core::Error::wrap);
    let model = speech::settings(&config).map_err(|error| anyhow!(moesaic::candle_message(&error)))?;
    let vocabulary = Vocabulary::new(&model, |token| tokenizer.id(token), encode)
        .map_err(|error| anyhow!(moesaic::candle_message(&error)))?;
    follow(&config.plan.out, |stop, report| speech::run(&config, vocabulary, &encode, args.resume, stop, report))
}

pub(super) fn run(args: &Args) -> Result<()> {
    // The model says which kind of run this is, as its config.json would.
    let settings: serde_json::Value = moesaic::settings::read(&args.config)?;
    let says = |key: &str| settings.get("model").is_some_and(|model| model.get(key).is_some());
    if says("patch_sizes") && !says("model_type") {
        let config: moirai::TrainConfig = moesaic::settings::read(&args.config)?;
        return follow(&config.plan.out, |stop, report| moirai::run(&config, args.resume, stop, report));
    }
    let config: forecast::TrainConfig = moesaic::settings::read(&args.config)?;
    follow(&config.plan.out, |stop, report| forecast::run(&config, args.resume, stop, report))
}

pub(super) fn language(args: &LanguageArgs) -> Result<()> {
    let mut config: language::TrainConfig = moesaic::settings::read(&args.config)?;
    if let Some(part) = args.train {
        config.train = match part {
            TrainedPart::Router => language::Part::Router,
            TrainedPart::Experts => language::Part::Experts,
            TrainedPart::All => language::Part::All,
        };
    }
    let tokenizer = match config.tokenizer_file() {
        None => None,
        Some(file) => {
            let name = file.display();
            let read = moesaic::guarded(|| Tokenizer::from_file(&file).map_err(|error| error.to_string()));
            Some(read.map_err(|error| anyhow!("{name}: not a tokenizer.json: {error}"))?)
        }
    };
    let tokenise = tokenizer.as_ref().map(|tokenizer| {
        move |text: &str| match moesaic::guarded(|| tokenizer.encode_fast(text, true).map_err(|e| e.to_string())) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(candle_core::Error::Msg(format!("the text cannot be tokenised: {error}"))),
        }
    });
    let tokenise = tokenise.as_ref().map(|f| f as &Tokenise<'_>);
    follow(&config.plan.out, |stop, report| language::run(&config, tokenise, args.resume, stop, report))
}

/// What a training run is given: when to stop, and whom to report to.
pub(super) type Reporter<'a> = &'a mut dyn FnMut(&Report) -> candle_core::Result<()>;

/// Runs a training, printing its progress, until it is done or interrupted.
pub(super) fn follow(
    out: &Path,
    train: impl FnOnce(&AtomicBool, Reporter<'_>) -> candle_core::Result<Ended>,
) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        note("saving a checkpoint; interrupt again to stop without");
    })
    .context("cannot take over Ctrl-C")?;
    let mut report = |report: &Report| {
        // A closed pipe ends the reading of progress, not hours of training.
        let _ = print(&progress(report));
        Ok(())
    };
    let ended = train(&stop, &mut report).map_err(|error| anyhow!(moesaic::candle_message(&error)))?;
    let out = out.display();
    match ended {
        Ended::Finished => note(&format!("done: the model is in {out}/model")),
        Ended::Stopped(step) => {
            note(&format!("stopped after step {step}; --resume goes on from there"));
            // Not a success: what waits for the finished model (`train && deploy`) must not go on.
            std::process::exit(INTERRUPTED);
        }
    }
    Ok(())
}

fn progress(report: &Report) -> String {
    let parts: Vec<String> = report.parts.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let width = report.steps.to_string().len();
    if report.step == 0 {
        return format!("step {:>width$}/{}  before training ({})\n", 0, report.steps, parts.join(", "));
    }
    format!(
        "step {:>width$}/{}  loss {:.4} ({})  rate {:.2e}  gradient {:.2}  {:.0} tokens/s  {} left\n",
        report.step,
        report.steps,
        report.loss,
        parts.join(", "),
        report.learning_rate,
        report.gradient_norm,
        report.tokens_per_second,
        time(report.seconds_left)
    )
}

/// `1 h 05 min`, `4 min 10 s`, `9 s`
fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {seconds:02} s"),
        _ => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!([0.4, 59.0, 61.0, 3905.0, -1.0].map(time), ["0 s", "59 s", "1 min 01 s", "1 h 05 min", "0 s"]);
    }
}
