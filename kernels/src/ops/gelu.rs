//! GELU on all threads.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::cpu::{SendPtr, isa, math, parallel};
use crate::host::{as_f32, storage_of, tensor, with_f32};

/// Values that a task takes at once.
const BLOCK: usize = 1 << 13;

struct Gelu;

/// Calls `f` with blocks of `values`, each with its first index.
fn blocks(values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let n = values.len();
    let shared = SendPtr::new(values);
    parallel(n.div_ceil(BLOCK), n > BLOCK, |i| {
        let first = i * BLOCK;
        // SAFETY: each block belongs to one task.
        f(first, unsafe { shared.slice(first, BLOCK.min(n - first)) });
    });
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "moesaic-gelu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = as_f32(s, l, self.name())?.into_owned();
        let isa = isa();
        blocks(&mut y, |_, y| math::gelu(isa, y));
        Ok((storage_of(y, s.dtype(), self.name())?, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_f32(dy, self.name(), |dy| Ok(dy.to_vec()))?;
        with_f32(x, self.name(), |x| {
            blocks(&mut dx, |first, dx| {
                for (d, &x) in dx.iter_mut().zip(&x[first..]) {
                    let below = 0.5 * (1.0 + math::erf::<false>(x * std::f32::consts::FRAC_1_SQRT_2));
                    // 1 / sqrt(2 pi)
                    let density = 0.398_942_3 * math::exp::<false>(-0.5 * x * x);
                    *d *= below + x * density;
                }
            });
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// `x * P(X <= x)` for a standard normal X, with the error function (Hendrycks and Gimpel, arXiv 1606.08415), with gradients.
///
/// # Shapes
/// any to the same
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return crate::composed::gelu(x);
    }
    x.contiguous()?.apply_op1(Gelu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, Params};
    use candle_core::{Device, Var};

    #[test]
    fn it_is_candles_with_its_gradient() -> Result<()> {
        let x = Params::init(3, &Device::Cpu).tensor("x", [3, 9000], Init::Normal(2.0))?;
        let x = Var::from_tensor(&x.detach())?;
        let (ours, theirs) = (gelu(&x)?, x.gelu_erf()?);
        let worst = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        assert!(worst(&ours, &theirs)? < 2e-6);
        let (ours, theirs) = (ours.sqr()?.sum_all()?.backward()?, theirs.sqr()?.sum_all()?.backward()?);
        assert!(worst(ours.get(&x).expect("a gradient"), theirs.get(&x).expect("a gradient"))? < 2e-5);
        Ok(())
    }
}
