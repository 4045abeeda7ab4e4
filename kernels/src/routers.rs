//! Routers: one small struct per published equation.
//!
//! Choosing experts happens on values; the weights of the chosen carry gradients to the router through softmax, sigmoid or
//! distance. Scores are computed in f32 whatever the tokens' dtype, as the references do.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::experts::linear;
use crate::host::with_f32;
use crate::ops::{distances, softmax};
use crate::routes::{RouteInput, Routes};

mod bias;
mod capacity;
mod causal;
mod choice;
mod chosen;
mod free;
mod mixing;
mod relu;

pub use bias::{balance_bias, max_violation};
pub use capacity::{Assignment, Capacity, Noise, SecondChoice};
pub use causal::{AuxiliaryRouter, CausalChoice};
pub use choice::{Affinity, ExpertChoice, ExpertGroup};
use chosen::{Chosen, finite, gather, pick, top_k};
pub(crate) use chosen::{Rating, choose};
pub use free::{NullTopK, PathwayTopK};
pub use mixing::{DenseTraining, Keep, SoftmaxMixing};
pub use relu::{NormedReluRouter, ReluRouter};

/// Decides which experts see which token.
pub trait Router: Send + Sync + std::fmt::Debug {
    /// Number of experts that the router chooses from.
    fn experts(&self) -> usize;

    /// Routes the tokens of `input`.
    fn route(&self, input: &RouteInput<'_>) -> Result<Routes>;
}

/// Groups of neighbouring experts of which only the best take part (DeepSeek-V2, arXiv 2405.04434, section 2.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Number of groups, `n_group`; divides the number of experts.
    pub groups: usize,
    /// Groups that take part, `topk_group`.
    pub keep: usize,
}

/// Softmax over all experts, then top-k.
///
/// `p = softmax(W x)`; the weights of the k largest are `p * scale`, or divided by their sum if `renormalise`. Time-MoE
/// (arXiv 2409.16040, eq. 6: not renormalised), Mixtral (arXiv 2401.04088: renormalised), Qwen2-MoE and OLMoE
/// (`norm_topk_prob`), DeepSeek-V2 (`routed_scaling_factor`, optional groups scored by their best expert).
#[derive(Clone, Debug)]
pub struct SoftmaxTopK {
    /// `[E, H]`
    pub weight: Tensor,
    /// Experts per token, k.
    pub k: usize,
    /// Divide the k weights by their sum.
    pub renormalise: bool,
    /// Multiplies the weights, `routed_scaling_factor`.
    pub scale: f64,
    /// Restricts the choice to the best groups.
    pub groups: Option<GroupLimit>,
}

/// Top-k of the logits, then softmax over those k (GraniteMoE, JetMoE). Equal to the renormalised [`SoftmaxTopK`], but
/// computed as the references do.
#[derive(Clone, Debug)]
pub struct TopKSoftmax {
    /// `[E, H]`
    pub weight: Tensor,
    /// Experts per token, k.
    pub k: usize,
}

/// Sigmoid scores with a selection bias (DeepSeek-V3, arXiv 2412.19437, eqs. 12-16).
///
/// `s = sigmoid(W x)`; experts are chosen by `s + bias`, groups by the sum of their two best; weights are `s` of the
/// chosen, divided by their sum + 1e-20 if `renormalise`, times `scale`.
#[derive(Clone, Debug)]
pub struct SigmoidTopK {
    /// `[E, H]`
    pub weight: Tensor,
    /// `[E]`, `e_score_correction_bias`: steers the choice, not the weights; carries no gradient.
    pub bias: Option<Tensor>,
    /// Experts per token, k.
    pub k: usize,
    /// Divide the k weights by their sum.
    pub renormalise: bool,
    /// Multiplies the weights, `routed_scaling_factor`.
    pub scale: f64,
    /// Restricts the choice to the best groups.
    pub groups: Option<GroupLimit>,
}

/// Distance to fixed centroids (Moirai-MoE, arXiv 2410.10469).
///
/// `d_e = ||x - c_e||`; the k **largest** distances are chosen, as the released code does, and weighted by the softmax of
/// those k distances.
#[derive(Clone, Debug)]
pub struct CentroidTopK {
    /// `[E, H]`
    pub centroids: Tensor,
    /// Experts per token, k.
    pub k: usize,
}

/// Two experts, each weighed against its near rivals only (SparseMixer-v2 of PhiMoE, arXiv 2409.12136).
///
/// The first expert is the largest logit `s`; its weight is its softmax over the experts with `(max - s) / max(|s|, max) <=
/// 2 jitter`. The second is chosen so from the others, with their maximum and with `|s|` as before. With the published jitter
/// of 0.01 most weights are 1: they do not sum to 1. This is the form of inference; training samples the experts and has a
/// gradient estimator of its own in the paper, here gradients go through the two softmaxes.
#[derive(Clone, Debug)]
pub struct SparseMixer {
    /// `[E, H]`
    pub weight: Tensor,
    /// `router_jitter_noise`
    pub jitter: f64,
}

/// The mask of the input on the host, checked: 0 for padding.
fn real_tokens(input: &RouteInput<'_>, tokens: usize) -> Result<Option<Vec<f32>>> {
    let mask = float_mask(input)?.map(|mask| mask.to_vec1::<f32>()).transpose()?;
    match mask {
        Some(mask) if mask.len() != tokens => bail!("a mask of {} for {tokens} tokens", mask.len()),
        mask => Ok(mask),
    }
}

/// Weights `[rows, k]`, optionally divided by their sum, times `scale`, flattened to `[R]`.
fn finish(mut weights: Tensor, renormalise: bool, epsilon: f64, scale: f64) -> Result<Tensor> {
    // Where all are padding there is nothing to sum, which candle's reductions on a GPU do not take.
    if weights.elem_count() == 0 {
        return weights.flatten_all();
    }
    if renormalise {
        weights = weights.broadcast_div(&(weights.sum_keepdim(D::Minus1)? + epsilon)?)?;
    }
    if scale != 1.0 {
        weights = (weights * scale)?;
    }
    weights.flatten_all()
}

/// Softmax of the chosen's scores `[rows, k]`, flattened to `[R]`.
fn softmax_of(chosen: Tensor) -> Result<Tensor> {
    if chosen.elem_count() == 0 { chosen } else { softmax(&chosen)? }.flatten_all()
}

fn logits(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    linear(&x.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?, None)
}

fn float_mask(input: &RouteInput<'_>) -> Result<Option<Tensor>> {
    input.mask.map(|m| m.to_dtype(DType::F32)?.flatten_all()).transpose()
}

impl Router for SoftmaxTopK {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let p = softmax(&logits)?;
        let chosen = Chosen::new(&p, self.k, self.groups, Rating::Best, input.mask)?;
        let weights = finish(chosen.gather(&p, self.k)?, self.renormalise, 0.0, self.scale)?;
        Ok(chosen.routes(&weights, p)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for TopKSoftmax {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let chosen = Chosen::new(&logits, self.k, None, Rating::Best, input.mask)?;
        let weights = softmax_of(chosen.gather(&logits, self.k)?)?;
        let scores = softmax(&logits)?;
        Ok(chosen.routes(&weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for SigmoidTopK {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let scores = candle_sigmoid(&logits)?;
        let selection = match &self.bias {
            Some(bias) => scores.detach().broadcast_add(&bias.to_dtype(DType::F32)?.detach())?,
            None => scores.detach(),
        };
        let chosen = Chosen::new(&selection, self.k, self.groups, Rating::TwoBest, input.mask)?;
        let weights = finish(chosen.gather(&scores, self.k)?, self.renormalise, 1e-20, self.scale)?;
        Ok(chosen.routes(&weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for SparseMixer {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let (tokens, experts) = logits.dims2()?;
        let choices = choose(&logits, 2, None, Rating::Best, input.mask)?;
        // What is left out of each softmax: far rivals, and the first expert in the second.
        let mut masks = [vec![0f32; tokens * experts], vec![0f32; tokens * experts]];
        let jitter = self.jitter as f32;
        with_f32(&logits, "router", |s| {
            for (t, choice) in choices.iter().enumerate() {
                let row = &s[t * experts..][..experts];
                for (mask, &chosen) in masks.iter_mut().zip(choice) {
                    let best = row[chosen as usize];
                    for (m, v) in mask[t * experts..][..experts].iter_mut().zip(row) {
                        if (best - v) / v.abs().max(best) > 2.0 * jitter {
                            *m = f32::NEG_INFINITY;
                        }
                    }
                }
                if let Some(&first) = choice.first() {
                    masks[1][t * experts + first as usize] = f32::NEG_INFINITY;
                }
            }
            Ok(())
        })?;
        let weights = masks.into_iter().enumerate().map(|(slot, mask)| {
            let mask = Tensor::from_vec(mask, (tokens, experts), logits.device())?;
            let chosen: Vec<Vec<u32>> = choices.iter().map(|c| c.get(slot).copied().into_iter().collect()).collect();
            gather(&softmax(&(&logits + mask)?)?, &chosen, 1) // (tokens that are routed, 1)
        });
        let weights = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 1)?.flatten_all()?;
        let scores = softmax(&logits)?;
        Ok(Routes::new(experts, &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

/// `1 / (1 + e^-x)`, with gradients.
fn candle_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

impl Router for CentroidTopK {
    fn experts(&self) -> usize {
        self.centroids.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let distances = distances(&input.x.to_dtype(DType::F32)?, &self.centroids.to_dtype(DType::F32)?)?; // (T, E)
        let chosen = Chosen::new(&distances, self.k, None, Rating::Best, input.mask)?;
        let weights = softmax_of(chosen.gather(&distances, self.k)?)?;
        Ok(chosen.routes(&weights, distances)?.with_mask(float_mask(input)?))
    }
}

#[cfg(test)]
mod tests;
