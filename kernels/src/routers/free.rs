//! Routers over networks and experts without one ([`FreeExpert`](crate::FreeExpert)), which cost nothing.

use candle_core::{DType, Result, Tensor, bail};

use super::{Rating, Router, choose, float_mask, logits, pick};
use crate::host::with_f32;
use crate::ops::softmax;
use crate::routes::{RouteInput, Routes};

/// Top-k of true and null experts (AdaMoE, arXiv 2406.13233).
///
/// `p = softmax(W x)` over N true and M null experts; of the k largest, k being larger than a plain router's, the true ones
/// are weighted by `p` divided by the sum of theirs. So a token has 0 to k true experts, as many as it needs; that null
/// experts are used to a share of `M / (N + M)` on average is left to [`null_balance`](crate::losses::null_balance). Routes
/// to null experts stay in [`Routes`] (their weight is `p`) and give 0: the bank has M times
/// [`FreeExpert::Zero`](crate::FreeExpert::Zero) behind its networks.
#[derive(Clone, Debug)]
pub struct NullTopK {
    /// `[N + M, H]`: true experts, then null ones.
    pub weight: Tensor,
    /// Null experts, M.
    pub nulls: usize,
    /// Experts per token, null ones among them.
    pub k: usize,
}

/// Top-k of networks, zero, copy and constant experts, with the pathway of the layer before in mind (MoE++, arXiv 2410.07348).
///
/// `G_j(x) = W_j x + W_g G_{j-1}(x)`, the gating residual, without its second term in the first sparse layer; weights are
/// `softmax(G)` of the k largest. `G_{j-1}` is [`RouteInput::previous`], and [`Routes::logits`] of what comes out are `G_j`.
#[derive(Clone, Debug)]
pub struct PathwayTopK {
    /// `[E, H]`: networks, then experts without one, in the order of the bank.
    pub weight: Tensor,
    /// `[E, E]`, `W_g`; absent in the first sparse layer.
    pub residual: Option<Tensor>,
    /// Experts per token, those without a network among them.
    pub k: usize,
    /// Divides weights by the sum over the chosen that are none of these zero experts, as the released code does with its last
    /// expert (`MoE++/moe_plus_plus_layer.py`); absent for the plain softmax of the paper.
    pub renormalise: Option<Vec<u32>>,
}

/// Sums below this count as nothing: what they would divide has no gradient in f32.
const NOTHING: f32 = 1e-18;

/// `p [T, E]` divided, in the columns that count, by the row's sum over the chosen that count. Other columns stay, and rows of which
/// nothing counts.
fn over_counted(p: &Tensor, choices: &[Vec<u32>], counts: impl Fn(u32) -> bool) -> Result<Tensor> {
    let (tokens, experts) = p.dims2()?;
    let mut chosen = vec![0f32; tokens * experts];
    let mut ones = vec![0f32; tokens];
    with_f32(p, "router", |p| {
        for (t, choice) in choices.iter().enumerate() {
            let mut sum = 0.0;
            for place in choice.iter().filter(|e| counts(**e)).map(|&e| t * experts + e as usize) {
                sum += p[place];
                chosen[place] = 1.0;
            }
            if sum < NOTHING {
                chosen[t * experts..(t + 1) * experts].fill(0.0);
                ones[t] = 1.0;
            }
        }
        Ok(())
    })?;
    let chosen = Tensor::from_vec(chosen, (tokens, experts), p.device())?;
    // A row of which nothing counts is divided by 1: a bound from below would have an infinite gradient.
    let sum = ((p * chosen)?.sum_keepdim(1)? + Tensor::from_vec(ones, (tokens, 1), p.device())?)?; // (T, 1)
    let flags = |on: bool| -> Result<Tensor> {
        let flags: Vec<f32> = (0..experts as u32).map(|e| if counts(e) == on { 1.0 } else { 0.0 }).collect();
        Tensor::from_vec(flags, (1, experts), p.device())
    };
    p / sum.broadcast_mul(&flags(true)?)?.broadcast_add(&flags(false)?)?
}

impl Router for NullTopK {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let Some(networks) = self.experts().checked_sub(self.nulls).filter(|n| *n > 0) else {
            bail!("{} null experts of {}: at least one expert must be a true one", self.nulls, self.experts());
        };
        let logits = logits(input.x, &self.weight)?;
        let p = softmax(&logits)?;
        let choices = choose(&p, self.k, None, Rating::Best, input.mask)?;
        let weights = pick(&over_counted(&p, &choices, |e| (e as usize) < networks)?, &choices)?;
        Ok(Routes::new(self.experts(), &choices, &weights, p)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

impl Router for PathwayTopK {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let mut g = logits(input.x, &self.weight)?;
        match (&self.residual, input.previous) {
            (None, _) => {}
            (Some(residual), Some(previous)) => {
                let expected = [g.dim(0)?, residual.dim(1)?];
                if previous.dims() != expected {
                    bail!("logits {:?} of the sparse layer before, expected {expected:?}", previous.dims());
                }
                g = (g + logits(&previous.to_dtype(DType::F32)?.contiguous()?, residual)?)?;
            }
            (Some(_), None) => bail!(
                "this router adds to what the sparse layer before decided: give its logits, or leave the residual out in the \
                 first sparse layer"
            ),
        }
        let p = softmax(&g)?;
        let choices = choose(&p, self.k, None, Rating::Best, input.mask)?;
        let weights = match &self.renormalise {
            None => pick(&p, &choices)?,
            Some(zeros) => pick(&over_counted(&p, &choices, |e| !zeros.contains(&e))?, &choices)?,
        };
        Ok(Routes::new(self.experts(), &choices, &weights, p)?.with_logits(g).with_mask(float_mask(input)?))
    }
}
