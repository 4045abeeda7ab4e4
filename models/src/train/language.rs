//! Training a language model, or adapters of one, on text files from a TOML file: `moesaic train language CONFIG.toml`.
//!
//! The loss is next-token cross entropy plus the family's auxiliary loss ([`Decoder::loss`]). Everything is trained, from
//! seeded weights or from those of a model; or a part of a sparse model ([`Part`]); or, with `[lora]`, low-rank adapters
//! beside a model that stays as it is.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::with_dropout;
use moesaic_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

use super::data::text::{Documents, Rows, Tokenise, bytes, fingerprint};
use super::{AdamWConfig, Ended, Format, MOST_ROWS, Plan, Report, StepLoss, Trainable, Trainer, scalar};
use crate::decoder::{Context, Decoder, DecoderConfig, Input, Losses, Output, Usage};
use crate::folder::BESIDE;
use crate::lora::{AdapterConfig, CONFIG_FILE, Targets, WEIGHTS_FILE, attach};

/// What the run's folder says of the run, so that it is resumed with the same.
const RUN_FILE: &str = "language.json";
/// Tokens of a step.
const MOST_TOKENS: usize = 1 << 28;

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of rows and dropout.
    pub seed: u64,
    /// The model, as in its `config.json`: its weights start from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<serde_json::Map<String, serde_json::Value>>,
    /// Instead of `model`, a folder with a model to start from: fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// `tokenizer.json`; without it that of `init`, or, where there is none, the bytes of the text are its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What of the model is trained; the rest of `init` stays as it is and costs neither gradients nor moments.
    #[serde(default, skip_serializing_if = "Part::is_all")]
    pub train: Part,
    /// If given, adapters are trained and the model of `init` stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// A part of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All of it.
    #[default]
    All,
    /// The routers of its sparse layers, and the gates of their shared experts.
    Router,
    /// All of the feed-forward part of its sparse layers: routers, experts, shared experts.
    Experts,
}

impl Part {
    #[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
    fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Which published tensors belong to the part; none for all.
    pub(super) fn choice(self, decoder: &DecoderConfig) -> Result<Option<impl Fn(&str) -> bool + Send + Sync + use<>>> {
        if self == Self::All {
            return Ok(None);
        }
        let names = decoder.names;
        let prefix = |i: usize| format!("{}.{i}.{}.", names.layers, names.sparse);
        let prefixes: Vec<String> = decoder.sparse_layers().map(prefix).collect();
        if prefixes.is_empty() {
            bail!("train names a part of sparse layers, and this {} has none; leave it out", decoder.model_type);
        }
        let routers = [names.router, names.router_bias, names.shared_gate];
        Ok(Some(move |name: &str| {
            let inside = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix.as_str()));
            inside.is_some_and(|inside| self == Self::Experts || routers.contains(&inside))
        }))
    }
}

/// Adapters, under the names that PEFT's `adapter_config.json` has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The change of a map is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// By `lora_alpha / sqrt(r)` instead (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Share of inputs left out.
    pub lora_dropout: f64,
    /// Names of maps, a pattern for whole names, or `"all-linear"`.
    pub target_modules: TargetsConfig,
    /// Stacked expert tensors, such as `input_linear.weight` of GraniteMoE.
    pub target_parameters: Vec<String>,
    /// If not empty, only these layers.
    pub layers_to_transform: Vec<usize>,
    /// Dtype in which the model that stays as it is is held: `f32`, `bf16` or `f16`.
    pub base_dtype: String,
}

/// Targets in a TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetsConfig {
    /// `"all-linear"`, or a pattern.
    Pattern(String),
    /// Names, or their last parts.
    Names(Vec<String>),
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            use_rslora: false,
            lora_dropout: 0.0,
            target_modules: TargetsConfig::Names(vec!["q_proj".into(), "v_proj".into()]),
            target_parameters: Vec::new(),
            layers_to_transform: Vec::new(),
            base_dtype: "f32".into(),
        }
    }
}

impl LoraConfig {
    /// The adapter of this config for the model in `base`.
    pub fn adapter(&self, base: &Path) -> Result<AdapterConfig> {
        let config = AdapterConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            lora_dropout: self.lora_dropout,
            target_modules: match &self.target_modules {
                TargetsConfig::Pattern(all) if all == "all-linear" => Targets::AllLinear,
                TargetsConfig::Pattern(pattern) => Targets::Pattern(pattern.clone()),
                TargetsConfig::Names(names) => Targets::Names(names.clone()),
            },
            target_parameters: self.target_parameters.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            base_model: Some(base.display().to_string()),
            ..AdapterConfig::default()
        };
        config.validate().map_err(|e| Error::Msg(format!("lora: {e}")))?;
        Ok(config)
    }

    pub(super) fn base_dtype(&self) -> Result<DType> {
        Ok(match self.base_dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => bail!("lora.base_dtype is {other:?}, expected f32, bf16 or f16"),
        })
    }
}

/// What a language model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Text files in UTF-8, or folders of `.txt` files.
    pub files: Vec<PathBuf>,
    /// The line that stands between documents; without one, each file is one document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Tokens in a row.
    pub length: usize,
    /// Rows in a batch.
    pub rows: usize,
    /// Share of the text, at its end, that is not trained on but measured.
    #[serde(default)]
    pub validation: f64,
    /// Instead of that share, files of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation_files: Vec<PathBuf>,
    /// Steps between measurements; there is one before the first and one after the last step as well.
    #[serde(default = "often")]
    pub eval_every: u64,
    /// At most so many rows are measured, the first of the held-out text.
    #[serde(default = "enough")]
    pub eval_rows: usize,
}

pub(super) fn often() -> u64 {
    100
}

fn enough() -> usize {
    512
}

impl TrainConfig {
    /// Checks what does not need the model.
    pub fn validate(&self) -> Result<()> {
        self.optimiser.validate()?;
        let data = &self.data;
        if data.files.is_empty() {
            bail!("data.files names no text file");
        }
        if data.length < 2 || data.rows == 0 || data.eval_every == 0 || data.eval_rows == 0 {
            bail!("data: length must be at least 2, and rows, eval_every and eval_rows at least 1");
        }
        if data.rows > MOST_ROWS || data.rows.saturating_mul(data.length) > MOST_TOKENS {
            bail!("data: a step of more than {MOST_ROWS} rows or {MOST_TOKENS} tokens is not supported");
        }
        if !(0.0..=0.9).contains(&data.validation) {
            bail!("data.validation is {}, expected a share between 0 and 0.9", data.validation);
        }
        if data.validation > 0.0 && !data.validation_files.is_empty() {
            bail!("data.validation and data.validation_files are both given; leave one out");
        }
        match (&self.model, &self.init) {
            (Some(_), Some(_)) => {
                bail!("model and init are both given: init brings its own config.json; leave one out")
            }
            (None, None) => bail!("give [model] to train from nothing, or init, the folder of a model to start from"),
            (Some(_), None) if self.lora.is_some() => {
                bail!("[lora] adapts a trained model: give init instead of [model]")
            }
            (Some(_), None) if !self.train.is_all() => {
                bail!("train names a part of a trained model: give init instead of [model]")
            }
            _ if self.lora.is_some() && !self.train.is_all() => {
                bail!("train and [lora] are both given: adapters have targets of their own; leave one out")
            }
            _ => Ok(()),
        }
    }

    /// The tokenizer that the run wants: the one named, or that of the model to start from.
    pub fn tokenizer_file(&self) -> Option<PathBuf> {
        let own = || self.init.as_ref().map(|dir| dir.join("tokenizer.json")).filter(|file| file.exists());
        self.tokenizer.clone().or_else(own)
    }

    fn decoder(&self) -> Result<DecoderConfig> {
        match (&self.init, &self.model) {
            (Some(dir), _) => DecoderConfig::load(dir),
            (None, Some(model)) => {
                let text = serde_json::to_string(model).map_err(|e| Error::Msg(e.to_string()))?;
                DecoderConfig::from_json(&text).map_err(|e| Error::Msg(format!("model: {e}")))
            }
            _ => bail!("there is no model"),
        }
    }
}

struct Language {
    model: Decoder,
    params: Params,
    /// Of the batches of a step, where the model is steered by them.
    usage: Option<Mutex<Usage>>,
    adapter: Option<AdapterConfig>,
    train: Rows,
    held_out: Option<Rows>,
    data: DataConfig,
    seed: u64,
    accumulation: u64,
    beside: Vec<PathBuf>,
}

/// Rows of token ids, and the pass that they are for.
struct Batch {
    ids: Vec<u32>,
    pass: u64,
}

impl Language {
    /// `ids` in rows of `length`, each position to predict the next.
    fn losses(&self, ids: &[u32], length: usize, training: bool) -> Result<(Losses, Output)> {
        let rows = ids.len() / length;
        let labels: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::from_slice(ids, (rows, length), self.model.device())?;
        self.model.loss(Input::Ids(&ids), &Context { training, ..Context::default() }, &labels)
    }
}

impl Trainable for Language {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.accumulation + part as u64;
        let ids = self.train.batch(self.seed, index * self.data.rows as u64, self.data.rows);
        Ok(Batch { ids, pass: Rng::keyed(&[self.seed, index]).next_u64() })
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let (losses, output) = with_dropout(batch.pass, || self.losses(&batch.ids, self.data.length, true))?;
        if let Some(usage) = &self.usage {
            usage.lock().unwrap_or_else(PoisonError::into_inner).add(&output)?;
        }
        let mut parts = vec![("cross_entropy".to_string(), scalar(&losses.cross_entropy)?)];
        if let Some(aux) = &losses.aux {
            parts.push(("balance".to_string(), scalar(aux)?));
        }
        Ok(StepLoss { total: losses.total, parts, tokens: batch.ids.len() })
    }

    fn after_step(&self) -> Result<()> {
        let Some(usage) = &self.usage else { return Ok(()) };
        let usage = std::mem::take(&mut *usage.lock().unwrap_or_else(PoisonError::into_inner));
        self.model.steer(&self.params, &usage)
    }

    fn config_json(&self) -> Result<String> {
        match &self.adapter {
            Some(adapter) => adapter.to_json(),
            None => {
                let published = &self.model.config().published;
                Ok(serde_json::to_string_pretty(published).map_err(|e| Error::Msg(e.to_string()))? + "\n")
            }
        }
    }

    fn format(&self) -> Format {
        match self.adapter {
            Some(_) => {
                Format { weights: WEIGHTS_FILE, config: CONFIG_FILE, dtype: DType::F32, beside: self.beside.clone() }
            }
            None => Format { beside: self.beside.clone(), ..Format::default() },
        }
    }

    /// Mean cross entropy of the held-out text, its perplexity, and where it varies the mean number of experts of a token in a layer,
    /// those without a network left out.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        let Some(rows) = &self.held_out else { return Ok(Vec::new()) };
        if !step.is_multiple_of(self.data.eval_every) && step != steps {
            return Ok(Vec::new());
        }
        let (length, most) = (self.data.length, self.data.eval_rows);
        let all: Vec<usize> = (0..rows.count().min(most)).collect();
        let (mut sum, mut count, mut experts) = (0.0, 0usize, 0.0);
        let mut add = |ids: &[u32], length: usize| -> Result<()> {
            let predicted = ids.len() / length * (length - 1);
            let (losses, output) = self.losses(ids, length, false)?;
            sum += scalar(&losses.cross_entropy)? * predicted as f64;
            count += predicted;
            experts += output.networks_per_token(self.model.config())? * predicted as f64;
            Ok(())
        };
        for some in all.chunks(self.data.rows) {
            let ids: Vec<u32> = some.iter().flat_map(|&i| rows.row(i).to_vec()).collect();
            add(&ids, length)?;
        }
        let rest = rows.rest();
        if rows.count() < most && !rest.is_empty() {
            add(rest, rest.len())?;
        }
        let mean = sum / count.max(1) as f64;
        let mut measured = vec![("validation".into(), mean), ("perplexity".into(), mean.exp())];
        if self.model.config().sparse.is_some_and(|sparse| sparse.router.varies()) {
            measured.push(("experts".into(), experts / count.max(1) as f64));
        }
        Ok(measured)
    }
}

/// What must be the same when a run is taken up again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    config: TrainConfig,
    /// Of the tokens that are trained on.
    tokens: usize,
    fingerprint: String,
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds
/// checkpoints already is refused rather than overwritten.
///
/// `tokenise` gives the token ids of a document, special tokens included; without it they are the bytes of the text.
pub fn run(
    config: &TrainConfig,
    tokenise: Option<&Tokenise<'_>>,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let out: &Path = &config.plan.out;
    let newest = super::newest(out, resume)?;
    let decoder = config.decoder()?;
    if config.data.length > decoder.max_positions {
        bail!("data.length is {}, the model's context {}", config.data.length, decoder.max_positions);
    }
    let part = config.train.choice(&decoder)?;
    let (train, held_out) = texts(config, tokenise.unwrap_or(&bytes), &decoder)?;
    remember(config, &train, resume)?;

    let device = Device::Cpu;
    let (model, params, adapter) = match (&config.lora, &config.init) {
        (Some(lora), Some(base)) => {
            let adapter = lora.adapter(base)?;
            let frozen = Params::frozen(&Checkpoint::open(base)?, lora.base_dtype()?, &device);
            let mut model = Decoder::new(decoder, &frozen)?;
            let params = match &newest {
                Some(dir) => Params::resume(&Checkpoint::open(&dir.join(WEIGHTS_FILE))?, &device),
                None => Params::init(config.seed, &device),
            };
            attach(&adapter, model.sites(), &params, "training", 1.0, None)?;
            (model, params, Some(adapter))
        }
        _ => {
            let params = match (newest.as_ref().or(config.init.as_ref()), part) {
                (Some(dir), Some(part)) => Params::resume_some(&Checkpoint::open(dir)?, &device, part),
                (Some(dir), None) => Params::resume(&Checkpoint::open(dir)?, &device),
                (None, _) => Params::init(config.seed, &device),
            };
            (Decoder::new(decoder, &params)?, params, None)
        }
    };
    let usage = (adapter.is_none() && model.is_steered()).then(Mutex::default);
    let trainable = Language {
        model,
        params: params.clone(),
        usage,
        adapter,
        train,
        held_out,
        data: config.data.clone(),
        seed: config.seed,
        accumulation: config.plan.accumulation as u64,
        beside: beside(config),
    };
    Trainer::start(&trainable, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

/// The text to train on and the text that is held out.
fn texts(config: &TrainConfig, tokenise: &Tokenise<'_>, decoder: &DecoderConfig) -> Result<(Rows, Option<Rows>)> {
    let data = &config.data;
    let (separator, end) = (data.separator.as_deref(), decoder.eos_token_ids.first().copied());
    let read = |paths: &[PathBuf]| Documents { paths, separator }.tokens(tokenise, end, decoder.vocab_size);
    let mut tokens = read(&data.files)?;
    let held_out = if data.validation > 0.0 {
        let kept = ((tokens.len() as f64) * (1.0 - data.validation)).round() as usize;
        Some(tokens.split_off(kept.min(tokens.len())))
    } else if data.validation_files.is_empty() {
        None
    } else {
        Some(read(&data.validation_files)?)
    };
    let held_out = held_out.map(|tokens| Rows::new(tokens, data.length)).transpose();
    let held_out = held_out.map_err(|e| Error::Msg(format!("the text held out for validation: {e}")))?;
    Ok((Rows::new(tokens, data.length)?, held_out))
}

/// Writes down what the run is made of, or checks that it is the same.
fn remember(config: &TrainConfig, train: &Rows, resume: bool) -> Result<()> {
    let out = &config.plan.out;
    let tokens = train.tokens();
    let now =
        Run { config: config.clone(), tokens: tokens.len(), fingerprint: format!("{:016x}", fingerprint(tokens)) };
    let path = out.join(RUN_FILE);
    match super::remember(out, RUN_FILE, now, resume)? {
        None => Ok(()),
        Some((then, now)) if then.config != now.config => bail!(
            "{}: the run was started with another config; resume with the same, or start anew elsewhere",
            path.display()
        ),
        Some((then, now)) => bail!(
            "{}: the run was started on other text or another tokenizer ({} tokens, now {}); resume with the same, or start \
             anew elsewhere",
            path.display(),
            then.tokens,
            now.tokens
        ),
    }
}

/// The tokenizer's files, to be copied beside the weights.
fn beside(config: &TrainConfig) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = config.tokenizer.iter().filter(|f| f.ends_with("tokenizer.json")).cloned().collect();
    if let Some(dir) = &config.init {
        let own = |name: &&&str| files.is_empty() || **name != "tokenizer.json";
        let more: Vec<PathBuf> = BESIDE.iter().filter(own).map(|name| dir.join(name)).filter(|f| f.is_file()).collect();
        files.extend(more);
    }
    files
}
