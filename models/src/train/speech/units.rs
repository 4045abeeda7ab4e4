//! Training an AV-HuBERT from nothing to name the unit of each frame of 40 ms by ear, by eye or by both.
//!
//! AV-HuBERT (arXiv 2201.02184) predicts the cluster of each frame, of clusters that were found beforehand, with modality dropout.
//! Here units are given, as phonemes that an aligner or a synthesiser found, and all frames count: a classifier of frames,
//! whose head is `final_proj`. The result is the folder of an encoder, for [`TrainConfig::encoder`](super::TrainConfig::encoder).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use moesaic_encoders::speech::{AvHubert, AvHubertConfig};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::losses::cross_entropy;
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Init, Linear, Params};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{AdamWConfig, Ended, Format, Plan, Report, StepLoss, Trainable, Trainer, at, newest, scalar};
use super::{Augment, Buckets, Clip, Clips, DataConfig, Manifest, heard, stack};
use crate::avsr::{fit_to_video, sound_features};

/// The TOML file of a training run. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of initial weights, the order of batches and all that is drawn.
    pub seed: u64,
    /// The encoder, with the keys of [`AvHubertConfig`].
    pub encoder: Map<String, Value>,
    /// A file with the names of the units, one a line.
    pub units: PathBuf,
    /// What it is trained on. The clips have a column `units`: of each frame of 40 ms the unit, as in `_*4 p*2 l*3`.
    pub data: DataConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: AdamWConfig,
    /// Length of the run, reports and checkpoints.
    #[serde(default)]
    pub plan: Plan,
}

/// The units by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    names: Vec<String>,
    ids: BTreeMap<String, u32>,
}

impl Units {
    /// Units of these names, in their order.
    ///
    /// # Errors
    /// There are none, or one stands twice.
    pub fn new(names: Vec<String>) -> Result<Self> {
        let ids: BTreeMap<String, u32> = names.iter().cloned().zip(0..).collect();
        if names.is_empty() || ids.len() < names.len() {
            bail!("{} units, {} of them different", names.len(), ids.len());
        }
        Ok(Self { names, ids })
    }

    /// The units of all frames, of text such as `_*4 p*2 l*3`.
    ///
    /// # Errors
    /// A unit is not known, or a count is no number from 1 to 100,000.
    pub fn parse(&self, text: &str) -> Result<Vec<u32>> {
        let mut frames = Vec::new();
        for run in text.split_whitespace() {
            let (name, count) = match run.rsplit_once('*') {
                Some((name, count)) => (name, count.parse().ok().filter(|n| (1..=100_000).contains(n))),
                None => (run, Some(1usize)),
            };
            match (self.ids.get(name), count) {
                (Some(&id), Some(count)) => frames.resize(frames.len() + count, id),
                (None, _) => bail!("unit {:?} is not among the {} that are known", name, self.names.len()),
                (_, None) => bail!("{run:?}: expected a unit and its number of frames, as p*2"),
            }
        }
        Ok(frames)
    }
}

/// An encoder, its head and its clips.
struct Frames {
    encoder: AvHubert,
    head: Linear,
    keys: Map<String, Value>,
    clips: Manifest,
    valid: Option<Manifest>,
    data: DataConfig,
    buckets: Buckets,
    augment: Augment,
    seed: u64,
    accumulation: u64,
}

/// A batch as the encoder takes it.
struct Batch {
    /// `[b, 104, t]`
    sound: Option<Tensor>,
    /// `[b, 1, t, 88, 88]`
    lips: Option<Tensor>,
    /// Units of the frames of each clip.
    units: Vec<Vec<u32>>,
}

impl Frames {
    fn make(&self, from: &Manifest, clips: &[usize], [hears, sees]: [bool; 2], index: Option<u64>) -> Result<Batch> {
        let (mut sounds, mut frames, mut units) = (Vec::new(), Vec::new(), Vec::new());
        let plain = Augment { mask: false, mask_lips: false, noise: None, drop: [0.0; 2] };
        let augment = if index.is_some() { &self.augment } else { &plain };
        for (row, &clip) in clips.iter().enumerate() {
            let mut rng = Rng::keyed(&[self.seed, index.unwrap_or(0), row as u64]);
            let Clip { sound, lips, text } = from.clip(clip, hears, sees)?;
            if hears {
                let mut sound = fit_to_video(&heard(clip, sound)?, text.len());
                augment.sound(&mut sound, &mut rng)?;
                sounds.push(sound);
            }
            if sees {
                let Some(lips) = lips else { bail!("clip {clip} has no video") };
                if lips.size.0 != text.len() {
                    bail!("clip {clip} has {} frames, and units for {}", lips.size.0, text.len());
                }
                frames.push(augment.lips(&lips, &mut rng)?);
            }
            units.push(text);
        }
        let sounds: Vec<&[f32]> = sounds.iter().map(Vec::as_slice).collect();
        let sound = match hears {
            true => Some(sound_features(&sounds, &Device::Cpu)?.transpose(1, 2)?.contiguous()?), // (b, 104, t)
            false => None,
        };
        let lips = stack(&frames, &Device::Cpu)?.map(|lips| lips.transpose(1, 2)?.contiguous()).transpose()?; // (b, 1, t, 88, 88)
        Ok(Batch { sound, lips, units })
    }

    /// Scores of the units of all real frames, row after row, and what the units are.
    fn scores(&self, batch: &Batch) -> Result<(Tensor, Vec<i64>)> {
        let lengths: Vec<usize> = batch.units.iter().map(Vec::len).collect();
        let tokens = self.encoder.forward(batch.lips.as_ref(), batch.sound.as_ref(), Some(&lengths), None)?;
        let (b, t, d) = tokens.embeds.dims3()?;
        let real: Vec<u32> =
            lengths.iter().enumerate().flat_map(|(row, &n)| (0..n).map(move |i| (row * t + i) as u32)).collect();
        let real = Tensor::from_vec(real, lengths.iter().sum::<usize>(), tokens.embeds.device())?;
        let frames = tokens.embeds.reshape((b * t, d))?.index_select(&real, 0)?; // (frames, d)
        Ok((self.head.forward(&frames)?, batch.units.iter().flatten().map(|&u| i64::from(u)).collect()))
    }
}

impl Trainable for Frames {
    type Batch = Batch;

    fn batch(&self, step: u64, part: usize) -> Result<Batch> {
        let index = step * self.accumulation + part as u64;
        let drawn = Rng::keyed(&[self.seed, index, 0x6472_6f70]).uniform();
        let [sound, lips] = self.augment.drop;
        let senses = [drawn >= sound, !(sound..sound + lips).contains(&drawn)];
        self.make(&self.clips, self.buckets.batch(self.seed, index), senses, Some(index))
    }

    fn loss(&self, batch: &Batch) -> Result<StepLoss> {
        let (scores, units) = self.scores(batch)?;
        let total = cross_entropy(&scores, &units)?;
        Ok(StepLoss { parts: vec![("cross_entropy".into(), scalar(&total)?)], total, tokens: units.len() })
    }

    fn config_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.keys).map_err(|e| Error::Msg(e.to_string()))? + "\n")
    }

    fn format(&self) -> Format {
        Format { dtype: DType::F32, ..Format::default() }
    }

    /// The share of frames of held-out clips whose unit is found, by what is heard and seen of them.
    fn measure(&self, step: u64, steps: u64) -> Result<Vec<(String, f64)>> {
        let Some(valid) = self.valid.as_ref().filter(|_| step > 0) else { return Ok(Vec::new()) };
        if !step.is_multiple_of(self.data.valid_every) && step != steps {
            return Ok(Vec::new());
        }
        let [sound, lips] = self.augment.drop;
        let ways = [
            ("audio", [true, false], sound < 1.0),
            ("video", [false, true], lips < 1.0),
            ("both", [true, true], sound + lips < 1.0),
        ];
        let mut shares = Vec::new();
        for (name, senses, _) in ways.into_iter().filter(|(.., trained)| *trained) {
            let (mut right, mut all) = (0, 0);
            for clip in 0..self.data.valid_clips.min(valid.lengths().len()) {
                let (scores, units) = self.scores(&self.make(valid, &[clip], senses, None)?)?;
                let found = scores.argmax(1)?.to_vec1::<u32>()?;
                right += found.iter().zip(&units).filter(|(found, unit)| i64::from(**found) == **unit).count();
                all += units.len();
            }
            shares.push((format!("right_{name}"), right as f64 / all.max(1) as f64));
        }
        Ok(shares)
    }
}

/// Trains, or goes on from the newest checkpoint in `plan.out` if `resume`. Without `resume`, a folder that holds checkpoints
/// already is refused rather than overwritten.
///
/// # Errors
/// A setting makes no sense, a file cannot be read or does not fit, or a step fails.
pub fn run(
    config: &TrainConfig,
    resume: bool,
    stop: &AtomicBool,
    report: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<Ended> {
    config.optimiser.validate()?;
    config.data.validate()?;
    let newest = newest(&config.plan.out, resume)?;
    let text = std::fs::read_to_string(&config.units).map_err(|e| at(&config.units, e))?;
    let units = Units::new(text.lines().map(|line| line.trim().to_string()).filter(|l| !l.is_empty()).collect())
        .map_err(|e| at(&config.units, e))?;
    let keys = AvHubertConfig::from_json(&Value::Object(config.encoder.clone()))?;
    let data = &config.data;
    // What is never heard, or never seen, need not be there.
    let (hears, sees) = (data.drop_audio < 1.0, data.drop_video < 1.0);
    let load = |path| Manifest::labelled(path, "units", hears, sees, &|text| units.parse(text));
    let clips = load(&data.clips)?;
    let valid = data.valid.as_deref().map(load).transpose()?;
    let buckets = Buckets::new(clips.lengths(), data.max_frames, data.buckets, data.rows)?;
    let params = match &newest {
        Some(dir) => Params::resume(&Checkpoint::open(&dir.join(Format::default().weights))?, &Device::Cpu),
        None => Params::init(config.seed, &Device::Cpu),
    };
    let width = keys.encoder_embed_dim;
    let augment = Augment {
        mask: data.mask,
        mask_lips: data.masks_lips(),
        noise: data.noise()?,
        drop: [data.drop_audio, data.drop_video],
    };
    let frames = Frames {
        encoder: AvHubert::new(keys, &params)?,
        head: Linear::load(&params, "final_proj", (units.names.len(), width), true, Init::Normal(0.02))?,
        keys: config.encoder.clone(),
        clips,
        valid,
        data: data.clone(),
        buckets,
        augment,
        seed: config.seed,
        accumulation: config.plan.accumulation.max(1) as u64,
    };
    Trainer::start(&frames, &params, config.plan.clone(), config.optimiser, newest.as_deref())?.run(stop, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_stand_for_each_frame() -> Result<()> {
        let units = Units::new(["_", "p", "a*"].map(String::from).to_vec())?;
        assert_eq!(units.parse(" _*2 p  a**3 p ")?, [0, 0, 1, 2, 2, 2, 1]);
        assert!(units.parse("")?.is_empty());
        let error = |text: &str| units.parse(text).unwrap_err().to_string();
        assert!(error("q*2").contains("\"q\"") && error("p*0").contains("p*0") && error("p*x").contains("p*x"));
        assert!(error("p*99999999999").contains("number of frames"));
        assert!(Units::new(vec!["a".into(), "a".into()]).is_err() && Units::new(Vec::new()).is_err());
        Ok(())
    }
}
