//! A routing atlas: which experts the tokens of a model go to, by layer and by where the tokens come from.

use std::collections::BTreeMap;

use moesaic_kernels::consistency::{segment_cache, segment_routing};
use moesaic_kernels::{Modality, Probe, Routes};
use serde::Serialize;

use crate::error::{Error, Result};

/// Tokens of a segment, where nothing else is asked for.
pub const SEGMENT: usize = 16;

/// Where the tokens of a pass go, in every sparse layer of a model: connectors, towers, backbones and forecasters alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RouteMap {
    /// Tokens of the pass by where they come from: `text`, `image`, `audio`, `video`, `series`.
    pub tokens: BTreeMap<&'static str, usize>,
    /// Neighbouring tokens that make a segment for [`LayerRoutes::srp`] and [`LayerRoutes::sch`].
    pub segment: usize,
    /// Sparse layers, in the order of the forward pass.
    pub layers: Vec<LayerRoutes>,
}

/// How a sparse layer shares its tokens out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerRoutes {
    /// The layer: `layer 3` of the language model or forecaster, `projector`, or `tower, scale 0, layer 3`.
    pub name: String,
    /// Its experts.
    pub experts: usize,
    /// Tokens that it routed, padding left out.
    pub tokens: usize,
    /// Experts of a token, in the mean.
    pub per_token: f64,
    /// Of each expert, its share of all choices.
    pub load: Vec<f32>,
    /// The same of the tokens of one origin, where there are any.
    pub shares: BTreeMap<&'static str, Vec<f32>>,
    /// Entropy of the load in bits: `log2(experts)` where all are used alike, 0 where one has everything.
    pub entropy: f64,
    /// How well a router that chooses for whole segments could do (segment routing best performance, arXiv 2505.16056); none where no
    /// sequence is as long as a segment.
    pub srp: Option<f64>,
    /// Experts of the cache that `sch` is about: twice as many as a token takes.
    pub cache: usize,
    /// The share of routes that go to those experts which a segment uses most (segment cache best hit rate, arXiv 2505.16056).
    pub sch: Option<f64>,
    /// Of each token its experts, best first; none of padding.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Vec<u32>>,
}

/// What is known of a layer so far.
struct Layer {
    name: String,
    experts: usize,
    sequences: Vec<Vec<Vec<u32>>>,
    counts: BTreeMap<&'static str, Vec<usize>>,
    tokens: usize,
}

/// Collects routes of one or of several passes.
#[derive(Default)]
pub(crate) struct Atlas {
    tokens: BTreeMap<&'static str, usize>,
    layers: Vec<Layer>,
}

impl Atlas {
    /// Adds tokens of an origin.
    pub fn count(&mut self, modality: Modality, tokens: usize) {
        if tokens > 0 {
            *self.tokens.entry(modality.name()).or_default() += tokens;
        }
    }

    /// Adds the routes of a layer: `rows` sequences of equal length, one after the other. Layers of one name are one layer.
    pub fn add(
        &mut self,
        name: &str,
        routes: &Routes,
        rows: usize,
        modality: &dyn Fn(usize) -> Modality,
    ) -> candle_core::Result<()> {
        let choices = routes.choices()?;
        let real = routes.mask().map(|mask| mask.to_vec1::<f32>()).transpose()?;
        let real = |token: usize| real.as_ref().is_none_or(|mask| mask.get(token).is_some_and(|m| *m != 0.0));
        let at = match self.layers.iter().position(|layer| layer.name == name && layer.experts == routes.experts()) {
            Some(at) => at,
            None => {
                let (name, experts) = (name.to_string(), routes.experts());
                self.layers.push(Layer { name, experts, sequences: Vec::new(), counts: BTreeMap::new(), tokens: 0 });
                self.layers.len() - 1
            }
        };
        let Some(layer) = self.layers.get_mut(at) else { return Ok(()) };
        for (token, experts) in choices.iter().enumerate().filter(|(token, _)| real(*token)) {
            layer.tokens += 1;
            let counts = layer.counts.entry(modality(token).name()).or_insert_with(|| vec![0; routes.experts()]);
            for &expert in experts {
                if let Some(count) = counts.get_mut(expert as usize) {
                    *count += 1;
                }
            }
        }
        let length = choices.len().div_ceil(rows.max(1)).max(1);
        for (row, tokens) in choices.chunks(length).enumerate() {
            let own = tokens.iter().enumerate().filter(|(i, _)| real(row * length + i));
            layer.sequences.push(own.map(|(_, experts)| experts.clone()).collect());
        }
        Ok(())
    }

    /// Adds all that a probe saw of one pass over one sequence, in the order of the forward pass.
    pub fn add_probe(&mut self, probe: &Probe, modality: &dyn Fn(usize) -> Modality) -> candle_core::Result<()> {
        let all = probe.all_routes();
        for (name, routes) in in_order(&all) {
            let name = match name.strip_prefix("scale.").and_then(|rest| rest.split_once(".layer.")) {
                Some((scale, layer)) => format!("tower, scale {scale}, layer {layer}"),
                None => name.replace("attn_layer.", "attention layer ").replace("layer.", "layer "),
            };
            self.add(&name, routes, 1, modality)?;
        }
        Ok(())
    }

    /// The map, with segments of so many tokens.
    ///
    /// # Errors
    /// There is no sparse layer, or a segment of no tokens.
    pub fn finish(self, segment: usize) -> Result<RouteMap> {
        if self.layers.is_empty() {
            return Err(Error::option("the model has no sparse layer: there are no routes to show"));
        }
        if segment == 0 {
            return Err(Error::option("a segment of 0 tokens: give at least 1"));
        }
        let layers = self.layers.into_iter().map(|layer| layer.finish(segment)).collect();
        Ok(RouteMap { tokens: self.tokens, segment, layers })
    }
}

impl Layer {
    fn finish(self, segment: usize) -> LayerRoutes {
        let share = |counts: &[usize]| -> Vec<f32> {
            let all = counts.iter().sum::<usize>().max(1) as f64;
            counts.iter().map(|&count| (count as f64 / all) as f32).collect()
        };
        let total: Vec<usize> =
            (0..self.experts).map(|e| self.counts.values().filter_map(|counts| counts.get(e)).sum()).collect();
        let routes = total.iter().sum::<usize>();
        let p = total.iter().filter(|n| **n > 0).map(|&n| n as f64 / routes as f64);
        let per_token = routes as f64 / self.tokens.max(1) as f64;
        let cache = ((2.0 * per_token).round() as usize).clamp(1, self.experts.max(1));
        let sequences: Vec<&[Vec<u32>]> = self.sequences.iter().map(Vec::as_slice).collect();
        LayerRoutes {
            tokens: self.tokens,
            per_token,
            load: share(&total),
            shares: self.counts.iter().map(|(name, counts)| (*name, share(counts))).collect(),
            entropy: -p.map(|p| p * p.log2()).sum::<f64>() + 0.0,
            srp: segment_routing(&sequences, self.experts, segment),
            cache,
            sch: segment_cache(&sequences, self.experts, segment, cache),
            choices: self.sequences.into_iter().flatten().collect(),
            name: self.name,
            experts: self.experts,
        }
    }
}

/// Routes in the order of the forward pass: numbers in names count as numbers, and a projector comes behind its tower.
fn in_order(routes: &BTreeMap<String, Routes>) -> Vec<(&str, &Routes)> {
    let mut all: Vec<(&str, &Routes)> = routes.iter().map(|(name, routes)| (name.as_str(), routes)).collect();
    let numbers = |name: &str| -> Vec<u32> { name.split('.').filter_map(|part| part.parse().ok()).collect() };
    all.sort_by_key(|(name, _)| (*name == "projector", numbers(name), name.to_string()));
    all
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn routes(choices: &[Vec<u32>], mask: Option<&[f32]>) -> candle_core::Result<Routes> {
        let count: usize = choices.iter().map(Vec::len).sum();
        let (weights, scores) = (
            Tensor::ones(count, DType::F32, &Device::Cpu)?,
            Tensor::zeros((choices.len(), 4), DType::F32, &Device::Cpu)?,
        );
        let mask = mask.map(|mask| Tensor::new(mask, &Device::Cpu)).transpose()?;
        Ok(Routes::new(4, choices, &weights, scores)?.with_mask(mask))
    }

    #[test]
    fn shares_by_origin_and_consistency() -> candle_core::Result<()> {
        let choices = [vec![0, 1], vec![0, 1], vec![2, 3], vec![], vec![2, 3], vec![2, 3]];
        let routes = routes(&choices, Some(&[1., 1., 1., 0., 1., 1.]))?;
        let mut atlas = Atlas::default();
        atlas.count(Modality::Image, 2);
        atlas.add("layer 0", &routes, 2, &|token| if token < 2 { Modality::Image } else { Modality::Text })?;
        let map = atlas.finish(2).map_err(candle_core::Error::wrap)?;
        let layer = &map.layers[0];
        assert_eq!((layer.tokens, layer.per_token, layer.cache), (5, 2.0, 4));
        assert_eq!(layer.load, [0.2, 0.2, 0.3, 0.3]);
        assert_eq!(layer.shares["image"], [0.5, 0.5, 0.0, 0.0]);
        assert_eq!(layer.shares["text"], [0.0, 0.0, 0.5, 0.5]);
        let entropy = -2.0 * (0.2 * 0.2f64.log2() + 0.3 * 0.3f64.log2());
        assert!((layer.entropy - entropy).abs() < 1e-9);
        // Rows are sequences of their own, padding is left out: [0 1][0 1][2 3] and [2 3][2 3].
        assert_eq!(layer.choices.len(), 5);
        assert_eq!(layer.sch, Some(1.0));
        // Of the counts 2, 2 | 1, 1, 1, 1 | 2, 2 the best router of segments takes all: 12 of 16 given.
        assert_eq!(layer.srp, Some(f64::max(2.0 * 8.0 / (8.0 + 12.0), 2.0 * 12.0 / (16.0 + 12.0))));
        assert_eq!((map.tokens["image"], map.segment), (2, 2));
        Ok(())
    }

    #[test]
    fn nothing_sparse_is_an_error() {
        assert!(Atlas::default().finish(16).unwrap_err().to_string().contains("no sparse layer"));
    }
}
