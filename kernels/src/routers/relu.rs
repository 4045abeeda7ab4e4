//! Routing by ReLU: differentiable, and with as many experts per token as there are positive scores.

use candle_core::{Result, Tensor};

use super::{Router, finite, float_mask, logits, pick, real_tokens};
use crate::host::with_f32;
use crate::ops::rms_norm;
use crate::routes::{RouteInput, Routes};

/// `R(x) = relu(W x)`: experts with a positive score take part, with it as their weight (ReMoE, arXiv 2412.14711).
///
/// How many take part is steered by an L1 loss whose coefficient adapts: [`relu_l1`](crate::losses::relu_l1) and
/// [`AdaptiveL1`](crate::losses::AdaptiveL1).
#[derive(Clone, Debug)]
pub struct ReluRouter {
    /// `[E, H]`
    pub weight: Tensor,
}

/// `A(x) = RMSNorm(relu(W x))`: experts with a positive score take part, and the norm sets the size of their weights
/// (BlockFFN, arXiv 2507.08771).
///
/// Its own losses are [`activation_locality`](crate::losses::activation_locality) and
/// [`chunk_sparsity`](crate::losses::chunk_sparsity). [`Routes::scores`] are those before the norm.
#[derive(Clone, Debug)]
pub struct NormedReluRouter {
    /// `[E, H]`
    pub weight: Tensor,
    /// `[E]`, of the norm.
    pub norm: Tensor,
    /// Added to the mean square.
    pub eps: f64,
}

/// The experts of each token whose logit is above 0, best first; the lower index wins ties. Padding gets none.
fn active(logits: &Tensor, mask: Option<&[f32]>) -> Result<Vec<Vec<u32>>> {
    let (_, experts) = logits.dims2()?;
    with_f32(logits, "router", |logits| {
        let rows = logits.chunks_exact(experts.max(1)).enumerate();
        rows.map(|(t, row)| {
            if mask.is_some_and(|mask| mask.get(t).is_none_or(|m| *m == 0.0)) {
                return Ok(Vec::new());
            }
            finite(row, t)?;
            let mut active: Vec<u32> = (0u32..).zip(row).filter(|(_, v)| **v > 0.0).map(|(e, _)| e).collect();
            active.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            Ok(active)
        })
        .collect()
    })
}

/// Routes by positive logits, weighted by what `weigh` makes of their ReLU.
fn route(weight: &Tensor, input: &RouteInput<'_>, weigh: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Routes> {
    let logits = logits(input.x, weight)?;
    let (tokens, experts) = logits.dims2()?;
    let choices = active(&logits, real_tokens(input, tokens)?.as_deref())?;
    let scores = logits.relu()?;
    let weights = pick(&weigh(&scores)?, &choices)?;
    Ok(Routes::new(experts, &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
}

impl Router for ReluRouter {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        route(&self.weight, input, |scores| Ok(scores.clone()))
    }
}

impl Router for NormedReluRouter {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        route(&self.weight, input, |scores| rms_norm(scores, &self.norm, self.eps))
    }
}
