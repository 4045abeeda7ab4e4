//! Training a vision model on pictures and conversations from a TOML file: `moesaic train vision CONFIG.toml`.
//!
//! The recipe of MoE-LLaVA (arXiv 2401.15947, section 3.4) is three such files: `[parts]` joins a tower and a language model, and
//! `train = ["projector"]` fits the projector between them; `train = ["projector", "language"]` goes on from there; `[upcycle]` makes
//! experts of the dense feed-forward parts, and `train = ["experts"]` tunes those. CuMo's co-upcycling (arXiv 2405.05949)
//! makes experts of the projector too. With `[model]` everything starts from seeded weights. With `[lora]` the language model
//! gets low-rank adapters and stays as it is otherwise, while `train` says what is trained whole beside them: LLaVA and MoE-LLaVA
//! tune the projector so.
//!
//! The loss is next-token cross entropy over answers, plus the balance losses of whatever is sparse
//! ([`VisionModel::loss`]). While the tower stays as it is, its features are computed once a picture.

mod config;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::image::ImageProcessor;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::lora::with_dropout;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Modality, Params, Tokens};
use serde::{Deserialize, Serialize};

use super::data::pictures::{Batch, Corpus, Loader, Shuffle, Turn};
use super::language::LoraConfig;
use super::{Ended, Format, Report, StepLoss, Trainable, Trainer, scalar};
use crate::decoder::{Side, follows};
use crate::folder::BESIDE;
use crate::lora::{self, AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use crate::vision::{Encoded, Row, Spliced, VisionConfig, VisionModel};

pub use config::{DataConfig, Part, PartsConfig, TrainConfig, UpcycleConfig};

use config::{adapter, choice};

/// What the run's folder says of the run, so that it is resumed with the same.
const RUN_FILE: &str = "vision.json";

/// Ids and labels of a conversation: a mark for each picture (the given id), and a label for each id of an answer, -100
/// for all others.
pub type Encode<'a> = dyn Fn(&[Turn], u32) -> Result<(Vec<u32>, Vec<i64>)> + Sync + 'a;

struct Vision<'a> {
    model: VisionModel,
    adapter: Option<AdapterConfig>,
    train: Loader,
    held_out: Option<Loader>,
    encode: &'a Encode<'a>,
    data: DataConfig,
    seed: u64,
    accumulation: u64,
    /// Features of pictures by number, of a tower that is not trained; and the bytes that may still be kept.
    features: Option<Mutex<(HashMap<u32, Tensor>, usize)>>,
    files: Vec<PathBuf>,
}

impl Vision<'_> {
    /// The batch's pictures as the decoder takes them.
    fn pictures(&self, batch: &Batch<'_>) -> Result<Option<Encoded>> {
        let Some(pixels) = &batch.pixels else { return Ok(None) };
        let Some(kept) = &self.features else { return self.model.encode_with_losses(pixels, None).map(Some) };
        // The number in the corpus of each of the batch's pictures.
        let mut numbers = vec![0; pixels.dim(0)?];
        for row in &batch.rows {
            for (&local, &number) in row.pictures.iter().zip(&row.row.pictures) {
                if let Some(place) = numbers.get_mut(local) {
                    *place = number;
                }
            }
        }
        let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<u32> = {
            let known = lock();
            (0u32..).zip(&numbers).filter(|(_, number)| !known.0.contains_key(number)).map(|(i, _)| i).collect()
        };
        let mut fresh = HashMap::new();
        if !missing.is_empty() {
            let places = Tensor::new(missing.as_slice(), pixels.device())?;
            let tower = self.model.tower();
            let tokens = tower.encode(&pixels.index_select(&places, 0)?, self.model.features(), None)?;
            let features = tokens.embeds.detach();
            let mut known = lock();
            for (i, at) in missing.iter().enumerate() {
                let Some(&number) = numbers.get(*at as usize) else { continue };
                let feature = features.narrow(0, i, 1)?.copy()?;
                let bytes = feature.elem_count() * feature.dtype().size_in_bytes();
                if let Some(left) = known.1.checked_sub(bytes) {
                    known.1 = left;
                    known.0.insert(number, feature.clone());
                }
                fresh.insert(number, feature);
            }
        }
        let known = lock();
        let find = |number: &u32| match fresh.get(number).or_else(|| known.0.get(number)) {
            Some(feature) => Ok(feature.clone()),
            None => bail!("the features of picture {number} were not computed"),
        };
        let all = numbers.iter().map(find).collect::<Result<Vec<_>>>()?;
        drop(known);
        self.model.project(Tokens::new(Tensor::cat(&all, 0)?, Modality::Image), None).map(Some)
    }

    /// The loss of the rows from this place of the stream on.
    fn losses(&self, first: u64) -> Result<StepLoss> {
        let batch = self.train.batch(first, self.data.rows)?;
        let encoded = self.pictures(&batch)?;
        let spliced = splice(&self.model, self.encode, &batch, encoded.as_ref(), self.data.longest)?;
        let (losses, _) = self.model.loss(&spliced, encoded.as_ref())?;
        let mut parts = vec![("cross_entropy".to_string(), scalar(&losses.cross_entropy)?)];
        if let Some(aux) = &losses.decoder {
            parts.push(("balance".into(), scalar(aux)?));
        }
        if let Some((balance, z)) = &losses.projector {
            parts.push(("projector balance".into(), scalar(balance)?));
            parts.push(("projector z".into(), scalar(z)?));
        }
        Ok(StepLoss { total: losses.total, parts, tokens: spliced.labels.len() })
    }
}

/// The rows of a batch, and their ids and labels, between which pictures are spliced.
fn splice(
    model: &VisionModel,
    encode: &Encode<'_>,
    batch: &Batch<'_>,
    encoded: Option<&Encoded>,
    longest: Option<usize>,
) -> Result<Spliced> {
    let pictures = encoded.map(Encoded::pictures).transpose()?.unwrap_or_default();
    let mut texts = Vec::with_capacity(batch.rows.len());
    for row in &batch.rows {
        let own: Vec<Tokens> = row.pictures.iter().filter_map(|&i| pictures.get(i).cloned()).collect();
        let (ids, labels) = encode(&row.row.turns, model.picture_token())?;
        texts.push((ids, labels, own));
    }
    let rows: Vec<Row<'_>> = texts.iter().map(|(ids, labels, pictures)| Row { ids, labels, pictures }).collect();
    Ok(model.splice(&rows, Side::Right, longest)?)
}

/// Whether the model gives each row's answers, word by word, when it is led along them: greedy generation gives them then,
/// and only then.
///
/// # Errors
/// A picture cannot be decoded, or a row has no answer.
pub fn right(model: &VisionModel, encode: &Encode<'_>, loader: &Loader, rows: &[usize]) -> Result<Vec<bool>> {
    let batch = loader.of_rows(rows)?;
    let encoded = batch.pixels.as_ref().map(|pixels| model.encode(pixels, None)).transpose()?;
    judge(model, &splice(model, encode, &batch, encoded.as_ref(), None)?)
}

fn judge(model: &VisionModel, spliced: &Spliced) -> Result<Vec<bool>> {
    let output = model.forward(spliced, None, None)?;
    follows(&output, &spliced.labels, |hidden| model.logits(hidden))
}

impl Trainable for Vision<'_> {
    /// Place of its first row in the stream of rows.
    type Batch = u64;

    fn batch(&self, step: u64, part: usize) -> Result<u64> {
        Ok((step * self.accumulation + part as u64) * self.data.rows as u64)
    }

    fn loss(&self, first: &u64) -> Result<StepLoss> {
        with_dropout(Rng::keyed(&[self.seed, *first]).next_u64(), || self.losses(*first))
    }

    fn config_json(&self) -> Result<String> {
        match &self.adapter {
            Some(adapter) => adapter.to_json(),
            None => self.model.config_json(),
        }
    }

    fn format(&self) -> Format {
        let beside = self.files.clone();
        match self.adapter {
            Some(_) => Format { weights: WEIGHTS_FILE, config: CONFIG_FILE, dtype: DType::F32, beside },
            None => Format { beside, ..Format::default() },
        }
    }

    /// The share of held-out questions that are answered right, of all and of each source.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        let Some(loader) = &self.held_out else { return Ok(Vec::new()) };
        if !step.is_multiple_of(self.data.eval_every) && step != steps {
            return Ok(Vec::new());
        }
        let all = loader.corpus().rows();
        let count = all.len().min(self.data.eval_rows);
        let chosen: Vec<usize> = (0..count).map(|i| i * all.len() / count).collect();
        let mut shares: Vec<(String, usize, usize)> = vec![("right".into(), 0, 0)];
        for rows in chosen.chunks(self.data.rows) {
            for (&row, right) in rows.iter().zip(right(&self.model, self.encode, loader, rows)?) {
                let source = all.get(row).map_or("", |row| &row.source);
                if !source.is_empty() && !shares.iter().any(|(name, ..)| name == source) {
                    shares.push((source.to_string(), 0, 0));
                }
                for (name, of, sum) in &mut shares {
                    if name == "right" || name == source {
                        *of += 1;
                        *sum += usize::from(right);
                    }
                }
            }
        }
        Ok(shares.into_iter().map(|(name, of, sum)| (name, sum as f64 / of.max(1) as f64)).collect())
    }
}

/// What must be the same when a run is taken up again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    config: TrainConfig,
    rows: usize,
    fingerprint: String,
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds
/// checkpoints already is refused rather than overwritten.
pub fn run(
    config: &TrainConfig,
    encode: &Encode<'_>,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let out: &Path = &config.plan.out;
    let newest = super::newest(out, resume)?;
    if let Some(init) = config.init.as_ref().filter(|init| !init.is_dir()) {
        bail!("{}: there is no such folder", init.display());
    }
    let Some(processor) = config.file("preprocessor_config.json") else {
        bail!("there is no preprocessor_config.json: name it in files, it says how pictures are resized");
    };
    let processor = ImageProcessor::load(processor.parent().unwrap_or(Path::new(".")))
        .map_err(|e| Error::Msg(format!("{}: {e}", processor.display())))?;
    let data = &config.data;
    let loader = |files: &[PathBuf], kinds: &[String]| -> Result<Loader> {
        let mut corpus = Corpus::open(files, data.folder.as_deref())?;
        if !kinds.is_empty() {
            corpus = corpus.only(kinds)?;
        }
        let shuffle = Shuffle { seed: config.seed, together: data.together };
        Ok(Loader::new(corpus, processor.clone(), shuffle, data.keep))
    };
    let train = loader(&data.files, &data.kinds)?;
    let held_out = if data.validation_files.is_empty() { None } else { Some(loader(&data.validation_files, &[])?) };
    remember(config, train.corpus(), resume)?;
    let (model, params, adapter) = match &config.lora {
        Some(lora) => adapt(config, lora, newest.as_deref(), stop)?,
        None => {
            let (model, params) = start(config, newest.as_deref(), stop)?;
            (model, params, None)
        }
    };
    model.decoder().by_gradients()?;
    if model.config().tiles.is_some() {
        bail!("a {} cuts pictures into tiles, which is not supported in training", model.config().model_type);
    }
    let trained = |part: Part| config.train.contains(&part);
    let features = (!trained(Part::Tower)).then(|| Mutex::new((HashMap::new(), data.keep)));
    let trainable = Vision {
        model,
        adapter,
        train,
        held_out,
        encode,
        data: data.clone(),
        seed: config.seed,
        accumulation: config.plan.accumulation as u64,
        features,
        files: BESIDE.iter().filter_map(|name| config.file(name)).collect(),
    };
    Trainer::start(&trainable, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

/// The model, and the parameters that are trained.
fn start(config: &TrainConfig, newest: Option<&Path>, stop: &AtomicBool) -> Result<(VisionModel, Params)> {
    let device = Device::Cpu;
    let start = if newest.is_some() { None } else { config.start(stop)? };
    let (vision, checkpoint) = match (newest.or(start.as_deref()), &config.model) {
        (Some(dir), _) => {
            let checkpoint = Checkpoint::open(dir)?;
            (VisionConfig::load(dir)?.settle(&checkpoint)?, Some(checkpoint))
        }
        (None, Some(model)) => (VisionConfig::from_map(model.clone(), None)?, None),
        (None, None) => bail!("there is no model to train"),
    };
    let params = match checkpoint {
        Some(checkpoint) => Params::resume_some(&checkpoint, &device, choice(&config.train, &vision)?),
        None if [Part::Tower, Part::Projector, Part::Language].iter().all(|part| config.train.contains(part)) => {
            Params::init(config.seed, &device)
        }
        None => bail!("a model from nothing is trained as a whole: train = [\"tower\", \"projector\", \"language\"]"),
    };
    Ok((VisionModel::new(vision, &params)?, params))
}

/// The model, which stays as it is, with adapters; these, and what is trained whole beside them; and what is said of them.
fn adapt(
    config: &TrainConfig,
    lora: &LoraConfig,
    newest: Option<&Path>,
    stop: &AtomicBool,
) -> Result<(VisionModel, Params, Option<AdapterConfig>)> {
    if newest.is_none() {
        config.start(stop)?;
    }
    let (device, base) = (Device::Cpu, config.base());
    let mut checkpoint = Checkpoint::open(&base)?;
    let vision = VisionConfig::load(&base)?.settle(&checkpoint)?;
    let params = match newest {
        None => Params::init(config.seed, &device),
        Some(dir) => {
            let trained = Checkpoint::open(&dir.join(WEIGHTS_FILE))?;
            checkpoint = checkpoint.overlaid(&trained, |name| lora::whole(name).map(str::to_string))?;
            Params::resume(&trained, &device)
        }
    };
    let adapter = adapter(lora, &config.train, &vision, &base)?;
    let (chosen, owner) = (choice(&config.train, &vision)?, params.pp(lora::PREFIX));
    let mut model = VisionModel::new(vision, &Params::frozen_but(&checkpoint, lora.base_dtype()?, &owner, chosen))?;
    lora::attach(&adapter, model.sites(), &params, "training", 1.0, None)?;
    Ok((model, params, Some(adapter)))
}

/// Writes down what the run is made of, or checks that it is the same.
fn remember(config: &TrainConfig, corpus: &Corpus, resume: bool) -> Result<()> {
    let fingerprint = format!("{:016x}", corpus.fingerprint());
    let now = Run { config: config.clone(), rows: corpus.rows().len(), fingerprint };
    match super::remember(&config.plan.out, RUN_FILE, now, resume)? {
        None => Ok(()),
        Some((then, now)) => bail!(
            "{}: the run was started with another config or other conversations ({} rows, now {}); resume with the same, or \
             start anew elsewhere",
            config.plan.out.join(RUN_FILE).display(),
            then.rows,
            now.rows
        ),
    }
}
