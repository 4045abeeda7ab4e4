//! Low-rank adapters beside the weights of linear maps and experts (LoRA, Hu et al., arXiv 2106.09685).
//!
//! ```text
//! y[first .. first + out] += weight · scale · B (A dropout(x))        A [r, in], B [out, r], for each expert its own
//! ```
//!
//! Adapters are live: they stand beside weights of any storage and dtype, tiles for the CPU included, several at once, and
//! come off again. Merging adds them to plain weights for good. Weights in tiles take nothing in: there adapters are merged
//! while the weights are read ([`Params::merging`](crate::Params::merging)).

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::experts::{grouped_linear, linear};
use crate::rng::Rng;
use crate::routes::Routes;

/// Random zeros in the input of an adapter while it is trained.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    rate: f64,
    /// Of the place in the model: every place has masks of its own.
    key: u64,
}

/// How the experts' second maps lie in their tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `[E, out, r]`, or `[out, r]` for one.
    ByExpert,
    /// `[out, r * E]`, the expert running fastest, as PEFT stores those of stacked experts.
    Interleaved(usize),
}

/// A low-rank change of a linear map, or of one map of every expert.
#[derive(Clone, Debug)]
pub struct LowRank {
    adapter: Arc<str>,
    a: Tensor,
    b: Tensor,
    layout: Layout,
    first: usize,
    scale: f64,
    weight: f64,
    dropout: Option<Dropout>,
}

impl LowRank {
    /// `x` to `scale · b (a x)`, at strength 1. `adapter` names what it is part of.
    ///
    /// # Shapes
    /// `a [r, in]` and `b [out, r]` of a linear map; `a [E, r, in]` and `b [E, out, r]` of experts
    ///
    /// # Errors
    /// Shapes that do not fit each other, or a scale that is not finite.
    pub fn new(adapter: &str, a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let fits = match (a.dims(), b.dims()) {
            ([r, _], [_, r2]) => r == r2,
            ([e, r, _], [e2, _, r2]) => e == e2 && r == r2,
            _ => false,
        };
        if !fits {
            bail!("adapter {adapter:?}: A {:?} and B {:?} do not fit each other", a.dims(), b.dims());
        }
        Self::make(adapter, a, b, Layout::ByExpert, scale)
    }

    /// The same with the tensors that PEFT stores for stacked experts, taken as they are.
    ///
    /// # Shapes
    /// `a [E * r, in]`, `b [out, r * E]` with the expert running fastest
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn interleaved(adapter: &str, experts: usize, a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let ((rows, _), (_, columns)) = (a.dims2()?, b.dims2()?);
        if rows != columns || experts == 0 || rows % experts != 0 {
            bail!("adapter {adapter:?}: A {:?} and B {:?} do not fit {experts} experts", a.dims(), b.dims());
        }
        Self::make(adapter, a, b, Layout::Interleaved(experts), scale)
    }

    fn make(adapter: &str, a: Tensor, b: Tensor, layout: Layout, scale: f64) -> Result<Self> {
        if !scale.is_finite() {
            bail!("adapter {adapter:?}: a scale of {scale}");
        }
        Ok(Self { adapter: adapter.into(), a, b, layout, first: 0, scale, weight: 1.0, dropout: None })
    }

    /// The same, its outputs starting at `first` of the map's: maps of one input often stand side by side.
    pub fn at(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// The same with a strength; 0 leaves it out.
    pub fn with_weight(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    /// The same with a share `rate` of its inputs left out in training (see [`with_dropout`]). `place` names the map.
    ///
    /// # Errors
    /// A rate outside `0..1`.
    pub fn with_dropout(self, rate: f64, place: &str) -> Result<Self> {
        if !(0.0..1.0).contains(&rate) {
            bail!("a dropout of {rate}, expected at least 0 and below 1");
        }
        let key = Rng::named(0, place).next_u64();
        Ok(Self { dropout: (rate > 0.0).then_some(Dropout { rate, key }), ..self })
    }

    /// Its strength.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The adapter that it is part of.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    /// `(experts, out, rank, in)`
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let (rows, width) = match *self.a.dims() {
            [.., r, width] => (r, width),
            _ => (0, 0),
        };
        match (self.layout, self.a.dims(), self.b.dims()) {
            (Layout::Interleaved(e), _, [out, _]) => (e, *out, rows / e.max(1), width),
            (_, [e, ..], [_, out, _]) => (*e, *out, rows, width),
            (_, _, [out, _]) => (1, *out, rows, width),
            _ => (0, 0, rows, width),
        }
    }

    /// Whether this changes a map of `experts` times `[out, inputs]`.
    pub(crate) fn check(&self, experts: usize, out: usize, inputs: usize) -> Result<()> {
        let (e, o, _, i) = self.dims();
        if e != experts || i != inputs || self.first.checked_add(o).is_none_or(|end| end > out) {
            bail!(
                "adapter {:?} with A {:?} and B {:?} at output {} does not fit {experts} maps of {inputs} inputs to {out} outputs",
                self.adapter,
                self.a.dims(),
                self.b.dims(),
                self.first
            );
        }
        Ok(())
    }

    /// `[E, r, in]` and `[E, out, r]`, with gradients.
    fn factors(&self) -> Result<(Tensor, Tensor)> {
        let (e, out, r, inputs) = self.dims();
        let a = self.a.reshape((e, r, inputs))?;
        let b = match self.layout {
            Layout::ByExpert => self.b.reshape((e, out, r))?,
            Layout::Interleaved(_) => self.b.reshape((out, r, e))?.permute((2, 0, 1))?.contiguous()?,
        };
        Ok((a, b))
    }

    /// The change of the weights, in f32: `weight · scale · B A`.
    ///
    /// # Shapes
    /// `[E, out, in]`
    pub fn delta(&self) -> Result<Tensor> {
        let (a, b) = self.factors()?;
        b.to_dtype(DType::F32)?.matmul(&a.to_dtype(DType::F32)?)? * (self.scale * self.weight)
    }

    /// What is added for `x`; without routes all rows belong to the one map.
    fn forward(&self, x: &Tensor, routes: Option<&Routes>) -> Result<Tensor> {
        let (a, b) = self.factors()?;
        let x = match (self.dropout, PASS.get()) {
            (Some(dropout), Some(pass)) => (x * dropout.mask(x, pass)?)?,
            _ => x.clone(),
        };
        let map = |x: &Tensor, w: &Tensor| match routes {
            Some(routes) => grouped_linear(x, w, None, routes),
            None => linear(x, w, None),
        };
        map(&map(&x, &a)?, &b)? * (self.scale * self.weight)
    }
}

impl Dropout {
    /// Zero, or what makes up for the zeros, in the shape of `x`.
    fn mask(&self, x: &Tensor, pass: u64) -> Result<Tensor> {
        let mut rng = Rng::keyed(&[pass, self.key]);
        let kept = (1.0 / (1.0 - self.rate)) as f32;
        let mask: Vec<f32> = (0..x.elem_count()).map(|_| if rng.chance(self.rate) { 0.0 } else { kept }).collect();
        Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())
    }
}

thread_local! {
    /// The forward pass that this thread is in, if it is one of training.
    static PASS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `f`, a forward pass of training: in it, and on this thread only, adapters leave out inputs as they were told to.
/// The masks depend on `pass` and on the place of the adapter, so a step can be made again.
pub fn with_dropout<T>(pass: u64, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<u64>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PASS.set(self.0);
        }
    }
    let _restore = Restore(PASS.replace(Some(pass)));
    f()
}

thread_local! {
    /// Names of the adapters that this thread computes with, if not all.
    static CHOSEN: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs `f`, in which on this thread only the live adapters of these names take part; the others are as if they were not
/// there. Models that keep several adapters choose one for a pass so, without being changed.
pub fn with_only<T>(names: &[&str], f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Vec<String>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0.take());
        }
    }
    let names = names.iter().map(ToString::to_string).collect();
    let _restore = Restore(CHOSEN.replace(Some(names)));
    f()
}

fn chosen(adapter: &LowRank) -> bool {
    CHOSEN.with_borrow(|names| names.as_ref().is_none_or(|names| names.iter().any(|n| *n == *adapter.adapter)))
}

/// `y` plus what the adapters make of `x`.
///
/// # Shapes
/// `x [.., in]`, `y [.., out]` to the same as `y`
pub(crate) fn add(adapters: &[LowRank], x: &Tensor, mut y: Tensor, routes: Option<&Routes>) -> Result<Tensor> {
    let width = y.dim(D::Minus1)?;
    for adapter in adapters.iter().filter(|a| a.weight != 0.0 && chosen(a)) {
        let mut change = adapter.forward(x, routes)?;
        let out = change.dim(D::Minus1)?;
        if out < width {
            let after = width.saturating_sub(adapter.first + out);
            change = change.pad_with_zeros(D::Minus1, adapter.first, after)?;
        }
        y = (y + change)?;
    }
    Ok(y)
}

/// Weights `[E, out, in]` or `[out, in]` with the adapters in them, rounded once to the dtype that they have.
pub(crate) fn merged(adapters: &[LowRank], weights: &Tensor) -> Result<Tensor> {
    let out = weights.dim(D::Minus2)?;
    let mut sum = weights.to_dtype(DType::F32)?;
    for adapter in adapters {
        let delta = adapter.delta()?;
        let after = out.saturating_sub(adapter.first + delta.dim(D::Minus2)?);
        let delta = delta.pad_with_zeros(D::Minus2, adapter.first, after)?;
        sum = (sum + delta.reshape(weights.shape())?)?;
    }
    sum.to_dtype(weights.dtype())
}
