//! `moesaic generate`

use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use moesaic::{Answer, Finish, Speed, TextGenerator, TextModelInfo, TextStream};
use serde::Serialize;

use super::language::{WritingArgs, answering, catch_interrupts, interrupted, speed};
use super::model::text_folder;
use super::{INTERRUPTED, note, print};

/// Go on with a text.
///
/// Prints the model's continuation as it is written, without the prompt, and tokens per second on standard error. Ctrl-C
/// stops it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of a language model, or a GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text to go on with; - or nothing for standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    #[command(flatten)]
    writing: WritingArgs,
    /// Search with N beams instead of drawing; the text appears at the end
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// With --beams, print the N best texts
    #[arg(long, value_name = "N", default_value_t = 1, requires = "beams")]
    sequences: usize,
    /// With --beams, the exponent of the length that log-probabilities are divided by [default: the model's own, or 1]
    #[arg(long, value_name = "X", requires = "beams", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Print JSON at the end: the model, the answers, and the time taken
    #[arg(long)]
    json: bool,
    /// With --json, the log-probability of each token
    #[arg(long, requires = "json", conflicts_with = "beams")]
    log_probs: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let prompt = prompt(args)?;
    let dir = text_folder(&args.model)?;
    let mut model = TextGenerator::from_dir_on(dir, args.writing.dtype, args.writing.place.device)?;
    args.writing.attach(&mut model)?;
    let mut options = args.writing.options();
    options.log_probs = args.log_probs;
    options.beams = args.beams;
    options.length_penalty = args.length_penalty;
    if args.beams.is_some() {
        let start = Instant::now();
        let answers = model.search(&[&prompt], args.sequences, &options)?.into_iter().flatten().collect::<Vec<_>>();
        let seconds = start.elapsed().as_secs_f64();
        if args.json {
            return json(model.info(), &answers, None, seconds);
        }
        for answer in &answers {
            print(&format!("{}\n", answer.text))?;
        }
        note(&format!("{seconds:.1} s for {} beams", args.beams.unwrap_or(0)));
        return Ok(());
    }
    catch_interrupts()?;
    answering(true);
    let start = Instant::now();
    let (answers, times) = follow(model.stream(&[&prompt], &options)?, args.json)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        json(model.info(), &answers, Some(times), seconds)?;
    } else {
        conclude(&answers, &times)?;
    }
    if interrupted() {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}

/// Runs a stream, printing its text as it comes unless `quiet`, until it ends or somebody stops it.
pub(super) fn follow(stream: TextStream<'_>, quiet: bool) -> Result<(Vec<Answer>, Speed)> {
    let mut closed = Ok(());
    let ended = stream.run(&mut |piece| {
        if !quiet && !piece.text.is_empty() {
            closed = print(&piece.text);
        }
        if interrupted() || closed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    closed?;
    Ok(ended)
}

/// What stands behind answers that were printed as they came.
pub(super) fn conclude(answers: &[Answer], times: &Speed) -> Result<()> {
    if !answers.iter().any(|answer| answer.text.ends_with('\n')) {
        print("\n")?;
    }
    note(&speed(times, answers.iter().map(|answer| answer.tokens).sum()));
    if answers.iter().any(|answer| answer.finish == Finish::Context) {
        note("the model's context is full");
    }
    Ok(())
}

fn prompt(args: &Args) -> Result<String> {
    match args.prompt.as_deref() {
        Some(prompt) if prompt != "-" => Ok(prompt.to_string()),
        None if io::stdin().is_terminal() => bail!("there is no prompt: give it in quotes, or - to type it"),
        _ => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            let text = String::from_utf8(bytes).context("standard input is not UTF-8 text: convert it")?;
            // The line end that `echo` adds is not part of the text.
            Ok(text.strip_suffix('\n').map_or(text.as_str(), |text| text.trim_end_matches('\r')).to_string())
        }
    }
}

fn json(model: &TextModelInfo, answers: &[Answer], speed: Option<Speed>, seconds: f64) -> Result<()> {
    #[derive(Serialize)]
    struct Output<'a> {
        model: &'a TextModelInfo,
        answers: &'a [Answer],
        #[serde(skip_serializing_if = "Option::is_none")]
        speed: Option<Speed>,
        seconds: f64,
    }
    let output = Output { model, answers, speed, seconds };
    Ok(print(&(serde_json::to_string_pretty(&output)? + "\n"))?)
}
