//! A model's files, and what they say about it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_models::moirai_moe;
use moesaic_models::time_moe::Config;
use serde::Serialize;

use crate::error::{Error, Result, candle_message, one_line, quoted};
#[cfg(feature = "hub")]
use crate::hub::{Hub, Snapshot};

/// A configuration and the weights that belong to it, both opened, neither loaded.
pub(super) struct ModelFiles {
    /// Where they come from.
    pub source: PathBuf,
    pub config: ModelConfig,
    pub checkpoint: Checkpoint,
}

/// The configuration of a model that forecasts.
pub(super) enum ModelConfig {
    TimeMoe(Config),
    MoiraiMoe(moirai_moe::Config),
}

const CONFIG: &str = "config.json";

/// A configuration longer than this is not one.
const LONGEST_CONFIG: u64 = 1 << 20;

/// The model that is part of the library. Its card is `assets/forecaster/README.md`.
const EMBEDDED: &str = "embedded";
static EMBEDDED_CONFIG: &[u8] = include_bytes!("../../assets/forecaster/config.json");
static EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../assets/forecaster/model.safetensors");

impl ModelFiles {
    pub fn embedded() -> Result<Self> {
        let source = PathBuf::from(EMBEDDED);
        let config = ModelConfig::TimeMoe(parse_config(&source, EMBEDDED_CONFIG)?);
        let checkpoint =
            Checkpoint::from_bytes(EMBEDDED, EMBEDDED_WEIGHTS).map_err(|error| Error::weights(&source, &error))?;
        Ok(ModelFiles { source, config, checkpoint })
    }

    pub fn open(dir: &Path) -> Result<Self> {
        Error::unless_folder(dir)?;
        let config = read_config(dir)?;
        let checkpoint = Checkpoint::open(dir).map_err(|error| Error::weights(dir, &error))?;
        Ok(ModelFiles { source: dir.to_path_buf(), config, checkpoint })
    }

    /// Brings a model from the Hub into the cache; one of another kind is refused before its weights come.
    #[cfg(feature = "hub")]
    pub fn fetch(id: &str, hub: &Hub) -> Result<(Self, Snapshot)> {
        let snapshot = hub.model_if(id, |folder| read_config(folder).map(drop))?;
        Ok((Self::open(&snapshot.folder)?, snapshot))
    }
}

/// Reads the configuration in a model's folder.
fn read_config(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join(CONFIG);
    let size = fs::metadata(&path).map_err(|source| Error::io("read", &path, source))?.len();
    if size > LONGEST_CONFIG {
        return Err(Error::config(&path, format!("has {size} bytes, which no configuration has: check the file")));
    }
    let text = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    parse_model_config(&path, &text)
}

/// Reads the configuration of a Time-MoE and refuses models of another kind before their other fields are looked at.
pub fn parse_config(path: &Path, text: &[u8]) -> Result<Config> {
    match parse_model_config(path, text)? {
        ModelConfig::TimeMoe(config) => Ok(config),
        ModelConfig::MoiraiMoe(_) => Err(Error::config(path, "is that of a Moirai-MoE, expected a Time-MoE")),
    }
}

/// Reads a configuration and refuses models that do not forecast.
fn parse_model_config(path: &Path, text: &[u8]) -> Result<ModelConfig> {
    let refuse = |problem: String| Error::config(path, problem);
    let text = std::str::from_utf8(text).map_err(|_| refuse("is not UTF-8 text: check the file".into()))?;
    let json: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| refuse(format!("is not valid JSON ({}): check the file", one_line(&error.to_string()))))?;
    // Moirai's files do not name the kind of model.
    if moirai_moe::Config::describes(&json) {
        let config = moirai_moe::Config::from_json(text).map_err(|error| refuse(candle_message(&error)))?;
        return Ok(ModelConfig::MoiraiMoe(config));
    }
    match json.get("model_type").and_then(serde_json::Value::as_str) {
        Some("time_moe") => {}
        Some(other) => {
            let other = quoted(other);
            return Err(refuse(format!("model_type is {other}: this version forecasts with time_moe and Moirai-MoE")));
        }
        None => return Err(refuse("has no model_type: give the config.json of a time_moe or Moirai-MoE model".into())),
    }
    Ok(ModelConfig::TimeMoe(Config::from_json(text).map_err(|error| refuse(candle_message(&error)))?))
}

/// What a model is: its shape, its size, and the files it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The folder, `org/name@commit` for a model from the Hub, or `embedded`.
    pub source: String,
    /// The model family, as `model_type` in `config.json`; `moirai_moe` for Moirai-MoE, whose file does not name it.
    pub architecture: String,
    /// Sizes in parameters.
    pub parameters: Parameters,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Attention heads of keys and values.
    pub kv_heads: usize,
    /// Routed experts in each layer; 1 for a dense model.
    pub experts: usize,
    /// Routed experts that each token is sent to, beside those that are shared.
    pub experts_per_token: usize,
    /// Experts that see every token.
    pub shared_experts: usize,
    /// Lengths that the forecast heads emit at once; the sizes of patches for Moirai-MoE.
    pub horizons: Vec<usize>,
    /// The most values of history and forecast together.
    pub positions: usize,
    /// Number types on disk, with the number of tensors of each.
    pub dtypes: BTreeMap<String, usize>,
    /// The files of weights.
    pub files: Vec<ModelFile>,
}

impl ModelInfo {
    /// Describes a model folder. Reads its configuration and the headers of its weights, not the weights.
    ///
    /// # Errors
    /// As [`Forecaster::from_dir`](super::Forecaster::from_dir), but for what only shows when weights are read.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(&ModelFiles::open(dir.as_ref())?))
    }

    /// Describes a model on the Hub, `org/name` or `org/name@revision`. Downloads it whole where the cache lacks it.
    ///
    /// # Errors
    /// As [`Forecaster::from_hub`](super::Forecaster::from_hub), but for what only shows when weights are read.
    #[cfg(feature = "hub")]
    pub fn of_hub(id: &str, hub: &Hub) -> Result<Self> {
        let (files, snapshot) = ModelFiles::fetch(id, hub)?;
        Ok(ModelInfo { source: snapshot.to_string(), ..Self::new(&files) })
    }

    /// Describes the model that is part of the library.
    ///
    /// # Errors
    /// None that a release build can meet; the signature is that of [`ModelInfo::of_dir`].
    pub fn embedded() -> Result<Self> {
        Ok(Self::new(&ModelFiles::embedded()?))
    }

    pub(super) fn new(files: &ModelFiles) -> Self {
        let ModelFiles { source, config, checkpoint } = files;
        let mut dtypes = BTreeMap::new();
        for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
            *dtypes.entry(info.stored_as().to_string()).or_insert(0) += 1;
        }
        let file_name = |label: &str| {
            Path::new(label).file_name().map_or_else(|| label.to_string(), |name| name.to_string_lossy().into_owned())
        };
        let info = match config {
            ModelConfig::TimeMoe(config) => Self::of_time_moe(config),
            ModelConfig::MoiraiMoe(config) => Self::of_moirai_moe(config),
        };
        ModelInfo {
            source: source.display().to_string(),
            dtypes,
            files: checkpoint.files().map(|(label, bytes)| ModelFile { name: file_name(label), bytes }).collect(),
            ..info
        }
    }

    fn of_time_moe(config: &Config) -> Self {
        let parameters = config.parameters();
        ModelInfo {
            architecture: config.model_type.clone(),
            parameters: Parameters { total: parameters.total, active: parameters.active },
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            experts: if config.use_dense { 1 } else { config.num_experts },
            experts_per_token: if config.use_dense { 1 } else { config.num_experts_per_tok },
            shared_experts: usize::from(!config.use_dense),
            horizons: config.horizon_lengths.clone(),
            positions: config.max_position_embeddings,
            source: String::new(),
            dtypes: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    fn of_moirai_moe(config: &moirai_moe::Config) -> Self {
        let parameters = config.parameters();
        ModelInfo {
            architecture: "moirai_moe".into(),
            parameters: Parameters { total: parameters.total, active: parameters.active },
            layers: config.num_layers,
            hidden: config.d_model,
            heads: config.heads(),
            kv_heads: config.heads(),
            experts: config.num_experts,
            experts_per_token: config.num_experts_per_token,
            shared_experts: 0,
            horizons: config.patch_sizes.clone(),
            positions: config.max_seq_len.saturating_mul(config.default_patch()),
            source: String::new(),
            dtypes: BTreeMap::new(),
            files: Vec::new(),
        }
    }
}

/// Sizes in parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Parameters {
    /// All of them.
    pub total: usize,
    /// Those that take part in computing one token: all but the experts it is not sent to.
    pub active: usize,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}
