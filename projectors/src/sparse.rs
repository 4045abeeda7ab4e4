//! CuMo's connector (arXiv 2405.05949, section 3.2): two-layer networks behind a router.
//!
//! `p = softmax(G x)`; `y = sum over the k best of p_e / (sum of the k best) W2_e gelu(W1_e x)`. The paper's eq. 3 writes a
//! second softmax, the released code divides.

use candle_core::{DType, Result, Tensor};
use moesaic_kernels::losses::{first_choice_balance, router_z};
use moesaic_kernels::routers::SoftmaxTopK;
use moesaic_kernels::{Activation, ExpertBank, Init, Modality, MoeLayer, Params, Probe, RouteInput, Routes};

use crate::{Projected, Projector, ProjectorInput, checked, with_embeds};

/// Sizes of the connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseMlpConfig {
    /// Width of the features.
    pub inputs: usize,
    /// Width of the backbone.
    pub outputs: usize,
    /// `num_experts`
    pub experts: usize,
    /// `num_selected`
    pub k: usize,
}

/// A sparse connector for any modality; each is routed by itself.
#[derive(Debug)]
pub struct SparseMlp {
    config: SparseMlpConfig,
    moe: MoeLayer,
}

impl SparseMlp {
    /// `gate.weight [E, inputs]` and `experts.{e}.{0,2}` of `p`.
    pub fn load(config: SparseMlpConfig, p: &Params) -> Result<Self> {
        let SparseMlpConfig { inputs, outputs, experts, k } = config;
        let init = Init::Normal(0.02);
        let stack = |what: &str, shape: &[usize], init| {
            let parts: Vec<_> = (0..experts).map(|e| (format!("experts.{e}.{what}"), shape.to_vec())).collect();
            p.stack(&[&[experts], shape].concat(), &parts, init)
        };
        let up = stack("0.weight", &[outputs, inputs], Init::Normal((inputs.max(1) as f64).powf(-0.5)))?;
        let down = stack("2.weight", &[outputs, outputs], Init::Normal((outputs.max(1) as f64).powf(-0.5)))?;
        let biases = (stack("0.bias", &[outputs], Init::Zeros)?, stack("2.bias", &[outputs], Init::Zeros)?);
        let bank = ExpertBank::mlp(up, down, Activation::Gelu)?.with_biases(Some(biases.0), Some(biases.1))?;
        let bank = if p.packs() { bank.pack()? } else { bank };
        let weight = p.tensor("gate.weight", [experts, inputs], init)?.to_dtype(DType::F32)?;
        let router = Box::new(SoftmaxTopK { weight, k, renormalise: true, scale: 1.0, groups: None });
        Ok(Self { config, moe: MoeLayer { router, experts: bank, shared: None } })
    }

    /// `(balance, z)` of routes of `rows` pictures, without coefficients: the balance within each picture, the mean over
    /// pictures, and the mean of squared log-sums of logits.
    pub fn losses(routes: &Routes, rows: usize) -> Result<(Tensor, Tensor)> {
        Ok((first_choice_balance(routes, rows)?, router_z(routes)?))
    }
}

impl Projector for SparseMlp {
    fn input_width(&self, _: Modality) -> Option<usize> {
        Some(self.config.inputs)
    }

    fn output_width(&self) -> usize {
        self.config.outputs
    }

    fn project(&self, input: &ProjectorInput<'_>, probe: Option<&Probe>) -> Result<Projected> {
        let mut all = Projected { tokens: Vec::new(), routes: Vec::new() };
        for tokens in input.tokens {
            let (b, t, h) = checked(self, tokens)?;
            let x = tokens.embeds.reshape((b * t, h))?; // (b * t, h)
            let mask = tokens.mask.as_ref().map(Tensor::flatten_all).transpose()?;
            let (y, routes) = self.moe.forward(&RouteInput::new(&x).with_mask(mask.as_ref()), "projector", probe)?;
            all.tokens.push(with_embeds(tokens, y.reshape((b, t, self.config.outputs))?));
            all.routes.push(routes);
        }
        Ok(all)
    }
}
