//! Entropies: of experts over a batch and over a token, and of yes-or-no decisions.

use candle_core::{Result, Tensor, bail};

use super::token_weights;
use crate::routes::Routes;

/// Keeps the logarithm of a probability of 0 finite: `0 ln 0` counts as 0.
const TINY: f64 = 1e-20;

/// `-sum p ln p` over the last dimension.
fn entropy(p: &Tensor) -> Result<Tensor> {
    let dim = p.dims().len().saturating_sub(1);
    (p * (p + TINY)?.log()?)?.sum(dim)?.neg()
}

/// The mutual information loss of DS-MoE (arXiv 2404.05567; ModuleFormer, arXiv 2306.04640):
/// `-H(e) + mean_x H(e | x)`, with `p(e | x)` the scores of a token and `p(e)` their mean. Its minimum, `-ln E`, is where
/// every token is sure of its expert and all experts are used alike. For routers whose scores are probabilities. Padding
/// does not count.
pub fn mutual_information(routes: &Routes) -> Result<Tensor> {
    let (weights, n) = token_weights(routes)?;
    let share = (weights / n.max(1.0))?; // (T)
    let mean = routes.scores().broadcast_mul(&share.unsqueeze(1)?)?.sum(0)?; // (E)
    let of_token = (entropy(routes.scores())? * share)?.sum_all()?;
    of_token - entropy(&mean)?
}

/// Mean binary cross entropy of `sigmoid(logits)` against `targets` from 0 to 1, of the same shape: for decisions that do
/// not exclude each other. With gradients to both.
///
/// # Errors
/// Other shapes, or nothing in them.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    if logits.dims() != targets.dims() || logits.elem_count() == 0 {
        bail!("binary cross entropy: targets {:?} for logits {:?}", targets.dims(), logits.dims());
    }
    // max(z, 0) - z y + ln(1 + e^-|z|): no exponential that overflows
    let soft = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((logits.relu()? - (logits * targets)?)? + soft)?.mean_all()
}
