//! Expert choice made causal: small networks that foretell who would be chosen.

use candle_core::{DType, Result, Tensor, bail};

use super::choice::{Affinity, best_first};
use super::{Router, finite, float_mask, pick};
use crate::Activation;
use crate::experts::linear;
use crate::host::with_f32;
use crate::losses::binary_cross_entropy;
use crate::pointwise;
use crate::routes::{RouteInput, Routes};

/// `sigmoid(silu(x A1) A2)`: for each expert of a group, the probability that it takes the token (MoMa, arXiv 2407.21770;
/// for mixture-of-depths too).
#[derive(Clone, Debug)]
pub struct AuxiliaryRouter {
    /// `[inner, H]`, `A1` transposed; the paper's inner width is `H / 2`.
    pub down: Tensor,
    /// `[E_M, inner]`, `A2` transposed.
    pub up: Tensor,
}

impl AuxiliaryRouter {
    /// What the sigmoid is taken of, `x [T, H]` to `[T, E_M]` in f32.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let inner = linear(&x.to_dtype(DType::F32)?, &self.down.to_dtype(DType::F32)?, None)?;
        linear(&pointwise::apply(Activation::Silu, &inner)?, &self.up.to_dtype(DType::F32)?, None)
    }
}

/// The form of [`ExpertChoice`](super::ExpertChoice) at inference: a token goes to the experts to which its auxiliary
/// router gives more than 0.5, with the affinity of the main router as weight (MoMa, arXiv 2407.21770).
///
/// Each token is routed by itself: in one pass as one by one. Auxiliary routers are trained afterwards, with the model
/// frozen, on [`loss`](Self::loss).
#[derive(Clone, Debug)]
pub struct CausalChoice {
    /// The main router.
    pub affinity: Affinity,
    /// One for each group of experts.
    pub auxiliary: Vec<AuxiliaryRouter>,
}

impl CausalChoice {
    /// The logits of the auxiliary routers for the real tokens of each group: first expert, tokens, `[n, E_M]`. Groups without
    /// tokens are left out.
    fn foretold(&self, x: &Tensor, tokens: Vec<Vec<u32>>) -> Result<Vec<(usize, Vec<u32>, Tensor)>> {
        if self.auxiliary.len() != self.affinity.groups.len() {
            bail!("{} auxiliary routers for {} groups of experts", self.auxiliary.len(), self.affinity.groups.len());
        }
        let mut all = Vec::new();
        for ((auxiliary, (first, n)), tokens) in self.auxiliary.iter().zip(self.affinity.ranges()).zip(tokens) {
            if tokens.is_empty() {
                continue;
            }
            let index = Tensor::from_slice(&tokens, tokens.len(), x.device())?;
            let logits = auxiliary.logits(&x.index_select(&index, 0)?)?;
            if logits.dims() != [tokens.len(), n] {
                bail!("an auxiliary router for {:?} experts in a group of {n}", logits.dims().last());
            }
            all.push((first, tokens, logits));
        }
        Ok(all)
    }

    /// The binary cross entropy of the auxiliary routers against the routes that [`ExpertChoice`](super::ExpertChoice) took
    /// with the same input: the mean over real tokens and the experts of their group. Gradients reach the auxiliary routers
    /// alone.
    ///
    /// # Errors
    /// The routes are of other tokens or experts, or no token is real.
    pub fn loss(&self, input: &RouteInput<'_>, assigned: &Routes) -> Result<Tensor> {
        let (tokens, experts) = (input.x.dim(0)?, self.affinity.experts());
        if assigned.tokens() != tokens || assigned.experts() != experts {
            let (t, e) = (assigned.tokens(), assigned.experts());
            bail!("routes of {t} tokens to {e} experts for {tokens} tokens and {experts} experts");
        }
        let x = input.x.detach();
        let truth = assigned.assignment()?;
        let (mut sum, mut count) = (None, 0);
        for (first, tokens, logits) in self.foretold(&x, self.affinity.eligible(input)?.tokens)? {
            let n = logits.dim(1)?;
            let index = Tensor::from_slice(&tokens, tokens.len(), x.device())?;
            let truth = truth.index_select(&index, 0)?.narrow(1, first, n)?.contiguous()?;
            let part = (binary_cross_entropy(&logits, &truth)? * logits.elem_count() as f64)?;
            count += logits.elem_count();
            sum = Some(match sum {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
        match sum {
            Some(sum) => sum / count as f64,
            None => bail!("there is no token to learn from"),
        }
    }
}

impl Router for CausalChoice {
    fn experts(&self) -> usize {
        self.affinity.experts()
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = self.affinity.logits(input)?;
        let eligible = self.affinity.eligible(input)?;
        let scores = self.affinity.scores(&logits, &eligible)?;
        let (count, experts) = scores.dims2()?;
        let mut choices = vec![Vec::new(); count];
        for (first, tokens, foretold) in self.foretold(input.x, eligible.tokens)? {
            let n = foretold.dim(1)?;
            with_f32(&foretold, "auxiliary router", |foretold| {
                for (row, &t) in foretold.chunks_exact(n).zip(&tokens) {
                    finite(row, t as usize)?;
                    // sigmoid(v) > 0.5
                    let taken = row.iter().enumerate().filter(|(_, v)| **v > 0.0);
                    choices[t as usize].extend(taken.map(|(e, _)| (first + e) as u32));
                }
                Ok(())
            })?;
        }
        with_f32(&logits, "router", |values| {
            for (t, row) in values.chunks_exact(experts).enumerate().filter(|(t, _)| !choices[*t].is_empty()) {
                finite(row, t)?;
            }
            best_first(&mut choices, values, experts);
            Ok(())
        })?;
        let weights = pick(&scores, &choices)?;
        Ok(Routes::new(experts, &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}
