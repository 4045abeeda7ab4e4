//! `moesaic listen`

use std::path::PathBuf;

use anyhow::Result;
use moesaic::{AudioChat, AudioModelInfo, Heard, Speed};
use serde::Serialize;

use super::generate::follow;
use super::language::{WritingArgs, answering, catch_interrupts, interrupted, speed};
use super::model::audio_folder;
use super::{INTERRUPTED, note, print};

/// Ask a question about speech, sounds or music.
///
/// Prints the answer as it is written, and tokens per second on standard error. Of sound that is longer than what the model
/// hears at once, each window gets an answer, behind the seconds where it starts and ends. Ctrl-C stops it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Sound: WAV, FLAC, MP3, Ogg Vorbis, AAC, M4A, or the sound track of an MP4
    #[arg(value_name = "SOUND")]
    sound: PathBuf,
    /// The question, or a task by its name: AAC (describe sounds), ASR (transcribe), S2TT (translate into Chinese), MC (describe
    /// music)
    #[arg(value_name = "QUESTION")]
    question: String,
    /// Folder of a model that listens
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of one on the Hub, which is downloaded once: org/name or org/name@revision."
    )]
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    writing: WritingArgs,
    /// Search with N beams instead of drawing; an answer appears at its end
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Print JSON at the end: the model, the answers, and the time taken
    #[arg(long)]
    json: bool,
    /// With --json, the log-probability of each token
    #[arg(long, requires = "json", conflicts_with = "beams")]
    log_probs: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let dir = audio_folder(&args.model)?;
    // What is no sound is said before the model is read, which takes longer.
    let file = moesaic_encoders::audio::AudioFile::open(&args.sound, false).map_err(moesaic::Error::from)?;
    let length = file.info().seconds;
    drop(file);
    let mut chat = AudioChat::from_dir_on(dir, args.writing.dtype, args.writing.place.device)?;
    args.writing.attach_by(&mut |folder, strength| chat.attach(folder, strength))?;
    let mut options = args.writing.options();
    (options.log_probs, options.beams) = (args.log_probs, args.beams);
    let several = length.is_none_or(|seconds| seconds > chat.info().seconds);
    catch_interrupts()?;
    answering(true);
    let (mut all, mut from, mut total) = (Vec::new(), 0.0, Speed::default());
    for window in chat.open(&args.sound)? {
        let samples = window.map_err(moesaic::Error::from)?;
        let heard_to = from + samples.len() as f64 / 16_000.0;
        if several && !args.json {
            print(&format!("{from:.1} - {heard_to:.1} s: "))?;
        }
        let answer = match args.beams {
            Some(_) => {
                let answer = chat.answer(&samples, &args.question, &options)?;
                if !args.json {
                    print(&answer.text)?;
                }
                answer
            }
            None => {
                let (answers, times) = follow(chat.stream(&samples, &args.question, &options)?, args.json)?;
                total = total.with(&times);
                let Some(answer) = answers.into_iter().next() else { break };
                answer
            }
        };
        if !args.json {
            print("\n")?;
        }
        all.push(Heard::new(from, heard_to, answer));
        from = heard_to;
        if interrupted() {
            break;
        }
    }
    if args.json {
        #[derive(Serialize)]
        struct Output<'a> {
            model: &'a AudioModelInfo,
            answers: &'a [Heard],
            #[serde(skip_serializing_if = "Option::is_none")]
            speed: Option<Speed>,
        }
        let speed = args.beams.is_none().then_some(total);
        let output = Output { model: chat.info(), answers: &all, speed };
        print(&(serde_json::to_string_pretty(&output)? + "\n"))?;
    } else if args.beams.is_none() {
        note(&speed(&total, all.iter().map(|heard| heard.answer.tokens).sum()));
    }
    if interrupted() {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}
