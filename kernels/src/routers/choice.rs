//! Experts that choose their tokens, within groups that see one modality each.

use candle_core::{Result, Tensor, bail};

use super::capacity::{Noise, gumbel};
use super::{Router, candle_sigmoid, finite, float_mask, logits, pick, real_tokens};
use crate::Modality;
use crate::host::with_f32;
use crate::routes::{RouteInput, Routes};

/// Neighbouring experts for the tokens of one modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroup {
    /// The modality; absent for tokens of all.
    pub modality: Option<Modality>,
    /// Experts of the group.
    pub experts: usize,
}

/// Sigmoid affinities of tokens to the experts of their modality, `sigmoid(x W)`: the main router of MoMa (arXiv 2407.21770).
#[derive(Clone, Debug)]
pub struct Affinity {
    /// `[E, H]`: the rows of the groups, group after group.
    pub weight: Tensor,
    /// The groups; a token belongs to the first that takes its modality.
    pub groups: Vec<ExpertGroup>,
}

/// Who may go where in one call.
pub(super) struct Eligible {
    /// Real tokens of each group, in order.
    pub tokens: Vec<Vec<u32>>,
    /// `[T, E]` f32: 1 where the expert is of the token's group.
    pub mask: Tensor,
}

impl Affinity {
    pub(super) fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    /// The first expert of each group and the number of its experts.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (usize, usize)> {
        self.groups.iter().scan(0, |first, group| {
            let range = (*first, group.experts);
            *first += group.experts;
            Some(range)
        })
    }

    /// `W x`, `[T, E]` in f32, of all experts.
    pub(super) fn logits(&self, input: &RouteInput<'_>) -> Result<Tensor> {
        let experts: usize = self.groups.iter().map(|g| g.experts).sum();
        if experts != self.experts() || self.groups.iter().any(|g| g.experts == 0) {
            bail!("groups of {experts} experts for a router of {}: give each group at least one", self.experts());
        }
        logits(input.x, &self.weight)
    }

    /// `sigmoid(logits)` where `eligible`, else 0.
    pub(super) fn scores(&self, logits: &Tensor, eligible: &Eligible) -> Result<Tensor> {
        candle_sigmoid(logits)? * &eligible.mask
    }

    /// # Errors
    /// A real token of a modality without experts, or a number of modalities or a mask that does not fit.
    pub(super) fn eligible(&self, input: &RouteInput<'_>) -> Result<Eligible> {
        let (count, experts) = (input.x.dim(0)?, self.experts());
        let real = real_tokens(input, count)?;
        if input.modality.is_some_and(|modality| modality.len() != count) {
            bail!("{} modalities for {count} tokens", input.modality.map_or(0, <[_]>::len));
        }
        let mut tokens = vec![Vec::new(); self.groups.len()];
        let mut mask = vec![0f32; count * experts];
        for t in 0..count {
            let modality = input.modality.map_or(Modality::Text, |modality| modality[t]);
            let group = self.groups.iter().position(|g| g.modality.is_none_or(|m| m == modality));
            let is_real = real.as_ref().is_none_or(|real| real[t] != 0.0);
            match (group.and_then(|g| Some((g, self.ranges().nth(g)?))), is_real) {
                (_, false) => {}
                (Some((g, (first, n))), true) => {
                    tokens[g].push(t as u32);
                    mask[t * experts + first..][..n].fill(1.0);
                }
                (None, true) => bail!("token {t} is {modality:?}, for which no experts are there"),
            }
        }
        Ok(Eligible { tokens, mask: Tensor::from_vec(mask, (count, experts), input.x.device())? })
    }
}

/// Experts that take the tokens with the largest affinity: expert choice (Zhou et al., arXiv 2202.09368) with sigmoid
/// affinities and, in MoMa (arXiv 2407.21770), within the experts of a token's modality.
///
/// Each expert of a group of `E_M` takes `k_e = factor b_M / E_M` of the group's `b_M` tokens, rounded down but at least
/// one; weights are the affinities. A token gets none, one or several experts. Mixture-of-depths is the same with one
/// expert, the layer itself, and a factor below 1 (arXiv 2404.02258). **This router couples the rows of a batch, and looks
/// at tokens that come later**: for training; [`CausalChoice`](super::CausalChoice) is its form at inference.
#[derive(Clone, Debug)]
pub struct ExpertChoice {
    /// The main router.
    pub affinity: Affinity,
    /// Tokens that the experts of a group take, per token of the group: 1 in MoMa.
    pub factor: f64,
    /// Gumbel-sigmoid noise, `sigmoid(W x + G' - G'')`, drawn anew by each call: for models that were upcycled, whose
    /// experts start alike (arXiv 2407.21770). Affinities carry it, in the choice and as weights.
    pub noise: Option<Noise>,
}

impl ExpertChoice {
    /// Tokens that an expert takes of a group with `tokens` tokens and `experts` experts.
    pub fn capacity(&self, tokens: usize, experts: usize) -> usize {
        let share = (self.factor * tokens as f64 / experts.max(1) as f64) as usize;
        share.clamp(1, tokens.max(1)).min(tokens)
    }
}

/// Sorts each token's experts by their score, best first; the lower index wins ties.
pub(super) fn best_first(choices: &mut [Vec<u32>], scores: &[f32], experts: usize) {
    for (t, choice) in choices.iter_mut().enumerate() {
        let row = &scores[t * experts..][..experts];
        choice.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    }
}

impl Router for ExpertChoice {
    fn experts(&self) -> usize {
        self.affinity.experts()
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        if !(self.factor > 0.0 && self.factor.is_finite()) {
            bail!("the capacity factor is {}, expected a positive number", self.factor);
        }
        let mut logits = self.affinity.logits(input)?;
        let eligible = self.affinity.eligible(input)?;
        if let Some(noise) = &self.noise {
            let mut rng = noise.next();
            let draw = |_| (gumbel(&mut rng) - gumbel(&mut rng)) as f32;
            let values: Vec<f32> = (0..logits.elem_count()).map(draw).collect();
            logits = (&logits + Tensor::from_vec(values, logits.shape(), logits.device())?)?;
        }
        let scores = self.affinity.scores(&logits, &eligible)?;
        let (tokens, experts) = scores.dims2()?;
        let choices = with_f32(&logits, "router", |values| {
            let mut choices = vec![Vec::new(); tokens];
            for (members, (first, n)) in eligible.tokens.iter().zip(self.affinity.ranges()) {
                members.iter().try_for_each(|&t| finite(&values[t as usize * experts..][..experts], t as usize))?;
                let capacity = self.capacity(members.len(), n);
                for e in first..first + n {
                    let score = |t: u32| values[t as usize * experts + e];
                    let mut best = members.clone();
                    best.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
                    best.iter().take(capacity).for_each(|&t| choices[t as usize].push(e as u32));
                }
            }
            best_first(&mut choices, values, experts);
            Ok(choices)
        })?;
        let weights = pick(&scores, &choices)?;
        Ok(Routes::new(experts, &choices, &weights, scores)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}
