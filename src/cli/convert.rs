//! `moesaic convert`

use std::path::PathBuf;

use anyhow::{Context, Result};
use moesaic::convert;

use super::interrupt::leave_after;
use super::{bytes, note, print};

/// Write a checkpoint of torch (.pt, .pth, .ckpt) as a model folder with safetensors.
///
/// Nothing in the file is executed: its pickle is read by a machine that has no calls, and whatever is neither part of a tensor nor
/// plain data is refused by name. The settings of fairseq and Lightning become config.json. A model's licence stays what it was:
/// AV-HuBERT's weights, for one, are for non-commercial research.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The checkpoint
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A new folder
    #[arg(value_name = "DIR")]
    output: PathBuf,
    /// Take the weights that stand under this name [default: model, state_dict or model_state_dict, else all]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    // What is unfinished stands beside the folder, under a name of this process.
    let name = args.output.file_name().map(|name| format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let unfinished = name.map(|name| args.output.with_file_name(name));
    leave_after(move || {
        if let Some(unfinished) = &unfinished {
            // Once more where a file appeared meanwhile.
            let _ = std::fs::remove_dir_all(unfinished).or_else(|_| std::fs::remove_dir_all(unfinished));
        }
    })
    .context("cannot take over Ctrl-C")?;
    let made = convert(&args.file, &args.output, args.key.as_deref())?;
    if args.json {
        return Ok(print(&(serde_json::to_string_pretty(&made)? + "\n"))?);
    }
    let place = made.key.as_ref().map_or(String::new(), |key| format!(" of {key:?}"));
    let mut text = format!("{:<16} {}{place}, {}\n", "tensors", made.tensors, bytes(made.bytes));
    if made.config {
        let kind = made.model_type.as_deref().unwrap_or("settings of the training run");
        text += &format!("{:<16} {kind}\n", "config.json");
    } else {
        note("the checkpoint holds no settings that are known: write a config.json beside the weights");
    }
    if let Some(first) = made.skipped.first() {
        note(&format!("{} names beside the weights hold no tensor, the first is {first:?}", made.skipped.len()));
    }
    Ok(print(&(text + &format!("{:<16} {}\n", "written", args.output.display())))?)
}
