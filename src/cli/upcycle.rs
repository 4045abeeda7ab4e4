//! `moesaic upcycle` and `moesaic mix`

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use candle_core::DType;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use moesaic::Dtype;
use moesaic_kernels::checkpoint::gguf::is_gguf;
use moesaic_models::upcycle::{Error, Options, Plan, Start};

use super::{INTERRUPTED, bytes, count, model, note};

/// Make a mixture of experts out of a dense language model.
///
/// The feed-forward part of each layer becomes experts, by default copies of it: the result starts with the logits of the dense
/// model, and is to be trained from there (moesaic train language). It is written as a published family: mixtral,
/// granitemoe or qwen2_moe, whichever computes the rest of the dense model exactly.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The dense model (llama or qwen2): a folder with config.json and weights, or a GGUF file
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(feature = "hub", doc = "Also the id of a model on the Hub, which is downloaded first.")]
    #[arg(value_name = "DENSE")]
    dense: PathBuf,
    /// Routed experts of a layer
    #[arg(long, value_name = "N")]
    experts: usize,
    /// Parts in a shared expert for every token, each as wide as a routed expert
    #[arg(long, value_name = "S", default_value_t = 0)]
    shared: usize,
    /// Experts are copies of the dense network, or parts of it, each in one expert only (LLaMA-MoE)
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Init::Copy)]
    init: Init,
    #[command(flatten)]
    common: Common,
}

/// Make a mixture of experts out of dense siblings.
///
/// Branch-Train-MiX: the feed-forward parts of dense models of one shape, usually one model trained on different texts, become
/// the experts of one model; everything else is their mean, and the router is random, to be trained
/// (moesaic train language --train router, or more of it).
#[derive(Debug, clap::Args)]
pub(super) struct MixArgs {
    /// The dense models, two or more, of one shape and one vocabulary; tokenizer and config are those of the first
    #[arg(value_name = "DENSE", required = true, num_args = 2..)]
    siblings: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What both commands have.
#[derive(Debug, clap::Args)]
struct Common {
    /// Experts for each token
    #[arg(long, value_name = "K")]
    top_k: usize,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Parts that a copy of the dense network is cut into; a token gets whole copies, each in G experts
    #[arg(long, value_name = "G", default_value_t = 1)]
    granularity: usize,
    /// Noise on the weights of routed experts, in standard deviations of the dense tensor
    #[arg(long, value_name = "S", default_value_t = 0.0, allow_negative_numbers = true)]
    noise: f64,
    /// Share of the neurons of each routed expert that start anew
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    reinit: f64,
    /// Cut each copy along another random order of its neurons
    #[arg(long)]
    shuffle: bool,
    /// Weigh experts by the softmax over all of them, not divided by the sum of the chosen
    #[arg(long)]
    plain_softmax: bool,
    /// Standard deviation of the router's initial weights [default: the dense model's initializer_range]
    #[arg(long, value_name = "STD", allow_negative_numbers = true)]
    router_std: Option<f64>,
    /// Coefficient of the load balance loss in training
    #[arg(long, value_name = "C", default_value_t = 0.01, allow_negative_numbers = true)]
    aux_loss: f64,
    /// The family to write: mixtral, granitemoe or qwen2_moe [default: the first that fits]
    #[arg(long, value_name = "NAME")]
    family: Option<String>,
    /// Layers that become sparse, counted from 0, such as 1,5,9 or 3-29/4 (every fourth from 3 to 29) [default: all]
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<Layers>,
    /// Number type to write: f32, bf16 or f16 [default: as the dense model]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Of the router, of noise and of orders
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Init {
    Copy,
    Split,
}

/// A list that clap takes as one value.
#[derive(Debug, Clone, PartialEq)]
struct Layers(Vec<usize>);

/// `3-29/4,30`
fn layers(text: &str) -> Result<Layers, String> {
    /// A model with more layers is a mistake.
    const MOST: usize = 1 << 14;
    let number = |text: &str| {
        let number = text.trim().parse::<usize>().ok().filter(|n| *n < MOST);
        number.ok_or(format!("{text:?} is no layer: give numbers from 0 and ranges, such as 1,5,9 or 3-29/4"))
    };
    let mut all = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, number(step)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if step == 0 || last < first {
            return Err(format!("{part:?} is no range of layers: give, for example, 3-29/4"));
        }
        all.extend((first..=last).step_by(step));
    }
    Ok(Layers(all))
}

fn dtype(name: Dtype) -> DType {
    match name {
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    }
}

impl Common {
    fn options(&self) -> Options {
        Options {
            top_k: self.top_k,
            granularity: self.granularity,
            noise: self.noise,
            reinit: self.reinit,
            shuffle: self.shuffle,
            renormalise: !self.plain_softmax,
            router_std: self.router_std,
            aux_loss: self.aux_loss,
            family: self.family.clone(),
            layers: self.layers.as_ref().map(|layers| layers.0.clone()),
            dtype: self.dtype.map(dtype),
            seed: self.seed,
            ..Options::default()
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let start = match args.init {
        Init::Copy => Start::Copy,
        Init::Split => Start::Split,
    };
    let options = Options { experts: args.experts, shared: args.shared, start, ..args.common.options() };
    make(&args.common, || {
        let dense = model::text_folder(&args.dense)?;
        Ok((Plan::upcycle(&dense, options).map_err(told)?, dense))
    })
}

pub(super) fn mix(args: &MixArgs) -> Result<()> {
    let siblings = args.siblings.iter().map(|sibling| model::text_folder(sibling)).collect::<Result<Vec<_>>>()?;
    make(&args.common, || {
        let plan = Plan::mix(&siblings, args.common.options()).map_err(told)?;
        Ok((plan, siblings.into_iter().next().unwrap_or_default()))
    })
}

/// One line.
fn told(error: Error) -> anyhow::Error {
    match error {
        Error::Model(error) => anyhow!(moesaic::candle_message(&error)),
        other => other.into(),
    }
}

/// `plan` gives what is to be made, and the path of the model whose tokenizer it gets.
fn make(common: &Common, plan: impl FnOnce() -> Result<(Plan, PathBuf)>) -> Result<()> {
    // Asked first: it is found out before a model is downloaded.
    if common.output.symlink_metadata().is_ok() {
        return Err(anyhow!("{}: exists already: choose a new folder", common.output.display()));
    }
    let (mut plan, dense) = plan()?;
    describe(&plan);
    if is_gguf(&dense) {
        match moesaic::gguf_tokenizer(&dense) {
            Ok(files) => files.into_iter().for_each(|(name, text)| plan.add_file(name, text)),
            Err(error) => note(&format!("the model is written without a tokenizer: {error}")),
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed)).context("cannot take over Ctrl-C")?;
    let bar = bar();
    let written = plan.write(&common.output, &stop, &mut |done, all| {
        if let Some(bar) = &bar {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match written {
        Ok(()) => {
            let output = common.output.display();
            let same = if plan.exact() { "; it gives the logits of the dense model" } else { "" };
            note(&format!("done: the model is in {output}{same}"));
            if !common.output.join("tokenizer.json").exists() {
                note("the dense model brings no tokenizer.json: put one beside the weights before the model writes");
            }
            Ok(())
        }
        Err(Error::Stopped) => {
            note("stopped: nothing is left of the model");
            std::process::exit(INTERRUPTED);
        }
        Err(error) => Err(told(error)),
    }
}

/// What will be written, and whether this machine could hold it, before it is.
fn describe(plan: &Plan) {
    let (config, parameters) = (plan.config(), plan.parameters());
    let (experts, k) = config.sparse.map_or((0, 0), |sparse| (sparse.experts, sparse.k));
    note(&format!(
        "{} of {} parameters ({} at work for a token): {experts} experts in {} of {} layers, {k} for each token; {} of \
         weights",
        config.model_type,
        count(parameters.total()),
        count(parameters.active()),
        config.sparse_layers().count(),
        config.layers.len(),
        bytes(plan.bytes())
    ));
    if let Some(memory) = memory().filter(|memory| *memory < plan.bytes()) {
        note(&format!("this machine has {} of memory: it can write the model, and not hold it", bytes(memory)));
    }
}

/// Bytes of memory of this machine, where Linux says so.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A bar on standard error, where that is a terminal.
fn bar() -> Option<ProgressBar> {
    io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        match ProgressStyle::with_template("{bar:30} {pos} of {len} tensors, {eta} left") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_layers() {
        let list = |text| layers(text).map(|layers| layers.0);
        assert_eq!(list("1,5,9"), Ok(vec![1, 5, 9]));
        assert_eq!(list("3-11/4, 20"), Ok(vec![3, 7, 11, 20]));
        assert_eq!(list("2-3"), Ok(vec![2, 3]));
        for bad in ["", "a", "3-1", "1-9/0", "-1", "1,", "99999999", "1-99999999"] {
            assert!(list(bad).is_err(), "{bad}");
        }
    }
}
