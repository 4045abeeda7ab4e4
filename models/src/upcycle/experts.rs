//! The values of the tensors that a sparse layer has and a dense one has not.

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::rng::Rng;

use super::numbers::{Deal, anew};
use super::source::{Dense, Network};

/// Which tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// As it is in the dense model, or the mean over siblings.
    Copy,
    /// `[N, H]`
    Router { layer: usize },
    /// Gate (0), up (1) `[w, H]` or down (2) `[H, w]` of a routed expert.
    Expert { layer: usize, expert: usize, map: usize },
    /// All gates above ups `[N, 2 w, H]`.
    StackedUps { layer: usize },
    /// All downs `[N, H, w]`.
    StackedDowns { layer: usize },
    /// A map of the shared expert.
    Shared { layer: usize, map: usize },
    /// Zeros: a shared expert's gate, or a shared expert that is not wanted.
    Zeros,
}

/// Makes them. Keeps the feed-forward part of one layer.
pub(super) struct Maker<'a> {
    pub models: &'a [Dense],
    pub deal: &'a Deal,
    /// Width of the dense network.
    pub dense: usize,
    pub hidden: usize,
    pub seed: u64,
    pub noise: f64,
    pub reinit: f64,
    pub router_std: f64,
    kept: Option<((usize, usize), Network)>,
}

impl<'a> Maker<'a> {
    pub fn new(
        models: &'a [Dense],
        deal: &'a Deal,
        (dense, hidden): (usize, usize),
        options: &super::Options,
        router_std: f64,
    ) -> Self {
        let (seed, noise, reinit) = (options.seed, options.noise, options.reinit);
        Self { models, deal, dense, hidden, seed, noise, reinit, router_std, kept: None }
    }

    /// The tensor that `make` says, called `name`. Its random numbers depend on seed and name only.
    pub fn tensor(&mut self, make: Make, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let values = match make {
            Make::Copy => return super::source::mean(self.models, name, shape, dtype),
            Make::Zeros => return Tensor::zeros(shape, dtype, &Device::Cpu),
            Make::Router { .. } => self.router(name),
            Make::Expert { layer, expert, map } => self.expert(layer, expert, map, name)?,
            Make::StackedUps { layer } => {
                let mut all = Vec::with_capacity(shape.iter().product());
                for expert in 0..self.deal.experts {
                    for map in [0, 1] {
                        all.extend(self.expert(layer, expert, map, &format!("{name}.{expert}.{map}"))?);
                    }
                }
                all
            }
            Make::StackedDowns { layer } => {
                let mut all = Vec::with_capacity(shape.iter().product());
                for expert in 0..self.deal.experts {
                    all.extend(self.expert(layer, expert, 2, &format!("{name}.{expert}"))?);
                }
                all
            }
            Make::Shared { layer, map } => {
                let neurons = self.deal.shared(layer);
                let hidden = self.hidden;
                let weights = self.network(0, layer)?.maps.get(map).map_or(&[][..], Vec::as_slice);
                taken(weights, &neurons, map == 2, hidden)
            }
        };
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    }

    /// Rows of the router: those of a virtual group are one.
    fn router(&self, name: &str) -> Vec<f32> {
        let mut rng = Rng::named(self.seed, name);
        let mut rows = Vec::with_capacity(self.deal.experts * self.hidden);
        for _ in 0..self.deal.experts / self.deal.group {
            let row: Vec<f32> = (0..self.hidden).map(|_| (self.router_std * rng.normal()) as f32).collect();
            for _ in 0..self.deal.group {
                rows.extend_from_slice(&row);
            }
        }
        rows
    }

    fn network(&mut self, model: usize, layer: usize) -> Result<&Network> {
        let key = (model, layer);
        if self.kept.as_ref().is_none_or(|(kept, _)| *kept != key) {
            // The old one goes before the new one comes.
            self.kept = None;
            let Some(dense) = self.models.get(model) else { bail!("there is no model {model}") };
            self.kept = Some((key, dense.read_network(layer, self.dense)?));
        }
        match &self.kept {
            Some((_, network)) => Ok(network),
            None => bail!("the feed-forward part of layer {layer} was not read"),
        }
    }

    fn expert(&mut self, layer: usize, expert: usize, map: usize, name: &str) -> Result<Vec<f32>> {
        let neurons = self.deal.routed(layer, expert);
        // Siblings are the groups.
        let model = if self.models.len() > 1 { expert / self.deal.group } else { 0 };
        let (hidden, seed, noise, reinit) = (self.hidden, self.seed, self.noise, self.reinit);
        let weights = self.network(model, layer)?.maps.get(map).map_or(&[][..], Vec::as_slice);
        let mut values = taken(weights, &neurons, map == 2, hidden);
        if noise == 0.0 && reinit == 0.0 {
            return Ok(values);
        }
        let (mean, std) = moments(weights);
        let mut rng = Rng::named(seed, name);
        let width = neurons.len();
        // Down maps are scaled; what is added to them or put in their place is, too.
        let factor = |at: usize| neurons.get(at).map_or(1.0, |n| if map == 2 { n.1 } else { 1.0 });
        let place = |i: usize| if map == 2 { i % width } else { i / hidden };
        let mut new = vec![false; width];
        for at in anew(seed, layer, expert, width, reinit) {
            new[at] = true;
        }
        for (i, value) in values.iter_mut().enumerate() {
            let at = place(i);
            if new[at] {
                *value = (factor(at) * (mean + std * rng.normal())) as f32;
            }
            if noise > 0.0 {
                *value += (factor(at) * noise * std * rng.normal()) as f32;
            }
        }
        Ok(values)
    }
}

/// Some neurons of a map: rows of a gate or up map `[I, H]` as they are, columns of a down map `[H, I]` by their factors.
fn taken(weights: &[f32], neurons: &[(usize, f64)], down: bool, hidden: usize) -> Vec<f32> {
    if !down {
        let row = |n: usize| weights.get(n * hidden..(n + 1) * hidden).unwrap_or_default();
        return neurons.iter().flat_map(|&(n, _)| row(n).iter().copied()).collect();
    }
    let inner = weights.len() / hidden.max(1);
    let rows = weights.chunks_exact(inner.max(1));
    let scaled = |v: f32, by: f64| if by == 1.0 { v } else { (f64::from(v) * by) as f32 };
    rows.flat_map(|row| neurons.iter().filter_map(|&(n, by)| Some(scaled(*row.get(n)?, by)))).collect()
}

/// Mean and standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neurons_are_rows_of_the_first_maps_and_columns_of_the_last() {
        // I = 3, H = 2
        let up = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
        assert_eq!(taken(&up, &[(2, 4.0), (0, 4.0)], false, 2), [20.0, 21.0, 0.0, 1.0]);
        let down = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0];
        assert_eq!(taken(&down, &[(2, 4.0), (0, 1.0)], true, 2), [8.0, 0.0, 48.0, 10.0]);
        let (mean, std) = moments(&[1.0, 3.0]);
        assert_eq!((mean, std), (2.0, 1.0));
    }
}
