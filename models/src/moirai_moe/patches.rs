//! What the network takes: a batch of rows of patch tokens, and how their series are scaled.

use std::collections::BTreeMap;

use candle_core::{Result, bail};

use super::Config;

/// Rows of patch tokens. A row may hold several samples; tokens of one sample see each other, whatever their variate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patches {
    /// Number of rows, B.
    pub rows: usize,
    /// Tokens of a row, S.
    pub length: usize,
    /// Cells of a token, P: the model's largest patch.
    pub width: usize,
    /// Values in the units of the data, 0 where missing or unused, `[B * S * P]`.
    pub target: Vec<f32>,
    /// Which values were observed, `[B * S * P]`.
    pub observed: Vec<bool>,
    /// Which sample a token belongs to, `[B * S]`; 0 is padding.
    pub sample_id: Vec<u32>,
    /// When a token is, in patches, `[B * S]`.
    pub time_id: Vec<u32>,
    /// Which variate of its sample a token belongs to, `[B * S]`.
    pub variate_id: Vec<u32>,
    /// Tokens that are to be predicted: they do not take part in the scaling, `[B * S]`.
    pub prediction: Vec<bool>,
    /// Cells that a token uses, one of the config's `patch_sizes`, `[B * S]`.
    pub patch_size: Vec<usize>,
}

/// Location and scale of every token's series.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// `[B * S]`; 0 of padding
    pub loc: Vec<f32>,
    /// `[B * S]`; 1 of padding
    pub scale: Vec<f32>,
}

/// Added to the variance.
const MINIMUM_SCALE: f64 = 1e-5;

/// Sums over the observed cells of one series.
#[derive(Clone, Copy, Default)]
struct Sums {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Patches {
    /// Number of tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.rows * self.length
    }

    /// Checks that the parts fit each other and the model.
    ///
    /// # Errors
    /// The first part that does not fit, or a value that is not finite.
    pub fn check(&self, config: &Config) -> Result<()> {
        let (Some(n), width) = (self.rows.checked_mul(self.length), config.max_patch()) else {
            bail!("{} rows of {} tokens are too many", self.rows, self.length);
        };
        if n == 0 || self.width != width {
            bail!("{n} tokens of {} cells, expected at least one and {width} cells", self.width);
        }
        for (name, len) in [("target", self.target.len()), ("observed", self.observed.len())] {
            if Some(len) != n.checked_mul(width) {
                bail!("{name} has {len} values, expected {} x {} x {width}", self.rows, self.length);
            }
        }
        for (name, len) in [
            ("sample_id", self.sample_id.len()),
            ("time_id", self.time_id.len()),
            ("variate_id", self.variate_id.len()),
            ("prediction", self.prediction.len()),
            ("patch_size", self.patch_size.len()),
        ] {
            if len != n {
                bail!("{name} has {len} values, expected {} x {}", self.rows, self.length);
            }
        }
        if let Some(at) = self.target.iter().position(|v| !v.is_finite()) {
            bail!("token {} has a value of {}; give missing values as 0 and not observed", at / width, self.target[at]);
        }
        self.sizes(config).map(drop)
    }

    /// The place of each token's patch size among those of the model.
    pub(super) fn sizes(&self, config: &Config) -> Result<Vec<u32>> {
        let place = |(at, size): (usize, &usize)| match config.patch_sizes.iter().position(|p| p == size) {
            Some(place) => Ok(place as u32),
            None => bail!("token {at} has a patch of {size}, the model has {:?}", config.patch_sizes),
        };
        self.patch_size.iter().enumerate().map(place).collect()
    }

    /// Location and scale of each series (a variate of a sample) over its observed cells outside the tokens to predict, in f64:
    /// the mean, and the root of the unbiased variance plus 1e-5 (`PackedStdScaler` of the reference).
    ///
    /// # Errors
    /// A scale that f32 does not hold.
    pub fn scaling(&self) -> Result<Scaling> {
        let mut scaling = Scaling { loc: vec![0.0; self.tokens()], scale: vec![1.0; self.tokens()] };
        for row in 0..self.rows {
            let tokens = || (row * self.length..(row + 1) * self.length).filter(|&t| self.sample_id[t] != 0);
            let key = |t: usize| (self.sample_id[t], self.variate_id[t]);
            let mut series: BTreeMap<(u32, u32), Sums> = BTreeMap::new();
            let each = |f: &mut dyn FnMut((u32, u32), f64)| {
                for t in tokens().filter(|&t| !self.prediction[t]) {
                    let cells = t * self.width..(t + 1) * self.width;
                    let values = self.target[cells.clone()].iter().zip(&self.observed[cells]);
                    values.filter(|(_, seen)| **seen).for_each(|(&v, _)| f(key(t), f64::from(v)));
                }
            };
            each(&mut |key, v| {
                let sums = series.entry(key).or_default();
                sums.count += 1.0;
                sums.sum += v;
            });
            let means: BTreeMap<_, _> = series.iter().map(|(&key, sums)| (key, sums.sum / sums.count)).collect();
            each(&mut |key, v| {
                if let (Some(sums), Some(mean)) = (series.get_mut(&key), means.get(&key)) {
                    sums.squares += (v - mean).powi(2);
                }
            });
            for t in tokens() {
                let sums = series.get(&key(t)).copied().unwrap_or_default();
                let mean = means.get(&key(t)).copied().unwrap_or(0.0);
                let divisor = if sums.count > 1.0 { sums.count - 1.0 } else { 1.0 };
                let scale = (sums.squares / divisor + MINIMUM_SCALE).sqrt() as f32;
                if !(scale.is_finite() && (mean as f32).is_finite()) {
                    bail!("the values of variate {} spread too far for f32; rescale them", self.variate_id[t]);
                }
                (scaling.loc[t], scaling.scale[t]) = (mean as f32, scale);
            }
        }
        Ok(scaling)
    }

    /// Neither moved nor scaled: models without `scaling`.
    pub fn unscaled(&self) -> Scaling {
        Scaling { loc: vec![0.0; self.tokens()], scale: vec![1.0; self.tokens()] }
    }

    /// `(target - loc) / scale` of every cell.
    pub(super) fn scaled(&self, scaling: &Scaling) -> Vec<f32> {
        let affine = scaling.loc.iter().zip(&scaling.scale).map(|(&loc, &scale)| (f64::from(loc), f64::from(scale)));
        let tokens = self.target.chunks_exact(self.width.max(1)).zip(affine);
        tokens
            .flat_map(|(cells, (loc, scale))| cells.iter().map(move |&v| ((f64::from(v) - loc) / scale) as f32))
            .collect()
    }
}
