//! The files that a speech model is made of in training, and the folder that holds all of it afterwards.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Result, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::{Checkpoint, Outline, Unfinished, save_shards};

use super::config::{Part, TrainConfig};
use crate::avsr::{AvsrConfig, Task, encoder_tensor};
use crate::folder::at;

/// Bytes of a file of weights at most.
const SHARD: u64 = 5 << 30;
/// Names under which a model has its AV-HuBERT.
const PREFIXES: [&str; 3] = ["video_encoder.", "audiovisual_encoder.", "audio_encoder."];
/// What stands beside weights in a model's folder.
const BESIDE: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Where tensors come from that are not trained.
pub(super) struct Parts {
    /// The base, where it has weights.
    pub base: Option<Checkpoint>,
    /// The AV-HuBERT of its own folder.
    pub encoder: Option<Checkpoint>,
    /// Where the model has it.
    prefix: &'static str,
    /// The base, in words.
    label: String,
}

/// The tensors of an AV-HuBERT's own file under the names that they have in a speech model.
pub(super) fn within(encoder: &Params) -> Params {
    let own = |name: &str| PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name).to_string();
    encoder.renamed(own)
}

impl Parts {
    /// Opens what the run says. The base may be without weights if all that it would hold comes from elsewhere.
    pub(super) fn open(config: &TrainConfig) -> Result<Self> {
        let task = AvsrConfig::load(&config.base)?.task;
        let prefix = match task {
            Task::AvHubert { .. } => "audiovisual_encoder.",
            Task::Audio => "audio_encoder.",
            Task::Video | Task::AudioVisual => "video_encoder.",
        };
        let spared = config.encoder.is_some() && config.train == Part::Language && !config.tune;
        let base = match Checkpoint::open(&config.base) {
            Ok(base) => Some(base),
            Err(_) if spared && !config.base.join("model.safetensors").exists() => None,
            Err(error) => return Err(error),
        };
        let encoder = config.encoder.as_deref().map(Checkpoint::open).transpose()?;
        Ok(Self { base, encoder, prefix, label: config.base.display().to_string() })
    }

    /// The base, where it is needed.
    pub(super) fn whole(&self) -> Result<&Checkpoint> {
        match &self.base {
            Some(base) => Ok(base),
            None => bail!("{}: has no weights, which this run needs", self.label),
        }
    }

    /// Writes a folder with the whole model in bf16: what was trained, and what was not.
    pub(super) fn write(&self, trained: &Checkpoint, config: &str, base: &Path, out: &Path) -> Result<()> {
        let mut sources: BTreeMap<String, (&Checkpoint, String)> = BTreeMap::new();
        if let Some(file) = &self.base {
            sources.extend(file.names().map(|name| (name.to_string(), (file, name.to_string()))));
        }
        if let Some(file) = &self.encoder {
            // One that the base has gives way, with all its tensors.
            sources.retain(|name, _| !name.starts_with(self.prefix));
            let own = file.names().filter(|name| encoder_tensor(name));
            sources.extend(own.map(|name| (format!("{}{name}", self.prefix), (file, name.to_string()))));
        }
        sources.extend(trained.names().map(|name| (name.to_string(), (trained, name.to_string()))));
        let outlines = sources.iter().map(|(name, (file, own))| match file.info(own) {
            Some(info) => Ok(Outline { name: name.clone(), dtype: DType::BF16, shape: info.shape.clone() }),
            None => bail!("tensor {own} went missing"),
        });
        let outlines = outlines.collect::<Result<Vec<_>>>()?;
        let unfinished = Unfinished::folder(out).map_err(|e| at(out, e))?;
        save_shards(unfinished.path(), outlines, SHARD, &mut |outline| match sources.get(&outline.name) {
            Some((file, own)) => file.read_any(own)?.to_dtype(DType::BF16),
            None => bail!("tensor {} went missing", outline.name),
        })?;
        let path = unfinished.path().join("config.json");
        std::fs::write(&path, config).map_err(|e| at(&path, e))?;
        for name in BESIDE {
            let (from, to) = (base.join(name), unfinished.path().join(name));
            if from.is_file() {
                std::fs::copy(&from, &to).map_err(|e| at(&from, e))?;
            }
        }
        unfinished.finish().map_err(|e| at(out, e))
    }
}
