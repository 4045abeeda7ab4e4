//! Sparse upcycling: a trained dense model becomes a mixture of experts that starts where the dense one stands.
//!
//! ```text
//! dense FFN [I, H] ─ copied ─▶ E virtual groups ─ each cut ─▶ G experts of width I / G ─▶ N = E G experts, K for each token
//!                            └ cut once (split) ────────────▶ N experts of width I / N
//! ```
//!
//! # Methods
//! * *Sparse Upcycling* (Komatsuzaki et al., arXiv 2212.05055): every expert is a copy of the dense network, the router is
//!   random. With weights that are renormalised over the chosen experts the output is that of the dense network.
//! * *Virtual groups and weight scaling* (He et al., arXiv 2410.07524): finer experts, `granularity` G. Each of the E groups
//!   holds all G parts of one copy, and the experts of a group share their row of the router, so that the best K = m G
//!   experts are m whole groups. A part is then weighted 1 / (m G) where the sum needs 1 / m: outputs are scaled by G, or by
//!   `N G / K` where the weights are a plain softmax over all N experts. The paper spreads the factor over the three maps of
//!   a gated network; here all of it is on the last one, which alone leaves the function exactly as it was.
//! * *Qwen1.5-MoE* (Yang et al., arXiv 2407.10671, section 2.2.2): the copies are cut along another order of their neurons
//!   each (`shuffle`), a share of the neurons starts anew (`reinit`), and a shared expert goes beside the routed ones. It
//!   holds the first `shared` parts; what it and the routed experts both compute counts half in each.
//!   A neuron that starts anew does so in all three maps, with the spread of its map (Drop-Upcycling, arXiv 2502.19261).
//! * *LLaMA-MoE* (Zhu et al., arXiv 2406.16554): one network is cut into N experts at random, without copies
//!   ([`Start::Split`]), and the output of the K chosen, 1 / K each, is scaled by N: as if those left out gave what the others
//!   gave.
//! * *Branch-Train-MiX* (Sukhbaatar et al., arXiv 2403.07816): dense siblings become the groups, everything else is their
//!   mean ([`Plan::mix`]).
//!
//! What is written is a published sparse family whose `config.json` says the same of everything but the feed-forward
//! part: that is checked, and a model that no family matches is refused. Tensors are made one by one; the peak of memory is
//! about one layer.

mod error;
mod experts;
mod numbers;
mod plan;
mod source;
mod target;

pub use error::{Error, Result};
pub use plan::Plan;
pub use target::{SUPPORTED, TARGETS};

use candle_core::DType;

/// How experts come out of the dense network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Copies of it, whole or in parts.
    #[default]
    Copy,
    /// Parts of it, each in one expert only.
    Split,
}

/// What is to be made of a dense model.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Routed experts of a layer, N.
    pub experts: usize,
    /// Experts for each token, K.
    pub top_k: usize,
    /// Parts that each copy of the dense network is cut into, G; divides its width, N and K. 1 for [`Start::Split`].
    pub granularity: usize,
    /// Parts in the shared expert, one as wide as a routed expert; 0 for none.
    pub shared: usize,
    /// Normal noise on the weights of routed experts, in standard deviations of the dense tensor.
    pub noise: f64,
    /// Share of the neurons of each routed expert that start anew.
    pub reinit: f64,
    /// Cut each copy along an order of neurons of its own. [`Start::Split`] always does.
    pub shuffle: bool,
    /// Copies or parts.
    pub start: Start,
    /// Weights of the chosen experts are divided by their sum; else they stay what the softmax over all experts gives.
    pub renormalise: bool,
    /// Standard deviation of the router's initial weights; absent for the dense model's `initializer_range`.
    pub router_std: Option<f64>,
    /// Coefficient of the load balance loss in `config.json`.
    pub aux_loss: f64,
    /// The family to write; absent for the first of [`TARGETS`] that fits.
    pub family: Option<String>,
    /// The layers that become sparse; absent for all.
    pub layers: Option<Vec<usize>>,
    /// Dtype of what is written: f32, bf16 or f16; absent for that of the dense tensor.
    pub dtype: Option<DType>,
    /// Seed of the router, of noise and of orders.
    pub seed: u64,
    /// Most bytes of one weights file.
    pub shard_bytes: u64,
}

impl Default for Options {
    /// Mixtral's eight experts, two for each token, as exact copies.
    fn default() -> Self {
        Self {
            experts: 8,
            top_k: 2,
            granularity: 1,
            shared: 0,
            noise: 0.0,
            reinit: 0.0,
            shuffle: false,
            start: Start::Copy,
            renormalise: true,
            router_std: None,
            aux_loss: 0.01,
            family: None,
            layers: None,
            dtype: None,
            seed: 0,
            shard_bytes: 5_000_000_000,
        }
    }
}

impl Options {
    /// The settings fit each other and a dense network of width `width`.
    fn validate(&self, width: usize, layers: usize) -> Result<()> {
        let (n, k, g, s) = (self.experts, self.top_k, self.granularity, self.shared);
        let refuse = |problem: String| Err(Error::Options(problem));
        if n == 0 || n > numbers::MOST_EXPERTS {
            return refuse(format!("{n} experts: give 1 to {}", numbers::MOST_EXPERTS));
        }
        if k == 0 || k > n {
            return refuse(format!("{k} experts for each token: give 1 to {n}, the number of experts"));
        }
        if g == 0 {
            return refuse("a granularity of 0: give 1 for whole copies, or the number of parts of a copy".into());
        }
        match self.start {
            Start::Split if g != 1 => {
                return refuse(format!(
                    "a granularity of {g} with init split, which cuts the network into as many parts as there are \
                     experts: leave one out"
                ));
            }
            Start::Split if s > width || !width.is_multiple_of(n + s) => {
                let parts = n.saturating_add(s);
                return refuse(format!(
                    "the network's width {width} cannot be cut into {parts} equal parts ({n} experts, {s} shared): \
                     their number must divide it"
                ));
            }
            Start::Copy => {
                if !width.is_multiple_of(g) {
                    return refuse(format!(
                        "a granularity of {g} does not divide the width {width} of the dense network: give one that does"
                    ));
                }
                if !n.is_multiple_of(g) || !k.is_multiple_of(g) {
                    return refuse(format!(
                        "a granularity of {g} does not divide {n} experts and {k} for each token: a token gets whole \
                         copies, each in {g} experts; for less, use init split"
                    ));
                }
                if s > g {
                    return refuse(format!("{s} shared parts of a network that has {g}: give at most {g}"));
                }
            }
            Start::Split => {}
        }
        for (name, value, most) in [
            ("noise", self.noise, 100.0),
            ("the share that starts anew", self.reinit, 1.0),
            ("the router's standard deviation", self.router_std.unwrap_or(0.0), 100.0),
            ("the coefficient of the load balance loss", self.aux_loss, 100.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return refuse(format!("{name} is {value}: give a number from 0 to {most}"));
            }
        }
        if let Some(dtype) = self.dtype
            && !matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
        {
            return refuse(format!("weights cannot be written as {}: choose f32, bf16 or f16", dtype.as_str()));
        }
        if self.shard_bytes == 0 {
            return refuse("files of 0 bytes hold nothing".into());
        }
        match &self.layers {
            Some(chosen) if chosen.is_empty() => refuse("no layer is to become sparse: name at least one".into()),
            Some(chosen) => match chosen.iter().find(|layer| **layer >= layers) {
                Some(layer) => refuse(format!("layer {layer} of {layers}: layers are counted from 0")),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Whether layer `i` becomes sparse.
    fn sparse(&self, i: usize) -> bool {
        self.layers.as_ref().is_none_or(|chosen| chosen.contains(&i))
    }
}
