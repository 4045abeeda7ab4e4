//! `moesaic ask`

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use moesaic::prompts::Turn;
use moesaic::{Answer, Device, Dtype, Picture, Speed, VisionChat, VisionModelInfo};
use serde::Serialize;

use super::generate::{conclude, follow};
use super::language::{WritingArgs, answering, catch_interrupts, interrupted};
use super::model::vision_folder;
use super::{INTERRUPTED, print};

/// Ask a question about pictures.
///
/// Prints the answer as it is written, and tokens per second on standard error. Ctrl-C stops it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pictures: JPEG, PNG, WebP, GIF, BMP or TIFF
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// The question; <image> in it says where each picture stands, else all stand in front
    #[arg(value_name = "QUESTION", required = true)]
    question: String,
    /// Folder of a model that looks at pictures; the small one of the program if left out, which knows shapes and digits
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of one on the Hub, which is downloaded once: org/name or org/name@revision."
    )]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Scale pictures down to so many pixels, for models that take them in any size (Qwen3-VL): fewer tokens
    #[arg(long, value_name = "N")]
    max_pixels: Option<usize>,
    #[command(flatten)]
    writing: WritingArgs,
    /// Print JSON at the end: the model, the answer, and the time taken
    #[arg(long)]
    json: bool,
    /// With --json, the log-probability of each token
    #[arg(long, requires = "json")]
    log_probs: bool,
}

/// Reads pictures.
pub(super) fn pictures(paths: &[PathBuf]) -> Result<Vec<Picture>> {
    paths.iter().map(|path| Ok(Picture::open(path).map_err(moesaic::Error::from)?)).collect()
}

/// The model that is named, or the built-in one.
pub(super) fn open(
    model: Option<&Path>,
    dtype: Option<Dtype>,
    device: Device,
    max_pixels: Option<usize>,
) -> Result<VisionChat> {
    let mut chat = match (model.map(vision_folder).transpose()?, dtype) {
        (Some(dir), dtype) => VisionChat::from_dir_on(dir, dtype, device)?,
        (None, None) => VisionChat::embedded_on(device)?,
        (None, Some(_)) => bail!("--dtype is for a model that --model names"),
    };
    if let Some(most) = max_pixels {
        chat.limit_pixels(most);
    }
    Ok(chat)
}

pub(super) fn run(args: &Args) -> Result<()> {
    // Pictures come before the model, which takes longer to read.
    let pictures = pictures(&args.images)?;
    let mut chat = open(args.model.as_deref(), args.writing.dtype, args.writing.place.device, args.max_pixels)?;
    args.writing.attach_by(&mut |folder, strength| chat.attach(folder, strength))?;
    let mut options = args.writing.options();
    options.log_probs = args.log_probs;
    catch_interrupts()?;
    answering(true);
    let turns = [Turn { question: &args.question, answer: None }];
    let (answers, times) = follow(chat.stream(&pictures, &turns, &options)?, args.json)?;
    if args.json {
        #[derive(Serialize)]
        struct Output<'a> {
            model: &'a VisionModelInfo,
            answers: &'a [Answer],
            speed: Speed,
        }
        let output = Output { model: chat.info(), answers: &answers, speed: times };
        print(&(serde_json::to_string_pretty(&output)? + "\n"))?;
    } else {
        conclude(&answers, &times)?;
    }
    if interrupted() {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}
