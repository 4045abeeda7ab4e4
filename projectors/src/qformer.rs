//! A window-level Q-Former (Tang et al., "SALMONN", arXiv 2310.13289, section 3.1; U-SAM, arXiv 2505.13880): learned queries look at
//! each window of the tokens and become tokens themselves.
//!
//! ```text
//! x [b, t, c] ─ windows of w tokens, the tail dropped ─▶ z [b * n, w, c]
//! q = LN(queries);  layers: q = LN(q + Wo attention(q, q, q)); q = LN(q + Wo' attention(q, z, z)); q = LN(q + W2 gelu(W1 q)) ─▶ [b, n * queries, h]
//! ```
//!
//! The layers are those of BLIP-2's Q-Former (Li et al., arXiv 2301.12597): BERT's, with attention to the window in every
//! `cross_attention_freq`-th. Its branch for text is left out.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::ops::layer_norm;
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, Init, Linear, Modality, Params, Probe, Tokens};

use crate::{Projected, Projector, ProjectorInput, checked};

/// Sizes of a window-level Q-Former.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowQFormerConfig {
    /// Width of the tokens that it looks at, `encoder_width`.
    pub inputs: usize,
    /// Width of its queries, `hidden_size`.
    pub hidden: usize,
    /// Width inside a feed-forward part, `intermediate_size`.
    pub inner: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Every so many layers, from the first on, look at the window.
    pub cross_attention_freq: usize,
    /// Queries of a window, `query_length`.
    pub queries: usize,
    /// Tokens of a window, `window_length`.
    pub window: usize,
    /// Added to variances.
    pub eps: f64,
    /// Of the feed-forward parts.
    pub activation: Activation,
}

impl WindowQFormerConfig {
    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn validate(&self) -> Result<()> {
        const MOST: usize = 1 << 20;
        for (name, value) in [
            ("encoder_width", self.inputs),
            ("hidden_size", self.hidden),
            ("intermediate_size", self.inner),
            ("num_attention_heads", self.heads),
            ("num_hidden_layers", self.layers),
            ("cross_attention_freq", self.cross_attention_freq),
            ("query_length", self.queries),
            ("window_length", self.window),
        ] {
            if !(1..=MOST).contains(&value) {
                bail!("{name} of the Q-Former is {value}, expected 1 to {MOST}");
            }
        }
        if !self.hidden.is_multiple_of(self.heads) {
            bail!("the Q-Former's hidden_size {} is not a multiple of its {} heads", self.hidden, self.heads);
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            bail!("the Q-Former's layer_norm_eps is {}, expected a positive number", self.eps);
        }
        Ok(())
    }
}

/// Initial values of BERT's maps.
const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn load(p: &Params, h: usize, eps: f64) -> Result<Self> {
        let p = p.pp("LayerNorm");
        let weight = p.tensor("weight", [h], Init::Ones)?.to_dtype(DType::F32)?;
        Ok(Self { weight, bias: p.tensor("bias", [h], Init::Zeros)?.to_dtype(DType::F32)?, eps })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, Some(&self.bias), self.eps)
    }
}

/// `LN(x + Wo attention(x, z, z))`
#[derive(Debug)]
struct Attention {
    query: Linear,
    /// Keys, then values.
    key_value: Linear,
    out: Linear,
    norm: Norm,
    heads: usize,
}

impl Attention {
    /// `self.{query, key, value}`, `output.dense` and `output.LayerNorm` of `p`.
    fn load(cfg: &WindowQFormerConfig, inputs: usize, p: &Params) -> Result<Self> {
        let (h, own, output) = (cfg.hidden, p.pp("self"), p.pp("output"));
        Ok(Self {
            query: Linear::load(&own, "query", (h, h), true, INIT)?.narrow(),
            key_value: Linear::load_joint(&own, &[("key", h), ("value", h)], inputs, true, INIT)?.narrow(),
            out: Linear::load(&output, "dense", (h, h), true, INIT)?.narrow(),
            norm: Norm::load(&output, h, cfg.eps)?,
            heads: cfg.heads,
        })
    }

    /// `x [n, q, h]` and `z [n, t, c]` to `[n, q, h]`
    fn forward(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let ((n, queries, h), t) = (x.dims3()?, z.dim(1)?);
        let d = h / self.heads;
        let q = self.query.forward(x)?.reshape((n, queries, self.heads, d))?;
        let kv = self.key_value.forward(z)?.reshape((n, t, 2 * self.heads, d))?; // (n, t, 2 heads, d)
        let (k, v) = (kv.narrow(2, 0, self.heads)?, kv.narrow(2, self.heads, self.heads)?);
        let attention = CausalAttention::everywhere(1.0 / (d as f64).sqrt());
        let y = attention.forward(&q, &k, &v)?.reshape((n, queries, h))?;
        self.norm.forward(&(x + self.out.forward(&y)?)?)
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    /// To the window.
    cross: Option<Attention>,
    ffn: ExpertBank,
    norm: Norm,
}

impl Layer {
    fn load(cfg: &WindowQFormerConfig, i: usize, p: &Params) -> Result<Self> {
        let (h, inner) = (cfg.hidden, cfg.inner);
        let one = |name: &str, part: &[usize], init| -> Result<Tensor> {
            p.stack(&[&[1], part].concat(), &[(name.to_string(), part.to_vec())], init)
        };
        let up = one("intermediate_query.dense.weight", &[inner, h], INIT)?;
        let down = one("output_query.dense.weight", &[h, inner], INIT)?;
        let biases = (
            one("intermediate_query.dense.bias", &[inner], Init::Zeros)?,
            one("output_query.dense.bias", &[h], Init::Zeros)?,
        );
        let ffn = ExpertBank::mlp(up, down, cfg.activation)?.with_biases(Some(biases.0), Some(biases.1))?;
        let cross = match i.is_multiple_of(cfg.cross_attention_freq) {
            true => Some(Attention::load(cfg, cfg.inputs, &p.pp("crossattention"))?),
            false => None,
        };
        Ok(Self {
            attention: Attention::load(cfg, h, &p.pp("attention"))?,
            cross,
            ffn: if p.packs() { ffn.pack()?.narrow() } else { ffn },
            norm: Norm::load(&p.pp("output_query"), h, cfg.eps)?,
        })
    }

    /// `x [n, q, h]` and `z [n, t, c]` to `[n, q, h]`
    fn forward(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let mut x = self.attention.forward(x, x)?;
        if let Some(cross) = &self.cross {
            x = cross.forward(&x, z)?;
        }
        let (n, queries, h) = x.dims3()?;
        let y = self.ffn.forward_dense(&x.reshape((n * queries, h))?)?.reshape((n, queries, h))?;
        self.norm.forward(&(x + y)?)
    }
}

/// A window-level Q-Former for sound.
#[derive(Debug)]
pub struct WindowQFormer {
    config: WindowQFormerConfig,
    /// `[1, queries, h]`
    queries: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    dtype: DType,
}

impl WindowQFormer {
    /// `speech_query_tokens` and `speech_former.bert.*` of `p`, as U-SAM has them.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn load(config: WindowQFormerConfig, p: &Params) -> Result<Self> {
        config.validate()?;
        let (bert, h) = (p.pp("speech_former.bert"), config.hidden);
        let dtype = p.activations();
        let layers = bert.pp("encoder.layer");
        Ok(Self {
            queries: p.tensor("speech_query_tokens", [1, config.queries, h], INIT)?.to_dtype(dtype)?,
            norm: Norm::load(&bert.pp("embeddings"), h, config.eps)?,
            layers: (0..config.layers).map(|i| Layer::load(&config, i, &layers.pp(i))).collect::<Result<_>>()?,
            dtype,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &WindowQFormerConfig {
        &self.config
    }
}

impl Projector for WindowQFormer {
    fn input_width(&self, modality: Modality) -> Option<usize> {
        (modality == Modality::Audio).then_some(self.config.inputs)
    }

    fn output_width(&self) -> usize {
        self.config.hidden
    }

    /// Of `t` tokens come `t / window * queries`. A probe gets `windows [b * n, window, c]`, and of the queries, `[b * n, queries, h]`,
    /// `hidden_state_{i}` and `last_hidden_state`.
    fn project(&self, input: &ProjectorInput<'_>, probe: Option<&Probe>) -> Result<Projected> {
        let WindowQFormerConfig { window, queries, hidden: h, .. } = self.config;
        let one = |tokens: &Tokens| {
            let (b, t, c) = checked(self, tokens)?;
            let n = t / window;
            if tokens.mask.is_some() {
                bail!("a window-level Q-Former takes clips of one length: give those of others by themselves");
            }
            if b == 0 || n == 0 {
                bail!("{t} tokens of {b} clips make no window of {window}: fill short clips up with silence");
            }
            let record = |name: &str, x: &Tensor| {
                if let Some(probe) = probe {
                    probe.tensor(name, x);
                }
            };
            let z = tokens.embeds.to_dtype(self.dtype)?.narrow(1, 0, n * window)?.contiguous()?;
            let z = z.reshape((b * n, window, c))?; // (b * n, window, c)
            record("windows", &z);
            // The queries of all windows are the same before they have looked.
            let mut x = self.norm.forward(&self.queries.broadcast_as((b * n, queries, h))?.contiguous()?)?;
            for (i, layer) in self.layers.iter().enumerate() {
                record(&format!("hidden_state_{i}"), &x);
                x = layer.forward(&x, &z)?;
            }
            record(&format!("hidden_state_{}", self.layers.len()), &x);
            record("last_hidden_state", &x);
            Ok(Tokens::new(x.reshape((b, n * queries, h))?, tokens.modality))
        };
        Ok(Projected { tokens: input.tokens.iter().map(one).collect::<Result<_>>()?, routes: Vec::new() })
    }
}
