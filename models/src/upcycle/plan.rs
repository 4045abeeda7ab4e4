//! From the options to a folder: everything is checked before anything is written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::DType;
use moesaic_kernels::checkpoint::{Outline, Unfinished, save_shards};

use super::experts::{Make, Maker};
use super::numbers::Deal;
use super::source::{Dense, alike};
use super::target::{Wanted, choose, dense_network};
use super::{Error, Options, Result, Start};
use crate::decoder::{DecoderConfig, ExpertNames, Parameters};
use crate::folder::copy_beside;

/// A sparse model that can be made: sizes, names and source are known and fit; nothing is read but configs and headers.
#[derive(Debug)]
pub struct Plan {
    models: Vec<Dense>,
    options: Options,
    config: DecoderConfig,
    deal: Deal,
    /// Width of the dense network.
    width: usize,
    /// Names and contents of files to be written beside the weights.
    beside: Vec<(String, Vec<u8>)>,
}

impl Plan {
    /// Upcycles the dense model at `dense`: a folder in the Hugging Face layout, or a GGUF file. Blocks of a file become floats;
    /// its tokenizer is for [`add_file`](Self::add_file).
    ///
    /// # Errors
    /// The model cannot be read, no family fits it ([`Error::Unsupported`]), or the options do not ([`Error::Options`]).
    pub fn upcycle(dense: &Path, options: Options) -> Result<Self> {
        Self::new(vec![Dense::open(dense)?], options)
    }

    /// Branch-Train-MiX: the feed-forward parts of dense siblings become the experts of one model, in the order given;
    /// everything else is the mean over the siblings. `options.experts` is their number times the granularity; it is set
    /// here. Copies only, without a shared expert.
    ///
    /// # Errors
    /// As [`upcycle`](Self::upcycle); fewer than two siblings, or siblings of different shapes, families or vocabularies
    /// ([`Error::Siblings`] names the tensor).
    pub fn mix(siblings: &[PathBuf], options: Options) -> Result<Self> {
        if siblings.len() < 2 {
            let problem = format!("{} sibling: give the folders of at least two dense models", siblings.len());
            return Err(Error::Options(problem));
        }
        if options.start == Start::Split || options.shared > 0 {
            let problem = "siblings become experts as they are: init split and shared experts are for one dense model";
            return Err(Error::Options(problem.into()));
        }
        let experts = siblings.len().saturating_mul(options.granularity.max(1));
        let models = siblings.iter().map(|dir| Dense::open(dir)).collect::<Result<_>>()?;
        Self::new(models, Options { experts, ..options })
    }

    fn new(models: Vec<Dense>, options: Options) -> Result<Self> {
        let Some(first) = models.first() else { return Err(Error::Options("there is no model".into())) };
        let dense = &first.config;
        let width = dense_network(dense)?.intermediate_size;
        options.validate(width, dense.layers.len())?;
        let deal = Deal::new(&options, width);
        let wanted = Wanted {
            sparse: (0..dense.layers.len()).map(|i| options.sparse(i)).collect(),
            experts: options.experts,
            k: options.top_k,
            width: deal.width,
            shared: deal.shared,
            renormalise: options.renormalise,
            aux_loss: options.aux_loss,
            family: options.family.clone(),
            dtype: options.dtype.map(|dtype| match dtype {
                DType::BF16 => "bfloat16",
                DType::F16 => "float16",
                _ => "float32",
            }),
        };
        let config = choose(dense, &wanted)?;
        alike(&models, width)?;
        for model in &models {
            model.check(width)?;
        }
        Ok(Self { config, deal, width, models, options, beside: Vec::new() })
    }

    /// Has a file written beside the weights too, such as a tokenizer that is no file of the dense model. It takes the place of
    /// one of that name.
    pub fn add_file(&mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.beside.push((name.into(), content.into()));
    }

    /// The config of the sparse model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Number of parameters of the sparse model by kind.
    pub fn parameters(&self) -> Parameters {
        self.config.parameters()
    }

    /// Bytes that the weights take on disk, and in memory where they are loaded as they are.
    pub fn bytes(&self) -> u64 {
        let stored = self.models.first().map_or(DType::F32, |first| {
            let [(gate, _), ..] = first.network(0, self.width);
            first.stored(&gate)
        });
        let size = self.options.dtype.unwrap_or(stored).size_in_bytes() as u64;
        (self.config.parameters().total() as u64).saturating_mul(size)
    }

    /// Whether the sparse model gives the logits of the dense one, up to rounding.
    pub fn exact(&self) -> bool {
        let o = &self.options;
        let any_router = o.start == Start::Copy && o.renormalise;
        let flat_router = o.router_std == Some(0.0) && (o.start == Start::Copy || o.top_k == o.experts);
        let kept = o.noise == 0.0 && o.reinit == 0.0;
        self.models.len() == 1 && kept && (any_router || flat_router)
    }

    /// Writes the model into the new folder `output`: weights, `config.json`, and the tokenizer's files of the (first) dense
    /// model. `progress` is told of tensors done and tensors in all. The folder appears when it is complete; where `stop`
    /// is set or anything fails, nothing of it is left.
    ///
    /// # Errors
    /// `output` exists, the disk is too small ([`Error::Space`], before anything is written), a tensor cannot be read or a
    /// file not be written, or `stop` was set ([`Error::Stopped`]).
    pub fn write(&self, output: &Path, stop: &AtomicBool, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let at = |path: &Path, problem: String| Error::Files { path: path.to_path_buf(), problem };
        let place = |e: std::io::Error| at(output, e.to_string());
        let unfinished = Unfinished::beside(output).map_err(place)?;
        let folder = unfinished.path();
        self.fits(folder.parent().unwrap_or(Path::new(".")))?;
        std::fs::create_dir(folder).map_err(place)?;
        self.fill(folder, stop, progress)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        unfinished.finish().map_err(place)
    }

    fn fits(&self, folder: &Path) -> Result<()> {
        let needed = self.bytes();
        match free_space(folder) {
            Some(free) if free < needed => Err(Error::Space { path: folder.to_path_buf(), needed, free }),
            _ => Ok(()),
        }
    }

    fn fill(&self, folder: &Path, stop: &AtomicBool, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let Some(first) = self.models.first() else { return Err(Error::Options("there is no model".into())) };
        let (outlines, makes): (Vec<Outline>, Vec<Make>) = self.outlines(first).into_iter().unzip();
        let makes: HashMap<String, Make> = outlines.iter().map(|o| o.name.clone()).zip(makes).collect();
        let router_std = self.options.router_std.unwrap_or(first.config.initializer_range);
        let sizes = (self.width, self.config.hidden_size);
        let mut maker = Maker::new(&self.models, &self.deal, sizes, &self.options, router_std);
        let (mut done, all) = (0, outlines.len());
        let mut stopped = false;
        let mut values = |outline: &Outline| {
            if stop.load(Ordering::Relaxed) {
                stopped = true;
                return Err(candle_core::Error::Msg("stopped".into()));
            }
            let make = makes.get(&outline.name).copied().unwrap_or(Make::Copy);
            let tensor = maker.tensor(make, &outline.name, &outline.shape, outline.dtype)?;
            done += 1;
            progress(done, all);
            Ok(tensor)
        };
        let saved = save_shards(folder, outlines, self.options.shard_bytes, &mut values);
        if stopped {
            return Err(Error::Stopped);
        }
        saved?;
        let file = |path: PathBuf, e: std::io::Error| Error::Files { path, problem: e.to_string() };
        copy_beside(&first.path, folder)?;
        for (name, content) in &self.beside {
            let path = folder.join(name);
            std::fs::write(&path, content).map_err(|e| file(path, e))?;
        }
        let path = folder.join("config.json");
        let json = serde_json::to_string_pretty(&self.config.published).map_err(|e| file(path.clone(), e.into()))?;
        std::fs::write(&path, json + "\n").map_err(|e| file(path, e))
    }

    /// Every tensor of the sparse model, and how it is made.
    fn outlines(&self, first: &Dense) -> Vec<(Outline, Make)> {
        let (names, h, deal) = (&self.config.names, self.config.hidden_size, &self.deal);
        let of = |stored: DType| self.options.dtype.unwrap_or(stored);
        let outline = |name: String, dtype: DType, shape: Vec<usize>| Outline { name, dtype, shape };
        let copy =
            |(name, shape): (String, Vec<usize>)| (outline(name.clone(), of(first.stored(&name)), shape), Make::Copy);
        let mut all: Vec<(Outline, Make)> = first.beside().into_iter().map(copy).collect();
        for (layer, config) in self.config.layers.iter().enumerate() {
            let network = first.network(layer, self.width);
            if !config.sparse {
                all.extend(network.into_iter().map(copy));
                continue;
            }
            let dtypes = network.map(|(name, _)| of(first.stored(&name)));
            let (n, w) = (deal.experts, deal.width);
            let prefix = format!("{}.{layer}.{}", names.layers, names.sparse);
            let mut add = |name: String, dtype: DType, shape: Vec<usize>, make: Make| {
                all.push((outline(format!("{prefix}.{name}"), dtype, shape), make));
            };
            add(names.router.to_string(), dtypes[0], vec![n, h], Make::Router { layer });
            match names.experts {
                ExpertNames::Each(maps) => {
                    for expert in 0..n {
                        for (map, (name, dtype)) in maps.iter().zip(dtypes).enumerate() {
                            let name = format!("experts.{expert}.{name}.weight");
                            add(name, dtype, shape(map, w, h), Make::Expert { layer, expert, map });
                        }
                    }
                }
                ExpertNames::Stacked([ups, downs]) => {
                    add(format!("{ups}.weight"), dtypes[0], vec![n, 2 * w, h], Make::StackedUps { layer });
                    add(format!("{downs}.weight"), dtypes[2], vec![n, h, w], Make::StackedDowns { layer });
                }
                // None of the families that are written.
                ExpertNames::InputMajor(_) => {}
            }
            if let Some(shared) = self.config.sparse.and_then(|s| s.shared) {
                for (map, (name, dtype)) in names.dense_maps.iter().zip(dtypes).enumerate() {
                    let make = if deal.shared > 0 { Make::Shared { layer, map } } else { Make::Zeros };
                    let name = format!("{}.{name}.weight", names.shared);
                    add(name, dtype, shape(map, shared.intermediate_size, h), make);
                }
                add(names.shared_gate.to_string(), dtypes[0], vec![1, h], Make::Zeros);
            }
        }
        all
    }
}

/// Of a map of a network.
fn shape(map: usize, width: usize, hidden: usize) -> Vec<usize> {
    if map == 2 { vec![hidden, width] } else { vec![width, hidden] }
}

/// Bytes that this user may still write where `folder` is; none where the system does not say.
#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}
