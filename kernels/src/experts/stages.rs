//! The public, differentiable stages of a sparse layer: [`dispatch`], [`grouped_linear`], [`combine`].

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use crate::composed;
use crate::cpu::gemm::{Product, Rhs, run};
use crate::cpu::pack::{Elem, Packed, View};
use crate::cpu::{Scratch, SendPtr, isa, math, parallel};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::host::{as_f32, rounded, slice, storage_of, tensor, tracked, with_f32};
use crate::routes::{Lists, Plan, Routes};

/// Rows a task of a row-wise loop takes.
const ROWS: usize = 64;

fn row_tasks(rows: usize, cols: usize, f: impl Fn(usize) + Sync) {
    parallel(rows.div_ceil(ROWS), rows * cols > 1 << 14, |i| (i * ROWS..((i + 1) * ROWS).min(rows)).for_each(&f));
}

/// `out[t] = sum over the token's routes, in slot order, of weight * y[route]`; weight 1 if absent.
pub(super) fn combine_rows(plan: &Lists, y: &[f32], cols: usize, weight: Option<&[f32]>, out: &mut [f32]) {
    let (isa, out) = (isa(), SendPtr::new(out));
    row_tasks(plan.tokens(), cols, |t| {
        // SAFETY: each token's row belongs to one task.
        let row = unsafe { out.slice(t * cols, cols) };
        row.fill(0.0);
        for &r in plan.of_token(t) {
            let r = r as usize;
            math::axpy(isa, weight.map_or(1.0, |w| w[r]), &y[r * cols..][..cols], row);
        }
    });
}

fn rows_cols(layout: &Layout, rows: usize, op: &str) -> Result<usize> {
    match *layout.dims() {
        [n, cols] if n == rows => Ok(cols),
        ref dims => bail!("{op}: shape {dims:?}, expected [{rows}, width]"),
    }
}

struct Dispatch(Arc<Plan>);

impl CustomOp1 for Dispatch {
    fn name(&self) -> &'static str {
        "moesaic-dispatch"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        fn gather<T: Copy>(x: &[T], cols: usize, plan: &Lists) -> Vec<T> {
            let mut out = Vec::with_capacity(plan.token.len() * cols);
            for &t in &plan.token {
                out.extend_from_slice(&x[t as usize * cols..][..cols]);
            }
            out
        }
        let (cols, lists) = (rows_cols(l, self.0.tokens, self.name())?, self.0.lists()?);
        let out = match s.dtype() {
            DType::F32 => CpuStorage::F32(gather(slice::<f32>(s, l, self.name())?, cols, lists)),
            DType::BF16 => CpuStorage::BF16(gather(slice::<bf16>(s, l, self.name())?, cols, lists)),
            DType::F16 => CpuStorage::F16(gather(slice::<f16>(s, l, self.name())?, cols, lists)),
            other => bail!("dispatch: dtype {other:?} is not supported, expected f32, bf16 or f16"),
        };
        Ok((out, (self.0.routes(), cols).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let cols = x.dim(1)?;
        let (mut dx, lists) = (vec![0f32; x.elem_count()], self.0.lists()?);
        with_f32(dy, self.name(), |dy| {
            combine_rows(lists, dy, cols, None, &mut dx);
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// Copies each route's token: rows come out sorted by expert.
///
/// # Shapes
/// `x [T, H]` to `[R, H]`
pub fn dispatch(x: &Tensor, routes: &Routes) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && cuda::wanted() {
        return cuda::stages::dispatch(x, &routes.plan);
    }
    if composed::wanted(x) {
        return composed::dispatch(x, &routes.plan);
    }
    x.contiguous()?.apply_op1(Dispatch(routes.plan.clone()))
}

struct Combine(Arc<Plan>);

impl CustomOp2 for Combine {
    fn name(&self) -> &'static str {
        "moesaic-combine"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = rows_cols(l1, self.0.routes(), self.name())?;
        let (y, w) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        if w.len() != self.0.routes() {
            bail!("combine: {} weights for {} routes", w.len(), self.0.routes());
        }
        let mut out = vec![0f32; self.0.tokens * cols];
        combine_rows(self.0.lists()?, &y, cols, Some(&w), &mut out);
        Ok((storage_of(out, s1.dtype(), self.name())?, (self.0.tokens, cols).into()))
    }

    fn bwd(&self, y: &Tensor, w: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (plan, lists) = (&*self.0, self.0.lists()?);
        let cols = y.dim(1)?;
        let (mut dy, mut dw) = (vec![0f32; y.elem_count()], vec![0f32; plan.routes()]);
        let (isa, dy_out, dw_out) = (isa(), SendPtr::new(&mut dy), SendPtr::new(&mut dw));
        with_f32(y, self.name(), |y| {
            with_f32(w, self.name(), |w| {
                with_f32(dout, self.name(), |dout| {
                    row_tasks(plan.routes(), cols, |r| {
                        let dout = &dout[lists.token[r] as usize * cols..][..cols];
                        // SAFETY: each route's row and weight belong to one task.
                        let (row, weight) = unsafe { (dy_out.slice(r * cols, cols), dw_out.slice(r, 1)) };
                        row.iter_mut().zip(dout).for_each(|(d, o)| *d = w[r] * o);
                        weight[0] = math::dot(isa, &y[r * cols..][..cols], dout);
                    });
                    Ok(())
                })
            })
        })?;
        let dy = tracked(y).then(|| tensor(dy, y.shape(), y.dtype())).transpose()?;
        let dw = tracked(w).then(|| tensor(dw, w.shape(), w.dtype())).transpose()?;
        Ok((dy, dw))
    }
}

/// Sums each token's routes, weighted, in slot order. A token without routes gets zeros.
///
/// # Shapes
/// `y [R, O]` and the routes' weights `[R]` to `[T, O]`
pub fn combine(y: &Tensor, routes: &Routes) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() && cuda::wanted() {
        return cuda::stages::combine(y, routes.weight(), &routes.plan);
    }
    if composed::wanted(y) {
        return composed::combine(y, routes.weight(), &routes.plan);
    }
    y.contiguous()?.apply_op2(routes.weight(), Combine(routes.plan.clone()))
}

/// `[E, N, K]`, or `[N, K]` as one expert.
fn weight_dims(dims: &[usize], op: &str) -> Result<(usize, usize, usize)> {
    match *dims {
        [n, k] => Ok((1, n, k)),
        [e, n, k] => Ok((e, n, k)),
        _ => bail!("{op}: weights of shape {dims:?}, expected [experts, out, in] or [out, in]"),
    }
}

/// Checks that `rows` rows `x` of `groups` groups meet weights `[e, n, k]`, and a bias of as many values.
fn check(
    (groups, rows): (usize, usize),
    x: &[usize],
    (e, n, k): (usize, usize, usize),
    bias: Option<usize>,
) -> Result<()> {
    if e != groups {
        bail!("grouped linear: {groups} groups of rows, but weights of {e} experts");
    }
    if x.len() < 2 || x.last() != Some(&k) || x.iter().product::<usize>() != rows * k {
        bail!("grouped linear: input of shape {x:?}, expected [{rows}, {k}] for weights {:?}", [e, n, k]);
    }
    match bias {
        Some(values) if values != e * n => bail!("grouped linear: {values} bias values for weights {:?}", [e, n, k]),
        _ => Ok(()),
    }
}

/// Calls `$body` with `$w` bound to the elements of a storage in their own type.
macro_rules! with_elements {
    ($storage:expr, $layout:expr, $op:expr, |$w:ident| $body:expr) => {
        match $storage.dtype() {
            DType::F32 => {
                let $w = slice::<f32>($storage, $layout, $op)?;
                $body
            }
            DType::BF16 => {
                let $w = slice::<bf16>($storage, $layout, $op)?;
                $body
            }
            DType::F16 => {
                let $w = slice::<f16>($storage, $layout, $op)?;
                $body
            }
            other => bail!("{}: weights of dtype {other:?}, expected f32, bf16 or f16", $op),
        }
    };
}

/// The products of one linear map per group of rows: `y[rows of e] = x[rows of e] · W[e]^T + bias[e]`.
pub(super) fn linear_products<'a, A: Elem, T: Elem>(
    x: View<'a, A>,
    weight: impl Fn(usize) -> Rhs<'a, T>,
    bias: Option<&'a [f32]>,
    offsets: &[usize],
    (n, k): (usize, usize),
) -> Vec<Product<'a, A, T>> {
    let groups = offsets.len() - 1;
    (0..groups)
        .filter(|&e| offsets[e] < offsets[e + 1])
        .map(|e| Product {
            m: offsets[e + 1] - offsets[e],
            n,
            k,
            a: x.skip(offsets[e]),
            b: weight(e),
            bias: bias.map(|b| &b[e * n..][..n]),
            c: offsets[e] * n,
            ld: n,
        })
        .collect()
}

/// The rows of expert `e` are `offsets[e]..offsets[e + 1]`.
struct GroupedLinear(Arc<[usize]>);

impl GroupedLinear {
    const NAME: &'static str = "moesaic-grouped-linear";

    /// Checks shapes and returns `(rows, n, k)`.
    fn check(&self, x: &[usize], w: &[usize], bias: Option<usize>) -> Result<(usize, usize, usize)> {
        let (groups, dims) = (self.0.len() - 1, weight_dims(w, "grouped linear")?);
        check((groups, self.0[groups]), x, dims, bias)?;
        Ok((self.0[groups], dims.1, dims.2))
    }

    fn forward(
        &self,
        (s1, l1): (&CpuStorage, &Layout),
        (s2, l2): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, n, k) = self.check(l1.dims(), l2.dims(), bias.map(|(_, l)| l.shape().elem_count()))?;
        let x = as_f32(s1, l1, Self::NAME)?;
        let bias = bias.map(|(s, l)| as_f32(s, l, Self::NAME)).transpose()?;
        let mut y = vec![0f32; rows * n];
        with_elements!(s2, l2, Self::NAME, |w| {
            let weight = |e| Rhs::Plain(View::rows(w, e * n * k, k).transposed());
            run(&linear_products(View::rows(&x, 0, k), weight, bias.as_deref(), &self.0, (n, k)), &mut y);
        });
        let mut dims = l1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        Ok((storage_of(y, s1.dtype(), Self::NAME)?, dims.into()))
    }

    /// `dx = dy · W`
    fn grad_x(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (rows, n, k) = self.check(x.dims(), w.dims(), None)?;
        let mut dx = vec![0f32; rows * k];
        let w = w.contiguous()?;
        let (storage, layout) = w.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("grouped linear: weights are not on the CPU") };
        with_f32(dy, Self::NAME, |dy| {
            with_elements!(storage, layout, Self::NAME, |w| {
                let weight = |e| Rhs::Plain(View::rows(w, e * n * k, k));
                run(&linear_products(View::rows(dy, 0, n), weight, None, &self.0, (k, n)), &mut dx);
            });
            Ok(())
        })?;
        tensor(dx, x.shape(), x.dtype())
    }

    /// `dW[e] = dy[rows of e]^T · x[rows of e]`
    fn grad_w(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (_, n, k) = self.check(x.dims(), w.dims(), None)?;
        let mut dw = vec![0f32; w.elem_count()];
        with_f32(x, Self::NAME, |x| {
            with_f32(dy, Self::NAME, |dy| {
                let products: Vec<_> = self
                    .0
                    .windows(2)
                    .enumerate()
                    .map(|(e, range)| Product {
                        m: n,
                        n: k,
                        k: range[1] - range[0],
                        a: View::rows(dy, range[0] * n, n).transposed(),
                        b: Rhs::Plain(View::rows(x, range[0] * k, k)),
                        bias: None,
                        c: e * n * k,
                        ld: k,
                    })
                    .collect();
                run(&products, &mut dw);
                Ok(())
            })
        })?;
        tensor(dw, w.shape(), w.dtype())
    }

    /// `dbias[e] = sum of dy over the rows of e`
    fn grad_bias(&self, bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let n = dy.dims().last().copied().unwrap_or(0);
        let mut db = vec![0f32; bias.elem_count()];
        let isa = isa();
        with_f32(dy, Self::NAME, |dy| {
            for (range, db) in self.0.windows(2).zip(db.chunks_exact_mut(n)) {
                (range[0]..range[1]).for_each(|r| math::axpy(isa, 1.0, &dy[r * n..][..n], db));
            }
            Ok(())
        })?;
        tensor(db, bias.shape(), bias.dtype())
    }
}

impl CustomOp2 for GroupedLinear {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((s1, l1), (s2, l2), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = tracked(x).then(|| self.grad_x(x, w, dy)).transpose()?;
        let dw = tracked(w).then(|| self.grad_w(x, w, dy)).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for GroupedLinear {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((s1, l1), (s2, l2), Some((s3, l3)))
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
        let db = tracked(bias).then(|| self.grad_bias(bias, dy)).transpose()?;
        Ok((dx, dw, db))
    }
}

fn apply(op: GroupedLinear, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if composed::wanted(x) {
        op.check(x.dims(), weight.dims(), bias.map(Tensor::elem_count))?;
        return composed::grouped_linear(x, weight, bias, &op.0);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
        None => x.apply_op2(&weight, op),
    }
}

/// One linear map per expert on the rows routed to it: `y[r] = W[e] x[r] + bias[e]` for `offsets[e] <= r < offsets[e+1]`.
///
/// # Shapes
/// `x [R, K]`, `weight [E, N, K]`, `bias [E, N]` to `[R, N]`
pub fn grouped_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, routes: &Routes) -> Result<Tensor> {
    // One group of rows is a plain product, for which a GPU has candle's.
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && cuda::wanted() && routes.experts() > 1 {
        let dims = weight_dims(weight.dims(), "grouped linear")?;
        check((routes.experts(), routes.len()), x.dims(), dims, bias.map(Tensor::elem_count))?;
        return cuda::stages::grouped_linear(x, cuda::stages::Weights::Values(weight), bias, &routes.plan);
    }
    apply(GroupedLinear(routes.offsets()?.into()), x, weight, bias)
}

/// `x W^T + bias`, by the same kernel and with the same bits as one expert of [`grouped_linear`].
///
/// # Shapes
/// `x [.., K]` with at least two dimensions, `weight [N, K]`, `bias [N]` to `[.., N]`
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let rows = x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1);
    apply(GroupedLinear([0, rows].into()), x, weight, bias)
}

/// [`grouped_linear`] on weights that were packed at load; forward only.
pub(crate) struct PackedLinear {
    pub weight: Packed,
    pub bias: Option<Arc<[f32]>>,
    pub offsets: Arc<[usize]>,
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        "moesaic-packed-linear"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (e, n, k) = self.weight.dims();
        let check = GroupedLinear(self.offsets.clone());
        let (rows, ..) = check.check(l.dims(), &[e, n, k], self.bias.as_ref().map(|b| b.len()))?;
        let weight = |e| Rhs::<f32>::Packed(&self.weight, e);
        let y = with_elements!(s, l, self.name(), |x| {
            let products = linear_products(View::rows(x, 0, k), weight, self.bias.as_deref(), &self.offsets, (n, k));
            if s.dtype() == DType::F32 {
                let mut y = vec![0f32; rows * n];
                run(&products, &mut y);
                CpuStorage::F32(y)
            } else {
                let mut y = Scratch::new(rows * n);
                run(&products, &mut y);
                rounded(&y, s.dtype(), self.name())?
            }
        });
        let mut dims = l.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        Ok((y, dims.into()))
    }
}
