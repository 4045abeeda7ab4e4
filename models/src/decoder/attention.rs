//! Attention: heads that share keys and values in groups here, latent and mixture attention in files of their own.

use candle_core::{D, DType, Result, Tensor};
use moesaic_kernels::ops::{layer_norm, rms_norm};
use moesaic_kernels::{CausalAttention, Init, Linear, Params, Routes};

use super::cache::Cache;
use super::config::{AttentionConfig, DecoderConfig, GroupedConfig, QkNorm};
use super::latent::Latent;
use super::mixture::Mixture;
use super::pass::Pass;
use super::sites::Site;

/// Attention of one layer.
#[derive(Debug)]
pub(super) enum Attention {
    Grouped(Grouped),
    Latent(Box<Latent>),
    Mixture(Mixture),
}

impl Attention {
    pub(super) fn load(cfg: &DecoderConfig, p: &Params) -> Result<Self> {
        Ok(match cfg.attention {
            AttentionConfig::Grouped(config) => Self::Grouped(Grouped::load(cfg, config, p)?),
            AttentionConfig::Latent(config) => Self::Latent(Box::new(Latent::load(cfg, config, p)?)),
            AttentionConfig::Mixture(config) => Self::Mixture(Mixture::load(cfg, config, p)?),
        })
    }

    /// `x [b * t, h]` to the same, with the routes of a mixture.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        window: Option<usize>,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<(Tensor, Option<Routes>)> {
        match self {
            Self::Grouped(attention) => Ok((attention.forward(x, layer, window, pass, cache)?, None)),
            Self::Latent(attention) => Ok((attention.forward(x, layer, window, pass, cache)?, None)),
            Self::Mixture(attention) => {
                let (y, routes) = attention.forward(x, layer, window, pass, cache)?;
                Ok((y, Some(routes)))
            }
        }
    }

    pub(super) fn sites<'a>(&'a mut self, prefix: &str, sites: &mut Vec<Site<'a>>) {
        match self {
            Self::Grouped(attention) => attention.sites(prefix, sites),
            Self::Latent(attention) => attention.sites(prefix, sites),
            Self::Mixture(attention) => attention.sites(prefix, sites),
        }
    }
}

/// Norms of queries and keys.
#[derive(Debug)]
enum QkNorms {
    Rms {
        q: Tensor,
        k: Tensor,
        whole: bool,
    },
    /// `[d]` and bias, or `[heads, d]` without.
    Layer {
        q: Tensor,
        k: Tensor,
        biases: Option<(Tensor, Tensor)>,
    },
}

impl QkNorms {
    fn load(cfg: &DecoderConfig, config: GroupedConfig, p: &Params) -> Result<Option<Self>> {
        let GroupedConfig { heads, kv_heads, head_dim: d, .. } = config;
        let (q, k) = cfg.names.qk_norms;
        let vector = |name: &str, part: &str, n: usize, init| -> Result<Tensor> {
            p.tensor(&format!("{name}.{part}"), [n], init)?.to_dtype(DType::F32)
        };
        let ones = |name, n| vector(name, "weight", n, Init::Ones);
        let each = |name: &str, heads: usize| -> Result<Tensor> {
            let parts: Vec<_> = (0..heads).map(|i| (format!("{name}.norms.{i}.weight"), vec![d])).collect();
            p.stack(&[heads, d], &parts, Init::Ones)?.to_dtype(DType::F32)
        };
        Ok(match config.qk_norm {
            QkNorm::None => None,
            QkNorm::RmsPerHead => Some(Self::Rms { q: ones(q, d)?, k: ones(k, d)?, whole: false }),
            QkNorm::RmsWhole => Some(Self::Rms { q: ones(q, heads * d)?, k: ones(k, kv_heads * d)?, whole: true }),
            QkNorm::LayerShared => {
                let biases = (vector(q, "bias", d, Init::Zeros)?, vector(k, "bias", d, Init::Zeros)?);
                Some(Self::Layer { q: ones(q, d)?, k: ones(k, d)?, biases: Some(biases) })
            }
            QkNorm::LayerEachHead => Some(Self::Layer { q: each(q, heads)?, k: each(k, kv_heads)?, biases: None }),
        })
    }

    /// `q [b * t, heads * d]` and `k [b * t, kv_heads * d]` to the same.
    fn forward(&self, q: &Tensor, k: &Tensor, eps: f64, d: usize) -> Result<(Tensor, Tensor)> {
        let by_head = |x: &Tensor, norm: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Tensor> {
            let (tokens, width) = x.dims2()?;
            norm(&x.reshape((tokens, width / d, d))?)?.reshape((tokens, width)) // by (tokens, heads, d)
        };
        match self {
            Self::Rms { q: wq, k: wk, whole: true } => Ok((rms_norm(q, wq, eps)?, rms_norm(k, wk, eps)?)),
            Self::Rms { q: wq, k: wk, whole: false } => {
                Ok((by_head(q, &|x| rms_norm(x, wq, eps))?, by_head(k, &|x| rms_norm(x, wk, eps))?))
            }
            Self::Layer { q: wq, k: wk, biases: Some((bq, bk)) } => Ok((
                by_head(q, &|x| layer_norm(x, wq, Some(bq), eps))?,
                by_head(k, &|x| layer_norm(x, wk, Some(bk), eps))?,
            )),
            Self::Layer { q: wq, k: wk, biases: None } => {
                let ones = Tensor::ones(d, DType::F32, q.device())?;
                let norm = |x: &Tensor, w: &Tensor| {
                    let normed = layer_norm(x, &ones, None, eps)?.to_dtype(DType::F32)?;
                    normed.broadcast_mul(&w.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
                };
                Ok((by_head(q, &|x| norm(x, wq))?, by_head(k, &|x| norm(x, wk))?))
            }
        }
    }
}

/// Grouped-query attention; as many key-value heads as query heads is the plain one, one alone the multi-query one.
#[derive(Debug)]
pub(super) struct Grouped {
    config: GroupedConfig,
    /// `q_proj`, `k_proj` and `v_proj` side by side.
    qkv_proj: Linear,
    o_proj: Linear,
    norms: Option<QkNorms>,
    eps: f64,
    output: &'static str,
    qkv: &'static [&'static str],
}

impl Grouped {
    fn load(cfg: &DecoderConfig, config: GroupedConfig, p: &Params) -> Result<Self> {
        let (h, init, p) = (cfg.hidden_size, Init::Normal(cfg.initializer_range), p.pp(cfg.names.attention));
        let GroupedConfig { heads, head_dim: d, .. } = config;
        Ok(Self {
            qkv_proj: Linear::load_joint(&p, &Self::parts(cfg.names.qkv, config), h, config.qkv_bias, init)?,
            o_proj: Linear::load(&p, cfg.names.output, (h, heads * d), config.output_bias, init)?,
            norms: QkNorms::load(cfg, config, &p)?,
            eps: cfg.norm.eps,
            output: cfg.names.output,
            qkv: cfg.names.qkv,
            config,
        })
    }

    /// The published tensors of queries, keys and values: three, or one with all of them.
    fn parts(names: &'static [&'static str], config: GroupedConfig) -> Vec<(&'static str, usize)> {
        let GroupedConfig { heads, kv_heads, head_dim: d, .. } = config;
        match names {
            [one] => vec![(one, (heads + 2 * kv_heads) * d)],
            several => several.iter().copied().zip([heads * d, kv_heads * d, kv_heads * d]).collect(),
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        window: Option<usize>,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let GroupedConfig { heads, kv_heads: kv, head_dim: d, scale, .. } = self.config;
        let mut qkv = self.qkv_proj.forward(x)?; // (b * t, (heads + 2 kv) * d)
        if let Some(norms) = &self.norms {
            let part = |first: usize, n: usize| qkv.narrow(D::Minus1, first * d, n * d)?.contiguous();
            let (q, k) = norms.forward(&part(0, heads)?, &part(heads, kv)?, self.eps, d)?;
            qkv = Tensor::cat(&[q, k, part(heads + kv, kv)?], D::Minus1)?;
        }
        if let Some(clip) = self.config.clip {
            qkv = qkv.clamp(-clip, clip)?;
        }
        if let Some(rotary) = pass.rotary {
            qkv = rotary.apply_joint(&qkv, heads + 2 * kv, heads + kv)?;
        }
        let attention = pass.attention(scale, window);
        let y = match cache {
            None => attention.forward_joint(&qkv, pass.b, heads, kv)?,
            Some(cache) => {
                let first = cache.is_empty();
                let parts = qkv.reshape((pass.b, pass.t, heads + 2 * kv, d))?; // (b, t, heads + 2 kv, d)
                let part = |first: usize, n: usize| parts.narrow(2, first, n)?.contiguous();
                let cached = cache.append(layer, &[part(heads, kv)?, part(heads + kv, kv)?], window)?;
                match (first, cached.parts) {
                    (false, [k, v]) => {
                        let attention = CausalAttention { start: cached.start, ..attention };
                        let y = attention.forward_cached(&part(0, heads)?, k, v, cached.keys)?;
                        y.reshape((pass.b * pass.t, heads * d))? // (b * t, heads * d)
                    }
                    // The keys are those of this pass, and stand in the projection.
                    _ => attention.forward_joint(&qkv, pass.b, heads, kv)?,
                }
            }
        };
        self.o_proj.forward(&y)
    }

    fn sites<'a>(&'a mut self, prefix: &str, sites: &mut Vec<Site<'a>>) {
        let parts = Self::parts(self.qkv, self.config).into_iter().map(|(name, n)| (format!("{prefix}.{name}"), n));
        sites.push(Site::linear(parts.collect(), &mut self.qkv_proj));
        let parts = vec![(format!("{prefix}.{}", self.output), self.o_proj.output_width())];
        sites.push(Site::linear(parts, &mut self.o_proj));
    }
}
