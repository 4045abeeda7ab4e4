//! Which experts get which tokens.

use std::collections::BTreeMap;

use moesaic_encoders::image::Picture;
use moesaic_kernels::{Modality, Probe, Routes};
use serde::Serialize;

use super::VisionChat;
use crate::error::{Error, Result};
use crate::prompts::Turn;

/// Where the tokens of pictures and of a question go.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RouteMap {
    /// Tokens of all pictures in the language model.
    pub image_tokens: usize,
    /// Tokens of text.
    pub text_tokens: usize,
    /// Sparse layers, in the order of the forward pass.
    pub layers: Vec<ExpertShares>,
}

/// How a sparse layer shares its tokens out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExpertShares {
    /// The layer: `layer 3` of the language model, `projector`, or `tower, scale 0, layer 3`.
    pub name: String,
    /// Of each expert, its share of all choices that picture tokens made; empty where there are none.
    pub image: Vec<f32>,
    /// The same of text tokens.
    pub text: Vec<f32>,
}

pub(super) fn map(chat: &VisionChat, pictures: &[Picture], turns: &[Turn<'_>]) -> Result<RouteMap> {
    let compute = |error: candle_core::Error| Error::compute(&error);
    // Tower and decoder record under the same names.
    let (seeing, reading) = (Probe::new(), Probe::new());
    let asked = chat.look(pictures, turns, Some(&seeing))?;
    chat.model.forward(&asked.spliced, Some(&reading)).map_err(compute)?;
    let mut layers = Vec::new();
    let mut add = |name: String, routes: &Routes, modality: &dyn Fn(usize) -> Modality| -> Result<()> {
        let (image, text) = shares(routes, modality).map_err(compute)?;
        layers.push(ExpertShares { name, image, text });
        Ok(())
    };
    let seen = seeing.all_routes();
    for (name, routes) in in_order(&seen) {
        let name = match name.strip_prefix("scale.").and_then(|rest| rest.split_once(".layer.")) {
            Some((scale, layer)) => format!("tower, scale {scale}, layer {layer}"),
            None => name.to_string(),
        };
        add(name, routes, &|_| Modality::Image)?;
    }
    let n = asked.spliced.embeds.dim(1).map_err(compute)?;
    let of = asked.spliced.context.modality.as_deref();
    let modality = |token: usize| of.and_then(|all| all.get(token)).copied().unwrap_or(Modality::Text);
    let read = reading.all_routes();
    for (name, routes) in in_order(&read) {
        add(name.replace(".layer.", " layer ").replace("layer.", "layer "), routes, &modality)?;
    }
    if layers.is_empty() {
        return Err(Error::option("the model has no sparse layer: there are no routes to show"));
    }
    let image_tokens = (0..n).filter(|&token| modality(token) == Modality::Image).count();
    Ok(RouteMap { image_tokens, text_tokens: n - image_tokens, layers })
}

/// Routes in the order of the forward pass: numbers in names count as numbers, and a projector comes behind its tower.
fn in_order(routes: &BTreeMap<String, Routes>) -> Vec<(&str, &Routes)> {
    let mut all: Vec<(&str, &Routes)> = routes.iter().map(|(name, routes)| (name.as_str(), routes)).collect();
    let numbers = |name: &str| -> Vec<u32> { name.split('.').filter_map(|part| part.parse().ok()).collect() };
    all.sort_by_key(|(name, _)| (*name == "projector", numbers(name), name.to_string()));
    all
}

/// The shares of each expert of the choices that tokens of pictures and of text made.
fn shares(routes: &Routes, modality: &dyn Fn(usize) -> Modality) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
    let tokens = routes.token()?.to_vec1::<u32>()?;
    let mut counts = [vec![0usize; routes.experts()], vec![0usize; routes.experts()]];
    for (expert, ends) in routes.offsets().windows(2).enumerate() {
        let &[from, to] = ends else { continue };
        for &token in tokens.get(from..to).unwrap_or_default() {
            let kind = usize::from(modality(token as usize) != Modality::Image);
            if let Some(count) = counts.get_mut(kind).and_then(|counts| counts.get_mut(expert)) {
                *count += 1;
            }
        }
    }
    let share = |counts: &[usize]| -> Vec<f32> {
        match counts.iter().sum::<usize>() {
            0 => Vec::new(),
            all => counts.iter().map(|&count| count as f32 / all as f32).collect(),
        }
    };
    let [image, text] = counts;
    Ok((share(&image), share(&text)))
}
