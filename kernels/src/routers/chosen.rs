//! The experts that a router chose, on the host, or on the GPU where its scores are.

use candle_core::{DType, Result, Tensor, bail};

use super::GroupLimit;
#[cfg(feature = "cuda")]
use crate::cuda::{self, device::DevicePlan};
use crate::host::with_f32;
use crate::routes::Routes;

/// How a group of experts is rated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rating {
    /// By its best score.
    Best,
    /// By the sum of its two best.
    TwoBest,
}

impl Rating {
    fn of(self, scores: &[f32]) -> f32 {
        match self {
            Self::Best => scores.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Self::TwoBest => top_k(scores, 2, |_| true).iter().map(|&i| scores[i as usize]).sum(),
        }
    }
}

/// The experts of each token, best first.
pub(super) enum Chosen {
    Host(Vec<Vec<u32>>),
    /// Sorted as well.
    #[cfg(feature = "cuda")]
    Gpu(DevicePlan),
}

impl Chosen {
    /// The `k` experts with the best of a token's `scores [T, E]`, of the best groups where they are limited; the lower index wins ties. Padding
    /// gets none. The GPU's kernels choose where its scores are and there is no padding, without a word to the host; then scores that are not finite
    /// come to light when the routes are brought there.
    ///
    /// # Errors
    /// `k` or groups do not fit; on the host also scores of a token that are not all finite: what comes after would be noise.
    pub fn new(
        scores: &Tensor,
        k: usize,
        groups: Option<GroupLimit>,
        rating: Rating,
        mask: Option<&Tensor>,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if scores.device().is_cuda() && cuda::wanted() && mask.is_none() {
            let (tokens, experts) = scores.dims2()?;
            // What cannot be chosen is refused below.
            if tokens > 0 && k <= experts && cuda::launch::routing::fits(experts) {
                return Ok(Self::Gpu(DevicePlan::decide(scores, k, groups, rating == Rating::TwoBest)?));
            }
        }
        Ok(Self::Host(choose(scores, k, groups, rating, mask)?))
    }

    /// `values [T, E]` of the chosen experts, `[T, k]` of the tokens that have any, with gradients.
    pub fn gather(&self, values: &Tensor, k: usize) -> Result<Tensor> {
        match self {
            Self::Host(choices) => gather(values, choices, k),
            #[cfg(feature = "cuda")]
            Self::Gpu(plan) => values.contiguous()?.gather(plan.choices()?, 1),
        }
    }

    /// The routes, with `weights` in the order of tokens.
    pub fn routes(self, weights: &Tensor, scores: Tensor) -> Result<Routes> {
        match self {
            Self::Host(choices) => Routes::new(scores.dim(1)?, &choices, weights, scores),
            #[cfg(feature = "cuda")]
            Self::Gpu(plan) => Routes::decided(plan, weights, scores),
        }
    }
}

/// The `k` largest entries of a row that `allowed` admits, best first; the lower index wins ties.
pub(super) fn top_k(row: &[f32], k: usize, allowed: impl Fn(usize) -> bool) -> Vec<u32> {
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

/// The experts of each token by `scores [T, E]`, on the host. Padding gets none.
///
/// # Errors
/// A token's scores are not all finite: what comes after would be noise.
pub(crate) fn choose(
    scores: &Tensor,
    k: usize,
    groups: Option<GroupLimit>,
    rating: Rating,
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
                        let rated: Vec<f32> = row.chunks_exact(size).map(|scores| rating.of(scores)).collect();
                        let kept = top_k(&rated, g.keep, |_| true);
                        top_k(row, k, |e| kept.contains(&((e / size) as u32)))
                    }
                })
            })
            .collect()
    })
}

pub(super) fn finite(row: &[f32], token: usize) -> Result<()> {
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
pub(super) fn gather(values: &Tensor, choices: &[Vec<u32>], k: usize) -> Result<Tensor> {
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
pub(super) fn pick(values: &Tensor, choices: &[Vec<u32>]) -> Result<Tensor> {
    gather(values, choices, 1)?.flatten_all()
}
