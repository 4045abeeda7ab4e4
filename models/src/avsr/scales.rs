//! A language model with the adapters of Llama-AVSR and Llama-MTSK, one of whose scales is at work in a pass.
//!
//! | `lora_type` | the paper's | adapters at scale `i` |
//! | --- | --- | --- |
//! | absent | MS | the one of all scales |
//! | `local` | SS | `local_loras.{i}` |
//! | `local-global` | MSS | `local_loras.{i}` and `global_lora`, summed before they are scaled |

use std::path::Path;

use candle_core::{DType, Device, Error, Result, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::with_only;
use moesaic_kernels::{Params, Probe, shown};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{llm, read};
use crate::decoder::{Cache, Context, Decoder, DecoderConfig, Input, Losses, Output};
use crate::generate::Backbone;
use crate::lora::avsr::{Reduced, attach};

/// Which adapters a scale has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One for all scales.
    Shared,
    /// Of each of this many scales its own.
    Own(usize),
    /// Of each of this many scales its own, and one for all.
    Both(usize),
}

/// Adapters of queries and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// Their rank and strength.
    pub numbers: Reduced,
    /// Which there are.
    pub scales: Scales,
}

#[derive(Deserialize)]
struct Keys {
    reduction_lora: Option<f64>,
    alpha: Option<f64>,
    lora_type: Option<String>,
    variant: Option<String>,
    n_lora: Option<usize>,
}

/// Most scales.
const MOST: usize = 1 << 10;

impl LoraConfig {
    /// From `reduction_lora`, `alpha`, `lora_type` and `n_lora`, by default one for each of `scales`; absent without the first.
    pub(super) fn new(map: &Map<String, Value>, scales: usize) -> Result<Option<Self>> {
        let keys: Keys =
            serde_json::from_value(Value::Object(map.clone())).map_err(|e| Error::Msg(format!("config.json: {e}")))?;
        let Some(reduction) = keys.reduction_lora else { return Ok(None) };
        let alpha = keys.alpha.unwrap_or(reduction / 8.0); // the paper's scale of 1/8
        if !(reduction.is_finite() && reduction >= 1.0 && alpha.is_finite()) {
            bail!("reduction_lora {reduction} and alpha {alpha}: expected a reduction of at least 1");
        }
        let count = keys.n_lora.unwrap_or(scales);
        if count == 0 || count > MOST {
            bail!("n_lora is {count}, expected 1 to {MOST}");
        }
        let variant = |end: &str| keys.variant.as_deref().is_some_and(|v| v.ends_with(end));
        let scales = match keys.lora_type.as_deref() {
            Some("local") => Scales::Own(count),
            Some("local-global") => Scales::Both(count),
            Some("global") => Scales::Shared,
            Some(other) => bail!("lora_type {}: expected local, local-global or global", shown(other)),
            None if variant("_mss") => Scales::Both(count),
            None if variant("_ss") => Scales::Own(count),
            None => Scales::Shared,
        };
        Ok(Some(Self { numbers: Reduced { reduction, alpha }, scales }))
    }
}

/// A language model and its adapters.
#[derive(Debug)]
pub struct ScaledDecoder {
    decoder: Decoder,
    /// Of each scale the adapters at work; one entry stands for all scales.
    chosen: Vec<Vec<String>>,
}

impl ScaledDecoder {
    /// Loads a folder with a language model alone: `config.json` has its keys under `llama`, and those of the adapters.
    ///
    /// # Errors
    /// Config or weights cannot be read or do not fit: the message says which.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let (map, checkpoint) = (read(dir)?, Checkpoint::open(dir)?);
        let params = Params::load(&checkpoint, dtype, device);
        let model = Self::new(llm(&map)?, LoraConfig::new(&map, 1)?, &params, &params)?;
        let unknown = params.unused().into_iter().find(|name| !model.decoder.config().ignorable(name));
        match unknown {
            None => Ok(model),
            Some(name) => {
                bail!(
                    "{}: tensor {name} does not belong to a model of this config; check config.json",
                    checkpoint.label()
                )
            }
        }
    }

    /// The model with tensors of `base` and adapters of `adapters`, which both stand where its names start.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(config: DecoderConfig, lora: Option<LoraConfig>, base: &Params, adapters: &Params) -> Result<Self> {
        let mut decoder = Decoder::new(config, base)?;
        let Some(LoraConfig { numbers, scales }) = lora else {
            return Ok(Self { decoder, chosen: vec![Vec::new()] });
        };
        let local = |i: usize| format!("local_loras.{i}");
        let chosen: Vec<Vec<String>> = match scales {
            Scales::Shared => vec![vec![String::new()]],
            Scales::Own(n) => (0..n).map(|i| vec![local(i)]).collect(),
            Scales::Both(n) => (0..n).map(|i| vec![local(i), "global_lora".to_string()]).collect(),
        };
        let mut groups: Vec<&str> = chosen.iter().flatten().map(String::as_str).collect();
        groups.sort_unstable();
        groups.dedup();
        attach(decoder.sites(), adapters, numbers, &groups)?;
        Ok(Self { decoder, chosen })
    }

    /// The language model; with all adapters at work, so it is computed with [`at`](Self::at).
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Number of scales that have adapters of their own; 1 where all share.
    pub fn scales(&self) -> usize {
        self.chosen.len()
    }

    /// The model at a scale.
    ///
    /// # Errors
    /// There is no such scale.
    pub fn at(&self, scale: usize) -> Result<AtScale<'_>> {
        let index = if self.chosen.len() == 1 { 0 } else { scale };
        match self.chosen.get(index) {
            Some(names) => Ok(AtScale { decoder: &self.decoder, names: names.iter().map(String::as_str).collect() }),
            None => bail!("scale {scale} of a model with adapters for {}", self.chosen.len()),
        }
    }
}

/// A model at one scale.
#[derive(Clone, Debug)]
pub struct AtScale<'m> {
    decoder: &'m Decoder,
    names: Vec<&'m str>,
}

impl AtScale<'_> {
    /// As [`Decoder::forward`].
    ///
    /// # Errors
    /// As there.
    pub fn forward(
        &self,
        input: Input<'_>,
        context: &Context,
        cache: Option<&mut Cache>,
        probe: Option<&Probe>,
    ) -> Result<Output> {
        with_only(&self.names, || self.decoder.forward(input, context, cache, probe))
    }

    /// As [`Decoder::loss`].
    ///
    /// # Errors
    /// As there.
    pub fn loss(&self, input: Input<'_>, context: &Context, labels: &[i64]) -> Result<(Losses, Output)> {
        with_only(&self.names, || self.decoder.loss(input, context, labels))
    }
}

impl Backbone for AtScale<'_> {
    fn next_logits(&self, input: Input<'_>, context: &Context, cache: &mut Cache) -> Result<candle_core::Tensor> {
        with_only(&self.names, || self.decoder.next_logits(input, context, cache))
    }

    fn max_positions(&self) -> usize {
        self.decoder.config().max_positions
    }

    fn device(&self) -> &Device {
        self.decoder.device()
    }
}
