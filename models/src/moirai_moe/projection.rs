//! Projections with weights for each patch size (`module/ts_embed.py` of the reference): a token goes through those of its own
//! size, which is a mixture of experts whose routes are known beforehand.

use candle_core::{Device, Result, Tensor};
use moesaic_kernels::{ExpertBank, Init, Params, Routes};

use super::config::Component;

/// One route for each token: to the projection of its patch size.
pub(super) fn routes(sizes: &[u32], count: usize, device: &Device) -> Result<Routes> {
    let choices: Vec<Vec<u32>> = sizes.iter().map(|&size| vec![size]).collect();
    let ones = Tensor::ones(sizes.len(), candle_core::DType::F32, device)?;
    Routes::new(count, &choices, &ones, Tensor::zeros((sizes.len(), count), candle_core::DType::F32, device)?)
}

/// A weight for each patch size, and what of it counts.
#[derive(Debug)]
struct Weight {
    /// `[sizes, out, in]`
    weight: Tensor,
    /// 1 where it counts, in a shape that broadcasts to the weight; absent where all of it does. Files hold zeros elsewhere, or
    /// what training from another start has left there.
    mask: Option<Tensor>,
    /// `[sizes, out]`
    bias: Tensor,
}

impl Weight {
    fn masked(&self) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => self.weight.broadcast_mul(mask),
            None => Ok(self.weight.clone()),
        }
    }
}

/// `W x + b` with the weights of all projections of one input, which are variables, or with tiles made of them at load.
#[derive(Debug)]
enum Maps {
    Training(Vec<Weight>),
    Packed(ExpertBank),
}

impl Maps {
    fn new(parts: Vec<Weight>, p: &Params) -> Result<Self> {
        if !p.packs() {
            return Ok(Self::Training(parts));
        }
        Ok(Self::Packed(bank(&parts)?.pack()?))
    }

    fn forward(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        match self {
            Self::Packed(bank) => bank.forward(x, routes),
            Self::Training(parts) => bank(parts)?.forward(x, routes),
        }
    }
}

/// The projections side by side.
fn bank(parts: &[Weight]) -> Result<ExpertBank> {
    let weights = parts.iter().map(Weight::masked).collect::<Result<Vec<_>>>()?;
    let biases: Vec<&Tensor> = parts.iter().map(|part| &part.bias).collect();
    ExpertBank::linear(Tensor::cat(&weights, 1)?)?.with_biases(Some(Tensor::cat(&biases, 1)?), None)
}

/// 1 for the first `sizes[i] * times` of `width` places, `[sizes, width]`.
fn ones_up_to(sizes: &[usize], times: usize, width: usize, p: &Params) -> Result<Tensor> {
    let value = |size: usize, at: usize| if at < size * times { 1f32 } else { 0.0 };
    let mask: Vec<f32> = sizes.iter().flat_map(|&size| (0..width).map(move |at| value(size, at))).collect();
    Tensor::from_vec(mask, (sizes.len(), width), p.device())?.to_dtype(p.dtype())
}

/// A projection of values or features to features.
#[derive(Debug)]
pub(super) struct Inputs(Maps);

impl Inputs {
    /// `weight [sizes, out, inputs]` and `bias [sizes, out]`; with `sizes`, a projection reads as many inputs as its size says.
    pub fn new(p: &Params, out: usize, inputs: usize, sizes: Option<&[usize]>, count: usize) -> Result<Self> {
        let bound = (inputs as f64).sqrt().recip();
        let mask = match sizes {
            Some(sizes) if count > 1 => Some(ones_up_to(sizes, 1, inputs, p)?.unsqueeze(1)?), // (sizes, 1, inputs)
            _ => None,
        };
        let weight = p.tensor("weight", [count, out, inputs], Init::Uniform(bound))?;
        let bias = p.tensor("bias", [count, out], Init::Zeros)?;
        Ok(Self(Maps::new(vec![Weight { weight, mask, bias }], p)?))
    }

    /// `x [n, inputs]` to `[n, out]`
    pub fn forward(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        self.0.forward(x, routes)
    }
}

/// The projection of features to the parameters of the distribution.
#[derive(Debug)]
pub(super) struct Outputs(Maps);

impl Outputs {
    /// `weights_logits`, then the parameters of the components, each `weight [sizes, m P, D]` and `bias [sizes, m P]` with `m`
    /// the number of components or 1. A projection of patch size `p` gives `m p` values, the rest are its biases alone: with
    /// several sizes the logits of a smaller one so fill the first places of all, which are then read as `(m, P)`, as in the
    /// reference.
    pub fn new(p: &Params, d: usize, sizes: &[usize], components: &[Component]) -> Result<Self> {
        let (count, width) = (sizes.len(), sizes.last().copied().unwrap_or(1));
        let bound = (d as f64).sqrt().recip();
        let part = |name: &str, times: usize| {
            let (p, out) = (p.pp(name), times * width);
            let mask = match count {
                1 => None,
                _ => Some(ones_up_to(sizes, times, out, &p)?.unsqueeze(2)?), // (sizes, m P, 1)
            };
            let weight = p.tensor("weight", [count, out, d], Init::Uniform(bound))?;
            Ok(Weight { weight, mask, bias: p.tensor("bias", [count, out], Init::Zeros)? })
        };
        let mut parts: Vec<Result<Weight>> = vec![part("weights_logits", components.len())];
        for (i, component) in components.iter().enumerate() {
            parts.extend(component.parameters().iter().map(|name| part(&format!("components.{i}.{name}"), 1)));
        }
        Ok(Self(Maps::new(parts.into_iter().collect::<Result<_>>()?, p)?))
    }

    /// `x [n, D]` to `[n, j P]`, parameter after parameter.
    pub fn forward(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        self.0.forward(x, routes)
    }
}
