//! Rows of patch tokens for training: samples of random lengths and numbers of variates, one after the other.
//!
//! A sample is made of windows of series as the sources give them. Half of those with several variates are unrelated series measured
//! together; in the others one variate leads, and the others follow it in part, at a distance of their own. Its first part says how
//! its series are scaled, and what follows is to be predicted, as a forecast is scaled by what came before it.

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

use super::config::{DataConfig, LAG};
use crate::moirai_moe::{NextPatches, Patches, causal_mean, zeros};
use crate::train::data::{Mixture, Source, Windowing, moments};
use crate::train::forecast::{Sources, sources};

/// Rows of tokens, and what follows each of them.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The tokens.
    pub patches: Patches,
    /// The patch after each.
    pub next: NextPatches,
}

/// Makes batches; each is a function of the seed and its number.
pub struct Packer {
    source: std::sync::Arc<Mixture>,
    data: DataConfig,
    patch_sizes: Vec<usize>,
    seed: u64,
}

/// How many variates and patches one sample of a row has.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    variates: usize,
    patches: usize,
}

/// Share of the samples with several variates of which one leads the others.
const LED: f64 = 0.5;
/// Share of the series that stand away from 0, as most measurements do.
const LIFTED: f64 = 0.6;
/// Share of the samples whose first patch is filled in part only.
const PARTIAL: f64 = 0.2;
/// A series that leaves its own scale by more than this is not predicted: nothing can be learnt from a loss as large.
const FARTHEST: f64 = 50.0;

impl Packer {
    /// Batches from the sources of a training file.
    ///
    /// # Errors
    /// Series that cannot be read, or that the model is to be evaluated on.
    pub fn new(data: &DataConfig, patch_sizes: &[usize], seed: u64) -> Result<Self> {
        let Some(&longest) = patch_sizes.last() else { bail!("the model has no patch sizes") };
        data.validate(longest)?;
        let (synthetic, recipes) = (data.synthetic, &data.recipes);
        let series = Sources { synthetic, recipes, folders: &data.folders, evaluation: &data.evaluation };
        let source = sources(&series, Windowing::default())?.into();
        Ok(Self { source, data: data.clone(), patch_sizes: patch_sizes.to_vec(), seed })
    }

    /// The same with other random numbers.
    pub fn with_seed(&self, seed: u64) -> Self {
        let (source, data) = (self.source.clone(), self.data.clone());
        Self { source, data, patch_sizes: self.patch_sizes.clone(), seed }
    }

    /// The batch of this number.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn batch(&self, index: u64) -> Result<Packed> {
        let mut rng = Rng::keyed(&[self.seed, index, 0x7061_636b]);
        let rows: Vec<Vec<Shape>> = (0..self.data.rows).map(|_| self.fill(&mut rng)).collect();
        let series = rows.iter().flatten().map(|shape| shape.variates).sum();
        let width = self.patch_sizes.last().copied().unwrap_or(1);
        let length = self.data.window(width);
        let raw = self.source.batch(self.seed, index, series, length)?;
        // NaN is missing.
        let seen =
            raw.values.iter().zip(&raw.mask).map(|(&v, &mask)| if mask == 0.0 { f64::NAN } else { f64::from(v) });
        let values: Vec<f64> = seen.collect();
        let mut windows = values.chunks_exact(length);
        let mut tokens = Tokens::new(width);
        for (row, shapes) in rows.iter().enumerate() {
            for (shape, id) in shapes.iter().zip(1..) {
                let own: Vec<&[f64]> = windows.by_ref().take(shape.variates).collect();
                let patch = self.patch_sizes[rng.below(self.patch_sizes.len())];
                let variates = variates(&mut rng, &own, shape.patches * patch, LAG * width);
                tokens.sample(&mut rng, &variates, patch, id, self.data.scaled_by);
            }
            tokens.pad((row + 1) * self.data.length);
        }
        Ok(tokens.finish(self.data.rows, self.data.length))
    }

    /// Samples that fill a row, or leave less than the shortest needs.
    fn fill(&self, rng: &mut Rng) -> Vec<Shape> {
        let DataConfig { patches: [least, most], variates, together, length, .. } = self.data;
        let (mut left, mut shapes) = (length, Vec::new());
        while left >= least {
            let wanted = if rng.chance(together) { 2 + rng.below(variates.max(2) - 1) } else { 1 };
            let variates = wanted.min(left / least).max(1);
            let most = most.min(left / variates);
            let drawn = least + rng.below(most - least + 1);
            // What is too short for another sample is given to this one.
            let patches = if left - variates * drawn < least { most } else { drawn };
            left -= variates * patches;
            shapes.push(Shape { variates, patches });
        }
        shapes
    }
}

/// Variates of `n` values from windows that are longer by `lag` and more.
fn variates(rng: &mut Rng, windows: &[&[f64]], n: usize, lag: usize) -> Vec<Vec<f64>> {
    let longest = windows.first().map_or(n, |window| window.len());
    let end = (n + lag).min(longest) + rng.below(longest.saturating_sub(n + lag) + 1);
    let cut = |window: &[f64], behind: usize| -> Vec<f64> {
        let end = end.saturating_sub(behind).min(window.len());
        window[end.saturating_sub(n)..end].to_vec()
    };
    let mut all: Vec<Vec<f64>> = windows.iter().map(|window| cut(window, 0)).collect();
    if windows.len() > 1 && rng.chance(LED) {
        let leader = rng.below(windows.len());
        for at in (0..all.len()).filter(|&at| at != leader) {
            let part = rng.range(0.3, 1.0) * if rng.chance(0.25) { -1.0 } else { 1.0 };
            let led = cut(windows[leader], rng.below(lag + 1));
            all[at].iter_mut().zip(led).for_each(|(v, led)| *v = (1.0 - part.abs()) * *v + part * led);
        }
    }
    for values in &mut all {
        if rng.chance(LIFTED) {
            let level = rng.log_range(0.3, 100.0) * if rng.chance(0.15) { -1.0 } else { 1.0 };
            values.iter_mut().for_each(|v| *v += level);
        }
    }
    all
}

/// Rows of tokens under way.
struct Tokens {
    width: usize,
    patches: Patches,
    next: NextPatches,
}

impl Tokens {
    fn new(width: usize) -> Self {
        let next = NextPatches { target: Vec::new(), observed: Vec::new(), prediction: Vec::new() };
        Self { width, patches: Patches::default(), next }
    }

    fn token(
        &mut self,
        cells: &[(f32, bool)],
        following: Option<&[(f32, bool)]>,
        ids: [u32; 3],
        patch: usize,
        prediction: bool,
    ) {
        let (all, next) = (&mut self.patches, &mut self.next);
        let end = (all.sample_id.len() + 1) * self.width;
        for (cells, target, observed) in [
            (cells, &mut all.target, &mut all.observed),
            (following.unwrap_or_default(), &mut next.target, &mut next.observed),
        ] {
            target.extend(cells.iter().map(|cell| cell.0));
            observed.extend(cells.iter().map(|cell| cell.1));
            target.resize(end, 0.0);
            observed.resize(end, false);
        }
        let [sample, time, variate] = ids;
        all.sample_id.push(sample);
        all.time_id.push(time);
        all.variate_id.push(variate);
        all.prediction.push(prediction);
        all.patch_size.push(patch);
        next.prediction.push(following.is_some());
    }

    /// Adds the tokens of a sample: all patches of a variate, then those of the next. Patches before anything was observed are left
    /// out.
    fn sample(&mut self, rng: &mut Rng, variates: &[Vec<f64>], patch: usize, id: u32, scaled_by: [f64; 2]) {
        let first_seen = |values: &Vec<f64>| values.iter().position(|v| v.is_finite()).unwrap_or(values.len());
        let mut begin = variates.iter().map(first_seen).min().unwrap_or(0);
        if rng.chance(PARTIAL) {
            begin += rng.below(patch);
        }
        let length = variates.first().map_or(0, Vec::len);
        let (first, share) = (begin / patch, rng.range(scaled_by[0], scaled_by[1]));
        let patches = (length / patch).saturating_sub(first);
        if patches < 2 {
            return;
        }
        let known = ((patches as f64 * share).round() as usize).clamp(1, patches - 1);
        for (v, values) in variates.iter().enumerate() {
            // As a forecast sees them: nothing before the series, gaps filled.
            let before = begin - first * patch;
            let values: Vec<f32> = values[first * patch..].iter().map(|&v| v as f32).collect();
            let (mut cells, own) = (vec![(0f32, false); before], &values[before..]);
            let filled = if variates.len() == 1 { causal_mean(own) } else { zeros(own) };
            cells.extend(filled.into_iter().zip(own).map(|(value, raw)| (value, !raw.is_nan())));
            let predicts = worth(&cells, known * patch);
            for t in 0..patches {
                let at = |t: usize| &cells[t * patch..(t + 1) * patch];
                let following = (predicts && t + 1 >= known && t + 1 < patches).then(|| at(t + 1));
                self.token(at(t), following, [id, t as u32, v as u32], patch, predicts && t >= known);
            }
        }
    }

    /// Adds padding up to `count` tokens.
    fn pad(&mut self, count: usize) {
        while self.patches.sample_id.len() < count {
            self.token(&[], None, [0; 3], self.width, false);
        }
    }

    fn finish(self, rows: usize, length: usize) -> Packed {
        Packed { patches: Patches { rows, length, width: self.width, ..self.patches }, next: self.next }
    }
}

/// Whether the first `known` cells scale a series so that what follows can be learnt from.
fn worth(cells: &[(f32, bool)], known: usize) -> bool {
    let (before, after) = cells.split_at(known.min(cells.len()));
    let seen = |cells: &[(f32, bool)]| -> Vec<f64> {
        cells.iter().map(|&(value, seen)| if seen { f64::from(value) } else { f64::NAN }).collect()
    };
    let Some((mean, deviation)) = moments(&seen(before)) else { return false };
    seen(after).iter().all(|v| v.is_nan() || (v - mean).abs() <= FARTHEST * deviation)
}
