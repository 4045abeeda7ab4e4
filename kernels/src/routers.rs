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
mod free;
mod mixing;
mod relu;

pub use bias::{balance_bias, max_violation};
pub use capacity::{Assignment, Capacity, Noise, SecondChoice};
pub use causal::{AuxiliaryRouter, CausalChoice};
pub use choice::{Affinity, ExpertChoice, ExpertGroup};
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

/// The `k` largest entries of a row that `allowed` admits, best first; the lower index wins ties.
fn top_k(row: &[f32], k: usize, allowed: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(k + 1);
    for (e, v) in row.iter().enumerate().filter(|&(e, _)| allowed(e)) {
        // NaN compares as smaller than everything, so that a broken score never hides a sound one.
        let beats = |other: u32| *v > row[other as usize] || (row[other as usize].is_nan() && !v.is_nan());
        let at = best.iter().position(|&o| beats(o)).unwrap_or(best.len());
        if at < k {
            best.insert(at, e as u32);
            best.truncate(k);
        }
    }
    best
}

/// The experts of each token by `scores [T, E]`; `group_score` rates a group by its members' scores. Padding gets none.
///
/// # Errors
/// A token's scores are not all finite: what comes after would be noise.
pub(crate) fn choose(
    scores: &Tensor,
    k: usize,
    groups: Option<GroupLimit>,
    group_score: impl Fn(&[f32]) -> f32,
    mask: Option<&Tensor>,
) -> Result<Vec<Vec<u32>>> {
    let (tokens, experts) = scores.dims2()?;
    if k == 0 || k > experts {
        bail!("routing to {k} of {experts} experts; the number of experts per token must be in 1..={experts}");
    }
    if let Some(g) = groups
        && (g.groups == 0
            || experts % g.groups != 0
            || g.keep == 0
            || g.keep > g.groups
            || g.keep * (experts / g.groups) < k)
    {
        bail!("{experts} experts cannot be routed as {k} of {} out of {} groups", g.keep, g.groups);
    }
    let mask = match mask {
        Some(mask) if mask.elem_count() != tokens => bail!("a mask of shape {:?} for {tokens} tokens", mask.dims()),
        Some(mask) => Some(mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?),
        None => None,
    };
    with_f32(scores, "router", |scores| {
        (0..tokens)
            .map(|t| {
                if mask.as_ref().is_some_and(|m| m[t] == 0.0) {
                    return Ok(Vec::new());
                }
                let row = &scores[t * experts..][..experts];
                finite(row, t)?;
                Ok(match groups {
                    None => top_k(row, k, |_| true),
                    Some(g) => {
                        let size = experts / g.groups;
                        let rated: Vec<f32> = row.chunks_exact(size).map(&group_score).collect();
                        let kept = top_k(&rated, g.keep, |_| true);
                        top_k(row, k, |e| kept.contains(&((e / size) as u32)))
                    }
                })
            })
            .collect()
    })
}

fn finite(row: &[f32], token: usize) -> Result<()> {
    match row.iter().position(|v| !v.is_finite()) {
        Some(e) => bail!(
            "the router's score of token {token} for expert {e} is {}: weights or input are broken, or a half-precision \
             type overflowed",
            row[e]
        ),
        None => Ok(()),
    }
}

/// `values [T, E]` of the chosen experts: `[R, 1]` in token order, or `[T, k]` when every token has k.
fn gather(values: &Tensor, choices: &[Vec<u32>], k: usize) -> Result<Tensor> {
    let experts = values.dim(1)?;
    let index: Vec<u32> =
        choices.iter().enumerate().flat_map(|(t, c)| c.iter().map(move |&e| (t * experts) as u32 + e)).collect();
    if u32::try_from(values.elem_count()).is_err() {
        bail!("{} router scores are more than one call takes; split the batch", values.elem_count());
    }
    let rows = index.len() / k;
    if rows == 0 {
        return Tensor::zeros((0, k), DType::F32, values.device());
    }
    let index = Tensor::from_vec(index, rows * k, values.device())?;
    values.flatten_all()?.index_select(&index, 0)?.reshape((rows, k)) // (tokens that are routed, k)
}

/// `values [T, E]` of the chosen experts, however many each token has: `[R]` in token order.
fn pick(values: &Tensor, choices: &[Vec<u32>]) -> Result<Tensor> {
    gather(values, choices, 1)?.flatten_all()
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

fn logits(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    linear(&x.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?, None)
}

pub(crate) fn max(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

pub(crate) fn two_best(values: &[f32]) -> f32 {
    top_k(values, 2, |_| true).iter().map(|&i| values[i as usize]).sum()
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
        let choices = choose(&p, self.k, self.groups, max, input.mask)?;
        let weights = finish(gather(&p, &choices, self.k)?, self.renormalise, 0.0, self.scale)?;
        Ok(Routes::new(self.experts(), &choices, &weights, p)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for TopKSoftmax {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let choices = choose(&logits, self.k, None, max, input.mask)?;
        let chosen = gather(&logits, &choices, self.k)?;
        let weights = if chosen.elem_count() == 0 { chosen } else { softmax(&chosen)? }.flatten_all()?;
        let scores = softmax(&logits)?;
        Ok(Routes::new(self.experts(), &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
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
        let choices = choose(&selection, self.k, self.groups, two_best, input.mask)?;
        let weights = finish(gather(&scores, &choices, self.k)?, self.renormalise, 1e-20, self.scale)?;
        Ok(Routes::new(self.experts(), &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for SparseMixer {
    fn experts(&self) -> usize {
        self.weight.dims()[0]
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let (tokens, experts) = logits.dims2()?;
        let choices = choose(&logits, 2, None, max, input.mask)?;
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
        let choices = choose(&distances, self.k, None, max, input.mask)?;
        let chosen = gather(&distances, &choices, self.k)?;
        let weights = if chosen.elem_count() == 0 { chosen } else { softmax(&chosen)? }.flatten_all()?;
        let routes = Routes::new(self.experts(), &choices, &weights, distances)?;
        Ok(routes.with_mask(float_mask(input)?))
    }
}

#[cfg(test)]
mod tests;
