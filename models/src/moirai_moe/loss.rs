//! Losses of next-patch prediction: the negative log-likelihood, averaged within each series before it is averaged over them.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use super::{Distribution, Patches};

/// The patches that a forward pass should have predicted: what follows each token, in the place of the token.
#[derive(Clone, Debug)]
pub struct NextPatches {
    /// Values in the units of the data, `[B * S * P]`; anything finite where they do not count.
    pub target: Vec<f32>,
    /// Which values were observed, `[B * S * P]`.
    pub observed: Vec<bool>,
    /// Tokens whose next patch counts, `[B * S]`.
    pub prediction: Vec<bool>,
}

impl NextPatches {
    /// The weight of each cell in the sum over series of the mean over a series' observed cells; and the number of series of each
    /// row, those without an observed cell too.
    fn weights(&self, patches: &Patches) -> Result<(Vec<f32>, Vec<usize>)> {
        let (n, width) = (patches.tokens(), patches.width);
        let cells = Some(self.target.len()) == n.checked_mul(width) && self.observed.len() == self.target.len();
        if !cells || self.prediction.len() != n {
            bail!("next patches of {} cells for {n} tokens of {width} cells", self.target.len());
        }
        if let Some(at) = self.target.iter().position(|v| !v.is_finite()) {
            bail!("the patch after token {} has a value of {}", at / width, self.target[at]);
        }
        let key = |t: usize| (t / patches.length, patches.sample_id[t], patches.variate_id[t]);
        let seen = |t: usize| self.observed[t * width..(t + 1) * width].iter().filter(|&&seen| seen).count();
        let mut counts: BTreeMap<(usize, u32, u32), usize> = BTreeMap::new();
        for t in (0..n).filter(|&t| self.prediction[t]) {
            *counts.entry(key(t)).or_default() += seen(t);
        }
        let mut series = vec![0; patches.rows];
        counts.keys().for_each(|(row, ..)| series[*row] += 1);
        let mut weights = vec![0f32; n * width];
        for t in (0..n).filter(|&t| self.prediction[t]) {
            let count = counts.get(&key(t)).copied().unwrap_or(0).max(1);
            for cell in (t * width..(t + 1) * width).filter(|&cell| self.observed[cell]) {
                weights[cell] = 1.0 / count as f32;
            }
        }
        Ok((weights, series))
    }
}

impl Distribution {
    /// `-log p * weight` summed over each row, `[B]`.
    fn weighted(&self, patches: &Patches, next: &NextPatches, weights: Vec<f32>) -> Result<Tensor> {
        let shape = (self.tokens(), self.patch());
        let densities = self.log_prob(&next.target)?;
        let sums = (&densities * Tensor::from_vec(weights, shape, densities.device())?)?.neg()?;
        sums.reshape((patches.rows, patches.length * self.patch()))?.sum(1) // (B)
    }

    /// `PackedNLLLoss` of the reference: the mean over all series (a variate of a sample) with predicted tokens of the mean negative
    /// log-likelihood of their observed predicted values; a scalar with gradients.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn packed_nll(&self, patches: &Patches, next: &NextPatches) -> Result<Tensor> {
        let (weights, series) = next.weights(patches)?;
        let count = series.iter().sum::<usize>().max(1);
        self.weighted(patches, next, weights)?.sum_all()? / count as f64
    }

    /// `SampleNLLLoss` of the reference: of each row, the sum over its series instead of the mean, `[B]` with gradients.
    ///
    /// # Errors
    /// As [`packed_nll`](Self::packed_nll).
    pub fn sample_nll(&self, patches: &Patches, next: &NextPatches) -> Result<Tensor> {
        let (weights, _) = next.weights(patches)?;
        self.weighted(patches, next, weights)
    }
}
