//! One transformer layer: of wav2vec 2.0, HuBERT, WavLM and AV-HuBERT.

use candle_core::{Result, Tensor};
use moesaic_kernels::{Activation, ExpertBank, Init, Linear, Params};

use crate::speech::blocks::{Bias, Norm, attend, dense, mlp};
use crate::speech::wavlm::Gate;

/// What a family calls the parts of a layer.
pub(crate) struct LayerNames {
    pub attention: &'static str,
    pub attention_norm: &'static str,
    pub ffn: [&'static str; 2],
}

/// Sizes of a layer.
#[derive(Clone, Copy)]
pub(crate) struct LayerConfig {
    pub hidden: usize,
    pub inner: usize,
    pub heads: usize,
    pub eps: f64,
    /// Norms come before their parts.
    pub before: bool,
    pub activation: Activation,
    pub init: Init,
}

/// One transformer layer, with its norms before (`do_stable_layer_norm`, `layer_norm_first`) or after its parts.
#[derive(Debug)]
pub(crate) struct Layer {
    pub q: Linear,
    k: Linear,
    pub v: Linear,
    out: Linear,
    /// Of relative positions: WavLM.
    gate: Option<Gate>,
    attention_norm: Norm,
    ffn: ExpertBank,
    ffn_norm: Norm,
    heads: usize,
    before: bool,
}

impl Layer {
    pub fn load(names: &LayerNames, of: LayerConfig, gate: Option<Gate>, p: &Params) -> Result<Self> {
        let LayerConfig { hidden: h, inner, heads, eps, before, activation, init } = of;
        let map = |name: &str| {
            Linear::load(p, &format!("{}.{name}", names.attention), (h, h), true, init).map(Linear::narrow)
        };
        Ok(Self {
            q: map("q_proj")?,
            k: map("k_proj")?,
            v: map("v_proj")?,
            out: map("out_proj")?,
            gate,
            attention_norm: Norm::load(p, names.attention_norm, h, eps)?,
            ffn: mlp(p, names.ffn, (h, inner), activation, init)?,
            ffn_norm: Norm::load(p, "final_layer_norm", h, eps)?,
            heads,
            before,
        })
    }

    fn attention(&self, x: &Tensor, lengths: Option<&[usize]>, position: Option<&Tensor>) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let gate = self.gate.as_ref().map(|gate| gate.forward(x)).transpose()?;
        let bias = gate.as_ref().zip(position).map(|(gate, position)| Bias { gate, position });
        self.out.forward(&attend([&q, &k, &v], self.heads, lengths, bias.as_ref())?)
    }

    /// `x [b, t, h]` to the same
    pub fn forward(&self, x: &Tensor, lengths: Option<&[usize]>, position: Option<&Tensor>) -> Result<Tensor> {
        if self.before {
            let x = (x + self.attention(&self.attention_norm.forward(x)?, lengths, position)?)?;
            let n = self.ffn_norm.forward(&x)?;
            return x + dense(&self.ffn, &n)?;
        }
        let x = self.attention_norm.forward(&(x + self.attention(x, lengths, position)?)?)?;
        self.ffn_norm.forward(&(&x + dense(&self.ffn, &x)?)?)
    }
}
