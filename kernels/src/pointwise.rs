//! The non-linearities of networks as operations of their own: on all threads, in f32, with gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::Activation;
use crate::composed;
use crate::cpu::math::{erf, exp, fma, sigmoid};
use crate::cpu::{Isa, SendPtr, isa, parallel};
use crate::host::{as_f32, storage_of, tensor, with_f32};

/// Values that one task takes.
const BLOCK: usize = 1 << 13;

/// The non-linearity as one operation.
struct Pointwise(Activation);

/// [`Activation::apply`]: elementwise, with gradients, any shape to the same.
pub(crate) fn apply(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        _ if !composed::wanted(x) => x.contiguous()?.apply_op1(Pointwise(activation)),
        // candle's operations run on any device.
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
        // By the hyperbolic tangent, which does not overflow: the gradient stays a number.
        Activation::QuickGelu => x * (((x * 0.851)?.tanh()? + 1.0)? * 0.5)?,
    }
}

impl Pointwise {
    fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        match self.0 {
            Activation::QuickGelu => quick_gelu(isa, x, y),
            Activation::GeluTanh => gelu_tanh(isa, x, y),
            _ => gelu(isa, x, y),
        }
    }

    fn backward(&self, isa: Isa, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match self.0 {
            Activation::QuickGelu => quick_gelu_grad(isa, x, dy, dx),
            Activation::GeluTanh => gelu_tanh_grad(isa, x, dy, dx),
            _ => gelu_grad(isa, x, dy, dx),
        }
    }
}

/// Calls `f(i0, block)` for the blocks of `out`.
fn blocks(out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let len = out.len();
    let shared = SendPtr::new(out);
    parallel(len.div_ceil(BLOCK), len > 2 * BLOCK, |i| {
        let start = i * BLOCK;
        // SAFETY: each block belongs to one task.
        f(start, unsafe { shared.slice(start, BLOCK.min(len - start)) });
    });
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "moesaic-pointwise"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = as_f32(s, l, self.name())?;
        let (isa, mut y) = (isa(), vec![0f32; x.len()]);
        blocks(&mut y, |at, y| self.forward(isa, &x[at..at + y.len()], y));
        Ok((storage_of(y, s.dtype(), self.name())?, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (isa, mut dx) = (isa(), vec![0f32; x.elem_count()]);
        with_f32(x, self.name(), |x| {
            with_f32(dy, self.name(), |dy| {
                blocks(&mut dx, |at, dx| {
                    let range = at..at + dx.len();
                    self.backward(isa, &x[range.clone()], &dy[range], dx);
                });
                Ok(())
            })
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// sqrt(2 / pi)
const SCALE: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn quick_gelu_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x * sigmoid::<FMA>(1.702 * x);
    }
}

#[inline(always)]
fn quick_gelu_grad_body<const FMA: bool>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        let s = sigmoid::<FMA>(1.702 * x);
        *dx = dy * s * fma::<FMA>(1.702 * x, 1.0 - s, 1.0);
    }
}

#[inline(always)]
fn gelu_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x * 0.5 * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[inline(always)]
fn gelu_grad_body<const FMA: bool>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    // 1 / sqrt(2 pi)
    const DENSITY: f32 = 0.398_942_3;
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        let below = 0.5 * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
        *dx = dy * fma::<FMA>(x * DENSITY, exp::<FMA>(-0.5 * x * x), below);
    }
}

/// `(1 + tanh u) / 2` with `u` as in [`gelu_tanh`].
#[inline(always)]
fn half_tanh<const FMA: bool>(x: f32) -> f32 {
    let u = SCALE * fma::<FMA>(CUBIC * x * x, x, x);
    1.0 - 1.0 / (exp::<FMA>(2.0 * u) + 1.0)
}

#[inline(always)]
fn gelu_tanh_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x * half_tanh::<FMA>(*x);
    }
}

#[inline(always)]
fn gelu_tanh_grad_body<const FMA: bool>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &x), dy) in dx.iter_mut().zip(x).zip(dy) {
        let p = half_tanh::<FMA>(x);
        // d/dx of p is 2 p (1 - p) du/dx.
        let du = SCALE * fma::<FMA>(3.0 * CUBIC * x, x, 1.0);
        *dx = dy * fma::<FMA>(x, 2.0 * p * (1.0 - p) * du, p);
    }
}

use crate::cpu::math::for_isa;

for_isa! {
    /// `x * sigmoid(1.702 x)`
    fn quick_gelu(x: &[f32], y: &mut [f32]) = quick_gelu_body
}
for_isa! {
    /// The gradient of [`quick_gelu`].
    fn quick_gelu_grad(x: &[f32], dy: &[f32], dx: &mut [f32]) = quick_gelu_grad_body
}
for_isa! {
    /// GELU with the error function.
    fn gelu(x: &[f32], y: &mut [f32]) = gelu_body
}
for_isa! {
    /// The gradient of [`gelu`].
    fn gelu_grad(x: &[f32], dy: &[f32], dx: &mut [f32]) = gelu_grad_body
}
for_isa! {
    /// GELU with `u = sqrt(2 / pi) (x + 0.044715 x^3)` and tanh.
    fn gelu_tanh(x: &[f32], y: &mut [f32]) = gelu_tanh_body
}
for_isa! {
    /// The gradient of [`gelu_tanh`].
    fn gelu_tanh_grad(x: &[f32], dy: &[f32], dx: &mut [f32]) = gelu_tanh_grad_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    const ALL: [Activation; 5] =
        [Activation::QuickGelu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu];

    /// What candle's own operations say.
    fn slow(kind: Activation, x: &Tensor) -> Result<Tensor> {
        match kind {
            Activation::QuickGelu => x / ((x * -1.702)?.exp()? + 1.0)?,
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
            Activation::Silu => x.silu(),
            Activation::Relu => x.relu(),
        }
    }

    #[test]
    fn values_and_gradients() -> Result<()> {
        // More than two blocks, from where exp overflows to where it vanishes.
        let n = 2 * BLOCK + 77;
        let x: Vec<f32> = (0..n).map(|i| (i as f32 / n as f32 - 0.5) * 60.0 + 0.013).collect();
        let x = Var::from_vec(x, n, &Device::Cpu)?;
        let weight = x.as_tensor().sin()?.detach();
        for kind in ALL {
            let both = [kind.apply(&x)?, slow(kind, &x)?];
            let grads = both.iter().map(|y| (y * &weight)?.sum_all()?.backward()).collect::<Result<Vec<_>>>()?;
            let values = |t: &Tensor| t.to_vec1::<f32>();
            let near = |a: Vec<f32>, b: Vec<f32>, what: &str| {
                for (a, b) in a.into_iter().zip(b) {
                    assert!((a - b).abs() <= 3e-5 * (1.0 + b.abs()), "{kind:?} {what}: {a} {b}");
                }
            };
            near(values(&both[0])?, values(&both[1])?, "value");
            let grad = |i: usize| values(grads[i].get(&x).expect("a gradient"));
            // candle's erf GELU and quick GELU have no gradient of 0 * inf at the far ends.
            near(grad(0)?, grad(1)?, "gradient");
        }
        assert!(Activation::from_name("quick_gelu")? == Activation::QuickGelu && Activation::from_name("x").is_err());
        Ok(())
    }
}
