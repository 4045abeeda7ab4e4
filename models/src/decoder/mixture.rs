//! Mixture of attention heads (JetMoE, arXiv 2404.07413, section 2.2; Zhang et al., arXiv 2210.05144).
//!
//! A router sends each token to k attention experts. An expert is a query projection and an output projection; keys and
//! values are shared by all. Each expert gives one query head for every key-value head, so a token has `k * kv_heads` of
//! them, and the outputs are weighted and summed as in any sparse layer.

use candle_core::{DType, Error, Result, Tensor};
use moesaic_kernels::routers::{Router, TopKSoftmax};
use moesaic_kernels::{CausalAttention, ExpertBank, Init, Linear, Params, RouteInput, Routes};

use super::cache::Cache;
use super::config::{DecoderConfig, MixtureConfig};
use super::ffn::packed;
use super::pass::Pass;
use super::sites::Site;

#[derive(Debug)]
pub(super) struct Mixture {
    config: MixtureConfig,
    router: TopKSoftmax,
    /// `[E, kv_heads * d, h]`
    input_linear: ExpertBank,
    /// `[E, h, kv_heads * d]`
    output_linear: ExpertBank,
    /// `[h]`, added once.
    bias: Tensor,
    /// Keys, then values.
    kv_proj: Linear,
}

impl Mixture {
    pub(super) fn load(cfg: &DecoderConfig, config: MixtureConfig, p: &Params) -> Result<Self> {
        let (h, init, p) = (cfg.hidden_size, Init::Normal(cfg.initializer_range), p.pp(cfg.names.attention));
        let (e, width) = (config.experts, config.kv_heads * config.head_dim);
        let experts = p.pp("experts");
        let bank = |name: &str, shape: [usize; 3]| {
            let parts = [(format!("{name}.weight"), shape.to_vec())];
            packed(ExpertBank::linear(experts.storage(&shape, &parts, init, false)?)?, &p)
        };
        Ok(Self {
            router: TopKSoftmax {
                weight: experts.tensor("router.layer.weight", [e, h], init)?.to_dtype(DType::F32)?,
                k: config.k,
            },
            input_linear: bank("input_linear", [e, width, h])?,
            output_linear: bank("output_linear", [e, h, width])?,
            bias: experts.tensor("bias", [h], Init::Zeros)?,
            kv_proj: Linear::load(&p, "kv_proj", (2 * width, h), false, init)?,
            config,
        })
    }

    /// `x [b * t, h]` to the same, and the routes to the attention experts.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        window: Option<usize>,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<(Tensor, Routes)> {
        let MixtureConfig { experts, k, kv_heads: kv, head_dim: d, scale } = self.config;
        let (b, t) = (pass.b, pass.t);
        let (tokens, h) = x.dims2()?;
        // Padding is routed too, so that every token has k experts; nothing looks at what becomes of it.
        let routes = self.router.route(&RouteInput::new(x));
        let routes = routes.map_err(|e| Error::msg(format!("attention of layer {layer}: {e}")))?;
        let (chosen, _) = routes.top_k()?;
        // Each (token, slot) is a row with one expert.
        let choices: Vec<Vec<u32>> = chosen.flatten_all()?.to_vec1::<u32>()?.into_iter().map(|e| vec![e]).collect();
        let ones = Tensor::ones(tokens * k, DType::F32, x.device())?;
        let rows =
            Routes::new(experts, &choices, &ones, Tensor::zeros((tokens * k, experts), DType::F32, x.device())?)?;

        let repeated = x.unsqueeze(1)?.broadcast_as((tokens, k, h))?.reshape((tokens * k, h))?; // (b t k, h)
        let q = self.input_linear.forward(&repeated, &rows)?.reshape((tokens, k, kv, d))?;
        // Heads that share keys and values become neighbours.
        let q = q.transpose(1, 2)?.reshape((b, t, kv * k, d))?; // (b, t, kv k, d)
        let kv_both = self.kv_proj.forward(x)?.reshape((b, t, 2 * kv, d))?; // (b, t, 2 kv, d)
        let turned = |x: Tensor| pass.rotary.map_or(Ok(x.clone()), |rotary| rotary.apply(&x));
        let (q, key) = (turned(q)?, turned(kv_both.narrow(2, 0, kv)?.contiguous()?)?);
        let value = kv_both.narrow(2, kv, kv)?.contiguous()?;

        let attention = pass.attention(scale, window);
        let y = match cache {
            None => attention.forward(&q, &key, &value)?,
            Some(cache) => {
                let first = cache.is_empty();
                let cached = cache.append(layer, &[key.clone(), value.clone()], window)?;
                match (first, cached.parts) {
                    (false, [k, v]) => {
                        let attention = CausalAttention { start: cached.start, ..attention };
                        attention.forward_cached(&q, k, v, cached.keys)?
                    }
                    _ => attention.forward(&q, &key, &value)?,
                }
            }
        }; // (b, t, kv k, d)
        let y = y.reshape((tokens, kv, k, d))?.transpose(1, 2)?.reshape((tokens * k, kv * d))?; // (b t k, kv d)
        let y = self.output_linear.forward(&y, &rows)?.reshape((tokens, k, h))?;
        let weights = by_token(&routes, tokens, k)?.to_dtype(y.dtype())?; // (b t, k, 1)
        let y = y.broadcast_mul(&weights)?.sum(1)?.broadcast_add(&self.bias.to_dtype(y.dtype())?)?; // (b t, h)
        Ok((y, routes))
    }

    pub(super) fn sites<'a>(&'a mut self, prefix: &str, sites: &mut Vec<Site<'a>>) {
        let parts = vec![(format!("{prefix}.kv_proj"), self.kv_proj.output_width())];
        sites.push(Site::linear(parts, &mut self.kv_proj));
        let name = |map: &str| format!("{prefix}.experts.{map}");
        let (input, output) = (name("input_linear"), name("output_linear"));
        sites.push(Site::Experts { names: Vec::new(), prefix: input, bank: &mut self.input_linear });
        sites.push(Site::Experts { names: Vec::new(), prefix: output, bank: &mut self.output_linear });
    }
}

/// The weights of routes in the order of tokens and slots, `[tokens, k, 1]`, with gradients to the router.
fn by_token(routes: &Routes, tokens: usize, k: usize) -> Result<Tensor> {
    let (token, slot) = (routes.token()?.to_vec1::<u32>()?, routes.slot()?.to_vec1::<u32>()?);
    let mut at = vec![0u32; tokens * k];
    for (r, (t, s)) in token.iter().zip(&slot).enumerate() {
        if let Some(at) = at.get_mut(*t as usize * k + *s as usize) {
            *at = r as u32;
        }
    }
    let at = Tensor::from_vec(at, tokens * k, routes.weight().device())?;
    routes.weight().index_select(&at, 0)?.reshape((tokens, k, 1))
}
