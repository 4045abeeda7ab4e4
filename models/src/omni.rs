//! Omni: one sparse decoder over text, pictures, sound and time series, which answers in text and forecasts numbers.
//!
//! A model of this workspace: MoMa's backbone ([`moma`], arXiv 2407.21770), whose experts know the modality of each
//! token, reads embeddings of all four instead of ids of two. Pictures are patches (ViT, arXiv
//! 2010.11929), sound is frames of a spectrogram, series are scaled patches (Moirai, arXiv 2402.02592), and quantiles of the next patch
//! are learnt by the pinball loss.
//!
//! ```text
//! bos text ─ embed ──────────────┐                                     ┌─ lm_head ─▶ next word
//! picture ─ patches ─ linear ────┤                                     │
//! sound ─ frames ─ 2 x linear ───┼─▶ one sequence ─ MoMa's decoder ────┤
//! series ─ patches ─ 2 x linear ─┘                                     └─ forecast head ─▶ quantiles of the next patch
//! ```
//!
//! An answer is words or, where the word that comes next is `forecast_token`, the patch of which the forecast head then gives the quantiles:
//! so the model itself says whether it answers in words or in numbers, and how many.

mod config;
mod media;
mod sequence;
mod talk;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::losses::cross_entropy;
use moesaic_kernels::{Init, Linear, Modality, Params};

use crate::folder::no_others;
use crate::moma::{self, Cache, Moma, Output, Routing};

pub use config::{AudioConfig, Config, ImageConfig, SeriesConfig};
pub use media::Senses;
pub use sequence::{Answer, Part, Row, Scale, Sequence, Target, Turn};
pub use talk::{Memory, Reply, Wanted};

/// Two linear maps with GELU between them.
#[derive(Debug)]
struct Stem {
    first: Linear,
    second: Linear,
}

impl Stem {
    fn load(p: &Params, inputs: usize, h: usize) -> Result<Self> {
        let uniform = |width: usize| Init::Uniform(1.0 / (width as f64).sqrt());
        Ok(Self {
            first: Linear::load(p, "0", (h, inputs), true, uniform(inputs))?,
            second: Linear::load(p, "2", (h, h), true, uniform(h))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.first.forward(x)?.gelu_erf()?)
    }
}

/// Patches of pictures.
#[derive(Debug)]
struct ImageStem {
    proj: Linear,
    /// `[tokens, h]`
    positions: Tensor,
    config: ImageConfig,
}

impl ImageStem {
    fn load(p: &Params, config: ImageConfig, h: usize) -> Result<Self> {
        let inputs = 3 * config.patch * config.patch;
        let side = config.size / config.patch;
        Ok(Self {
            proj: Linear::load(p, "proj", (h, inputs), true, Init::Uniform(1.0 / (inputs as f64).sqrt()))?,
            positions: p
                .tensor("positions", [config.tokens(), h], Init::Grid { lead: 0, side })?
                .to_dtype(DType::F32)?,
            config,
        })
    }

    /// `images [n, 3, size, size]` to `[n * tokens, h]`
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (n, side, p) = (images.dim(0)?, self.config.size / self.config.patch, self.config.patch);
        let x = images.to_dtype(DType::F32)?.reshape(&[n, 3, side, p, side, p][..])?;
        let x = x.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?; // (n, side, side, 3, p, p)
        let x = self.proj.forward(&x.reshape((n, side * side, 3 * p * p))?)?; // (n, tokens, h)
        x.broadcast_add(&self.positions)?.reshape((n * side * side, ()))
    }
}

/// The parts of the loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct Losses {
    /// What is minimised: the sum of what there is.
    pub total: Tensor,
    /// Mean cross entropy of the words of answers; absent without any.
    pub words: Option<Tensor>,
    /// Mean pinball loss of the scaled values of forecasts, over all quantiles; absent without any.
    pub series: Option<Tensor>,
}

/// Ids of tokens that are no words.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// First token of a sequence.
    bos: u32,
    /// Last one of an answer.
    eos: u32,
    /// Stands where a patch of a forecast is next, and is itself not read.
    forecast: Option<u32>,
}

/// The model.
#[derive(Debug)]
pub struct Omni {
    config: Config,
    backbone: Moma,
    image: Option<ImageStem>,
    audio: Option<Stem>,
    series: Option<Stem>,
    /// To the quantiles of each value of a patch.
    head: Option<Linear>,
    marks: Marks,
    device: Device,
}

impl Omni {
    /// The model with tensors from `params`: the backbone's under `backbone`, `image`, `audio`, `series` and `forecast` beside it. `id`
    /// gives the ids of the tokens that the config names. Auxiliary routers and routing are as in [`Moma::new`].
    ///
    /// # Errors
    /// The config does not hold together, the tokenizer is another model's, or a tensor is missing or has another shape.
    pub fn new(
        config: Config,
        id: impl Fn(&str) -> Option<u32>,
        params: &Params,
        auxiliary: Option<&Params>,
        routing: Routing,
    ) -> Result<Self> {
        config.validate()?;
        let end = |token: &str| match id(token) {
            Some(id) if (id as usize) < config.backbone.vocab_size => Ok(id),
            _ => bail!("the tokenizer does not know {token:?}: take the one that was saved with the model"),
        };
        let (bos, eos) = (end(&config.bos_token)?, end(&config.eos_token)?);
        let forecast = config.series.as_ref().map(|series| end(&series.forecast_token)).transpose()?;
        let marks = Marks { bos, eos, forecast };
        let h = config.backbone.hidden_size;
        let image = config.image.map(|image| ImageStem::load(&params.pp("image"), image, h));
        let audio = config.audio.map(|audio| Stem::load(&params.pp("audio"), audio.frames * audio.bands, h));
        let series = config.series.as_ref().map(|series| Stem::load(&params.pp("series"), 2 * series.patch, h));
        let head = config.series.as_ref().map(|series| {
            let outputs = series.patch * series.levels.len();
            Linear::load(params, "forecast", (outputs, h), true, Init::Normal(config.backbone.initializer_range))
        });
        Ok(Self {
            backbone: Moma::new(config.backbone.clone(), &params.pp("backbone"), auxiliary, routing)?,
            image: image.transpose()?,
            audio: audio.transpose()?,
            series: series.transpose()?,
            head: head.transpose()?,
            marks,
            device: params.device().clone(),
            config,
        })
    }

    /// Loads a folder with `config.json`, the model's weights and `auxiliary.safetensors`, for inference; `id` as in
    /// [`new`](Self::new).
    ///
    /// # Errors
    /// A file cannot be read, a tensor is missing, has another shape or does not belong to the model.
    pub fn load(dir: &Path, id: impl Fn(&str) -> Option<u32>, dtype: DType, device: &Device) -> Result<Self> {
        let config = Config::load(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let p = Params::load(&checkpoint, dtype, device);
        let auxiliary = moma::auxiliary(dir, &config.backbone, dtype, device)?;
        let loaded = Self::new(config, id, &p, auxiliary.as_ref().map(|(q, _)| q), Routing::Causal)?;
        no_others(&p, &checkpoint, "omni", |_| false)?;
        if let Some((q, checkpoint)) = &auxiliary {
            no_others(q, checkpoint, "omni", |_| false)?;
        }
        Ok(loaded)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The decoder.
    pub fn backbone(&self) -> &Moma {
        &self.backbone
    }

    /// One table with the tokens of all kinds, text first, and where each kind begins.
    ///
    /// # Shapes
    /// to `[tokens, h]`
    fn embed_all(
        &self,
        words: &[u32],
        images: &[&Tensor],
        sounds: &[Tensor],
        patches: &[Vec<f32>],
    ) -> Result<(Tensor, impl Fn(Modality) -> usize + use<>)> {
        let h = self.config.backbone.hidden_size;
        let mut all = Vec::with_capacity(4);
        if !words.is_empty() {
            let ids = Tensor::from_slice(words, (1, words.len()), &self.device)?;
            all.push(self.backbone.embed(&ids)?.0.reshape((words.len(), h))?); // (words, h)
        }
        let mut counts = [words.len(), 0, 0];
        if let (Some(stem), false) = (&self.image, images.is_empty()) {
            all.push(stem.forward(&Tensor::stack(images, 0)?.to_device(&self.device)?)?);
            counts[1] = images.len() * stem.config.tokens();
        }
        if let (Some(stem), false) = (&self.audio, sounds.is_empty()) {
            let x = Tensor::cat(sounds, 0)?.to_device(&self.device)?;
            counts[2] = x.dim(0)?;
            all.push(stem.forward(&x)?);
        }
        if let (Some(stem), false) = (&self.series, patches.is_empty()) {
            let width = patches.first().map_or(0, Vec::len);
            let x = Tensor::from_vec(patches.concat(), (patches.len(), width), &self.device)?;
            all.push(stem.forward(&x)?);
        }
        let first = move |modality: Modality| match modality {
            Modality::Image => counts[0],
            Modality::Audio => counts[0] + counts[1],
            Modality::Series => counts.iter().sum(),
            Modality::Text | Modality::Video => 0,
        };
        Ok((Tensor::cat(&all, 0)?, first)) // (tokens, h)
    }

    /// The sequence of rows.
    ///
    /// # Errors
    /// No row, a part that the model does not take or that has another shape, an id that is not in the vocabulary, a series without a
    /// number, an answer that is open before the last, or a forecast without a series before it.
    pub fn sequence(&self, rows: &[Row<'_>]) -> Result<Sequence> {
        sequence::lay_out(self, &[self.marks.bos], None, rows)
    }

    /// Hidden states of a sequence, and its routes.
    ///
    /// # Errors
    /// As [`Moma::forward_embeds`].
    pub fn forward(&self, sequence: &Sequence, cache: Option<&mut Cache>) -> Result<Output> {
        self.backbone.forward_embeds(&sequence.embeds, &sequence.modality, &sequence.padding, cache)
    }

    /// Scores of the next word, in f32.
    ///
    /// # Shapes
    /// `hidden [.., h]` to `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.backbone.logits(hidden)
    }

    /// Quantiles of the next patch, scaled, in the order of the config's levels.
    ///
    /// # Shapes
    /// `hidden [n, h]` to `[n, patch, levels]`
    ///
    /// # Errors
    /// The model forecasts no series.
    pub fn quantiles(&self, hidden: &Tensor) -> Result<Tensor> {
        let (Some(head), Some(series)) = (&self.head, &self.config.series) else {
            bail!("this model forecasts no series")
        };
        head.forward(hidden)?.to_dtype(DType::F32)?.reshape((hidden.dim(0)?, series.patch, series.levels.len()))
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// As [`sequence`](Self::sequence), or no turn has an answer.
    pub fn loss(&self, rows: &[Row<'_>]) -> Result<(Losses, Output)> {
        let sequence = self.sequence(rows)?;
        let output = self.forward(&sequence, None)?;
        Ok((self.loss_of(&sequence, &output, None)?, output))
    }

    /// The loss of a pass that was made, of all turns or of some, which are counted over all rows.
    ///
    /// # Errors
    /// None of the turns has an answer.
    pub fn loss_of(&self, sequence: &Sequence, output: &Output, turns: Option<&[usize]>) -> Result<Losses> {
        let (b, t, h) = output.hidden.dims3()?;
        let flat = output.hidden.reshape((b * t, h))?; // (b * t, h)
        let counts = |turn: usize| turns.is_none_or(|turns| turns.contains(&turn));
        let at = |places: Vec<u32>| {
            let n = places.len();
            flat.index_select(&Tensor::from_vec(places, n, &self.device)?, 0) // (n, h)
        };
        let (mut words, mut series) = (None, None);
        let own = sequence.words.iter().filter(|target| counts(target.turn));
        let own: (Vec<u32>, Vec<i64>) = own.map(|target| (target.place, target.next)).unzip();
        if !own.0.is_empty() {
            words = Some(cross_entropy(&self.logits(&at(own.0)?)?, &own.1)?);
        }
        let own: Vec<_> = sequence.patches.iter().filter(|target| counts(target.turn)).collect();
        if !own.is_empty() {
            let places = own.iter().map(|target| target.place).collect();
            let targets: Vec<f32> = own.iter().flat_map(|target| target.next.iter().copied()).collect();
            series = Some(self.pinball(&self.quantiles(&at(places)?)?, targets)?);
        }
        let total = match (&words, &series) {
            (Some(words), Some(series)) => (words + series)?,
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => bail!("no turn has an answer: there is nothing to learn"),
        };
        Ok(Losses { total, words, series })
    }

    /// The loss of the auxiliary routers on a sequence ([`Moma::auxiliary_loss`]).
    ///
    /// # Errors
    /// As there.
    pub fn auxiliary_loss(&self, sequence: &Sequence) -> Result<Tensor> {
        self.backbone.auxiliary_loss_embeds(&sequence.embeds, &sequence.modality, &sequence.padding)
    }

    /// The mean over values and levels of `max(q e, (q - 1) e)`, `e` being what a value is above its quantile. Missing values do not count.
    fn pinball(&self, quantiles: &Tensor, targets: Vec<f32>) -> Result<Tensor> {
        let (n, patch, levels) = quantiles.dims3()?;
        let known: Vec<f32> = targets.iter().map(|v| if v.is_finite() { 1.0 } else { 0.0 }).collect();
        let count = f64::from(known.iter().sum::<f32>()).max(1.0);
        let targets = targets.into_iter().map(|v| if v.is_finite() { v } else { 0.0 }).collect();
        let column = |values: Vec<f32>| Tensor::from_vec(values, (n, patch, 1), &self.device);
        let level: Vec<f32> = self.config.series.iter().flat_map(|s| &s.levels).map(|&level| level as f32).collect();
        let level = Tensor::from_vec(level, (1, 1, levels), &self.device)?;
        let above = column(targets)?.broadcast_sub(quantiles)?; // (n, patch, levels)
        let loss = (above.broadcast_mul(&level)? + above.neg()?.relu()?)?;
        loss.broadcast_mul(&column(known)?)?.sum_all()? / (count * levels as f64)
    }
}
