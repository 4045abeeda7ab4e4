//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! Keys and values of all heads are linear maps of one latent of low rank, and of a rotary part that the heads share.
//! The cache holds the latent and that part, `kv_rank + rope_dim` numbers a token (576 in the published models, where
//! expanded keys and values would be 5120 in V2-Lite and 40,960 in V3): a decoding step is bound by reading the cache. A
//! few queries then attend to the latents themselves, with the maps to keys and values absorbed into queries and outputs
//! (the paper's appendix C); many queries expand the latents, which costs less arithmetic.

use candle_core::{D, DType, Result, Tensor};
use moesaic_kernels::ops::rms_norm;
use moesaic_kernels::{CausalAttention, ExpertBank, Init, Linear, Params, Routes};

use super::cache::{Cache, Cached};
use super::config::{DecoderConfig, LatentConfig};
use super::ffn::packed;
use super::pass::Pass;
use super::sites::Site;

/// The two inner norms have this eps whatever `rms_norm_eps` says.
const EPS: f64 = 1e-6;

#[derive(Debug)]
enum Query {
    Plain(Linear),
    LowRank { q_a_proj: Linear, q_a_layernorm: Tensor, q_b_proj: Linear },
}

/// The two halves of `kv_b_proj` by head. A head is an expert that every token of its own goes to.
#[derive(Debug)]
struct Absorbed {
    /// `[heads, kv_rank, nope_dim]`: a query as seen from the latent.
    key: ExpertBank,
    /// `[heads, value_dim, kv_rank]`
    value: ExpertBank,
}

#[derive(Debug)]
pub(super) struct Latent {
    config: LatentConfig,
    query: Query,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: Tensor,
    kv_b_proj: Linear,
    /// Absent in training and where an adapter may change `kv_b_proj`.
    absorbed: Option<Absorbed>,
    o_proj: Linear,
}

impl Latent {
    pub(super) fn load(cfg: &DecoderConfig, config: LatentConfig, p: &Params) -> Result<Self> {
        let (h, init, p) = (cfg.hidden_size, Init::Normal(cfg.initializer_range), p.pp(cfg.names.attention));
        let LatentConfig { heads, kv_rank, nope_dim, rope_dim, value_dim, bias, .. } = config;
        let width = heads * (nope_dim + rope_dim);
        let norm = |name: &str, n| p.tensor(&format!("{name}.weight"), [n], Init::Ones)?.to_dtype(DType::F32);
        let query = match config.q_rank {
            None => Query::Plain(Linear::load(&p, "q_proj", (width, h), false, init)?),
            Some(rank) => Query::LowRank {
                q_a_proj: Linear::load(&p, "q_a_proj", (rank, h), bias, init)?,
                q_a_layernorm: norm("q_a_layernorm", rank)?,
                q_b_proj: Linear::load(&p, "q_b_proj", (width, rank), false, init)?,
            },
        };
        let kv_b = p.tensor("kv_b_proj.weight", [heads * (nope_dim + value_dim), kv_rank], init)?;
        let plain = Linear::new(kv_b.clone(), None)?;
        let (kv_b_proj, absorbed) = if p.trains() {
            (plain, None)
        } else {
            let by_head = kv_b.reshape((heads, nope_dim + value_dim, kv_rank))?;
            let key = by_head.narrow(1, 0, nope_dim)?.transpose(1, 2)?.contiguous()?;
            let value = by_head.narrow(1, nope_dim, value_dim)?.contiguous()?;
            let bank = |weight| packed(ExpertBank::linear(weight)?, &p);
            let absorbed = Absorbed { key: bank(key)?, value: bank(value)? };
            (if p.packs() { plain.pack()? } else { plain }, Some(absorbed))
        };
        Ok(Self {
            query,
            kv_a_proj_with_mqa: Linear::load(&p, "kv_a_proj_with_mqa", (kv_rank + rope_dim, h), bias, init)?,
            kv_a_layernorm: norm("kv_a_layernorm", kv_rank)?,
            kv_b_proj,
            absorbed,
            o_proj: Linear::load(&p, cfg.names.output, (h, heads * value_dim), bias, init)?,
            config,
        })
    }

    /// `x [b * t, h]` to the same.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        window: Option<usize>,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let LatentConfig { heads, kv_rank, nope_dim, rope_dim, value_dim, scale, .. } = self.config;
        let (b, t) = (pass.b, pass.t);
        let turned = |x: Tensor| pass.rotary.map_or(Ok(x.clone()), |rotary| rotary.apply(&x));
        let q = match &self.query {
            Query::Plain(q_proj) => q_proj.forward(x)?,
            Query::LowRank { q_a_proj, q_a_layernorm, q_b_proj } => {
                q_b_proj.forward(&rms_norm(&q_a_proj.forward(x)?, q_a_layernorm, EPS)?)?
            }
        };
        let q = q.reshape((b, t, heads, nope_dim + rope_dim))?; // (b, t, heads, nope + rope)
        let q_nope = q.narrow(D::Minus1, 0, nope_dim)?.contiguous()?;
        let q_rope = turned(q.narrow(D::Minus1, nope_dim, rope_dim)?.contiguous()?)?;

        let c = self.kv_a_proj_with_mqa.forward(x)?; // (b * t, kv_rank + rope)
        let latent = rms_norm(&c.narrow(D::Minus1, 0, kv_rank)?.contiguous()?, &self.kv_a_layernorm, EPS)?;
        let k_rope = c.narrow(D::Minus1, kv_rank, rope_dim)?.contiguous()?.reshape((b, t, 1, rope_dim))?;
        let k_rope = turned(k_rope)?; // (b, t, 1, rope), shared by the heads
        let whole = || Tensor::cat(&[&q_nope, &q_rope], D::Minus1); // (b, t, heads, nope + rope)

        let attention = pass.attention(scale, window);
        let first = cache.as_ref().is_none_or(|c| c.is_empty());
        let cached = match cache {
            None => None,
            Some(cache) => {
                let latents = latent.reshape((b, t, kv_rank))?;
                let entry = Tensor::cat(&[&latents, &k_rope.squeeze(2)?], D::Minus1)?; // (b, t, kv_rank + rope)
                Some(cache.append(layer, &[entry], window)?)
            }
        };
        let y = match (cached, &self.absorbed) {
            (Some(Cached { parts: [entries], keys, start }), absorbed) if !first => {
                let attention = CausalAttention { start, ..attention };
                match absorbed {
                    Some(absorbed) if self.absorbing_pays(t, keys) => {
                        let rows = by_head(b * t * heads, heads, x)?;
                        let q = absorbed.key.forward(&q_nope.reshape((b * t * heads, nope_dim))?, &rows)?;
                        let q = Tensor::cat(&[&q.reshape((b, t, heads, kv_rank))?, &q_rope], D::Minus1)?;
                        let y = attention.forward_latent(&q, entries, keys, kv_rank)?; // (b, t, heads, kv_rank)
                        absorbed.value.forward(&y.reshape((b * t * heads, kv_rank))?, &rows)?
                    }
                    _ => {
                        let all = entries.narrow(1, 0, keys)?.contiguous()?.to_dtype(x.dtype())?;
                        let latents = all.narrow(2, 0, kv_rank)?.contiguous()?.reshape((b * keys, kv_rank))?;
                        let (k, v) = self.expand(&latents, &all.narrow(2, kv_rank, rope_dim)?.unsqueeze(2)?)?;
                        attention.forward(&whole()?, &k, &v)?
                    }
                }
            }
            _ => {
                let (k, v) = self.expand(&latent, &k_rope)?;
                attention.forward(&whole()?, &k, &v)?
            }
        };
        self.o_proj.forward(&y.reshape((b * t, heads * value_dim))?)
    }

    /// Keys `[b, s, heads, nope + rope]` and values `[b, s, heads, value]` of latents `[b * s, kv_rank]` and shared rotary
    /// keys `[b, s, 1, rope]`.
    fn expand(&self, latents: &Tensor, k_rope: &Tensor) -> Result<(Tensor, Tensor)> {
        let LatentConfig { heads, nope_dim, rope_dim, value_dim, .. } = self.config;
        let (b, s, ..) = k_rope.dims4()?;
        let kv = self.kv_b_proj.forward(latents)?.reshape((b, s, heads, nope_dim + value_dim))?;
        let k_nope = kv.narrow(D::Minus1, 0, nope_dim)?;
        let k_rope = k_rope.broadcast_as((b, s, heads, rope_dim))?;
        let k = Tensor::cat(&[k_nope, k_rope], D::Minus1)?;
        Ok((k, kv.narrow(D::Minus1, nope_dim, value_dim)?.contiguous()?))
    }

    /// Whether `t` queries attend to the latents with less arithmetic than expanding those before them takes: per head and
    /// cached token, expanding costs `kv_rank (nope + value)`, and each query's attention grows from `nope + value` to
    /// twice `kv_rank`.
    fn absorbing_pays(&self, t: usize, keys: usize) -> bool {
        let LatentConfig { kv_rank, nope_dim, value_dim, .. } = self.config;
        let expanding = (keys - t.min(keys)) as f64 * (kv_rank * (nope_dim + value_dim)) as f64;
        let growth = (2 * kv_rank) as f64 - (nope_dim + value_dim) as f64;
        t as f64 * keys as f64 * growth < expanding
    }

    pub(super) fn sites<'a>(&'a mut self, prefix: &str, sites: &mut Vec<Site<'a>>) {
        // A change of `kv_b_proj` would not reach its halves.
        self.absorbed = None;
        let mut add = |name: &str, linear: &'a mut Linear| {
            sites.push(Site::linear(vec![(format!("{prefix}.{name}"), linear.output_width())], linear));
        };
        match &mut self.query {
            Query::Plain(q_proj) => add("q_proj", q_proj),
            Query::LowRank { q_a_proj, q_b_proj, .. } => {
                add("q_a_proj", q_a_proj);
                add("q_b_proj", q_b_proj);
            }
        }
        add("kv_a_proj_with_mqa", &mut self.kv_a_proj_with_mqa);
        add("kv_b_proj", &mut self.kv_b_proj);
        add("o_proj", &mut self.o_proj);
    }
}

/// Routes of rows that alternate between heads, each to its own.
fn by_head(rows: usize, heads: usize, like: &Tensor) -> Result<Routes> {
    let choices: Vec<Vec<u32>> = (0..rows).map(|r| vec![(r % heads) as u32]).collect();
    let ones = Tensor::ones(rows, DType::F32, like.device())?;
    Routes::new(heads, &choices, &ones, Tensor::zeros((rows, heads), DType::F32, like.device())?)
}
