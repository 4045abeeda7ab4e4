//! [`ExpertBank`]: `E` networks of one shape.

use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor, bail};

use super::free::FreeExpert;
use super::fused;
use super::stages::{PackedLinear, combine, dispatch, grouped_linear};
use super::watch::{BankPass, note};
use crate::checkpoint::text::shown;
use crate::cpu::pack::Packed;
#[cfg(feature = "cuda")]
use crate::cuda::{
    blocks::DeviceBlocks,
    stages::{self, Weights},
};
use crate::host::tracked;
use crate::lora::{self, LowRank};
use crate::ops::silu_glu;
use crate::pointwise;
use crate::routes::Routes;

/// The non-linearity inside an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU with the tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU with the error function (`gelu`).
    Gelu,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(1.702 x)`, a cheap stand-in for GELU (`quick_gelu`; Hendrycks and Gimpel, arXiv 1606.08415, section 2): CLIP's.
    QuickGelu,
}

impl Activation {
    /// The activation that a `config.json` calls `hidden_act` or alike.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "silu" | "swish" => Self::Silu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "gelu" => Self::Gelu,
            "relu" => Self::Relu,
            "quick_gelu" => Self::QuickGelu,
            other => {
                let other = shown(other);
                bail!(
                    "activation {other} is not known; known are silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu"
                )
            }
        })
    }

    /// Elementwise, with gradients.
    ///
    /// # Shapes
    /// any shape to the same.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        pointwise::apply(*self, x)
    }
}

/// What one expert computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BankKind {
    /// `down(act(gate x) * up x)`, with gate and up stacked as `[E, 2I, H]`.
    Gated,
    /// `down(act(up x))`
    Mlp,
    /// `up x`
    Linear,
}

/// Weights of one layer of all experts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Storage {
    /// `[E, out, in]`; a variable in training.
    Dense(Tensor),
    /// Tiles made at load for the CPU, of floats or of blocks; forward only.
    Packed(Packed),
    /// As they are stored, in blocks or FP8, on a GPU; forward only.
    #[cfg(feature = "cuda")]
    Blocks(DeviceBlocks),
}

impl From<Tensor> for Storage {
    fn from(weight: Tensor) -> Self {
        Self::Dense(weight)
    }
}

impl Storage {
    /// `(experts, out, in)`
    pub fn dims(&self) -> Result<(usize, usize, usize)> {
        match self {
            Self::Dense(t) => t.dims3(),
            Self::Packed(p) => Ok(p.dims()),
            #[cfg(feature = "cuda")]
            Self::Blocks(b) => b.dims(),
        }
    }

    /// The plain tensor `[E, out, in]`.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(t) => Ok(t.clone()),
            Self::Packed(_) => {
                bail!("packed weights have no plain tensor; load the checkpoint unpacked to train or save it")
            }
            #[cfg(feature = "cuda")]
            Self::Blocks(_) => {
                bail!("weights in blocks have no plain tensor; load the checkpoint on the CPU to train or save it")
            }
        }
    }

    /// The same weights in tiles for the CPU; `gated` if gate and up are stacked in them.
    fn pack(&self, gated: bool) -> Result<Self> {
        match self {
            Self::Dense(t) if gated => Ok(Self::Packed(Packed::gated(t)?)),
            Self::Dense(t) => Ok(Self::Packed(Packed::new(t)?)),
            other => Ok(other.clone()),
        }
    }

    fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    fn is_tracked(&self) -> bool {
        matches!(self, Self::Dense(t) if tracked(t))
    }

    fn grouped(&self, x: &Tensor, bias: Option<&Tensor>, routes: &Routes) -> Result<Tensor> {
        match self {
            Self::Dense(w) => grouped_linear(x, w, bias, routes),
            Self::Packed(w) => {
                let bias = bias.map(|b| b.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()).transpose()?;
                let (bias, offsets) = (bias.map(Arc::from), Arc::from(routes.offsets()?));
                x.contiguous()?.apply_op1_no_bwd(&PackedLinear { weight: w.clone(), bias, offsets })
            }
            #[cfg(feature = "cuda")]
            Self::Blocks(w) => stages::grouped_linear(x, Weights::Blocks(w), bias, &routes.plan),
        }
    }
}

/// A LayerNorm of each expert's output, before weighting (Llama-SMoP, arXiv 2505.14336).
#[derive(Clone, Debug)]
pub struct OutputNorm {
    /// `[E, O]`
    pub weight: Tensor,
    /// `[E, O]`
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// `E` feed-forward networks of one shape. `E = 1` is the dense layer: dense and sparse share one code path.
#[derive(Clone, Debug)]
pub struct ExpertBank {
    pub(super) kind: BankKind,
    pub(super) activation: Activation,
    pub(super) up: Storage,
    pub(super) down: Option<Storage>,
    pub(super) up_bias: Option<Tensor>,
    pub(super) down_bias: Option<Tensor>,
    pub(super) output_norm: Option<OutputNorm>,
    /// Boxed, as most banks have none.
    pub(super) extras: Box<Extras>,
}

/// What some banks have.
#[derive(Clone, Debug, Default)]
pub(super) struct Extras {
    /// Live adapters of the first and of the second layer.
    pub adapters: [Vec<LowRank>; 2],
    /// Experts without a network, numbered behind the others.
    pub free: Vec<FreeExpert>,
}

impl ExpertBank {
    /// Gated experts: `gate_up [E, 2I, H]` (gate first), `down [E, O, I]`; tensors, or [`Storage`] as [`Params::storage`](crate::Params::storage)
    /// gives it.
    pub fn gated(gate_up: impl Into<Storage>, down: impl Into<Storage>, activation: Activation) -> Result<Self> {
        let (gate_up, down) = (gate_up.into(), down.into());
        let (e, wide, h) = gate_up.dims()?;
        let (e2, o, i) = down.dims()?;
        if e != e2 || wide != 2 * i {
            bail!("gated experts: gate_up {:?} and down {:?} do not fit", [e, wide, h], [e2, o, i]);
        }
        if matches!(&gate_up, Storage::Packed(p) if !p.is_gated()) {
            bail!("gated experts: gate and up are packed as one matrix; pack them as gated");
        }
        Ok(Self::new(BankKind::Gated, gate_up, Some(down), activation))
    }

    /// Two-layer experts: `up [E, I, H]`, `down [E, O, I]`.
    pub fn mlp(up: impl Into<Storage>, down: impl Into<Storage>, activation: Activation) -> Result<Self> {
        let (up, down) = (up.into(), down.into());
        let (e, i, h) = up.dims()?;
        let (e2, o, i2) = down.dims()?;
        if e != e2 || i != i2 {
            bail!("two-layer experts: up {:?} and down {:?} do not fit", [e, i, h], [e2, o, i2]);
        }
        Ok(Self::new(BankKind::Mlp, up, Some(down), activation))
    }

    /// One linear map per expert: `weight [E, O, H]`.
    pub fn linear(weight: impl Into<Storage>) -> Result<Self> {
        let weight = weight.into();
        weight.dims()?;
        Ok(Self::new(BankKind::Linear, weight, None, Activation::Relu))
    }

    fn new(kind: BankKind, up: Storage, down: Option<Storage>, activation: Activation) -> Self {
        Self {
            kind,
            activation,
            up,
            down,
            up_bias: None,
            down_bias: None,
            output_norm: None,
            extras: Default::default(),
        }
    }

    /// Adds biases: of the first layer `[E, 2I]` or `[E, I]`, of the second `[E, O]`.
    pub fn with_biases(mut self, up: Option<Tensor>, down: Option<Tensor>) -> Result<Self> {
        let (e, n, _) = self.up.dims()?;
        if up.as_ref().is_some_and(|b| b.dims() != [e, n]) {
            bail!("first bias of the experts: expected shape [{e}, {n}]");
        }
        let out = self.output_width();
        if down.as_ref().is_some_and(|b| b.dims() != [e, out]) || (down.is_some() && self.down.is_none()) {
            bail!("second bias of the experts: expected shape [{e}, {out}] and a second layer");
        }
        (self.up_bias, self.down_bias) = (up, down);
        Ok(self)
    }

    /// Adds a norm of each expert's output.
    pub fn with_output_norm(mut self, norm: OutputNorm) -> Result<Self> {
        let (e, _, _) = self.up.dims()?;
        let expected = [e, self.output_width()];
        if norm.weight.dims() != expected || norm.bias.dims() != expected {
            bail!("output norm of the experts: expected weight and bias of shape {expected:?}");
        }
        self.output_norm = Some(norm);
        Ok(self)
    }

    /// The same bank with its weights in tiles for the CPU: faster, forward only.
    pub fn pack(mut self) -> Result<Self> {
        self.up = self.up.pack(self.kind == BankKind::Gated)?;
        self.down = self.down.map(|d| d.pack(false)).transpose()?;
        // What is added to f32 sums is kept in f32, not converted by each call.
        let wide = |t: Tensor| t.to_dtype(DType::F32)?.contiguous();
        self.up_bias = self.up_bias.map(wide).transpose()?;
        self.down_bias = self.down_bias.map(wide).transpose()?;
        let norm = |n: OutputNorm| {
            Ok::<_, candle_core::Error>(OutputNorm { weight: wide(n.weight)?, bias: wide(n.bias)?, eps: n.eps })
        };
        self.output_norm = self.output_norm.map(norm).transpose()?;
        Ok(self)
    }

    /// The same bank as a model in bf16 computes it: where its weights are tiles of bf16 and the processor multiplies pairs of those, tokens, and
    /// what is between the projections, are rounded to bf16; sums stay f32. Elsewhere nothing changes.
    pub fn narrow(mut self) -> Self {
        let narrow = |storage: Storage| match storage {
            Storage::Packed(weight) => Storage::Packed(weight.narrow()),
            other => other,
        };
        (self.up, self.down) = (narrow(self.up), self.down.map(narrow));
        self
    }

    /// Number of experts: networks, and those without one behind them.
    pub fn experts(&self) -> usize {
        self.networks() + self.extras.free.len()
    }

    /// Number of experts that are networks.
    pub fn networks(&self) -> usize {
        self.up.dims().map_or(0, |(e, _, _)| e)
    }

    /// Width of a token after the bank.
    pub fn output_width(&self) -> usize {
        self.down.as_ref().unwrap_or(&self.up).dims().map_or(0, |(_, o, _)| o)
    }

    /// True if the weights are in tiles.
    fn is_packed(&self) -> bool {
        self.up.is_packed() && self.down.as_ref().is_none_or(Storage::is_packed)
    }

    /// True if a gradient will be asked for any weight, or the stages are needed for adapters.
    fn is_tracked(&self) -> bool {
        if self.extras.adapters.iter().any(|a| !a.is_empty()) {
            return true;
        }
        let norm = self.output_norm.iter().flat_map(|n| [&n.weight, &n.bias]);
        self.up.is_tracked()
            || self.down.as_ref().is_some_and(Storage::is_tracked)
            || self.up_bias.iter().chain(&self.down_bias).chain(norm).any(tracked)
    }

    /// The weighted sum of each token's experts. [Packed](Self::pack) weights take the fused path unless a gradient is wanted.
    ///
    /// # Shapes
    /// `x [T, H]` to `[T, O]`
    pub fn forward(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        if routes.experts() != self.experts() || x.dims2()?.0 != routes.tokens() {
            bail!(
                "routes of {} tokens to {} experts do not fit input {:?} and {} experts",
                routes.tokens(),
                routes.experts(),
                x.dims(),
                self.experts()
            );
        }
        let fused = self.is_packed() && !(self.is_tracked() || tracked(x) || tracked(routes.weight()));
        note(BankPass { experts: self.experts(), tokens: routes.tokens(), routes: routes.len(), fused });
        if fused {
            return self.and_free(x, routes, |routes| fused::forward(self, x, routes));
        }
        #[cfg(feature = "cuda")]
        if self.is_on_gpu(x) && !(self.is_tracked() || tracked(x) || tracked(routes.weight()) || routes.is_empty()) {
            return self.and_free(x, routes, |routes| self.forward_on_gpu(x, routes));
        }
        self.forward_stages(x, routes)
    }

    /// True if the GPU's kernels take both layers.
    #[cfg(feature = "cuda")]
    fn is_on_gpu(&self, x: &Tensor) -> bool {
        x.device().is_cuda() && crate::cuda::wanted() && self.down.is_some() && self.output_norm.is_none()
    }

    /// Tokens through the first layer where they stand, the second, and their sums.
    #[cfg(feature = "cuda")]
    fn forward_on_gpu(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        let (up, Some(down)) = (&self.up, &self.down) else { bail!("experts of one layer have no second") };
        let up = match up {
            Storage::Dense(up) => Weights::Values(up),
            Storage::Blocks(up) => Weights::Blocks(up),
            Storage::Packed(_) => bail!("weights in tiles for the CPU met a tensor of the GPU"),
        };
        let (bias, gated) = (self.up_bias.as_ref(), self.kind == BankKind::Gated);
        let h = stages::first_layer(x, up, bias, routes, self.activation, gated)?; // (R, I)
        combine(&down.grouped(&h, self.down_bias.as_ref(), routes)?, routes)
    }

    /// [`forward`](Self::forward) by the differentiable stages.
    pub fn forward_stages(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        if routes.is_empty() {
            return Tensor::zeros((routes.tokens(), self.output_width()), x.dtype(), x.device());
        }
        self.and_free(x, routes, |routes| combine(&self.run(&dispatch(x, routes)?, routes)?, routes))
    }

    /// The output of every route before it is weighted, in the order of the routes: for sums that are not over a token's experts,
    /// as in U-SAM's released code. With gradients, unless the weights are [packed](Self::pack).
    ///
    /// # Shapes
    /// `x [T, H]` to `[R, O]`
    pub fn forward_each(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        if routes.experts() != self.experts() || x.dims2()?.0 != routes.tokens() || routes.is_empty() {
            bail!(
                "{} routes of {} tokens to {} experts do not fit input {:?} and {} experts",
                routes.len(),
                routes.tokens(),
                routes.experts(),
                x.dims(),
                self.experts()
            );
        }
        if !self.extras.free.is_empty() {
            bail!("experts without a network give nothing apart from a token's sum");
        }
        self.run(&dispatch(x, routes)?, routes)
    }

    /// A bank of one expert on every token with weight 1: a dense layer, without dispatch and combine.
    ///
    /// # Shapes
    /// `x [T, H]` to `[T, O]`
    pub fn forward_dense(&self, x: &Tensor) -> Result<Tensor> {
        if self.experts() != 1 {
            bail!("{} experts are not a dense layer; they need routes", self.experts());
        }
        if self.is_packed() && !(self.is_tracked() || tracked(x)) {
            return fused::forward_dense(self, x);
        }
        self.run(x, &Routes::single(x.dim(0)?, x.device())?)
    }

    /// Each row through the network of its expert, `[R, H]` to `[R, O]`.
    fn run(&self, x: &Tensor, routes: &Routes) -> Result<Tensor> {
        let mut h = self.up.grouped(x, self.up_bias.as_ref(), routes)?;
        h = lora::add(&self.extras.adapters[0], x, h, Some(routes))?;
        if let Some(down) = &self.down {
            h = match (self.kind, self.activation) {
                (BankKind::Gated, Activation::Silu) => silu_glu(&h)?,
                (BankKind::Gated, activation) => {
                    let i = h.dim(D::Minus1)? / 2;
                    (activation.apply(&h.narrow(D::Minus1, 0, i)?)? * h.narrow(D::Minus1, i, i)?)?
                }
                (_, activation) => activation.apply(&h)?,
            };
            let y = down.grouped(&h, self.down_bias.as_ref(), routes)?;
            h = lora::add(&self.extras.adapters[1], &h, y, Some(routes))?;
        }
        if let Some(norm) = &self.output_norm {
            h = norm.forward(&h, routes)?;
        }
        Ok(h)
    }
}

impl OutputNorm {
    /// `y [R, O]`, each row by its expert's norm.
    fn forward(&self, y: &Tensor, routes: &Routes) -> Result<Tensor> {
        let expert = Tensor::from_vec(routes.expert_of()?, routes.len(), y.device())?;
        let dtype = y.dtype();
        let y = y.to_dtype(DType::F32)?;
        let y = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
        let var = y.sqr()?.mean_keepdim(D::Minus1)?;
        let y = y.broadcast_div(&(var + self.eps)?.sqrt()?)?;
        let weight = self.weight.to_dtype(DType::F32)?.index_select(&expert, 0)?; // (R, O)
        let bias = self.bias.to_dtype(DType::F32)?.index_select(&expert, 0)?; // (R, O)
        ((y * weight)? + bias)?.to_dtype(dtype)
    }
}
