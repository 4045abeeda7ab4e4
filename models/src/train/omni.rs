//! Training [`Omni`] on conversations about pictures, sounds and series: `moesaic train omni CONFIG.toml`.
//!
//! All of it learns from nothing: stems, backbone and both heads. Experts choose their tokens in the whole batch, so a model of this
//! stage cannot be used yet; a second run with `auxiliary = true` trains the auxiliary routers that make it causal (MoMa, arXiv
//! 2407.21770), and writes the folder that [`Omni::load`] takes.

mod config;
mod items;
mod score;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Error, Result, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use config::{DataConfig, Source, TrainConfig};
pub use items::{Item, Items, Question, Said, Shown};
pub use score::{Scored, score};

use super::data::text::Tokenise;
use super::{Ended, Format, Report, StepLoss, Trainable, Trainer, scalar};
use crate::folder::BESIDE;
use crate::moma::{AUXILIARY, Routing};
use crate::omni::{Config, Losses, Omni, Row, Senses, Turn};

/// What the run's folder says of the run, so that it is resumed with the same.
const RUN_FILE: &str = "omni.json";
/// The weights.
const WEIGHTS: &str = "model.safetensors";

/// Items of one source.
struct Named {
    name: String,
    weight: f64,
    items: Items,
}

/// A model, and what it is asked.
struct Asking<'a> {
    model: Omni,
    senses: Senses,
    train: Vec<Named>,
    valid: Vec<Named>,
    config: &'a TrainConfig,
}

/// A turn of a row: its source, its item, one of the questions, and what is shown; nothing where it asks about what the turn before showed.
struct Drawn {
    source: usize,
    item: usize,
    question: usize,
    shown: Option<Shown>,
}

impl Drawn {
    fn turn<'b>(&'b self, sources: &'b [Named]) -> Result<Turn<'b>> {
        let Some(source) = sources.get(self.source) else { bail!("there is no source {}", self.source) };
        let item = source.items.get(self.item)?;
        match item.questions.get(self.question) {
            Some(question) => Ok(question.turn(self.shown.as_ref().map_or_else(Vec::new, |shown| shown.parts(item)))),
            None => bail!("item {} has no question {}", self.item, self.question),
        }
    }
}

impl Asking<'_> {
    /// A question about something new.
    fn draw(&self, rng: &mut Rng) -> Result<Drawn> {
        let all: f64 = self.train.iter().map(|source| source.weight).sum();
        let mut at = rng.range(0.0, all);
        let source = self.train.iter().position(|source| {
            at -= source.weight;
            at < 0.0
        });
        let source = source.unwrap_or(self.train.len().saturating_sub(1));
        let items = &self.train[source].items;
        let item = rng.below(items.len());
        let question = rng.below(items.get(item)?.questions.len());
        let gain = self.config.data.gain;
        let shown = Shown::read(items.get(item)?, &self.senses, rng.range(-gain, gain))?;
        Ok(Drawn { source, item, question, shown: Some(shown) })
    }

    /// Turns of a row, as many as the model's context holds.
    fn fill(&self, rng: &mut Rng) -> Result<Vec<Drawn>> {
        let context = self.model.config().context;
        let (mut row, mut tokens) = (Vec::<Drawn>::new(), 1);
        while row.len() < self.config.data.turns {
            let next = match row.last() {
                Some(last) if rng.below(2) == 0 => {
                    // Questions about the same thing may repeat: a model that is asked again answers the same.
                    let count = self.train[last.source].items.get(last.item)?.questions.len();
                    Drawn { question: rng.below(count), shown: None, ..*last }
                }
                _ => self.draw(rng)?,
            };
            tokens += next.turn(&self.train)?.tokens(self.model.config());
            if tokens > context && !row.is_empty() {
                break;
            }
            row.push(next);
        }
        Ok(row)
    }

    fn rows<'b>(sources: &'b [Named], batch: &'b [Vec<Drawn>]) -> Result<Vec<Row<'b>>> {
        let row = |turns: &'b Vec<Drawn>| {
            Ok(Row { turns: turns.iter().map(|drawn| drawn.turn(sources)).collect::<Result<_>>()? })
        };
        batch.iter().map(row).collect()
    }
}

/// The parts of a loss under a name.
fn parts(name: &str, losses: &Losses, to: &mut Vec<(String, f64)>) -> Result<()> {
    for (what, loss) in [("", &losses.words), (".forecast", &losses.series)] {
        if let Some(loss) = loss {
            to.push((format!("{name}{what}"), scalar(loss)?));
        }
    }
    Ok(())
}

impl Trainable for Asking<'_> {
    type Batch = Vec<Vec<Drawn>>;

    fn batch(&self, step: u64, part: usize) -> Result<Vec<Vec<Drawn>>> {
        let index = step * self.config.plan.accumulation as u64 + part as u64;
        let rows = 0..self.config.data.rows;
        rows.map(|row| self.fill(&mut Rng::keyed(&[self.config.seed, index, row as u64]))).collect()
    }

    fn loss(&self, batch: &Vec<Vec<Drawn>>) -> Result<StepLoss> {
        let sequence = self.model.sequence(&Self::rows(&self.train, batch)?)?;
        let tokens = sequence.modality.len();
        let mut named = Vec::new();
        let total = if self.config.auxiliary {
            let loss = self.model.auxiliary_loss(&sequence)?;
            named.push(("routers".to_string(), scalar(&loss)?));
            loss
        } else {
            let output = self.model.forward(&sequence, None)?;
            for (s, source) in self.train.iter().enumerate() {
                let turns = batch.iter().flatten().enumerate();
                let own: Vec<usize> = turns.filter(|(_, drawn)| drawn.source == s).map(|(turn, _)| turn).collect();
                if !own.is_empty() {
                    parts(&source.name, &self.model.loss_of(&sequence, &output, Some(&own))?, &mut named)?;
                }
            }
            self.model.loss_of(&sequence, &output, None)?.total
        };
        Ok(StepLoss { total, parts: named, tokens })
    }

    fn config_json(&self) -> Result<String> {
        Ok(self.model.config().to_json()? + "\n")
    }

    fn format(&self) -> Format {
        let from = self.config.init.as_ref().filter(|_| self.config.auxiliary).unwrap_or(&self.config.base);
        let mut beside: Vec<PathBuf> =
            BESIDE.iter().map(|name| from.join(name)).filter(|file| file.is_file()).collect();
        if !self.config.auxiliary {
            return Format { beside, ..Format::default() };
        }
        beside.push(from.join(WEIGHTS));
        Format { weights: AUXILIARY, beside, ..Format::default() }
    }

    /// The losses on held-out questions of each source, experts choosing within batches as in training.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        let data = &self.config.data;
        if step == 0 || !step.is_multiple_of(data.valid_every) && step != steps {
            return Ok(Vec::new());
        }
        let mut measured = Vec::new();
        for (s, source) in self.valid.iter().enumerate() {
            let count = source.items.len().min(data.valid_rows);
            let mut sums = Vec::<(String, f64, usize)>::new();
            let places: Vec<usize> = (0..count).map(|i| i * source.items.len() / count).collect();
            for some in places.chunks(data.rows) {
                let read = |&item: &usize| {
                    let of = source.items.get(item)?;
                    let shown = Some(Shown::read(of, &self.senses, 0.0)?);
                    Ok(vec![Drawn { source: s, item, question: item % of.questions.len().max(1), shown }])
                };
                let batch = some.iter().map(read).collect::<Result<Vec<_>>>()?;
                let sequence = self.model.sequence(&Self::rows(&self.valid, &batch)?)?;
                let mut own = Vec::new();
                if self.config.auxiliary {
                    own.push((format!("valid.{}", source.name), scalar(&self.model.auxiliary_loss(&sequence)?)?));
                } else {
                    let output = self.model.forward(&sequence, None)?;
                    let losses = self.model.loss_of(&sequence, &output, None)?;
                    parts(&format!("valid.{}", source.name), &losses, &mut own)?;
                }
                for (name, value) in own {
                    match sums.iter_mut().find(|(known, ..)| *known == name) {
                        Some((_, sum, rows)) => (*sum, *rows) = (*sum + value * some.len() as f64, *rows + some.len()),
                        None => sums.push((name, value * some.len() as f64, some.len())),
                    }
                }
            }
            measured.extend(sums.into_iter().map(|(name, sum, rows)| (name, sum / rows.max(1) as f64)));
        }
        Ok(measured)
    }
}

/// Puts `changes` into a table, tables key by key.
fn merge(table: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, value) in changes {
        match (table.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            // TOML has no null: `false` leaves a part out.
            (_, Value::Bool(false)) if ["image", "audio", "series"].contains(&key.as_str()) => {
                table.remove(key);
            }
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The model's config: that of the base, with the run's own keys.
///
/// # Errors
/// The file cannot be read, or is no config of this model.
pub fn settings(config: &TrainConfig) -> Result<Config> {
    let path = config.init.as_ref().filter(|_| config.auxiliary).unwrap_or(&config.base).join("config.json");
    let mut keys = crate::folder::config(&path)?;
    merge(&mut keys, &config.settings);
    let text = serde_json::to_string(&keys).map_err(|e| Error::Msg(e.to_string()))?;
    Config::from_json(&text).map_err(|e| crate::folder::at(&path, e))
}

/// What must be the same when a run is taken up again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    config: TrainConfig,
    fingerprints: Vec<String>,
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds checkpoints already
/// is refused rather than overwritten. `id` gives the id of a special token, `tokenise` the ids of a text without any.
///
/// # Errors
/// A setting makes no sense, a file cannot be read or does not fit, or a step fails.
pub fn run(
    config: &TrainConfig,
    id: &dyn Fn(&str) -> Option<u32>,
    tokenise: &Tokenise<'_>,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.validate()?;
    let out: &Path = &config.plan.out;
    let newest = super::newest(out, resume)?;
    let (omni, device) = (settings(config)?, Device::Cpu);
    let load = |source: &Source| -> Result<Named> {
        let mut items = Items::load(&source.file, &omni, tokenise)?;
        items.repeat(&source.repeat).map_err(|e| super::at(&source.file, e))?;
        Ok(Named { name: source.name.clone(), weight: source.weight, items })
    };
    let train = config.data.train.iter().map(load).collect::<Result<Vec<_>>>()?;
    let valid = config.data.valid.iter().map(load).collect::<Result<Vec<_>>>()?;
    let senses = Senses::new(&omni)?;
    let file = |dir: &Path, name: &str| Checkpoint::open(&dir.join(name));
    let (model, params) = match (&config.init, config.auxiliary) {
        (Some(init), true) => {
            let frozen = Params::frozen(&file(init, WEIGHTS)?, DType::F32, &device);
            let own = match &newest {
                Some(dir) => Params::resume(&file(dir, AUXILIARY)?, &device),
                None => Params::init(config.seed, &device),
            };
            (Omni::new(omni, id, &frozen, Some(&own), Routing::Choice)?, own)
        }
        _ => {
            let params = match newest.as_ref().or(config.init.as_ref()) {
                Some(dir) => Params::resume(&file(dir, WEIGHTS)?, &device),
                None => Params::init(config.seed, &device),
            };
            (Omni::new(omni, id, &params, None, Routing::Choice)?, params)
        }
    };
    let sources = train.iter().chain(&valid);
    let fingerprints = sources.map(|source| format!("{:016x}", source.items.fingerprint())).collect();
    if super::remember(out, RUN_FILE, Run { config: config.clone(), fingerprints }, resume)?.is_some() {
        bail!(
            "{}: the run was started with another config or other questions; resume with the same, or start anew elsewhere",
            out.join(RUN_FILE).display()
        );
    }
    let asking = Asking { model, senses, train, valid, config };
    Trainer::start(&asking, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}
