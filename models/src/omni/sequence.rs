//! Rows of text, pictures, sound and series as one sequence of tokens.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::Modality;

use super::Omni;

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

/// What is to come after a prompt.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Nothing that is known.
    Open,
    /// Token ids, without the last token.
    Text(&'a [u32]),
    /// Values that follow the prompt's last series; missing ones are NaN.
    Series(&'a [f32]),
}

/// A prompt and what comes after it.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The prompt, without the first token.
    pub prompt: Vec<Part<'a>>,
    /// What comes after it.
    pub answer: Answer<'a>,
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

/// Rows ready for the backbone, filled up at the left.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[b, t, h]`
    pub embeds: Tensor,
    /// `[b * t]`
    pub modality: Vec<Modality>,
    /// Padding tokens of each row.
    pub padding: Vec<usize>,
    /// Places in `b * t` that predict a word, and which.
    pub words: Vec<(u32, i64)>,
    /// Places in `b * t` that predict a patch, and its scaled values; missing ones are NaN.
    pub patches: Vec<(u32, Vec<f32>)>,
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

    /// Patches of scaled values, the first filled up in front.
    fn read(&mut self, size: usize, values: &[f32], to: &mut Vec<Slot>) {
        let front = values.len().next_multiple_of(size) - values.len();
        let filled: Vec<f32> = std::iter::repeat_n(f32::NAN, front).chain(values.iter().copied()).collect();
        for values in filled.chunks(size) {
            to.push(Slot(Modality::Series, self.patches.len()));
            self.patches.push(patch(values));
        }
    }
}

pub(super) fn lay_out(model: &Omni, bos: u32, eos: u32, rows: &[Row<'_>]) -> Result<Sequence> {
    let h = model.config.backbone.hidden_size;
    let mut tables = Tables::default();
    let mut all = Vec::with_capacity(rows.len());
    // Of each row what its last tokens predict: words or patches, from the last of the prompt on.
    let (mut words, mut patches, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let (mut slots, mut scale) = (Vec::new(), None);
        tables.say(&[bos], &mut slots);
        for part in &row.prompt {
            match part {
                Part::Text(ids) => tables.say(ids, &mut slots),
                Part::Image(image) => tables.see(model, image, &mut slots)?,
                Part::Audio(sound) => tables.hear(model, sound, &mut slots)?,
                Part::Series(values) => {
                    let Some(config) = &model.config.series else { bail!("this model takes no series") };
                    if !values.iter().any(|v| v.is_finite()) || values.iter().any(|v| v.is_infinite()) {
                        bail!(
                            "a series of {} values, expected at least one number and none that is infinite",
                            values.len()
                        );
                    }
                    let own = Scale::of(values);
                    let scaled: Vec<f32> = values.iter().map(|&v| own.apply(v)).collect();
                    tables.read(config.patch, &scaled, &mut slots);
                    scale = Some(own);
                }
            }
        }
        let (mut own_words, mut own_patches) = (Vec::new(), Vec::new());
        match row.answer {
            Answer::Open => {}
            Answer::Text(ids) => {
                tables.say(ids, &mut slots);
                own_words = ids.iter().chain([&eos]).map(|&id| i64::from(id)).collect();
            }
            Answer::Series(values) => {
                let (Some(config), Some(scale)) = (&model.config.series, scale) else {
                    bail!("a forecast follows a series: the prompt has none");
                };
                let mut scaled: Vec<f32> = values.iter().map(|&v| scale.apply(v)).collect();
                scaled.resize(values.len().next_multiple_of(config.patch), f32::NAN);
                own_patches = scaled.chunks(config.patch).map(<[f32]>::to_vec).collect();
                let fed = scaled.len().saturating_sub(config.patch);
                tables.read(config.patch, &scaled[..fed], &mut slots);
            }
        }
        words.push(own_words);
        patches.push(own_patches);
        scales.push(scale);
        all.push(slots);
    }
    let Some(t) = all.iter().map(Vec::len).max() else { bail!("there is no row") };
    let (table, first) = model.embed_all(&tables.words, &tables.images, &tables.sounds, &tables.patches)?;
    let (mut places, mut modality, mut padding) = (Vec::new(), Vec::new(), Vec::new());
    let (mut predicted, mut forecast) = (Vec::new(), Vec::new());
    for (r, ((slots, words), patches)) in all.iter().zip(words).zip(patches).enumerate() {
        let front = t - slots.len();
        padding.push(front);
        // Padding looks at the first word of the batch; nothing looks at it.
        places.extend(std::iter::repeat_n(0, front));
        modality.extend(std::iter::repeat_n(Modality::Text, front));
        for Slot(kind, at) in slots {
            places.push((first(*kind) + at) as u32);
            modality.push(*kind);
        }
        // What is predicted last is predicted by the last token.
        let place = |i: usize, n: usize| (r * t + t - n + i) as u32;
        let n = words.len();
        predicted.extend(words.into_iter().enumerate().map(|(i, id)| (place(i, n), id)));
        let n = patches.len();
        forecast.extend(patches.into_iter().enumerate().map(|(i, values)| (place(i, n), values)));
    }
    let count = places.len();
    let embeds = table.index_select(&Tensor::from_vec(places, count, table.device())?, 0)?;
    let embeds = embeds.reshape((rows.len(), t, h))?; // (b, t, h)
    Ok(Sequence { embeds, modality, padding, words: predicted, patches: forecast, scales })
}
