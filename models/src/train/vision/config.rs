//! What a TOML file says of the training of a vision model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::lora::{AdapterConfig, Targets};
use crate::train::language::{LoraConfig, Part as Sparse, often};
use crate::train::{AdamWConfig, MOST_ROWS, Plan, at};
use crate::upcycle;
use crate::vision::{Parts, Place, Upcycling, VisionConfig};

/// The folder, in that of the run, of the model that training starts from where it had to be made.
const START: &str = "start";

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights and of the order of rows.
    pub seed: u64,
    /// The model, as in its `config.json`: its weights start from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<serde_json::Map<String, serde_json::Value>>,
    /// Instead of `model`, a folder with a vision model to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Instead of either, a tower and a language model to join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<PartsConfig>,
    /// What of `init` becomes sparse before training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upcycle: Option<UpcycleConfig>,
    /// What is trained whole; the rest stays as it is and costs neither gradients nor moments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<Part>,
    /// If given, adapters of the language model's maps are trained beside that, and the model stays as it is: the run saves an
    /// adapter, which holds what is trained whole as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Name of the conversation template.
    pub template: String,
    /// Files that belong beside the weights: `tokenizer.json`, `preprocessor_config.json`; those of `init` otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// What it is trained on.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// A part of a vision model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The vision tower.
    Tower,
    /// The projector.
    Projector,
    /// All of the language model.
    Language,
    /// The routers of its sparse layers.
    Router,
    /// The feed-forward parts of its sparse layers, with their routers.
    Experts,
}

/// A tower and a language model to join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartsConfig {
    /// Folder of a CLIP or SigLIP model.
    pub tower: PathBuf,
    /// Folder of a language model.
    pub language: PathBuf,
    /// What else `config.json` is to say: `projector`, `vision_feature_layer`, `image_token_index` and so on.
    #[serde(flatten)]
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// What becomes sparse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpcycleConfig {
    /// Routed experts of a layer of the language model; 0 leaves it dense.
    pub experts: usize,
    /// Experts for each token.
    pub top_k: usize,
    /// Parts that each copy of a dense network is cut into.
    pub granularity: usize,
    /// The layers that become sparse; empty for all.
    pub layers: Vec<usize>,
    /// The family that is written; absent for the first that fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Standard deviation of the routers' initial weights; absent for the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_std: Option<f64>,
    /// Coefficient of the load balance loss.
    pub aux_loss: f64,
    /// Experts of the projector; 0 leaves it dense.
    pub projector_experts: usize,
    /// Of them, for each token.
    pub projector_top_k: usize,
}

impl Default for UpcycleConfig {
    /// MoE-LLaVA's four experts, two for each token.
    fn default() -> Self {
        Self {
            experts: 4,
            top_k: 2,
            granularity: 1,
            layers: Vec::new(),
            family: None,
            router_std: None,
            aux_loss: 0.01,
            projector_experts: 0,
            projector_top_k: 2,
        }
    }
}

impl UpcycleConfig {
    fn options(&self, seed: u64) -> Upcycling {
        let language = (self.experts > 0).then(|| upcycle::Options {
            experts: self.experts,
            top_k: self.top_k,
            granularity: self.granularity,
            layers: (!self.layers.is_empty()).then(|| self.layers.clone()),
            family: self.family.clone(),
            router_std: self.router_std,
            aux_loss: self.aux_loss,
            seed,
            ..upcycle::Options::default()
        });
        let projector = (self.projector_experts > 0).then_some((self.projector_experts, self.projector_top_k));
        Upcycling { language, projector, seed }
    }
}

/// What a vision model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files of conversations ([`pictures`](crate::train::data::pictures)).
    pub files: Vec<PathBuf>,
    /// Only conversations of these kinds are trained on; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// The folder that pictures are named relative to; absent for that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Rows in a batch.
    pub rows: usize,
    /// Questions about one picture that stay together at most: its tower runs once for them.
    #[serde(default = "one")]
    pub together: usize,
    /// Tokens of a row at most, pictures counted; what is longer is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<usize>,
    /// Files whose answers are measured and not trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation_files: Vec<PathBuf>,
    /// Steps between measurements; there is one before the first and one after the last step as well.
    #[serde(default = "often")]
    pub eval_every: u64,
    /// At most so many rows are measured, taken evenly from all.
    #[serde(default = "some")]
    pub eval_rows: usize,
    /// Bytes of prepared pictures, and of features of a tower that is not trained, that are kept in memory.
    #[serde(default = "room")]
    pub keep: usize,
}

fn one() -> usize {
    1
}

fn some() -> usize {
    1024
}

fn room() -> usize {
    1 << 30
}

impl TrainConfig {
    /// Checks what does not need the model.
    pub fn validate(&self) -> Result<()> {
        self.optimiser.validate()?;
        let data = &self.data;
        if data.files.is_empty() {
            bail!("data.files names no file of conversations");
        }
        if data.rows == 0 || data.together == 0 || data.eval_every == 0 || data.eval_rows == 0 {
            bail!("data: rows, together, eval_every and eval_rows must be at least 1");
        }
        if data.rows > MOST_ROWS {
            bail!("data.rows is {}, at most {MOST_ROWS} are supported", data.rows);
        }
        if self.train.is_empty() && self.lora.is_none() {
            bail!("train names nothing that is trained: give tower, projector, language, router or experts, or [lora]");
        }
        if self.lora.is_some() && self.model.is_some() {
            bail!("[lora] adapts a trained model: give init instead of [model]");
        }
        if self.lora.is_some() && self.train.contains(&Part::Language) {
            bail!("[lora] adapts the language model, which train names as well: leave one of them out");
        }
        match (&self.model, &self.init, &self.parts) {
            (Some(_), None, None) if self.upcycle.is_some() => bail!("[upcycle] is for a trained model: give init"),
            (None, None, Some(_)) if self.upcycle.is_some() => {
                bail!("[upcycle] is for a joined model: train that first")
            }
            (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(_)) => Ok(()),
            (None, None, None) => bail!("give [model], init, or [parts]: there is no model to train"),
            _ => bail!("model, init and parts are several starts: leave all but one out"),
        }
    }

    /// Where the files beside the weights are taken from: `files`, and the folders of the model to start from.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let folders = self.init.iter().chain(self.parts.iter().flat_map(|p| [&p.language, &p.tower]));
        let own = self.files.iter().find(|file| file.ends_with(name)).cloned();
        own.or_else(|| folders.map(|folder| folder.join(name)).find(|file| file.is_file()))
    }

    /// The folder of the model that stays as it is beside adapters: where training started from.
    pub(super) fn base(&self) -> PathBuf {
        match (&self.init, &self.upcycle) {
            (Some(init), None) => init.clone(),
            _ => self.plan.out.join(START),
        }
    }

    /// The folder that training starts from; made where it has to be.
    pub(super) fn start(&self, stop: &AtomicBool) -> Result<Option<PathBuf>> {
        let made = self.plan.out.join(START);
        if made.exists() {
            // Of a run that ended before its first checkpoint.
            std::fs::remove_dir_all(&made).map_err(|e| at(&made, e))?;
        }
        match (&self.init, &self.parts, &self.upcycle) {
            (Some(init), _, None) => return Ok(Some(init.clone())),
            (None, None, _) => return Ok(None),
            (Some(init), _, Some(upcycle)) => upcycle.options(self.seed).write(init, &made, stop)?,
            (None, Some(parts), _) => {
                let PartsConfig { tower, language, config } = parts.clone();
                Parts { tower, language, config, seed: self.seed }.write(&made)?;
            }
        }
        Ok(Some(made))
    }
}

/// The adapter of a run on the model in `base`: what `[lora]` says, of the language model alone, and what is trained whole.
pub(super) fn adapter(lora: &LoraConfig, parts: &[Part], config: &VisionConfig, base: &Path) -> Result<AdapterConfig> {
    let Some(layout) = config.layouts.first() else { bail!("{}: the config has no layout", config.model_type) };
    let names = config.decoder.names;
    let module = |part: &Part| match part {
        Part::Tower => layout.tower.clone(),
        Part::Projector => layout.projector.clone(),
        Part::Router => format!("{}.{}", names.sparse, names.router.trim_end_matches(".weight")),
        Part::Experts | Part::Language => names.sparse.to_string(),
    };
    // A name as `q_proj` is that of maps of the tower too.
    let others = [&layout.tower, &layout.projector].map(|name| name.replace('.', r"\."));
    Ok(AdapterConfig {
        modules_to_save: parts.iter().map(module).collect(),
        exclude_modules: Targets::Pattern(format!(r"({})(\..*)?", others.join("|"))),
        ..lora.adapter(base)?
    })
}

/// Which published tensors are trained whole.
pub(super) fn choice(parts: &[Part], config: &VisionConfig) -> Result<impl Fn(&str) -> bool + Send + Sync + 'static> {
    let sparse = if parts.contains(&Part::Experts) {
        Sparse::Experts.choice(&config.decoder)?
    } else if parts.contains(&Part::Router) {
        Sparse::Router.choice(&config.decoder)?
    } else {
        None
    };
    let (parts, config) = (parts.to_vec(), config.clone());
    Ok(move |name: &str| match config.place(name) {
        Place::Tower => parts.contains(&Part::Tower),
        Place::Projector => parts.contains(&Part::Projector),
        Place::Language(own) => parts.contains(&Part::Language) || sparse.as_ref().is_some_and(|chosen| chosen(&own)),
    })
}
