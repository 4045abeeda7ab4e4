//! Balance of experts of which some cost nothing.

use candle_core::{Result, Tensor, bail};

use super::{Usage, usage};
use crate::routes::Routes;

/// The load balance loss of AdaMoE (arXiv 2406.13233): `E * sum_e f_e P_e` as
/// [`load_balance`](super::load_balance), with the mean `f` of all null experts in the place of each of theirs, as it is
/// the same which of them is used. The last `nulls` experts are null.
pub fn null_balance(layers: &[Routes], nulls: usize) -> Result<Tensor> {
    let Usage { mut counts, sums, tokens } = usage(layers)?;
    let experts = counts.len();
    let Some(first) = experts.checked_sub(nulls) else { bail!("{nulls} null experts of {experts}") };
    let mean = counts[first..].iter().sum::<f64>() / nulls.max(1) as f64;
    counts[first..].fill(mean);
    let scaled: Vec<f32> = counts.iter().map(|c| (c * experts as f64 / (tokens * tokens)) as f32).collect();
    (&sums * Tensor::from_vec(scaled, experts, sums.device())?)?.sum_all()
}

/// The load balance loss of MoE++ (arXiv 2410.07348): `sum_e eta_e f_e P_e` with `f_e` the number of routes to
/// expert `e` per token, `P_e` its mean probability and `eta_e` 1 for the first `networks` experts and `tau` for those
/// without a network: the smaller it is, the more tokens they get. Padding counts in neither.
pub fn heterogeneous_balance(layers: &[Routes], networks: usize, tau: f64) -> Result<Tensor> {
    let Usage { counts, sums, tokens } = usage(layers)?;
    let experts = counts.len();
    let eta = |e: usize| if e < networks { 1.0 } else { tau };
    let scaled: Vec<f32> = counts.iter().enumerate().map(|(e, c)| (eta(e) * c / (tokens * tokens)) as f32).collect();
    (&sums * Tensor::from_vec(scaled, experts, sums.device())?)?.sum_all()
}
