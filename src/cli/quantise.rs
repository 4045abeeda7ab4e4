//! `moesaic quantize` and `moesaic eval language`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use moesaic::{Dtype, TextGenerator, quantise};
use moesaic_kernels::BlockFormat;
use moesaic_models::decoder::{Quantisation, QuantisedTensor};

use super::interrupt::leave_after;
use super::model::text_folder;
use super::{bytes, print};

/// Write a language model once more with its weights in 8 or 4 bits.
///
/// Linear maps and experts take the format, the output head q8_0; norms, biases, routers and embeddings stay. Prints the
/// measured error of the weights (root mean square, relative).
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of a language model
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// q8_0, q4_k, q4_1 or q4_0
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: BlockFormat,
    /// Leave all but experts as they are
    #[arg(long)]
    experts_only: bool,
    /// A new folder, or a new file that ends in .gguf [default: the folder's name and the format, beside it]
    #[arg(long, value_name = "DIR|FILE.gguf")]
    output: Option<PathBuf>,
    /// Also print the perplexity of this text before and after
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Measure how well a language model predicts a text: mean negative log-likelihood and perplexity.
#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    /// Folder of a language model, or a GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text, in UTF-8
    #[arg(value_name = "FILE")]
    text: PathBuf,
    /// Tokens that the model sees at once [default: its context, at most 2048]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Tokens from one window to the next [default: half a window]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Number type of the weights in memory: f32, bf16 or f16 [default: as stored]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn format(name: &str) -> Result<BlockFormat, String> {
    let known = BlockFormat::from_name(name).filter(|f| !matches!(f, BlockFormat::Q5K | BlockFormat::Q6K));
    known.ok_or_else(|| "choose q8_0, q4_k, q4_1 or q4_0".into())
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8 text: convert it", path.display()))?;
    if text.trim().is_empty() {
        bail!("{} has no text: give a file with some", path.display());
    }
    Ok(text)
}

pub(super) fn eval(args: &EvalArgs) -> Result<()> {
    let text = read(&args.text)?;
    let dir = text_folder(&args.model)?;
    let model = match args.dtype {
        None => TextGenerator::from_dir(dir)?,
        Some(dtype) => TextGenerator::from_dir_as(dir, dtype)?,
    };
    let found = model.perplexity(&text, args.window, args.stride)?;
    let shown = match args.json {
        true => serde_json::to_string_pretty(&found)?,
        false => format!(
            "{:<16} {}\n{:<16} {:.4}\n{:<16} {:.4}",
            "tokens", found.tokens, "mean NLL", found.mean_nll, "perplexity", found.perplexity
        ),
    };
    Ok(print(&(shown + "\n"))?)
}

pub(super) fn run(args: &Args) -> Result<()> {
    let dir = text_folder(&args.model)?;
    let out = match &args.output {
        Some(out) => out.clone(),
        None => {
            let Some(name) = args.model.file_name() else { bail!("give the new model a name with --output") };
            let mut name = name.to_os_string();
            name.push(format!("-{}", args.format.name()));
            if args.model.exists() { args.model.with_file_name(name) } else { name.into() }
        }
    };
    if out.symlink_metadata().is_ok() {
        bail!("{}: exists already: give another name, or remove it", out.display());
    }
    let text = args.text.as_deref().map(read).transpose()?;
    let measure = |dir: &Path| match &text {
        Some(text) => TextGenerator::from_dir(dir)?.perplexity(text, None, None).map(Some),
        None => Ok(None),
    };
    let before = measure(&dir)?;
    let how = Quantisation { format: args.format, experts_only: args.experts_only };
    // What is unfinished stands in a folder of its own, which goes away on failure and on Ctrl-C.
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = out.file_name() else { bail!("{}: is no name for a model: give another", out.display()) };
    let folder = tempfile::Builder::new().prefix(".moesaic-").tempdir_in(parent);
    let folder = folder.map_err(|error| anyhow!("cannot write {}: {}", out.display(), error.kind()))?;
    let unfinished = folder.path().to_path_buf();
    leave_after(move || {
        // Once more where a file appeared meanwhile.
        let _ = std::fs::remove_dir_all(&unfinished).or_else(|_| std::fs::remove_dir_all(&unfinished));
    })
    .context("cannot take over Ctrl-C")?;
    let made = folder.path().join(name);
    let tensors = quantise(&dir, &made, &how)?;
    let after = measure(&made)?;
    std::fs::rename(&made, &out).with_context(|| format!("cannot write {}", out.display()))?;
    folder.close().with_context(|| format!("cannot clean up beside {}", out.display()))?;
    if args.json {
        let report = serde_json::json!({
            "output": out.display().to_string(), "format": args.format.name(), "tensors": tensors,
            "perplexity": before.zip(after).map(|(before, after)| serde_json::json!({"before": before, "after": after})),
        });
        return Ok(print(&(serde_json::to_string_pretty(&report)? + "\n"))?);
    }
    let mut shown = table(&tensors);
    if let Some((before, after)) = before.zip(after) {
        shown += &format!("perplexity       {:.4} before, {:.4} after\n", before.perplexity, after.perplexity);
    }
    Ok(print(&(shown + &format!("written          {}\n", out.display())))?)
}

/// Matrices by kind and format.
fn table(tensors: &[QuantisedTensor]) -> String {
    let mut groups: BTreeMap<(&str, &str), Vec<&QuantisedTensor>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry((tensor.kind.name(), tensor.format.unwrap_or("as it was"))).or_default().push(tensor);
    }
    let mut text =
        format!("{:<10} {:<10} {:>7} {:>9} {:>9} {:>9}\n", "kind", "format", "tensors", "min", "mean", "max");
    for ((kind, format), group) in groups {
        let errors = || group.iter().map(|tensor| tensor.error);
        let mean = errors().sum::<f64>() / group.len().max(1) as f64;
        let (min, max) = (errors().fold(f64::INFINITY, f64::min), errors().fold(0.0, f64::max));
        text += &format!("{kind:<10} {format:<10} {:>7} {min:>9.5} {mean:>9.5} {max:>9.5}\n", group.len());
    }
    let fallbacks = tensors.iter().filter(|tensor| tensor.fallback).count();
    if fallbacks > 0 {
        text += &format!("{fallbacks} tensors have rows that do not fill blocks of the format\n");
    }
    let sum = |of: fn(&QuantisedTensor) -> usize| bytes(tensors.iter().map(|tensor| of(tensor) as u64).sum());
    text + &format!("matrices         {} before, {} after\n", sum(|t| t.before), sum(|t| t.after))
}
