//! Experts that take a bounded number of tokens and drop the rest, as DeepSpeed's gate does (`deepspeed/moe/sharded_moe.py`;
//! GShard, arXiv 2006.16668, algorithm 1), on which MoE-LLaVA is built (arXiv 2401.15947).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Result, Tensor, bail};

use super::{Router, finite, float_mask, logits, top_k};
use crate::host::with_f32;
use crate::ops::softmax;
use crate::rng::Rng;
use crate::routes::{Limit, RouteInput, Routes};

/// How the second expert of a token is chosen among those that are not the first.
#[derive(Clone, Debug, Default)]
pub enum SecondChoice {
    /// The largest logit.
    #[default]
    Best,
    /// The largest sum of logit and Gumbel noise, in evaluation too: what DeepSpeed up to 2026 does, so that published
    /// numbers are stochastic. Each call draws new noise, the same for the same seed.
    Gumbel(Noise),
}

/// A seed and the number of calls so far.
#[derive(Clone, Debug)]
pub struct Noise {
    seed: u64,
    calls: Arc<AtomicU64>,
}

impl SecondChoice {
    /// Noise from a seed.
    pub fn gumbel(seed: u64) -> Self {
        Self::Gumbel(Noise::new(seed))
    }
}

impl Noise {
    /// Noise from a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, calls: Arc::default() }
    }

    /// The generator of the next call.
    pub(super) fn next(&self) -> Rng {
        Rng::keyed(&[self.seed, self.calls.fetch_add(1, Ordering::Relaxed)])
    }
}

/// One draw of the standard Gumbel distribution: `-ln(-ln u)` of u in (0, 1).
pub(super) fn gumbel(rng: &mut Rng) -> f64 {
    -(-rng.uniform().max(f64::MIN_POSITIVE).ln()).max(f64::MIN_POSITIVE).ln()
}

/// Softmax over all experts, the best one or two of them, and no more than a capacity of tokens for each expert.
///
/// All tokens of the call count, other rows of the batch and padding that no mask names too: **this router couples the rows
/// of a batch**. Padding in a mask gets no routes, takes no place and makes none. An expert takes its first choices in
/// token order, then its second choices in token order, until it is full; nothing is sorted by score. With two experts the
/// probabilities of those that had room are divided by their sum, so that one alone has weight 1; with one expert the
/// probability is the weight. A token without any expert gets none.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// `[E, H]`; kept and computed in f32.
    pub weight: Tensor,
    /// Experts per token: 1 or 2.
    pub k: usize,
    /// `capacity_factor` in training, `eval_capacity_factor` in evaluation.
    pub factor: f64,
    /// The least capacity, `min_capacity`.
    pub min_capacity: usize,
    /// How second experts are chosen.
    pub second: SecondChoice,
}

/// Who goes where, and who was left out.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The routes that had room.
    pub routes: Routes,
    /// Tokens that an expert takes at most.
    pub capacity: usize,
    /// The experts of each token before any were dropped, best first, `[T][k]`.
    pub chosen: Vec<Vec<u32>>,
    /// `(token, expert, place in the expert's buffer)` of every route that had room, by token.
    pub places: Vec<(usize, usize, usize)>,
}

impl Capacity {
    /// `max(ceil(T / E * k * factor), min_capacity)`, in the reference's precision.
    pub fn capacity(&self, tokens: usize, experts: usize) -> usize {
        let share = (tokens as f64 / experts.max(1) as f64) as f32 * (self.factor * self.k as f64) as f32;
        (share.ceil() as usize).max(self.min_capacity)
    }

    /// Routes by `logits [T, E]`. `noise [T, E]` is, with two experts, added to the logits for the second choice; with one, it
    /// ranks the tokens of an expert that cannot take all (random token selection): the largest stay. Without it second
    /// choices are the best, and the first tokens stay.
    ///
    /// # Errors
    /// `k` is neither 1 nor 2 or there are fewer experts, the shapes differ, or a logit is not finite.
    pub fn assign(&self, logits: &Tensor, noise: Option<&Tensor>) -> Result<Assignment> {
        self.assign_real(logits, noise, None)
    }

    /// [`assign`](Self::assign) for the tokens whose `mask [T]` is not 0.
    fn assign_real(&self, logits: &Tensor, noise: Option<&Tensor>, mask: Option<&[f32]>) -> Result<Assignment> {
        let (tokens, experts) = logits.dims2()?;
        if !(1..=2).contains(&self.k) || self.k > experts {
            bail!("routing with capacity takes 1 or 2 of the experts, not {} of {experts}", self.k);
        }
        if !(self.factor > 0.0 && self.factor.is_finite()) {
            bail!("the capacity factor is {}, expected a positive number", self.factor);
        }
        if noise.is_some_and(|noise| noise.dims() != [tokens, experts]) {
            bail!("noise for {tokens} tokens and {experts} experts has another shape");
        }
        let noise = noise.map(|noise| noise.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()).transpose()?;
        let p = softmax(&logits.to_dtype(DType::F32)?)?;
        let chosen = self.choose(logits, noise.as_deref(), mask, experts)?;
        let real = mask.map_or(tokens, |mask| mask.iter().filter(|m| **m != 0.0).count());
        let capacity = self.capacity(real, experts);
        let (mut kept, places) = if self.k == 1 {
            first(&chosen, noise.as_deref(), experts, capacity)
        } else {
            first_and_second(&chosen, experts, capacity)
        };
        // The weights of the kept, with gradients: the others' probabilities count as nothing.
        let mut mask = vec![0f32; tokens * experts];
        for (t, kept) in kept.iter_mut().enumerate() {
            kept.iter().for_each(|&e| mask[t * experts + e as usize] = 1.0);
        }
        let mut weights = (&p * Tensor::from_vec(mask, (tokens, experts), p.device())?)?; // (T, E)
        if self.k == 2 {
            let sum = weights.sum_keepdim(1)?;
            weights = weights.broadcast_div(&sum.maximum(f64::from(f32::EPSILON))?)?;
        }
        let index: Vec<u32> =
            kept.iter().enumerate().flat_map(|(t, k)| k.iter().map(move |&e| (t * experts) as u32 + e)).collect();
        let weights = match index.len() {
            0 => Tensor::zeros(0, DType::F32, p.device())?,
            n => weights.flatten_all()?.index_select(&Tensor::from_vec(index, n, p.device())?, 0)?,
        };
        let routes = Routes::new(experts, &kept, &weights, p)?.with_logits(logits.clone());
        Ok(Assignment { routes, capacity, chosen, places })
    }

    /// The experts of each token before any are dropped.
    fn choose(
        &self,
        logits: &Tensor,
        noise: Option<&[f32]>,
        mask: Option<&[f32]>,
        experts: usize,
    ) -> Result<Vec<Vec<u32>>> {
        with_f32(logits, "router", |logits| {
            let mut noisy = vec![0f32; experts];
            logits
                .chunks_exact(experts)
                .enumerate()
                .map(|(t, row)| {
                    if mask.is_some_and(|mask| mask.get(t).is_none_or(|m| *m == 0.0)) {
                        return Ok(Vec::new());
                    }
                    finite(row, t)?;
                    let mut chosen = top_k(row, 1, |_| true);
                    if self.k == 2 {
                        noisy.copy_from_slice(row);
                        if let Some(noise) = noise {
                            noisy.iter_mut().zip(&noise[t * experts..]).for_each(|(v, n)| *v += n);
                        }
                        let first = chosen.first().copied().unwrap_or_default();
                        chosen.extend(top_k(&noisy, 1, |e| e as u32 != first));
                    }
                    Ok(chosen)
                })
                .collect()
        })
    }
}

type Kept = (Vec<Vec<u32>>, Vec<(usize, usize, usize)>);

/// One expert per token: the `capacity` tokens with the largest rank stay, in token order.
fn first(chosen: &[Vec<u32>], rank: Option<&[f32]>, experts: usize, capacity: usize) -> Kept {
    let mut kept = vec![Vec::new(); chosen.len()];
    let mut places = Vec::new();
    for e in 0..experts {
        let mut tokens: Vec<usize> = (0..chosen.len()).filter(|&t| chosen[t].first() == Some(&(e as u32))).collect();
        if tokens.len() > capacity {
            if let Some(rank) = rank {
                tokens.sort_by(|&a, &b| rank[b * experts + e].total_cmp(&rank[a * experts + e]).then(a.cmp(&b)));
            }
            tokens.truncate(capacity);
            tokens.sort_unstable();
        }
        for (place, t) in tokens.into_iter().enumerate() {
            kept[t].push(e as u32);
            places.push((t, e, place));
        }
    }
    places.sort_unstable();
    (kept, places)
}

/// Two experts per token: firsts in token order, then seconds behind all firsts of their expert, also those without room.
fn first_and_second(chosen: &[Vec<u32>], experts: usize, capacity: usize) -> Kept {
    let mut kept = vec![Vec::new(); chosen.len()];
    let (mut places, mut next) = (Vec::new(), vec![0usize; experts]);
    for choice in 0..2 {
        for (t, chosen) in chosen.iter().enumerate() {
            let Some(&e) = chosen.get(choice) else { continue };
            let place = next[e as usize];
            next[e as usize] += 1;
            if place < capacity {
                kept[t].push(e);
                places.push((t, e as usize, place));
            }
        }
    }
    places.sort_unstable();
    (kept, places)
}

impl Router for Capacity {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let logits = logits(input.x, &self.weight)?;
        let noise = match &self.second {
            SecondChoice::Gumbel(noise) if self.k == 2 => {
                let mut rng = noise.next();
                let values: Vec<f32> = (0..logits.elem_count()).map(|_| gumbel(&mut rng) as f32).collect();
                Some(Tensor::from_vec(values, logits.shape(), logits.device())?)
            }
            _ => None,
        };
        let mask = float_mask(input)?;
        let real = mask.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        if real.as_ref().is_some_and(|mask| Ok(mask.len()) != logits.dim(0).map_err(drop)) {
            bail!("a mask of another length than the {:?} scores of tokens for experts", logits.dims());
        }
        let Assignment { routes, capacity, chosen, .. } = self.assign_real(&logits, noise.as_ref(), real.as_deref())?;
        Ok(routes.with_limit(Limit { capacity, chosen }).with_mask(mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn router(k: usize, factor: f64) -> Result<Capacity> {
        let weight = Tensor::eye(3, DType::F32, &Device::Cpu)?;
        Ok(Capacity { weight, k, factor, min_capacity: 0, second: SecondChoice::Best })
    }

    #[test]
    fn whoever_comes_late_is_dropped() -> Result<()> {
        // All want expert 0 first; seconds are 1, 2, 1, 1.
        let x = Var::from_slice(&[9f32, 8., 0., 9., 0., 8., 9., 8., 0., 9., 8., 0.], (4, 3), &Device::Cpu)?;
        // ceil(4 / 3 * 2 * 0.75) = 2
        let router = router(2, 0.75)?;
        let a = router.assign(x.as_tensor(), None)?;
        assert_eq!(a.capacity, 2);
        assert_eq!(a.places, [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 2, 0), (2, 1, 1)]);
        let (experts, weights) = a.routes.top_k()?;
        assert_eq!(experts.to_vec2::<u32>()?, [[0, 1], [0, 2], [1, 0], [0, 0]]);
        let weights = weights.to_vec2::<f32>()?;
        assert!((weights[0][0] + weights[0][1] - 1.0).abs() < 1e-6);
        assert_eq!((weights[2][0], weights[3][0]), (1.0, 0.0));
        assert_eq!(a.routes.scores().dims(), [4, 3]);
        // Weights pass gradients on to the logits, but that of a lone survivor is constant.
        let grads = a.routes.weight().sqr()?.sum_all()?.backward()?;
        let grad = grads.get(&x).map(|g| g.to_vec2::<f32>()).transpose()?.unwrap_or_default();
        assert!(grad[0][0].abs() > 1e-3 && grad[2].iter().all(|g| g.abs() < 1e-6), "{grad:?}");
        Ok(())
    }

    #[test]
    fn noise_moves_second_choices_only_and_is_new_each_time() -> Result<()> {
        let mut router = router(2, 2.0)?;
        let x = Tensor::from_vec((0..300).map(|i| (i % 7) as f32 * 0.3).collect::<Vec<_>>(), (100, 3), &Device::Cpu)?;
        let experts = |r: &Capacity| r.route(&RouteInput::new(&x))?.top_k()?.0.to_vec2::<u32>();
        let plain = experts(&router)?;
        router.second = SecondChoice::gumbel(5);
        let (one, two) = (experts(&router)?, experts(&router)?);
        assert!(one != two && one != plain);
        assert!(plain.iter().zip(&one).all(|(p, n)| p[0] == n[0]));
        router.second = SecondChoice::gumbel(5);
        assert_eq!(experts(&router)?, one);
        Ok(())
    }

    #[test]
    fn masked_padding_takes_no_place_and_makes_none() -> Result<()> {
        let router = router(2, 0.75)?;
        let rows = [[9f32, 8., 0.], [9., 0., 8.], [9., 8., 0.], [9., 8., 0.]];
        let alone = router.route(&RouteInput::new(&Tensor::new(&rows, &Device::Cpu)?))?;
        let [a, b, c, d] = rows;
        let padded = Tensor::new(&[[9f32, 8., 0.], a, b, [f32::NAN, 0., 0.], c, d], &Device::Cpu)?;
        let mask = Tensor::new(&[0u8, 1, 1, 0, 1, 1], &Device::Cpu)?;
        let masked = router.route(&RouteInput::new(&padded).with_mask(Some(&mask)))?;
        let (alone_limit, limit) = (alone.limit().unwrap(), masked.limit().unwrap());
        assert_eq!((limit.capacity, limit.chosen[0].len()), (alone_limit.capacity, 0));
        let (experts, weights) = masked.top_k()?;
        let real = Tensor::new(&[1u32, 2, 4, 5], &Device::Cpu)?;
        let rows =
            (experts.index_select(&real, 0)?.to_vec2::<u32>()?, weights.index_select(&real, 0)?.to_vec2::<f32>()?);
        let (experts, weights) = alone.top_k()?;
        assert_eq!(rows, (experts.to_vec2()?, weights.to_vec2()?));
        Ok(())
    }

    #[test]
    fn what_cannot_be_routed() -> Result<()> {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        for (k, factor) in [(0, 1.0), (3, 1.0), (1, 0.0), (2, f64::NAN)] {
            assert!(router(k, factor)?.assign(&x, None).is_err(), "{k} {factor}");
        }
        let broken = Tensor::new(&[[0f32, f32::NAN, 0.]], &Device::Cpu)?;
        assert!(router(2, 1.0)?.assign(&broken, None).is_err());
        Ok(())
    }
}
