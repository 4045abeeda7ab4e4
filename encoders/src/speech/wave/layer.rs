//! One transformer layer.

use candle_core::{Result, Tensor};
use moesaic_kernels::{Activation, ExpertBank, Init, Linear, Params};

use super::config::WaveConfig;
use crate::speech::blocks::{Bias, Norm, attend, dense, mlp};
use crate::speech::wavlm::Gate;

/// One transformer layer, with its norms before (`do_stable_layer_norm`) or after its parts.
#[derive(Debug)]
pub(super) struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
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
    pub(super) fn load(cfg: &WaveConfig, activation: Activation, gated: bool, p: &Params) -> Result<Self> {
        let (h, init) = (cfg.hidden_size, Init::Normal(cfg.initializer_range));
        let map = |name: &str| Linear::load(p, &format!("attention.{name}"), (h, h), true, init);
        let names = ["feed_forward.intermediate_dense", "feed_forward.output_dense"];
        Ok(Self {
            q: map("q_proj")?,
            k: map("k_proj")?,
            v: map("v_proj")?,
            out: map("out_proj")?,
            gate: if gated { Some(Gate::load(cfg, &p.pp("attention"))?) } else { None },
            attention_norm: Norm::load(p, "layer_norm", h, cfg.layer_norm_eps)?,
            ffn: mlp(p, names, (h, cfg.intermediate_size), activation, init)?,
            ffn_norm: Norm::load(p, "final_layer_norm", h, cfg.layer_norm_eps)?,
            heads: cfg.num_attention_heads,
            before: cfg.do_stable_layer_norm,
        })
    }

    fn attention(&self, x: &Tensor, lengths: Option<&[usize]>, position: Option<&Tensor>) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let gate = self.gate.as_ref().map(|gate| gate.forward(x)).transpose()?;
        let bias = gate.as_ref().zip(position).map(|(gate, position)| Bias { gate, position });
        self.out.forward(&attend([&q, &k, &v], self.heads, lengths, bias.as_ref())?)
    }

    /// `x [b, t, h]` to the same
    pub(super) fn forward(&self, x: &Tensor, lengths: Option<&[usize]>, position: Option<&Tensor>) -> Result<Tensor> {
        if self.before {
            let x = (x + self.attention(&self.attention_norm.forward(x)?, lengths, position)?)?;
            let n = self.ffn_norm.forward(&x)?;
            return x + dense(&self.ffn, &n)?;
        }
        let x = self.attention_norm.forward(&(x + self.attention(x, lengths, position)?)?)?;
        self.ffn_norm.forward(&(&x + dense(&self.ffn, &x)?)?)
    }
}
