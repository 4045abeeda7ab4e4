//! What makes routing by ReLU sparse ([`ReluRouter`](crate::routers::ReluRouter),
//! [`NormedReluRouter`](crate::routers::NormedReluRouter)): their scores are `relu(W x)`.

use candle_core::{Result, Tensor, bail};

use super::real;
use super::{binary_cross_entropy, token_weights};
use crate::routes::Routes;

/// `1 - routes / (tokens * experts)` over all layers: the share of experts that a token leaves out (ReMoE, arXiv
/// 2412.14711). Padding does not count.
pub fn sparsity(layers: &[Routes]) -> Result<f64> {
    let (mut used, mut all) = (0.0, 0.0);
    for routes in layers {
        used += routes.load()?.iter().sum::<f64>();
        all += token_weights(routes)?.1 * routes.experts() as f64;
    }
    Ok(if all > 0.0 { 1.0 - used / all } else { 0.0 })
}

/// The L1 loss of ReMoE (arXiv 2412.14711): the mean over layers and tokens of `sum_e f_e R(x)_e`.
///
/// `f_e` is 1 without `k`. With it, `f_e = E / (k T) * routes to expert e` of the layer, so that busy experts are pressed down
/// more: the load balanced form, for `k` experts per token on average. Padding does not count.
pub fn relu_l1(layers: &[Routes], k: Option<f64>) -> Result<Tensor> {
    if layers.is_empty() || k.is_some_and(|k| k <= 0.0) {
        bail!("the L1 loss needs the routes of at least one layer, and k above 0");
    }
    let losses = layers.iter().map(|routes| {
        let (weights, n) = token_weights(routes)?;
        let experts = routes.experts();
        let pressure = match k {
            None => vec![1f32; experts],
            Some(k) => routes.load()?.iter().map(|load| (load * experts as f64 / (k * n.max(1.0))) as f32).collect(),
        };
        let pressure = Tensor::from_vec(pressure, (1, experts), routes.scores().device())?;
        let of_token = routes.scores().broadcast_mul(&pressure)?.sum(1)?; // (T)
        (of_token * weights)?.sum_all()? / n.max(1.0)
    });
    let losses = losses.collect::<Result<Vec<Tensor>>>()?;
    Tensor::stack(&losses, 0)?.mean_all()
}

/// The coefficient of [`relu_l1`], moved by each step towards a sparsity (ReMoE, arXiv 2412.14711):
/// `lambda *= growth` while routing is denser than wanted, `lambda /= growth` while it is sparser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveL1 {
    /// lambda; 1e-8 at first.
    pub coefficient: f64,
    /// Factor of a step, alpha; 1.2.
    pub growth: f64,
    /// The sparsity wanted, `1 - k / E`.
    pub target: f64,
}

impl AdaptiveL1 {
    /// The published start for `k` of `experts` experts per token on average.
    pub fn new(k: f64, experts: usize) -> Self {
        Self { coefficient: 1e-8, growth: 1.2, target: 1.0 - k / experts.max(1) as f64 }
    }

    /// To be called after a step that routed with this [`sparsity`].
    pub fn update(&mut self, sparsity: f64) {
        if sparsity < self.target {
            self.coefficient *= self.growth;
        } else if sparsity > self.target {
            self.coefficient /= self.growth;
        }
    }
}

/// The activation locality loss of BlockFFN (arXiv 2507.08771): neighbouring tokens should use the same
/// experts. Binary cross entropy of `sigmoid(a z_t)` against `sigmoid(a z_{t+1})`, the mean over neighbours within each of
/// `rows` sequences of equal length and over experts; `z = W x`, and `steepness` a (100 in the released code) makes of it
/// almost a yes or no. As there, gradients go to both. Pairs with padding do not count; 0 without any pair.
pub fn activation_locality(routes: &Routes, rows: usize, steepness: f64) -> Result<Tensor> {
    let Some(logits) = routes.logits() else { bail!("this router has no logits, so no activation locality loss") };
    let length = length(routes, rows)?;
    let real = real(routes)?;
    let first: Vec<u32> = (0..routes.tokens())
        .filter(|t| t % length + 1 < length && real[*t] != 0.0 && real[t + 1] != 0.0)
        .map(|t| t as u32)
        .collect();
    if first.is_empty() {
        return Tensor::zeros((), logits.dtype(), logits.device());
    }
    let behind: Vec<u32> = first.iter().map(|t| t + 1).collect();
    let part = |index: Vec<u32>| -> Result<Tensor> {
        let n = index.len();
        logits.index_select(&Tensor::from_vec(index, n, logits.device())?, 0)? * steepness
    };
    // A sigmoid whose exponential cannot overflow.
    let target = (((part(behind)? * 0.5)?.tanh()? + 1.0)? * 0.5)?;
    binary_cross_entropy(&part(first)?, &target)
}

/// The chunk sparsification loss of BlockFFN (arXiv 2507.08771): the probability that an expert is used by any
/// token of a chunk, `1 - prod_t (1 - p_t)` with `p` a token's scores divided by their sum, the mean over experts and over
/// the chunks of `chunk` neighbouring tokens within each of `rows` sequences of equal length. Padding uses no expert. What
/// is left of a sequence behind its last whole chunk is a chunk too.
pub fn chunk_sparsity(routes: &Routes, rows: usize, chunk: usize) -> Result<Tensor> {
    let (length, experts) = (length(routes, rows)?, routes.experts());
    if chunk == 0 {
        bail!("chunks of no tokens");
    }
    let (weights, _) = token_weights(routes)?;
    let scores = routes.scores();
    let p = scores.broadcast_div(&(scores.sum_keepdim(1)? + 1e-5)?)?.broadcast_mul(&weights.unsqueeze(1)?)?;
    // A probability of 1 has no logarithm.
    let log = (p.neg()? + (1.0 + 1e-5))?.log()?.reshape((rows, length, experts))?;
    let used = (0..length).step_by(chunk).map(|first| {
        let log = log.narrow(1, first, chunk.min(length - first))?.sum(1)?; // (rows, E)
        log.exp()?.neg()? + 1.0
    });
    Tensor::stack(&used.collect::<Result<Vec<_>>>()?, 0)?.mean_all()
}

fn length(routes: &Routes, rows: usize) -> Result<usize> {
    let tokens = routes.tokens();
    if rows == 0 || tokens == 0 || !tokens.is_multiple_of(rows) {
        bail!("{tokens} tokens do not make {rows} sequences of equal length");
    }
    Ok(tokens / rows)
}
