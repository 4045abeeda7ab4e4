//! Low-rank adapters (LoRA) of a model: found by the published names of the maps that they change.
//!
//! An adapter is a folder as [PEFT](https://github.com/huggingface/peft) writes it: `adapter_config.json` says which maps,
//! how wide and how strong, `adapter_model.safetensors` holds `base_model.model.{map}.lora_A.weight [r, in]` and
//! `lora_B.weight [out, r]`. Of experts whose weights are stacked it holds `lora_A [E * r, in]` and `lora_B [out, r * E]`.
//!
//! - **Live** ([`Adapter::attach`]): beside weights of any kind, several at once, each with a strength; comes off again.
//! - **Merged** ([`Adapter::merge`] with [`Params::merging`]): added to the weights while they are read. Final, and without
//!   cost at run time.
//!
//! Both ways are strict: a tensor of the adapter that has no place in the model, or a place without its tensor, is an error
//! that names it. [`avsr`] reads the layout of Llama-AVSR and Llama-MTSK.

mod attach;
pub mod avsr;
mod config;
mod places;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::LowRank;
use moesaic_kernels::{Half, Params};

use crate::decoder::Site;

pub use attach::attach;
pub use config::{AdapterConfig, Targets};

/// The configuration of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Its tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What stands before the names of a model's maps.
pub(crate) const PREFIX: &str = "base_model.model";

/// An adapter that was opened.
#[derive(Clone, Debug)]
pub struct Adapter {
    config: AdapterConfig,
    checkpoint: Checkpoint,
}

impl Adapter {
    /// Opens a folder in PEFT's layout. Only its configuration and the header of its tensors are read here.
    ///
    /// # Errors
    /// A file is missing or broken, or the adapter is of a kind that cannot be run: the message says what it is.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::Msg(format!("{}: {e}; an adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}", path.display()))
        })?;
        let config =
            AdapterConfig::from_json(&text).map_err(|e| Error::Msg(format!("{}: {}", path.display(), plain(&e))))?;
        let weights = dir.join(WEIGHTS_FILE);
        if !weights.exists() && dir.join("adapter_model.bin").exists() {
            let dir = dir.display();
            bail!("{dir}: adapter_model.bin is a pickle, which is not read; save the adapter as {WEIGHTS_FILE}");
        }
        Ok(Self { config, checkpoint: Checkpoint::open(&weights)? })
    }

    /// Its configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Attaches the adapter to the maps of a model ([`Decoder::sites`](crate::decoder::Decoder::sites)), beside those that
    /// are there; `name` is what [`adjust`] knows it by. Gives the number of maps that it changes.
    ///
    /// # Errors
    /// The adapter is of another model: a tensor is missing, has another shape or has no place. The message names it and
    /// the nearest name. Adapters of the model may be attached in part then; [`adjust`] takes them off.
    pub fn attach(
        &self,
        sites: Vec<Site<'_>>,
        name: &str,
        weight: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<usize> {
        self.refuse_whole()?;
        self.attach_maps(sites, name, weight, dtype, device)
    }

    /// [`attach`](Self::attach) of an adapter that may bring [whole modules](Self::whole) too, which are left to the caller.
    pub(crate) fn attach_maps(
        &self,
        sites: Vec<Site<'_>>,
        name: &str,
        weight: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<usize> {
        if !weight.is_finite() {
            bail!("adapter {name:?}: a strength of {weight}");
        }
        let modules = places::modules(&sites);
        let params = Params::load(&self.checkpoint, dtype, device);
        let count = attach(&self.config, sites, &params, name, weight, Some(&self.checkpoint))?;
        let mut unused = params.unused();
        if !self.config.modules_to_save.is_empty() {
            unused.retain(|name| whole(name).is_none());
        }
        self.refuse_surplus(&unused, &modules)?;
        Ok(count)
    }

    /// The tensors of modules that were trained whole (`modules_to_save`), by the names that they have in the base model.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        let any = !self.config.modules_to_save.is_empty();
        self.checkpoint.names().filter_map(whole).filter(move |_| any)
    }

    /// The names of the maps that the adapter has tensors for.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.names().filter_map(|name| bare(name)?.strip_suffix(".lora_A.weight"))
    }

    /// The base model with the tensors of modules that were trained whole in place of its own.
    ///
    /// # Errors
    /// The base model has no such tensor, or one of another shape.
    pub fn over(&self, base: &Checkpoint) -> Result<Checkpoint> {
        let any = !self.config.modules_to_save.is_empty();
        base.overlaid(&self.checkpoint, |name| whole(name).filter(|_| any).map(str::to_string))
    }

    fn refuse_whole(&self) -> Result<()> {
        match self.config.modules_to_save.first() {
            None => Ok(()),
            Some(first) => bail!(
                "{}: it brings whole modules of its own (modules_to_save: {first}), which only models that look at pictures \
                 take; save them into the base model",
                self.checkpoint.label()
            ),
        }
    }

    /// Adds what this adapter changes to `changes`, by the names of the weights: what [`Params::merging`] takes. Several
    /// adapters add up. The maps of any model can be changed so, routers among them, as only names matter.
    ///
    /// # Errors
    /// A tensor that is half of a pair, or experts that are stacked in the adapter but not in the checkpoint (attach them).
    pub fn merge(&self, changes: &mut BTreeMap<String, Vec<LowRank>>, weight: f64) -> Result<()> {
        self.refuse_whole()?;
        let label = self.checkpoint.label();
        let (mut used, matcher) = (std::collections::BTreeSet::new(), self.config.matcher()?);
        for name in self.checkpoint.names() {
            let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
            let Some(map) = module.strip_prefix(PREFIX).and_then(|m| m.strip_prefix('.')) else { continue };
            let other = format!("{module}.lora_B.weight");
            let (Some(a), Some(b)) = (self.checkpoint.info(name), self.checkpoint.info(&other)) else {
                bail!("{label}: tensor {other} is missing")
            };
            let stacked = self.config.stacked(map);
            if map.split('.').any(|part| part == "base_layer") || stacked.is_some_and(|parameter| parameter != "weight")
            {
                bail!(
                    "{label}: {map} are stacked experts, which the checkpoint stores one by one; attach the adapter live"
                );
            }
            let weight_name = format!("{map}.weight");
            let key = if stacked.is_some() { &weight_name } else { map };
            let (rank, scale) = (matcher.rank(key)?, matcher.scale(key)?);
            let ([rows, _], [_, columns]) = (a.shape.as_slice(), b.shape.as_slice()) else {
                bail!("{label}: tensor {name} of shape {:?} is no map of low rank", a.shape)
            };
            let experts = if stacked.is_some() { rows / rank } else { 1 };
            if rows != columns || *rows != experts * rank || experts == 0 {
                bail!(
                    "{label}: {name} {:?} and {other} {:?} are not of rank {rank}, as {CONFIG_FILE} says",
                    a.shape,
                    b.shape
                );
            }
            let read = |name: &str, shape: &[usize]| self.checkpoint.read(name, shape, DType::F32, &Device::Cpu);
            let (a, b) = (read(name, &a.shape)?, read(&other, &b.shape)?);
            let change = match stacked {
                Some(_) => LowRank::interleaved(label, experts, a, b, scale)?,
                None => LowRank::new(label, a, b, scale)?,
            };
            changes.entry(weight_name).or_default().push(change.with_weight(weight));
            used.extend([name.to_string(), other]);
        }
        match self.checkpoint.unused(&used).as_slice() {
            [] => Ok(()),
            [first, ..] => bail!("{label}: tensor {first} is no part of a LoRA that can be merged"),
        }
    }

    fn refuse_surplus(&self, unused: &[String], modules: &[String]) -> Result<()> {
        let Some(first) = unused.first() else { return Ok(()) };
        let bare = first.strip_prefix(PREFIX).and_then(|m| m.strip_prefix('.')).unwrap_or(first);
        let map = bare.split(".lora_").next().unwrap_or(bare);
        let near = moesaic_kernels::checkpoint::nearest(map, modules.iter().map(String::as_str));
        let why = if modules.iter().any(|m| m == map) {
            format!("{CONFIG_FILE} does not name this map as a target")
        } else {
            let near = near.map_or("none is like it".to_string(), |near| format!("the nearest map is {near}"));
            format!("the model has no such map to adapt ({near}): is this the adapter's base model?")
        };
        bail!("{}: {} tensors have no place, the first is {first}: {why}", self.checkpoint.label(), unused.len())
    }
}

/// Reads a merged model: `changes` from [`Adapter::merge`], `load` builds the model from the parameters.
///
/// # Errors
/// What `load` refuses, and changes that the model never asked for: an adapter for another model.
pub fn load_merged<M>(
    checkpoint: &Checkpoint,
    changes: BTreeMap<String, Vec<LowRank>>,
    dtype: DType,
    device: &Device,
    load: impl FnOnce(&Params) -> Result<M>,
) -> Result<M> {
    let params = Params::merging(checkpoint, changes, dtype, device);
    let model = load(&params)?;
    let Some(first) = params.unmerged().into_iter().next() else { return Ok(model) };
    let near =
        checkpoint.nearest(&first).map_or("none is like it".to_string(), |near| format!("the nearest is {near}"));
    let label = checkpoint.label();
    bail!(
        "{label}: the adapter changes {first}, which the model does not read ({near}): it is of another model, or the map \
         shares its weights with another, as an output head may with the embedding; then attach the adapter live"
    )
}

/// Gives every attached adapter the strength that `weight` says by its name and the strength it has; `None` takes it off.
pub fn adjust(sites: Vec<Site<'_>>, weight: impl Fn(&str, f64) -> Option<f64>) {
    let weight = |a: &LowRank| weight(a.adapter(), a.weight());
    for site in sites {
        match site {
            Site::Linear { linear, .. } => linear.adjust(weight),
            Site::Experts { bank, .. } => bank.adjust(weight),
        }
    }
}

/// Adds all attached adapters to the weights for good.
///
/// # Errors
/// The weights are in tiles for the CPU, as those of a model loaded there for inference are, or are being trained; see
/// [`load_merged`].
pub fn merge_attached(sites: Vec<Site<'_>>) -> Result<()> {
    for site in sites {
        match site {
            Site::Linear { linear, .. } => linear.merge()?,
            Site::Experts { bank, .. } => bank.merge()?,
        }
    }
    Ok(())
}

/// The number of adapters at the maps of a model, by name.
pub fn attached(sites: Vec<Site<'_>>) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    let mut add = |adapters: &[LowRank]| {
        adapters.iter().for_each(|a| *count.entry(a.adapter().to_string()).or_default() += 1);
    };
    for site in sites {
        match site {
            Site::Linear { linear, .. } => add(linear.adapters()),
            Site::Experts { bank, .. } => [Half::Up, Half::Down].into_iter().for_each(|half| add(bank.adapters(half))),
        }
    }
    count
}

/// The name of a tensor or map in the base model.
fn bare(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_prefix('.')
}

/// The name in the base model of a tensor that was trained whole.
pub(crate) fn whole(name: &str) -> Option<&str> {
    bare(name).filter(|name| !name.contains(".lora_"))
}

/// An error's own text, without the stack trace that candle may add.
fn plain(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => plain(inner),
        other => other.to_string(),
    }
}
