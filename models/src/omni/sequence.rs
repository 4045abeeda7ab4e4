//! Conversations about text, pictures, sound and series as one sequence of tokens.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::Modality;

use super::{Config, Omni};

/// A piece of a prompt.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Token ids.
    Text(&'a [u32]),
    /// A picture, `[3, size, size]`, its values about -1 to 1.
    Image(&'a Tensor),
    /// Sound as a spectrogram in decibels, `[bands, frames]`.
    Audio(&'a Tensor),
    /// Values of a series, the newest last; missing ones are NaN.
    Series(&'a [f32]),
}

/// What comes after a prompt.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Nothing that is known.
    Open,
    /// Token ids, without the last token.
    Text(&'a [u32]),
    /// Values that follow the last series; missing ones are NaN. Where a forecast ends is learnt from whole patches.
    Series(&'a [f32]),
}

/// A prompt and what comes after it.
#[derive(Clone, Debug)]
pub struct Turn<'a> {
    /// The prompt.
    pub prompt: Vec<Part<'a>>,
    /// What comes after it.
    pub answer: Answer<'a>,
}

/// A conversation: turns that follow each other. Only the last answer may be open.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// At least one.
    pub turns: Vec<Turn<'a>>,
}

impl<'a> Row<'a> {
    /// A conversation of one turn.
    pub fn one(prompt: Vec<Part<'a>>, answer: Answer<'a>) -> Self {
        Self { turns: vec![Turn { prompt, answer }] }
    }
}

impl Part<'_> {
    /// Tokens that a model reads for it.
    pub fn tokens(&self, config: &Config) -> usize {
        match self {
            Self::Text(ids) => ids.len(),
            Self::Image(_) => config.image.map_or(0, |image| image.tokens()),
            Self::Audio(sound) => {
                let frames = sound.dims().last().copied().unwrap_or(0);
                config.audio.map_or(0, |audio| frames.div_ceil(audio.frames))
            }
            Self::Series(values) => {
                config.series.as_ref().map_or(0, |series| series.newest(values).len().div_ceil(series.patch))
            }
        }
    }
}

impl Turn<'_> {
    /// Tokens that a model reads for it, with the last one of the answer.
    pub fn tokens(&self, config: &Config) -> usize {
        let prompt: usize = self.prompt.iter().map(|part| part.tokens(config)).sum();
        prompt
            + match self.answer {
                Answer::Open => 0,
                Answer::Text(ids) => ids.len() + 1,
                Answer::Series(values) => config.series.as_ref().map_or(0, |s| values.len().div_ceil(s.patch)) + 1,
            }
    }
}

/// By how much a series is moved and stretched before it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Mean of the known values.
    pub mean: f64,
    /// Their deviation; 1 where they are all the same.
    pub std: f64,
}

impl Scale {
    /// That of the values that are numbers.
    pub fn of(values: &[f32]) -> Self {
        let known: Vec<f64> = values.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v)).collect();
        let n = known.len().max(1) as f64;
        let mean = known.iter().sum::<f64>() / n;
        let std = (known.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        // Below f32's resolution around the mean the deviation is rounding noise.
        let floor = mean.abs() * f64::from(f32::EPSILON);
        Self { mean, std: if std > floor { std } else { 1.0 } }
    }

    pub(super) fn apply(&self, value: f32) -> f32 {
        ((f64::from(value) - self.mean) / self.std) as f32
    }

    pub(super) fn invert(&self, value: f32) -> f32 {
        (f64::from(value) * self.std + self.mean) as f32
    }
}

/// What a token predicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Target<T> {
    /// Its place in `b * t`.
    pub place: u32,
    /// Its turn among those of all rows.
    pub turn: usize,
    /// What comes next.
    pub next: T,
}

/// Rows ready for the backbone, filled up at the left.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[b, t, h]`
    pub embeds: Tensor,
    /// `[b * t]`
    pub modality: Vec<Modality>,
    /// Padding tokens of each row.
    pub padding: Vec<usize>,
    /// Words that are predicted: those of answers, [`SeriesConfig::forecast_token`](super::SeriesConfig::forecast_token)
    /// where a patch comes next, the last token of each answer.
    pub words: Vec<Target<i64>>,
    /// Patches that are predicted, scaled; missing values are NaN.
    pub patches: Vec<Target<Vec<f32>>>,
    /// Of each row, how its last series was scaled.
    pub scales: Vec<Option<Scale>>,
}

/// Where a token is found: text by its number among all words of the batch, others among those of their kind.
#[derive(Clone, Copy)]
struct Slot(Modality, usize);

/// Tokens of all rows by kind.
#[derive(Default)]
struct Tables<'a> {
    words: Vec<u32>,
    images: Vec<&'a Tensor>,
    image_tokens: usize,
    sounds: Vec<Tensor>,
    audio_tokens: usize,
    /// Scaled values and which are known, `[2 * patch]` each.
    patches: Vec<Vec<f32>>,
}

/// A patch as the model reads it: values, 0 where they are missing, and which are known.
pub(super) fn patch(values: &[f32]) -> Vec<f32> {
    let known = values.iter().map(|v| if v.is_finite() { 1.0 } else { 0.0 });
    values.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).chain(known).collect()
}

impl<'a> Tables<'a> {
    fn say(&mut self, ids: &[u32], to: &mut Vec<Slot>) {
        to.extend((self.words.len()..).take(ids.len()).map(|at| Slot(Modality::Text, at)));
        self.words.extend_from_slice(ids);
    }

    fn see(&mut self, model: &Omni, image: &'a Tensor, to: &mut Vec<Slot>) -> Result<()> {
        let Some(config) = model.config.image else { bail!("this model takes no pictures") };
        if image.dims() != [3, config.size, config.size] {
            bail!("a picture of shape {:?}, expected [3, {s}, {s}]", image.dims(), s = config.size);
        }
        to.extend((self.image_tokens..).take(config.tokens()).map(|at| Slot(Modality::Image, at)));
        self.image_tokens += config.tokens();
        self.images.push(image);
        Ok(())
    }

    fn hear(&mut self, model: &Omni, sound: &Tensor, to: &mut Vec<Slot>) -> Result<()> {
        let Some(config) = model.config.audio else { bail!("this model takes no sound") };
        let frames = match *sound.dims() {
            [bands, frames] if bands == config.bands && frames > 0 => frames,
            _ => bail!("sound of shape {:?}, expected [{}, frames]", sound.dims(), config.bands),
        };
        let tokens = frames.div_ceil(config.frames);
        let scaled = ((sound.to_dtype(DType::F32)? - config.mean)? / config.std)?;
        let filled = scaled.t()?.contiguous()?.pad_with_zeros(0, 0, tokens * config.frames - frames)?;
        self.sounds.push(filled.reshape((tokens, config.frames * config.bands))?); // (tokens, frames * bands)
        to.extend((self.audio_tokens..).take(tokens).map(|at| Slot(Modality::Audio, at)));
        self.audio_tokens += tokens;
        Ok(())
    }

    /// Patches of the values of a series, the first filled up in front.
    fn read(&mut self, model: &Omni, values: &[f32], to: &mut Vec<Slot>) -> Result<Scale> {
        let Some(config) = &model.config.series else { bail!("this model takes no series") };
        let values = config.newest(values);
        if !values.iter().any(|v| v.is_finite()) || values.iter().any(|v| v.is_infinite()) {
            bail!("a series of {} values, expected at least one number and none that is infinite", values.len());
        }
        let scale = Scale::of(values);
        let front = values.len().next_multiple_of(config.patch) - values.len();
        let scaled = values.iter().map(|&v| scale.apply(v));
        let filled: Vec<f32> = std::iter::repeat_n(f32::NAN, front).chain(scaled).collect();
        filled.chunks(config.patch).for_each(|values| self.add(values, to));
        Ok(scale)
    }

    /// One patch of scaled values.
    fn add(&mut self, values: &[f32], to: &mut Vec<Slot>) {
        to.push(Slot(Modality::Series, self.patches.len()));
        self.patches.push(patch(values));
    }

    fn part(&mut self, model: &Omni, part: Part<'a>, slots: &mut Vec<Slot>, scale: &mut Option<Scale>) -> Result<()> {
        match part {
            Part::Text(ids) => self.say(ids, slots),
            Part::Image(image) => self.see(model, image, slots)?,
            Part::Audio(sound) => self.hear(model, sound, slots)?,
            Part::Series(values) => *scale = Some(self.read(model, values, slots)?),
        }
        Ok(())
    }
}

/// The targets of a row, their places counted from its first token.
#[derive(Default)]
struct Targets {
    words: Vec<Target<i64>>,
    patches: Vec<Target<Vec<f32>>>,
}

impl Targets {
    fn word(&mut self, slots: &[Slot], turn: usize, id: u32) {
        self.words.push(Target { place: slots.len().saturating_sub(1) as u32, turn, next: i64::from(id) });
    }
}

/// Lays out rows, each of which begins with the tokens `head`; `scale` is that of a series before it.
pub(super) fn lay_out(model: &Omni, head: &[u32], scale: Option<Scale>, rows: &[Row<'_>]) -> Result<Sequence> {
    let (h, marks) = (model.config.backbone.hidden_size, model.marks);
    let mut tables = Tables::default();
    let (mut all, mut scales, mut turns) = (Vec::with_capacity(rows.len()), Vec::new(), 0);
    for row in rows {
        let (mut slots, mut targets, mut scale) = (Vec::new(), Targets::default(), scale);
        tables.say(head, &mut slots);
        for (i, turn) in row.turns.iter().enumerate() {
            for part in &turn.prompt {
                tables.part(model, *part, &mut slots, &mut scale)?;
            }
            if slots.is_empty() {
                bail!("there is nothing to answer");
            }
            let ends = match turn.answer {
                Answer::Open if i + 1 == row.turns.len() => false,
                Answer::Open => bail!("turn {} of {} has no answer: only the last may be open", i + 1, row.turns.len()),
                Answer::Text(ids) => {
                    for &id in ids {
                        targets.word(&slots, turns, id);
                        tables.say(&[id], &mut slots);
                    }
                    true
                }
                Answer::Series(values) => {
                    let (Some(config), Some(scale), Some(mark)) = (&model.config.series, scale, marks.forecast) else {
                        bail!("a forecast follows a series: there is none before it");
                    };
                    let mut scaled: Vec<f32> = values.iter().map(|&v| scale.apply(v)).collect();
                    scaled.resize(values.len().next_multiple_of(config.patch), f32::NAN);
                    for values in scaled.chunks(config.patch) {
                        targets.word(&slots, turns, mark);
                        let place = slots.len().saturating_sub(1) as u32;
                        targets.patches.push(Target { place, turn: turns, next: values.to_vec() });
                        tables.add(values, &mut slots);
                    }
                    // The model itself reads whole patches only: what comes behind a part of one would teach it nothing.
                    values.len().is_multiple_of(config.patch)
                }
            };
            if ends {
                targets.word(&slots, turns, marks.eos);
            }
            // The last token of an answer is read with the turn behind it.
            if i + 1 < row.turns.len() {
                tables.say(&[marks.eos], &mut slots);
            }
            turns += 1;
        }
        scales.push(scale);
        all.push((slots, targets));
    }
    let t = all.iter().map(|(slots, _)| slots.len()).max().unwrap_or(0);
    if all.is_empty() || all.iter().any(|(slots, _)| slots.is_empty()) {
        bail!("there is no row, or one without a turn");
    }
    let (table, first) = model.embed_all(&tables.words, &tables.images, &tables.sounds, &tables.patches)?;
    let (mut places, mut modality, mut padding) = (Vec::new(), Vec::new(), Vec::new());
    let (mut words, mut patches) = (Vec::new(), Vec::new());
    for (r, (slots, targets)) in all.into_iter().enumerate() {
        let front = t - slots.len();
        padding.push(front);
        // Padding looks at the first token of the batch; nothing looks at it.
        places.extend(std::iter::repeat_n(0, front));
        modality.extend(std::iter::repeat_n(Modality::Text, front));
        for Slot(kind, at) in slots {
            places.push((first(kind) + at) as u32);
            modality.push(kind);
        }
        let start = (r * t + front) as u32;
        words.extend(targets.words.into_iter().map(|target| Target { place: start + target.place, ..target }));
        patches.extend(targets.patches.into_iter().map(|target| Target { place: start + target.place, ..target }));
    }
    let count = places.len();
    let embeds = table.index_select(&Tensor::from_vec(places, count, table.device())?, 0)?;
    let embeds = embeds.reshape((rows.len(), t, h))?; // (b, t, h)
    Ok(Sequence { embeds, modality, padding, words, patches, scales })
}
