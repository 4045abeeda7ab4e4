//! How many parameters a decoder has, from its config alone.

use super::config::{AttentionConfig, DecoderConfig, NormKind, QkNorm, RouterConfig};

/// A number of parameters, in all and at work for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Part {
    /// All of them.
    pub total: usize,
    /// Those that take part in one token's forward pass.
    pub active: usize,
}

/// Parameters by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parameters {
    /// The embedding; one row of it is at work for a token. Where it is the output head as well, it counts there.
    pub embedding: Part,
    /// Attention of all layers, with its norms of queries and keys.
    pub attention: Part,
    /// Dense feed-forward parts.
    pub dense: Part,
    /// Routers.
    pub routers: Part,
    /// Routed experts.
    pub experts: Part,
    /// Shared experts and their gates.
    pub shared: Part,
    /// Norms.
    pub norms: Part,
    /// The output head.
    pub head: Part,
}

impl Parameters {
    /// All kinds by name, in the order of the forward pass.
    pub fn kinds(&self) -> [(&'static str, Part); 8] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("dense", self.dense),
            ("routers", self.routers),
            ("experts", self.experts),
            ("shared experts", self.shared),
            ("norms", self.norms),
            ("head", self.head),
        ]
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.kinds().iter().map(|(_, p)| p.total).sum()
    }

    /// Parameters at work for one token.
    pub fn active(&self) -> usize {
        self.kinds().iter().map(|(_, p)| p.active).sum()
    }
}

fn all(n: usize) -> Part {
    Part { total: n, active: n }
}

impl DecoderConfig {
    /// Number of parameters by kind. Sums saturate, for configs that nobody could load.
    pub fn parameters(&self) -> Parameters {
        let (h, v) = (self.hidden_size, self.vocab_size);
        let times = |factors: &[usize]| factors.iter().fold(1usize, |n, &f| n.saturating_mul(f));
        let head = times(&[v, h]).saturating_add(if self.head_bias { v } else { 0 });
        let sparse = self.sparse_layers().count();
        let dense = self.layers.len() - sparse;
        let norms = if self.parallel { self.layers.len() + 1 } else { 2 * self.layers.len() + 1 };
        let norm = if self.norm.kind == NormKind::Layer { 2 * h } else { h };

        let mut parameters = Parameters {
            norms: all(times(&[norms, norm])),
            head: all(head),
            attention: self.attention_parameters(),
            ..Parameters::default()
        };
        if !self.tie_word_embeddings {
            parameters.embedding = Part { total: times(&[v, h]), active: h };
        }
        if let Some(d) = self.dense {
            let maps = if d.gated { 3 } else { 2 };
            let biases = if d.bias { times(&[maps - 1, d.intermediate_size]).saturating_add(h) } else { 0 };
            parameters.dense = all(times(&[dense, times(&[maps, h, d.intermediate_size]).saturating_add(biases)]));
        }
        if let Some(s) = self.sparse {
            let bias = if matches!(s.router, RouterConfig::SigmoidTopK { .. }) { s.experts } else { 0 };
            let experts = self.sparse_layers().fold(0usize, |n, i| n.saturating_add(self.experts(i)));
            let blends = s.shared.is_some_and(|shared| shared.blended);
            let blend = if blends { 2 * h + 2 } else { 0 };
            let e = s.experts.saturating_add(s.router.free());
            let more = match s.router {
                RouterConfig::NormedRelu => times(&[sparse, e]),
                // Gating residuals, and what is constant.
                RouterConfig::Pathways { constant, .. } => {
                    times(&[sparse.saturating_sub(1), e, e]).saturating_add(times(&[sparse, constant, 3, h]))
                }
                _ => 0,
            };
            parameters.routers = all(times(&[experts, h])
                .saturating_add(times(&[sparse, s.router.free(), h]))
                .saturating_add(more)
                .saturating_add(times(&[sparse, bias]))
                .saturating_add(times(&[sparse, blend])));
            let network = |width: usize, bias: bool| {
                let maps = if s.gated { 3 } else { 2 };
                let biases = if bias { times(&[maps - 1, width]).saturating_add(h) } else { 0 };
                times(&[maps, h, width]).saturating_add(biases)
            };
            let expert = network(s.intermediate_size, s.bias);
            let once = if s.output_bias { h } else { 0 };
            parameters.experts = Part {
                total: times(&[experts, expert]).saturating_add(times(&[sparse, once])),
                active: times(&[sparse, times(&[s.k, expert]).saturating_add(once)]),
            };
            if let Some(shared) = s.shared {
                let gate = if shared.gated { h } else { 0 };
                let expert = network(shared.intermediate_size, shared.bias);
                parameters.shared = all(times(&[sparse, expert.saturating_add(gate)]));
            }
        }
        parameters
    }

    fn attention_parameters(&self) -> Part {
        let (h, layers) = (self.hidden_size, self.layers.len());
        let one = match self.attention {
            AttentionConfig::Grouped(a) => {
                let (q, kv, d) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.head_dim);
                let maps = h * (q + 2 * kv) + q * h;
                let biases = if a.qkv_bias { q + 2 * kv } else { 0 } + if a.output_bias { h } else { 0 };
                let norms = match a.qk_norm {
                    QkNorm::None => 0,
                    QkNorm::RmsPerHead => 2 * d,
                    QkNorm::RmsWhole | QkNorm::LayerEachHead => q + kv,
                    QkNorm::LayerShared => 4 * d,
                };
                all(maps + biases + norms)
            }
            AttentionConfig::Latent(a) => {
                let q = a.heads * (a.nope_dim + a.rope_dim);
                let query = a.q_rank.map_or(h * q, |rank| h * rank + rank + rank * q);
                let kv = h * (a.kv_rank + a.rope_dim) + a.kv_rank;
                let expand = a.kv_rank * a.heads * (a.nope_dim + a.value_dim);
                let biases = if a.bias { a.q_rank.unwrap_or(0) + a.kv_rank + a.rope_dim + h } else { 0 };
                all(query + kv + expand + a.heads * a.value_dim * h + biases)
            }
            AttentionConfig::Mixture(a) => {
                let width = a.kv_heads * a.head_dim;
                let shared = 2 * width * h + a.experts * h + h;
                let experts = |n: usize| n.saturating_mul(2 * width * h).saturating_add(shared);
                Part { total: experts(a.experts), active: experts(a.k) }
            }
        };
        Part { total: layers.saturating_mul(one.total), active: layers.saturating_mul(one.active) }
    }
}
