//! How the neurons of a dense network are dealt out to experts, and by what their outputs are multiplied.

use moesaic_kernels::rng::Rng;

use super::{Options, Start};

/// More experts in a layer are a mistake, and would not load.
pub(super) const MOST_EXPERTS: usize = 1 << 14;

/// The experts of one layer, in neurons of the dense network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Deal {
    /// Routed experts, N.
    pub experts: usize,
    /// Neurons of an expert.
    pub width: usize,
    /// Experts of a virtual group: those that share their row of the router. 1 for [`Start::Split`].
    pub group: usize,
    /// Neurons of the shared expert.
    pub shared: usize,
    /// Neurons of the dense network, I.
    dense: usize,
    /// Multiplies what a routed neuron gives.
    scale: f64,
    /// Copies of neurons that the shared expert has too count so much.
    twice: f64,
    split: bool,
    shuffle: bool,
    seed: u64,
}

impl Deal {
    /// Of valid options, for a network of width `dense`.
    pub fn new(options: &Options, dense: usize) -> Self {
        let (n, k, g, s) = (options.experts, options.top_k, options.granularity, options.shared);
        let split = options.start == Start::Split;
        // A split is one group of all experts, of which not all are chosen.
        let (parts, width) = if split { (n, dense / (n + s)) } else { (g, dense / g) };
        let scale = match options.renormalise {
            true => parts as f64,
            false => (n * parts) as f64 / k as f64,
        };
        Self {
            experts: n,
            width,
            group: if split { 1 } else { g },
            shared: s * width,
            dense,
            scale,
            twice: if split { 1.0 } else { 0.5 },
            split,
            shuffle: options.shuffle || split,
            seed: options.seed,
        }
    }

    /// The neurons of routed expert `e` of a layer, each with the factor of its output.
    pub fn routed(&self, layer: usize, e: usize) -> Vec<(usize, f64)> {
        // Split: behind the shared part, in one order. Copies: part `e % G` of copy `e / G`.
        let (copy, part) = if self.split { (0, e) } else { (e / self.group, e % self.group) };
        let first = if self.split { self.shared } else { 0 } + part * self.width;
        let order = self.order(layer, copy);
        let neurons = order.get(first..first + self.width).unwrap_or_default();
        let factor = |n: usize| if !self.split && n < self.shared { self.scale * self.twice } else { self.scale };
        neurons.iter().map(|&n| (n, factor(n))).collect()
    }

    /// The neurons of the shared expert. Its gate starts at a sigmoid of 0, one half, which the factor makes up for.
    pub fn shared(&self, layer: usize) -> Vec<(usize, f64)> {
        let order = if self.split { self.order(layer, 0) } else { (0..self.dense).collect() };
        order.iter().take(self.shared).map(|&n| (n, 2.0 * self.twice)).collect()
    }

    /// The order in which a copy is cut.
    fn order(&self, layer: usize, copy: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dense).collect();
        if self.shuffle {
            let mut rng = Rng::keyed(&[self.seed, layer as u64, copy as u64, 0x6f72_6465]);
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
        }
        order
    }
}

/// Places of an expert's neurons that start anew, in ascending order.
pub(super) fn anew(seed: u64, layer: usize, e: usize, width: usize, share: f64) -> Vec<usize> {
    let count = (width as f64 * share).round() as usize;
    let mut rng = Rng::keyed(&[seed, layer as u64, e as u64, 0x616e_6577]);
    let mut places: Vec<usize> = (0..width).collect();
    for i in 0..count.min(width) {
        let j = i + rng.below(width - i);
        places.swap(i, j);
    }
    places.truncate(count);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut neurons: Vec<usize>) -> Vec<usize> {
        neurons.sort_unstable();
        neurons
    }

    #[test]
    fn every_copy_holds_every_neuron_once_and_counts_as_one_network() {
        for shuffle in [false, true] {
            let options = Options { experts: 12, top_k: 8, granularity: 4, shared: 3, shuffle, ..Options::default() };
            let deal = Deal::new(&options, 20);
            let shared = deal.shared(1);
            for copy in 0..3 {
                let routed: Vec<_> = (0..4).flat_map(|part| deal.routed(1, 4 * copy + part)).collect();
                assert_eq!(sorted(routed.iter().map(|r| r.0).collect()), (0..20).collect::<Vec<_>>());
                // Two copies of four experts are chosen, 1 / 8 each.
                for (neuron, factor) in routed {
                    let of_shared = shared.iter().find(|s| s.0 == neuron).map_or(0.0, |s| 0.5 * s.1);
                    assert_eq!(2.0 * factor / 8.0 + of_shared, 1.0, "{neuron}");
                }
            }
            assert_eq!(deal.routed(1, 0) == deal.routed(1, 4), !shuffle);
            assert_eq!(deal.routed(1, 0) == deal.routed(2, 0), !shuffle);
        }
    }

    #[test]
    fn a_split_deals_out_every_neuron_once() {
        let options = Options { experts: 4, top_k: 4, shared: 1, start: Start::Split, ..Options::default() };
        let deal = Deal::new(&options, 20);
        let routed: Vec<_> = (0..4).flat_map(|e| deal.routed(0, e)).collect();
        assert!(routed.iter().all(|r| r.1 / 4.0 == 1.0) && deal.shared(0).iter().all(|s| s.1 * 0.5 == 1.0));
        let all = routed.iter().chain(&deal.shared(0)).map(|r| r.0).collect::<Vec<_>>();
        assert_ne!(all, (0..20).collect::<Vec<_>>());
        assert_eq!(sorted(all), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn plain_softmax_weights_are_made_up_for() {
        let options = Options { experts: 8, top_k: 2, granularity: 2, renormalise: false, ..Options::default() };
        // One copy is chosen, its two parts with 1 / 8 each.
        assert!(Deal::new(&options, 6).routed(0, 3).iter().all(|r| r.1 / 8.0 == 1.0));
    }

    #[test]
    fn the_share_that_starts_anew() {
        assert!(anew(1, 0, 0, 10, 0.0).is_empty());
        assert_eq!(anew(1, 0, 0, 10, 1.0), (0..10).collect::<Vec<_>>());
        let half = anew(1, 0, 0, 10, 0.5);
        assert!(half.len() == 5 && half.is_sorted() && half != anew(1, 0, 1, 10, 0.5));
    }
}
