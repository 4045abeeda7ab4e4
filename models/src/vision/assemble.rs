//! New vision models out of parts: a tower and a language model joined, and dense parts upcycled to experts.
//!
//! Both write a folder of our native layout (`families/native.rs`), tensor by tensor, so that no model is held in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor, bail};
use moesaic_kernels::checkpoint::{Checkpoint, Outline, Unfinished, save_shards};
use moesaic_kernels::{Params, shown};
use serde_json::{Map, Value, json};

use super::config::ProjectorConfig;
use super::{Error, Result, VisionConfig};
use crate::folder::{at, config, copy_beside, write_config};
use crate::upcycle;

/// Most bytes of one weights file.
const SHARD_BYTES: u64 = 5_000_000_000;
/// `model_type` of what is written.
const NATIVE: &str = "moesaic_vision";
const TOWER: &str = "vision_tower.";
const PROJECTOR: &str = "multi_modal_projector.";
const LANGUAGE: &str = "language_model.";

/// Where a tensor of the new model comes from.
enum Source<'a> {
    /// The tensor of this name there.
    Stored(&'a Checkpoint, String),
    Made(Tensor),
}

/// The tensors of a folder that is being made.
#[derive(Default)]
struct Tensors<'a>(BTreeMap<String, Source<'a>>);

impl<'a> Tensors<'a> {
    /// All tensors whose names `name` gives another one.
    fn take(&mut self, from: &'a Checkpoint, name: impl Fn(&str) -> Option<String>) {
        for old in from.names() {
            if let Some(new) = name(old) {
                self.0.insert(new, Source::Stored(from, old.to_string()));
            }
        }
    }

    fn write(&self, folder: &Path) -> candle_core::Result<()> {
        let outline = |(name, source): (&String, &Source<'_>)| {
            let (dtype, shape) = match source {
                Source::Made(tensor) => (tensor.dtype(), tensor.dims().to_vec()),
                Source::Stored(from, old) => match from.info(old) {
                    Some(info) => (info.dtype, info.shape.clone()),
                    None => bail!("{}: there is no tensor {}", from.label(), shown(old)),
                },
            };
            Ok(Outline { name: name.clone(), dtype, shape })
        };
        let outlines = self.0.iter().map(outline).collect::<candle_core::Result<Vec<_>>>()?;
        let mut values = |outline: &Outline| match self.0.get(&outline.name) {
            Some(Source::Made(tensor)) => Ok(tensor.clone()),
            Some(Source::Stored(from, old)) => from.read(old, &outline.shape, outline.dtype, &Device::Cpu),
            None => bail!("there is no tensor {}", shown(&outline.name)),
        };
        save_shards(folder, outlines, SHARD_BYTES, &mut values).map(|_| ())
    }
}

/// A tower and a language model that become one model, with a new projector between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Folder of a CLIP or SigLIP model, its text side left out.
    pub tower: PathBuf,
    /// Folder of a language model of any family.
    pub language: PathBuf,
    /// What else `config.json` says: `projector`, layer and strategy of features, the picture's token.
    pub config: Map<String, Value>,
    /// Seed of the projector.
    pub seed: u64,
}

impl Parts {
    /// Writes the model into the new folder `output`, with the language model's tokenizer and the tower's preprocessor.
    ///
    /// # Errors
    /// A folder cannot be read, `output` exists or cannot be written, or the parts do not fit each other.
    pub fn write(&self, output: &Path) -> Result<()> {
        let mut published = self.config.clone();
        let mut tower = config(&self.tower.join("config.json"))?;
        if let Some(Value::Object(vision)) = tower.remove("vision_config") {
            tower = vision;
        }
        published.insert("model_type".into(), json!(NATIVE));
        published.insert("vision_config".into(), Value::Object(tower));
        published.insert("text_config".into(), Value::Object(config(&self.language.join("config.json"))?));
        let config = VisionConfig::from_map(published, None)?;
        let params = Params::init(self.seed, &Device::Cpu);
        config.build_projector(&params.pp(PROJECTOR.trim_end_matches('.')))?;
        let (tower, language) = (Checkpoint::open(&self.tower)?, Checkpoint::open(&self.language)?);
        let mut tensors = Tensors::default();
        tensors.take(&tower, |name| name.starts_with("vision_model.").then(|| format!("{TOWER}{name}")));
        tensors.take(&language, |name| Some(format!("{LANGUAGE}{name}")));
        for (name, tensor) in params.published(|v| Some(v.as_tensor().clone()))? {
            tensors.0.insert(name, Source::Made(tensor));
        }
        in_new_folder(output, |folder| {
            tensors.write(folder)?;
            write_config(folder, &config.published)?;
            copy_beside(&self.tower, folder)?;
            Ok(copy_beside(&self.language, folder)?)
        })
    }
}

/// What becomes sparse in a model of our native layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upcycling {
    /// The feed-forward parts of the language model, as MoE-LLaVA's third stage makes experts of them (arXiv 2401.15947,
    /// section 3.2).
    pub language: Option<upcycle::Options>,
    /// The projector: experts, each a copy of it, and how many a token gets. Co-upcycling of CuMo (arXiv 2405.05949,
    /// section 3.2); a projector of two maps whose inner width is that of the language model.
    pub projector: Option<(usize, usize)>,
    /// Seed of the projector's router.
    pub seed: u64,
}

impl Upcycling {
    /// Writes what becomes of the model in the folder `dense` into the new folder `output`. With weights of experts that
    /// sum to one, which the projector's do, the new model computes what the dense one does.
    ///
    /// # Errors
    /// `dense` cannot be read or is of another layout, a part of it cannot become sparse, `output` exists or cannot be
    /// written, or `stop` was set.
    pub fn write(&self, dense: &Path, output: &Path, stop: &AtomicBool) -> Result<()> {
        let config = VisionConfig::load(dense)?;
        if config.model_type != NATIVE {
            return Err(Error::other(format!(
                "{}: a {} cannot be upcycled as a whole, only a {NATIVE}",
                dense.display(),
                config.model_type
            )));
        }
        let checkpoint = Checkpoint::open(dense)?;
        in_new_folder(output, |folder| {
            let mut published = config.published.clone();
            let mut tensors = Tensors::default();
            tensors.take(&checkpoint, |name| Some(name.to_string()));
            // The language model alone, in a folder of its own while its tensors are read.
            let alone = folder.join("language");
            let language;
            if let Some(options) = &self.language {
                let (before, after) = (alone.join("dense"), alone.join("sparse"));
                std::fs::create_dir_all(&before).map_err(|e| at(&before, e))?;
                let mut own = Tensors::default();
                own.take(&checkpoint, |name| name.strip_prefix(LANGUAGE).map(str::to_string));
                own.write(&before)?;
                write_config(&before, &config.decoder.published)?;
                let plan = upcycle::Plan::upcycle(&before, options.clone()).map_err(|e| Error::other(e.to_string()))?;
                plan.write(&after, stop, &mut |_, _| {}).map_err(|e| Error::other(e.to_string()))?;
                published
                    .insert("text_config".into(), Value::Object(crate::folder::config(&after.join("config.json"))?));
                language = Checkpoint::open(&after)?;
                tensors.0.retain(|name, _| !name.starts_with(LANGUAGE));
                tensors.take(&language, |name| Some(format!("{LANGUAGE}{name}")));
            }
            if let Some((experts, k)) = self.projector {
                published.insert(
                    "projector".into(),
                    json!({ "type": "sparse_mlp", "num_experts": experts, "num_selected": k }),
                );
                let sparse = VisionConfig::from_map(published.clone(), None)?;
                self.sparse_projector(&config, &sparse, &checkpoint, &mut tensors)?;
            }
            let _ = VisionConfig::from_map(published.clone(), None)?;
            tensors.write(folder)?;
            if alone.exists() {
                std::fs::remove_dir_all(&alone).map_err(|e| at(&alone, e))?;
            }
            write_config(folder, &published)?;
            Ok(copy_beside(dense, folder)?)
        })
    }

    /// Replaces the projector's tensors by those of experts, all the same, and a router.
    fn sparse_projector(
        &self,
        dense: &VisionConfig,
        sparse: &VisionConfig,
        checkpoint: &Checkpoint,
        tensors: &mut Tensors<'_>,
    ) -> candle_core::Result<()> {
        if !matches!(dense.projector, ProjectorConfig::Mlp { depth: 2, .. }) {
            bail!("the projector cannot become sparse: only one of two maps (mlp, depth 2) can");
        }
        tensors.0.retain(|name, _| !name.starts_with(PROJECTOR));
        let params = Params::init(self.seed, &Device::Cpu);
        sparse.build_projector(&params.pp(PROJECTOR.trim_end_matches('.')))?;
        for (name, made) in params.published(|v| Some(v.as_tensor().clone()))? {
            let copy =
                name.strip_prefix(PROJECTOR).and_then(|n| n.strip_prefix("experts.")).and_then(|n| n.split_once('.'));
            let tensor = match copy {
                // experts.{e}.0.weight is 0.weight of the dense projector.
                Some((_, map)) => {
                    checkpoint.read(&format!("{PROJECTOR}{map}"), made.dims(), DType::F32, &Device::Cpu)?
                }
                None => made,
            };
            tensors.0.insert(name, Source::Made(tensor));
        }
        Ok(())
    }
}

/// Fills a folder that appears complete or not at all.
fn in_new_folder(output: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let unfinished = Unfinished::folder(output).map_err(|e| at(output, e))?;
    fill(unfinished.path())?;
    Ok(unfinished.finish().map_err(|e| at(output, e))?)
}
