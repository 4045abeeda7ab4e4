//! The stages of a sparse layer on the kernels, with gradients; and gated experts in one pass, without.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};

use super::blocks::DeviceBlocks;
use super::device::run;
use super::launch::{self, ByToken, Map, Sizes, Stored};
use crate::Activation;
use crate::host::tracked;
use crate::routes::{Plan, Routes};

/// These operations are for tensors on the GPU alone.
fn elsewhere<T>() -> Result<T> {
    bail!("a tensor on the CPU met a kernel of the GPU: move all tensors of an operation to one device")
}

/// The rows and width of a matrix.
fn matrix(layout: &Layout) -> Result<[usize; 2]> {
    match *layout.dims() {
        [rows, width] => Ok([rows, width]),
        ref dims => bail!("shape {dims:?} on the GPU, expected [rows, width]"),
    }
}

struct Dispatch(Arc<Plan>);

impl CustomOp1 for Dispatch {
    fn name(&self) -> &'static str {
        "moesaic-cuda-dispatch"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let ([tokens, width], routes) = (matrix(l)?, self.0.routes());
        let lists = self.0.on(s.device())?;
        let dtype = s.dtype();
        let out = run(&[(s, l)], &[&lists.token], (routes * width, dtype), |x, lists, y| {
            if tokens != self.0.tokens {
                bail!("dispatch: {tokens} tokens, but routes of {}", self.0.tokens);
            }
            launch::gather(x[0], lists[0], y, [tokens, routes, width])
        })?;
        Ok((out, (routes, width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        tracked(x).then(|| dy.contiguous()?.apply_op1_no_bwd(&Gathered(self.0.clone()))).transpose()
    }
}

/// Sums each token's routes without weights: the gradient of [`Dispatch`].
struct Gathered(Arc<Plan>);

/// `y [R, width]`, and `weight [R]` where there is one, to `[T, width]`.
fn combined(
    plan: &Plan,
    y: (&CudaStorage, &Layout),
    weight: Option<(&CudaStorage, &Layout)>,
) -> Result<(CudaStorage, Shape)> {
    let [routes, width] = matrix(y.1)?;
    let lists = plan.on(y.0.device())?;
    let shape = [plan.tokens, routes, width];
    let inputs: Vec<_> = std::iter::once(y).chain(weight).collect();
    let dtype = y.0.dtype();
    let out = run(&inputs, &[&lists.by_token, &lists.start], (plan.tokens * width, dtype), |inputs, lists, out| {
        if routes != plan.routes() || routes == 0 {
            bail!("combine: {routes} rows for {} routes", plan.routes());
        }
        let of = ByToken { by_token: lists[0], start: lists[1] };
        launch::combine(inputs[0], inputs.get(1).copied(), of, out, shape)
    })?;
    Ok((out, (plan.tokens, width).into()))
}

impl CustomOp1 for Gathered {
    fn name(&self) -> &'static str {
        "moesaic-cuda-dispatch-back"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        combined(&self.0, (s, l), None)
    }
}

struct Combine(Arc<Plan>);

impl CustomOp2 for Combine {
    fn name(&self) -> &'static str {
        "moesaic-cuda-combine"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        combined(&self.0, (s1, l1), Some((s2, l2)))
    }

    fn bwd(&self, y: &Tensor, w: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dout = dout.contiguous()?;
        let of = |what, other: &Tensor| dout.apply_op2_no_bwd(other, &CombineBack(self.0.clone(), what));
        Ok((tracked(y).then(|| of(Of::Rows, w)).transpose()?, tracked(w).then(|| of(Of::Weights, y)).transpose()?))
    }
}

/// What a gradient of [`Combine`] is for.
#[derive(Clone, Copy)]
enum Of {
    /// `dout` and the weights to `dy`.
    Rows,
    /// `dout` and `y` to the weights' gradient.
    Weights,
}

struct CombineBack(Arc<Plan>, Of);

impl CustomOp2 for CombineBack {
    fn name(&self) -> &'static str {
        "moesaic-cuda-combine-back"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let ([tokens, width], routes) = (matrix(l1)?, self.0.routes());
        let lists = self.0.on(s1.device())?;
        let shape = [tokens, routes, width];
        let inputs = [(s1, l1), (s2, l2)];
        match self.1 {
            Of::Rows => {
                let dtype = s1.dtype();
                let out = run(&inputs, &[&lists.token], (routes * width, dtype), |of, lists, dy| {
                    launch::spread([of[0], of[1], lists[0], dy], shape)
                })?;
                Ok((out, (routes, width).into()))
            }
            Of::Weights => {
                let out = run(&inputs, &[&lists.token], (routes, DType::F32), |of, lists, dweight| {
                    launch::dots([of[1], of[0], lists[0], dweight], shape)
                })?;
                Ok((out, routes.into()))
            }
        }
    }
}

/// What a product of rows and weights is.
#[derive(Clone, Copy)]
enum Product {
    /// `x`, `w`, and a bias, to `y`; with the non-linearity, and of gated experts both halves at once.
    Forward { activation: Option<Activation>, gated: bool },
    /// `dy`, `w` to `dx`.
    Input,
    /// `dy`, `x` to `dw`.
    Weight,
    /// `dy` to `dbias`.
    Bias,
}

/// Whose rows stand where.
#[derive(Clone)]
enum Rows {
    /// The routes of a plan.
    Sorted(Arc<Plan>),
    /// Its tokens, each for as many routes as it has.
    Tokens(Arc<Plan>),
}

/// The weights of experts, `[E, N, K]`.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    Values(&'a Tensor),
    Blocks(&'a DeviceBlocks),
}

impl Weights<'_> {
    /// `[E, N, K]`; a matrix is one expert's.
    fn dims(self) -> Result<[usize; 3]> {
        match self {
            Self::Values(t) => match *t.dims() {
                [n, k] => Ok([1, n, k]),
                [e, n, k] => Ok([e, n, k]),
                ref dims => bail!("weights of shape {dims:?}, expected [experts, out, in]"),
            },
            Self::Blocks(blocks) => blocks.dims().map(<[usize; 3]>::from),
        }
    }

    /// As `x` meets them.
    fn beside(self, x: &Tensor) -> Result<(Tensor, Option<Stored>)> {
        Ok(match self {
            Self::Values(t) => (t.to_dtype(x.dtype())?.contiguous()?, None),
            Self::Blocks(blocks) => (blocks.data().clone(), Some(blocks.stored())),
        })
    }
}

struct Grouped {
    rows: Rows,
    product: Product,
    /// `[E, N, K]`, N of one half where they are gated.
    weights: [usize; 3],
    /// What the weights are stored in.
    format: Option<Stored>,
}

impl Grouped {
    fn run(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let [experts, width, depth] = self.weights;
        let Some(&(first, layout)) = inputs.first() else { bail!("grouped linear: no input") };
        let device = first.device();
        let dtype = first.dtype();
        let (Rows::Sorted(plan) | Rows::Tokens(plan)) = &self.rows;
        let rows = plan.routes();
        if plan.experts() != experts {
            bail!("grouped linear: {} groups of rows, but weights of {experts} experts", plan.experts());
        }
        let sizes = Sizes { experts, rows, width, depth };
        let on_device = plan.on(device)?;
        let lists = [&on_device.offsets, &on_device.token];
        let of_tokens = matches!(self.rows, Rows::Tokens(_)).then_some(plan.tokens);
        let len = match self.product {
            Product::Forward { .. } => rows * width,
            Product::Input => rows * depth,
            Product::Weight => experts * width * depth,
            Product::Bias => experts * width,
        };
        let out = run(inputs, &lists, (len, dtype), |of, lists, out| {
            let offsets = lists[0];
            match (self.product, of) {
                (Product::Forward { activation, gated }, &[x, w, ..]) => {
                    let token = of_tokens.map(|tokens| (lists[1], tokens));
                    let map = Map { x, token, w, format: self.format, bias: of.get(2).copied(), offsets, y: out };
                    launch::linear(map, sizes, activation, gated, None)
                }
                (Product::Input, &[dy, w]) => launch::linear_back([dy, w, offsets, out], sizes),
                (Product::Weight, &[dy, x]) => launch::weight_back([dy, x, offsets, out], sizes),
                (Product::Bias, &[dy]) => launch::bias_back([dy, offsets, out], sizes),
                _ => bail!("grouped linear: {} inputs", of.len()),
            }
        })?;
        let wide = |last: usize| {
            let mut dims = layout.dims().to_vec();
            if let Some(end) = dims.last_mut() {
                *end = last;
            }
            Shape::from(dims)
        };
        let shape = match (self.product, &self.rows) {
            (Product::Forward { .. }, Rows::Sorted(_)) => wide(width),
            (Product::Forward { .. }, Rows::Tokens(_)) => (rows, width).into(),
            (Product::Input, _) => wide(depth),
            (Product::Weight, _) => (experts, width, depth).into(),
            (Product::Bias, _) => (experts, width).into(),
        };
        Ok((out, shape))
    }

    fn other(&self, product: Product) -> Self {
        Self { rows: self.rows.clone(), product, weights: self.weights, format: None }
    }
}

impl CustomOp1 for Grouped {
    fn name(&self) -> &'static str {
        "moesaic-cuda-grouped-bias"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run(&[(s, l)])
    }
}

impl CustomOp2 for Grouped {
    fn name(&self) -> &'static str {
        "moesaic-cuda-grouped-linear"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run(&[(s1, l1), (s2, l2)])
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let of = |product, other: &Tensor| dy.apply_op2_no_bwd(other, &self.other(product));
        let dx = tracked(x).then(|| of(Product::Input, w)?.reshape(x.shape())).transpose()?;
        let dw = tracked(w).then(|| of(Product::Weight, x)?.reshape(w.shape())).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Grouped {
    fn name(&self) -> &'static str {
        "moesaic-cuda-grouped-linear-biased"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = CustomOp2::bwd(self, x, w, y, dy)?;
        let of_bias = || dy.contiguous()?.apply_op1_no_bwd(&self.other(Product::Bias))?.reshape(bias.shape());
        Ok((dx, dw, tracked(bias).then(of_bias).transpose()?))
    }
}

/// [`crate::dispatch`] on the GPU.
pub(crate) fn dispatch(x: &Tensor, plan: &Arc<Plan>) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Dispatch(plan.clone()))
}

/// [`crate::combine`] on the GPU.
pub(crate) fn combine(y: &Tensor, weight: &Tensor, plan: &Arc<Plan>) -> Result<Tensor> {
    if plan.routes() == 0 {
        return Tensor::zeros((plan.tokens, y.dim(1)?), y.dtype(), y.device());
    }
    y.contiguous()?.apply_op2(&weight.to_dtype(DType::F32)?.contiguous()?, Combine(plan.clone()))
}

/// `op` on rows or tokens `x`, with gradients where the weights are values.
fn apply(op: Grouped, x: &Tensor, weights: Weights<'_>, bias: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (weight, format) = weights.beside(&x)?;
    let op = Grouped { format, ..op };
    if format.is_some() && tracked(&x) {
        bail!("weights in blocks or FP8 on the GPU have no gradients: load them as values to train");
    }
    let bias = bias.map(|bias| bias.to_dtype(x.dtype())?.contiguous()).transpose()?;
    match (bias, format) {
        (Some(bias), None) => x.apply_op3(&weight, &bias, op),
        (None, None) => x.apply_op2(&weight, op),
        (Some(bias), Some(_)) => x.apply_op3_no_bwd(&weight, &bias, &op),
        (None, Some(_)) => x.apply_op2_no_bwd(&weight, &op),
    }
}

/// [`crate::grouped_linear`] on the GPU; the shape of `x` and the number of biases are checked.
pub(crate) fn grouped_linear(
    x: &Tensor,
    weights: Weights<'_>,
    bias: Option<&Tensor>,
    plan: &Arc<Plan>,
) -> Result<Tensor> {
    let product = Product::Forward { activation: None, gated: false };
    let op = Grouped { rows: Rows::Sorted(plan.clone()), product, weights: weights.dims()?, format: None };
    apply(op, x, weights, bias)
}

/// The first layer of experts on the tokens themselves, for which nobody asks gradients: `act(up x)`, or `act(gate x) * up x` of gated ones, whose
/// weights are `[E, 2 I, K]`.
///
/// # Shapes
/// `x [T, K]` to `[R, I]`
pub(crate) fn first_layer(
    x: &Tensor,
    weights: Weights<'_>,
    bias: Option<&Tensor>,
    routes: &Routes,
    activation: Activation,
    gated: bool,
) -> Result<Tensor> {
    let [experts, rows, depth] = weights.dims()?;
    let width = if gated { rows / 2 } else { rows };
    let product = Product::Forward { activation: Some(activation), gated };
    let op =
        Grouped { rows: Rows::Tokens(routes.plan.clone()), product, weights: [experts, width, depth], format: None };
    apply(op, &x.detach(), weights, bias)
}
