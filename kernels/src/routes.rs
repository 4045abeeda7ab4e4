//! Which token goes to which expert, with which weight.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::Modality;
#[cfg(feature = "cuda")]
use crate::cuda::device::DevicePlan;
use crate::host;

/// What a router may look at.
#[derive(Clone, Copy)]
pub struct RouteInput<'a> {
    /// The tokens, `[t, h]`.
    pub x: &'a Tensor,
    /// What the routing is conditioned on besides the token, `[t, c]` or `[1, c]`: U-SAM's prompt.
    pub condition: Option<&'a Tensor>,
    /// The modality of each token: MoMa and SMoP restrict experts by it.
    pub modality: Option<&'a [Modality]>,
    /// `[t]`, 0 for padding: such tokens get no routes and do not count in losses.
    pub mask: Option<&'a Tensor>,
    /// What the router of the sparse layer before gave as logits ([`Routes::logits`]), `[t, e]`: MoE++'s gating residual.
    pub previous: Option<&'a Tensor>,
    /// The pass is one of training: [`DenseTraining`](crate::routers::DenseTraining) takes all experts then.
    pub training: bool,
}

impl<'a> RouteInput<'a> {
    /// Tokens alone.
    pub fn new(x: &'a Tensor) -> Self {
        Self { x, condition: None, modality: None, mask: None, previous: None, training: false }
    }

    /// The same with a padding mask `[t]`.
    pub fn with_mask(self, mask: Option<&'a Tensor>) -> Self {
        Self { mask, ..self }
    }
}

/// The index side of [`Routes`], shared with the operations of a backward pass: on the host, on a GPU, or both.
#[derive(Debug)]
pub(crate) struct Plan {
    pub tokens: usize,
    experts: usize,
    routes: usize,
    /// On the host, once they were wanted there.
    lists: OnceLock<Lists>,
    /// The same on a GPU, once it was wanted there.
    #[cfg(feature = "cuda")]
    pub device: OnceLock<Arc<DevicePlan>>,
}

/// What a [`Plan`] says, on the host.
#[derive(Debug)]
pub(crate) struct Lists {
    /// `[R]`: the token of each route; routes are sorted by expert, then token.
    pub token: Vec<u32>,
    /// `[E + 1]`: the routes of expert `e` are `offsets[e]..offsets[e + 1]`.
    pub offsets: Vec<usize>,
    /// `[R]`: the rank of the route among those of its token.
    pub slot: Vec<u32>,
    /// `[R]`: routes sorted by token, then slot.
    pub by_token: Vec<u32>,
    /// `[T + 1]`: the part of `by_token` that belongs to each token.
    pub token_offsets: Vec<usize>,
}

impl Lists {
    pub fn tokens(&self) -> usize {
        self.token_offsets.len() - 1
    }

    /// The routes of one token, in slot order.
    pub fn of_token(&self, t: usize) -> &[u32] {
        &self.by_token[self.token_offsets[t]..self.token_offsets[t + 1]]
    }
}

impl From<Lists> for Plan {
    fn from(lists: Lists) -> Self {
        Self {
            tokens: lists.tokens(),
            experts: lists.offsets.len() - 1,
            routes: lists.token.len(),
            lists: lists.into(),
            #[cfg(feature = "cuda")]
            device: Default::default(),
        }
    }
}

impl Plan {
    /// Sorts `(expert, slot)` lists per token. The order of sums over a token's routes is that of its slots, so results do
    /// not depend on how experts are numbered.
    pub fn new(experts: usize, choices: &[Vec<u32>]) -> Result<Self> {
        let total: usize = choices.iter().map(Vec::len).sum();
        if u32::try_from(total).is_err() || u32::try_from(choices.len()).is_err() {
            bail!("{total} routes of {} tokens are more than one call takes; split the batch", choices.len());
        }
        let mut offsets = vec![0usize; experts + 1];
        for &expert in choices.iter().flatten() {
            let Some(count) = offsets.get_mut(expert as usize + 1) else {
                bail!("a route to expert {expert}, but there are {experts}");
            };
            *count += 1;
        }
        for e in 0..experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let (mut token, mut slot, mut by_token) = (vec![0; total], vec![0; total], Vec::with_capacity(total));
        let mut token_offsets = Vec::with_capacity(choices.len() + 1);
        token_offsets.push(0);
        for (t, experts) in choices.iter().enumerate() {
            for (s, &expert) in experts.iter().enumerate() {
                let r = next[expert as usize];
                next[expert as usize] += 1;
                (token[r], slot[r]) = (t as u32, s as u32);
                by_token.push(r as u32);
            }
            token_offsets.push(by_token.len());
        }
        Ok(Lists { token, offsets, slot, by_token, token_offsets }.into())
    }

    /// A plan that a GPU made; its lists come to the host when they are wanted there.
    #[cfg(feature = "cuda")]
    pub fn on_device(plan: DevicePlan) -> Self {
        Self {
            tokens: plan.tokens(),
            experts: plan.experts(),
            routes: plan.routes(),
            lists: Default::default(),
            device: OnceLock::from(Arc::new(plan)),
        }
    }

    /// The lists on the host.
    ///
    /// # Errors
    /// They come from a GPU, and that fails, or the router's scores there were not finite.
    pub fn lists(&self) -> Result<&Lists> {
        #[cfg(feature = "cuda")]
        if let (None, Some(device)) = (self.lists.get(), self.device.get()) {
            let lists = device.lists()?;
            return Ok(self.lists.get_or_init(|| lists));
        }
        match self.lists.get() {
            Some(lists) => Ok(lists),
            None => bail!("routes that are neither on the host nor on a GPU"),
        }
    }

    /// The routes to the first `experts` experts alone. Ranks stay those among all routes of a token.
    fn to_first(&self, experts: usize) -> Result<Self> {
        let lists = self.lists()?;
        let offsets = lists.offsets[..=experts.min(self.experts())].to_vec();
        let routes = offsets[offsets.len() - 1];
        let (mut by_token, mut token_offsets) = (Vec::with_capacity(routes), Vec::with_capacity(self.tokens + 1));
        token_offsets.push(0);
        for t in 0..self.tokens {
            by_token.extend(lists.of_token(t).iter().filter(|r| (**r as usize) < routes));
            token_offsets.push(by_token.len());
        }
        let (token, slot) = (lists.token[..routes].to_vec(), lists.slot[..routes].to_vec());
        Ok(Lists { token, offsets, slot, by_token, token_offsets }.into())
    }

    pub fn routes(&self) -> usize {
        self.routes
    }

    pub fn experts(&self) -> usize {
        self.experts
    }
}

/// The result of a router: any number of weighted routes per token (none, k, many), sorted by expert.
///
/// `R` is the number of routes, `T` of tokens, `E` of experts. Weights and scores carry gradients to the router.
#[derive(Clone, Debug)]
pub struct Routes {
    pub(crate) plan: Arc<Plan>,
    /// `[R]` f32: the weight that the route's expert output is multiplied with.
    weight: Tensor,
    /// `[T, E]` f32: the router's full distribution or scores, for losses.
    scores: Tensor,
    /// `[T, E]` f32: what the scores were made from, where the router has logits.
    logits: Option<Tensor>,
    /// `[T]` f32: 0 for padding.
    mask: Option<Tensor>,
    limit: Option<Arc<Limit>>,
}

/// What a router with a bounded capacity wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens that an expert takes at most.
    pub capacity: usize,
    /// The experts of each token before any were dropped, best first, `[T][k]`; none of padding.
    pub chosen: Vec<Vec<u32>>,
}

impl Routes {
    /// Routes from each token's experts, best first, and their weights.
    ///
    /// `choices[t]` lists the experts of token `t`; `weights` holds one weight per choice, `[R]` in token order (the
    /// flattened `[T, k]` where every token has k choices), and may carry gradients.
    pub fn new(experts: usize, choices: &[Vec<u32>], weights: &Tensor, scores: Tensor) -> Result<Self> {
        let plan = Plan::new(experts, choices)?;
        if weights.dims() != [plan.routes()] {
            bail!("{} routes, but weights of shape {:?}", plan.routes(), weights.dims());
        }
        if scores.dims() != [choices.len(), experts] {
            bail!("{} tokens and {experts} experts, but scores of shape {:?}", choices.len(), scores.dims());
        }
        // `by_token[i]` is where choice `i` went; its inverse brings weights into route order.
        let mut inverse = vec![0u32; plan.routes()];
        for (i, &r) in plan.lists()?.by_token.iter().enumerate() {
            inverse[r as usize] = i as u32;
        }
        let weight = if inverse.is_empty() {
            weights.clone()
        } else {
            weights.index_select(&Tensor::from_vec(inverse, plan.routes(), weights.device())?, 0)?
        };
        Ok(Self { plan: Arc::new(plan), weight, scores, logits: None, mask: None, limit: None })
    }

    /// Routes that a GPU decided, of weights `[T k]` in token order.
    #[cfg(feature = "cuda")]
    pub(crate) fn decided(plan: DevicePlan, weights: &Tensor, scores: Tensor) -> Result<Self> {
        let weight = weights.index_select(plan.choice()?, 0)?; // (R)
        Ok(Self { plan: Arc::new(Plan::on_device(plan)), weight, scores, logits: None, mask: None, limit: None })
    }

    /// Adds the logits that the scores were made from.
    pub fn with_logits(mut self, logits: Tensor) -> Self {
        self.logits = Some(logits);
        self
    }

    /// Adds the padding mask `[T]`.
    pub fn with_mask(mut self, mask: Option<Tensor>) -> Self {
        self.mask = mask;
        self
    }

    /// Adds what was wanted before routes were dropped.
    pub fn with_limit(mut self, limit: Limit) -> Self {
        self.limit = Some(Arc::new(limit));
        self
    }

    /// What a router with a bounded capacity wanted; absent for others.
    pub fn limit(&self) -> Option<&Limit> {
        self.limit.as_deref()
    }

    /// Number of routes, R.
    pub fn len(&self) -> usize {
        self.plan.routes()
    }

    /// True if no token goes anywhere.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens, T.
    pub fn tokens(&self) -> usize {
        self.plan.tokens
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.plan.experts()
    }

    /// `[R]` u32: the token of each route.
    pub fn token(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.lists()?.token, self.len(), self.weight.device())
    }

    /// `[R]` u32: the rank of each route among those of its token.
    pub fn slot(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.lists()?.slot, self.len(), self.weight.device())
    }

    /// `[E + 1]`: the routes of expert `e` are `offsets[e]..offsets[e + 1]`.
    ///
    /// # Errors
    /// The routes were made on a GPU, and cannot be read from there, or the router's scores there were not finite.
    pub fn offsets(&self) -> Result<&[usize]> {
        Ok(&self.lists()?.offsets)
    }

    pub(crate) fn lists(&self) -> Result<&Lists> {
        self.plan.lists()
    }

    /// `[R]` f32, with gradients to the router.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `[T, E]` f32, with gradients to the router.
    pub fn scores(&self) -> &Tensor {
        &self.scores
    }

    /// `[T, E]` f32, with gradients to the router.
    pub fn logits(&self) -> Option<&Tensor> {
        self.logits.as_ref()
    }

    /// `[T]` f32, 0 for padding.
    pub fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
    }

    /// `[E]`: the number of routes to each expert. Those of padding do not count.
    pub fn load(&self) -> Result<Vec<f64>> {
        let real = self.mask.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        let counted = |t: u32| real.as_ref().map_or(1.0, |real| real.get(t as usize).copied().map_or(0.0, f64::from));
        let lists = self.lists()?;
        let of_range = |range: &[usize]| lists.token[range[0]..range[1]].iter().map(|&t| counted(t)).sum();
        Ok(lists.offsets.windows(2).map(of_range).collect())
    }

    /// `[T, E]` f32: 1 where a token goes to an expert, else 0.
    pub fn assignment(&self) -> Result<Tensor> {
        let mut assigned = vec![0f32; self.tokens() * self.experts()];
        let lists = self.lists()?;
        for (e, range) in lists.offsets.windows(2).enumerate() {
            for &t in &lists.token[range[0]..range[1]] {
                assigned[t as usize * self.experts() + e] = 1.0;
            }
        }
        Tensor::from_vec(assigned, (self.tokens(), self.experts()), self.scores.device())
    }

    /// The routes to the first `experts` experts alone, with gradients.
    pub(crate) fn to_first(&self, experts: usize) -> Result<Self> {
        let plan = self.plan.to_first(experts)?;
        let weight = self.weight.narrow(0, 0, plan.routes())?;
        let scores = self.scores.narrow(1, 0, experts)?;
        Ok(Self { plan: Arc::new(plan), weight, scores, logits: None, mask: self.mask.clone(), limit: None })
    }

    /// The view with a fixed k: experts `[T, k]` (u32, best first) and their weights `[T, k]`. Tokens with fewer routes
    /// (padding) hold expert 0 with weight 0; `k` is the largest number of routes of a token.
    pub fn top_k(&self) -> Result<(Tensor, Tensor)> {
        let lists = self.lists()?;
        let k = (0..self.tokens()).map(|t| lists.of_token(t).len()).max().unwrap_or(0);
        let expert_of = self.expert_of()?;
        let (mut experts, mut weights) = (vec![0u32; self.tokens() * k], vec![0f32; self.tokens() * k]);
        host::with_f32(&self.weight, "top_k", |w| {
            for t in 0..self.tokens() {
                for (s, &r) in lists.of_token(t).iter().enumerate() {
                    experts[t * k + s] = expert_of[r as usize];
                    weights[t * k + s] = w[r as usize];
                }
            }
            Ok(())
        })?;
        let shape = (self.tokens(), k);
        Ok((Tensor::from_vec(experts, shape, &Device::Cpu)?, Tensor::from_vec(weights, shape, &Device::Cpu)?))
    }

    /// The experts of each token, as its router ranked them; none of padding.
    ///
    /// # Errors
    /// As for [`offsets`](Self::offsets).
    pub fn choices(&self) -> Result<Vec<Vec<u32>>> {
        let (lists, expert_of) = (self.lists()?, self.expert_of()?);
        let of_token = |t| lists.of_token(t).iter().map(|&r| expert_of[r as usize]).collect();
        Ok((0..self.tokens()).map(of_token).collect())
    }

    /// `[R]`: the expert of each route.
    pub(crate) fn expert_of(&self) -> Result<Vec<u32>> {
        let mut of = vec![0u32; self.len()];
        for (e, range) in self.lists()?.offsets.windows(2).enumerate() {
            of[range[0]..range[1]].fill(e as u32);
        }
        Ok(of)
    }

    /// The routes of several groups of tokens, which may come from routers of their own, as those of all tokens, group after
    /// group. With gradients. Logits stay where all groups have them.
    ///
    /// # Errors
    /// There is no group, or they choose from different numbers of experts.
    pub fn join(groups: &[Self]) -> Result<Self> {
        let Some(first) = groups.first() else { bail!("there are no routes to join") };
        if groups.len() == 1 {
            return Ok(first.clone());
        }
        let (mut choices, mut weights) = (Vec::new(), Vec::new());
        for group in groups {
            if group.experts() != first.experts() {
                bail!("routes to {} and to {} experts cannot be joined", first.experts(), group.experts());
            }
            choices.extend(group.choices()?);
            if !group.is_empty() {
                let by_token = Tensor::from_slice(&group.lists()?.by_token, group.len(), group.weight.device())?;
                weights.push(group.weight.index_select(&by_token, 0)?);
            }
        }
        let weights = if weights.is_empty() { first.weight.clone() } else { Tensor::cat(&weights, 0)? };
        let all =
            |of: &dyn Fn(&Self) -> Result<Tensor>| Tensor::cat(&groups.iter().map(of).collect::<Result<Vec<_>>>()?, 0);
        let mut joined = Self::new(first.experts(), &choices, &weights, all(&|g| Ok(g.scores.clone()))?)?;
        if groups.iter().all(|g| g.logits.is_some()) {
            joined.logits = Some(all(&|g| Ok(g.logits.clone().unwrap_or_else(|| g.scores.clone())))?);
        }
        if groups.iter().any(|g| g.mask.is_some()) {
            joined.mask = Some(all(&|g| match &g.mask {
                Some(mask) => Ok(mask.clone()),
                None => Tensor::ones(g.tokens(), DType::F32, g.scores.device()),
            })?);
        }
        Ok(joined)
    }

    /// Routes of every token to the experts with weight `weight`, `[T, E]`: dense mixing.
    pub fn dense(weight: &Tensor, scores: Tensor) -> Result<Self> {
        let (tokens, experts) = weight.dims2()?;
        let all: Vec<u32> = (0..experts as u32).collect();
        Self::new(experts, &vec![all; tokens], &weight.flatten_all()?, scores)
    }

    /// All tokens to the one expert of a dense layer, with weight 1.
    pub fn single(tokens: usize, device: &Device) -> Result<Self> {
        let ones = Tensor::ones((tokens, 1), DType::F32, device)?;
        Self::dense(&ones, ones.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_sorted_by_expert_and_keep_their_weights() -> Result<()> {
        let choices = [vec![2, 0], vec![], vec![0], vec![1, 2, 0]];
        let weights = Tensor::new(&[0.1f32, 0.2, 0.3, 0.4, 0.5, 0.6], &Device::Cpu)?;
        let routes = Routes::new(4, &choices, &weights, Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?)?;
        assert_eq!(routes.offsets()?, [0, 3, 4, 6, 6]);
        assert_eq!(routes.token()?.to_vec1::<u32>()?, [0, 2, 3, 3, 0, 3]);
        assert_eq!(routes.slot()?.to_vec1::<u32>()?, [1, 0, 2, 0, 0, 1]);
        assert_eq!(routes.weight().to_vec1::<f32>()?, [0.2, 0.3, 0.6, 0.4, 0.1, 0.5]);
        let (experts, weights) = routes.top_k()?;
        assert_eq!(experts.to_vec2::<u32>()?, [[2, 0, 0], [0, 0, 0], [0, 0, 0], [1, 2, 0]]);
        assert_eq!(weights.to_vec2::<f32>()?, [[0.1, 0.2, 0.], [0., 0., 0.], [0.3, 0., 0.], [0.4, 0.5, 0.6]]);
        assert!(
            Routes::new(2, &choices, &Tensor::zeros(6, DType::F32, &Device::Cpu)?, routes.scores().clone()).is_err()
        );
        Ok(())
    }

    #[test]
    fn joined_groups_keep_their_routes_in_order() -> Result<()> {
        let group = |choices: &[Vec<u32>], weights: &[f32], mask: Option<&[f32]>| {
            let scores = Tensor::full(choices.len() as f32, (choices.len(), 3), &Device::Cpu)?;
            let weights = Tensor::new(weights, &Device::Cpu)?;
            let mask = mask.map(|m| Tensor::new(m, &Device::Cpu)).transpose()?;
            Ok::<_, candle_core::Error>(Routes::new(3, choices, &weights, scores)?.with_mask(mask))
        };
        let one = group(&[vec![2, 0], vec![1, 2]], &[0.1, 0.2, 0.3, 0.4], None)?;
        let two = group(&[vec![], vec![0, 1]], &[0.5, 0.6], Some(&[0., 1.]))?;
        let joined = Routes::join(&[one.clone(), two])?;
        let (experts, weights) = joined.top_k()?;
        assert_eq!(experts.to_vec2::<u32>()?, [[2, 0], [1, 2], [0, 0], [0, 1]]);
        assert_eq!(weights.to_vec2::<f32>()?, [[0.1, 0.2], [0.3, 0.4], [0., 0.], [0.5, 0.6]]);
        assert_eq!(joined.mask().map(|m| m.to_vec1::<f32>()).transpose()?, Some(vec![1., 1., 0., 1.]));
        assert_eq!((joined.scores().dims(), joined.logits().is_none()), (&[4, 3][..], true));
        assert!(Routes::join(&[]).is_err());
        let other = Routes::new(
            2,
            &[vec![0]],
            &Tensor::ones(1, DType::F32, &Device::Cpu)?,
            Tensor::zeros((1, 2), DType::F32, &Device::Cpu)?,
        )?;
        assert!(Routes::join(&[one, other]).is_err());
        Ok(())
    }
}
