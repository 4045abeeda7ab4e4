//! Launches of plan.cu: choices of experts, and routes sorted by expert.

use candle_core::{DType, Result, bail};

use super::{Arg, Launch, Values, count, optional, word};
use crate::routers::GroupLimit;

/// Shared memory of a block that needs no permission.
const SHARED: usize = 48 << 10;

/// The `k` best experts of each token, best first, the lower index at ties: `scores [T, E]` f32, `mask [T]` f32 (0 for padding, which gets none),
/// `choices [T, k]` u32, `broken [1]` u32: 1 afterwards where a real token's score is not finite. Groups are rated by the sum of their two best
/// if `two`, else by their best.
pub(crate) fn top_k(
    scores: Values,
    mask: Option<Values>,
    choices: Values,
    broken: Values,
    [tokens, experts, k]: [usize; 3],
    groups: Option<GroupLimit>,
    two: bool,
) -> Result<Launch> {
    let what = "router";
    if k == 0 || k > experts {
        bail!("routing to {k} of {experts} experts; the number of experts per token must be in 1..={experts}");
    }
    let (of, keep) = groups.map_or((0, 0), |g| (g.groups, g.keep));
    if groups.is_some()
        && (of == 0 || !experts.is_multiple_of(of) || keep == 0 || keep > of || keep * (experts / of) < k)
    {
        bail!("{experts} experts cannot be routed as {k} of {keep} out of {of} groups");
    }
    let shared = 4 * (experts + of) * 4;
    if shared > SHARED {
        bail!("{what}: {experts} experts in {of} groups are more than one block holds on the GPU");
    }
    let args = vec![
        scores.holds(tokens * experts, DType::F32, what)?,
        optional(mask, tokens, DType::F32, what)?,
        choices.holds(tokens * k, DType::U32, what)?,
        broken.holds(1, DType::U32, what)?,
        word(tokens, "tokens")?,
        word(experts, "experts")?,
        word(k, "experts")?,
        word(of, "groups")?,
        word(keep, "groups")?,
        Arg::Word(u32::from(two)),
    ];
    let grid = [count(tokens.div_ceil(4), "tokens")?, 1, 1];
    Ok(Launch { kernel: "moesaic_top_k".into(), grid, threads: 128, shared: shared as u32, args })
}

// Only tests launch this: the routers that would need it decide on the host (NOTES.md).
#[cfg(test)]
/// The tokens that each expert takes, and the experts of each token by score: `scores [T, E]` f32, `eligible [T, E]` f32 (0 where an expert may not
/// take a token), `capacity [E]` u32, `taken [T, E]` u8, `choices [T, E]` u32.
pub(crate) fn expert_choice(
    [scores, eligible, capacity, taken, choices]: [Values; 5],
    [tokens, experts]: [usize; 2],
) -> Result<[Launch; 2]> {
    let what = "router";
    let shared = 4 * experts * 4;
    if shared > SHARED {
        bail!("{what}: {experts} experts are more than one block holds on the GPU");
    }
    let (t, e) = (word(tokens, "tokens")?, word(experts, "experts")?);
    let scores = scores.holds(tokens * experts, DType::F32, what)?;
    let taken = taken.holds(tokens * experts, DType::U8, what)?;
    let args = vec![
        scores,
        eligible.holds(tokens * experts, DType::F32, what)?,
        capacity.holds(experts, DType::U32, what)?,
        taken,
        t,
        e,
    ];
    let grid = [count(experts, "experts")?, 1, 1];
    let choose = Launch { kernel: "moesaic_expert_choice".into(), grid, threads: super::THREADS, shared: 0, args };
    let args = vec![scores, taken, choices.holds(tokens * experts, DType::U32, what)?, t, e];
    let grid = [count(tokens.div_ceil(4), "tokens")?, 1, 1];
    let order = Launch { kernel: "moesaic_taken_by".into(), grid, threads: 128, shared: shared as u32, args };
    Ok([choose, order])
}

/// True if blocks hold what they need to choose among so many experts, and to sort routes to them.
pub(crate) fn fits(experts: usize) -> bool {
    8 * experts * 4 <= SHARED && 4 * (2 * experts) * 4 <= SHARED
}

/// Entries that [`sort`] counts in one tile.
const TILE: usize = 256;

/// Values that [`sort`] keeps while it counts, of u32.
pub(crate) fn sort_scratch(choices: usize, experts: usize) -> usize {
    choices.div_ceil(TILE).max(1) * experts
}

/// Routes of choices `[T, k]` u32, sorted by expert, then token: `scratch` of [`sort_scratch`], `offsets [E + 1]`, `token` and `choice` (which of all it
/// is), as many as there are choices (those past `offsets[E]` stay as they are), and `route [T, k]`, where each choice went. All u32; a choice of
/// `u32::MAX` is none.
pub(crate) fn sort(
    choices: Values,
    [scratch, offsets, token, choice, route]: [Values; 5],
    [tokens, experts, k]: [usize; 3],
) -> Result<[Launch; 3]> {
    let what = "routes";
    let total = tokens * k;
    let tiles = total.div_ceil(TILE).max(1);
    if !fits(experts) {
        bail!("{what}: {experts} experts are more than one block holds on the GPU");
    }
    count(tiles.saturating_mul(experts), "choices")?;
    let (all, e) = (word(total, "choices")?, word(experts, "experts")?);
    let choices = choices.holds(total, DType::U32, what)?;
    let counts = scratch.holds(sort_scratch(total, experts), DType::U32, what)?;
    let launch = |kernel: &str, blocks: usize, threads, shared: usize, args| {
        let grid = [blocks as u32, 1, 1];
        Launch { kernel: kernel.into(), grid, threads, shared: shared as u32, args }
    };
    let offsets = offsets.holds(experts + 1, DType::U32, what)?;
    let place = vec![
        choices,
        counts,
        token.holds(total, DType::U32, what)?,
        choice.holds(total, DType::U32, what)?,
        route.holds(total, DType::U32, what)?,
        all,
        e,
        word(k, "experts")?,
    ];
    Ok([
        launch("moesaic_count", tiles, TILE as u32, experts * 4, vec![choices, counts, all, e]),
        launch("moesaic_scan", 1, 1024, 0, vec![counts, offsets, e, word(tiles, "choices")?]),
        launch("moesaic_place", tiles, TILE as u32, 8 * experts * 4, place),
    ])
}

/// Routes as the device decides them, in one piece of memory: what each part is, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    pub tokens: usize,
    pub experts: usize,
    pub k: usize,
}

impl Decision {
    /// Values of u32 that it takes, those among them that only the launches need.
    pub fn len(&self) -> usize {
        self.parts().map(|(_, len)| len).iter().sum()
    }

    /// Where each part begins, and its length: `token`, `by_token`, `choice` (which of all choices a route is), `choices`, `offsets`, `start`, `broken`,
    /// scratch.
    pub fn parts(&self) -> [(usize, usize); 8] {
        let routes = self.tokens * self.k;
        let lens =
            [routes, routes, routes, routes, self.experts + 1, self.tokens + 1, 1, sort_scratch(routes, self.experts)];
        let mut next = 0;
        lens.map(|len| {
            next += len;
            (next - len, len)
        })
    }

    /// From `scores [T, E]` f32 to all that is in `out`: every token goes to its k best experts, as [`top_k`] chooses them.
    pub fn launches(self, scores: Values, out: Values, groups: Option<GroupLimit>, two: bool) -> Result<Vec<Launch>> {
        let Self { tokens, experts, k } = self;
        out.holds(self.len(), DType::U32, "routes")?;
        let [token, by_token, choice, choices, offsets, start, broken, scratch] =
            self.parts().map(|(at, len)| Values { address: out.address + 4 * at as u64, len, dtype: DType::U32 });
        let shape = [tokens, experts, k];
        let args = vec![
            start.holds(tokens + 1, DType::U32, "routes")?,
            broken.holds(1, DType::U32, "routes")?,
            word(tokens, "tokens")?,
            word(k, "experts")?,
        ];
        let grid = [count((tokens + 1).div_ceil(TILE), "tokens")?, 1, 1];
        let begin = Launch { kernel: "moesaic_begin".into(), grid, threads: TILE as u32, shared: 0, args };
        let choose = top_k(scores, None, choices, broken, shape, groups, two)?;
        let sort = sort(choices, [scratch, offsets, token, choice, by_token], shape)?;
        Ok([begin, choose].into_iter().chain(sort).collect())
    }
}

// Only tests launch this: the routers that would need it decide on the host (NOTES.md).
#[cfg(test)]
/// Leaves those of `choices [T, k]` for which their expert has room, first choices of all tokens before second ones: launches before and after a
/// [`sort`] of `across [k, T]` (as choices of one slot), which makes `route` and `offsets`.
pub(crate) fn limit(
    choices: Values,
    [across, route, offsets]: [Values; 3],
    [tokens, experts, k]: [usize; 3],
    capacity: usize,
) -> Result<[Launch; 2]> {
    let what = "routes";
    let total = tokens * k;
    let (t, slots) = (word(tokens, "tokens")?, word(k, "experts")?);
    let choices = choices.holds(total, DType::U32, what)?;
    let grid = [count(total.div_ceil(TILE).max(1), "choices")?, 1, 1];
    let launch = |kernel: &str, args| Launch { kernel: kernel.into(), grid, threads: TILE as u32, shared: 0, args };
    let before = vec![choices, across.holds(total, DType::U32, what)?, t, slots];
    let after = vec![
        choices,
        route.holds(total, DType::U32, what)?,
        offsets.holds(experts + 1, DType::U32, what)?,
        t,
        slots,
        Arg::Word(u32::try_from(capacity).unwrap_or(u32::MAX)),
    ];
    Ok([launch("moesaic_by_slot", before), launch("moesaic_limit", after)])
}
