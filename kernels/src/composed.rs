//! The fused operations of this crate as compositions of candle's, for tensors that are not on the CPU. With gradients, and but for linear maps in f32
//! within, like the fused ones, whose equations and shapes they share. They run on any device, so tests hold them beside the fused ones.
//!
//! They are slow: scores of attention are a tensor, and candle's gradients of a bank of experts are as large as the bank for each expert.

mod attention;
mod experts;

pub(crate) use attention::{attention, biased, cached, joint};
pub(crate) use experts::{combine, dispatch, grouped_linear};

use candle_core::{D, DType, Result, Tensor, bail};

use crate::rotary::RotaryStyle;

/// True where these forms are taken: off the CPU, and with `MOESAIC_COMPOSED=1` (or `half`) in the environment on it as well, which is how whole models are
/// tested with them, and how one finds whether a difference comes from a fused form.
pub(crate) fn wanted(x: &Tensor) -> bool {
    !x.device().is_cpu() || everywhere()
}

/// True if they are taken on the CPU as well.
pub(crate) fn everywhere() -> bool {
    asked().is_some()
}

/// True if activations are of the weights' number type there too: `MOESAIC_COMPOSED=half`.
pub(crate) fn halves() -> bool {
    asked() == Some("half")
}

fn asked() -> Option<&'static str> {
    static ASKED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var("MOESAIC_COMPOSED").ok());
    asked.as_deref().filter(|asked| ["1", "half"].contains(asked))
}

/// Runs `f` on the values in f32; the result has the dtype of `x`.
fn in_f32(x: &Tensor, f: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| {
        // Softmax does not change with what is taken from a row, so no gradient goes through the maximum.
        let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
        e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
    })
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    in_f32(x, |x| {
        let size = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        x.broadcast_div(&size)?.broadcast_mul(&weight.to_dtype(DType::F32)?)
    })
}

/// `x` with mean 0 and variance 1 along `dim`, times `weight`, plus `bias`.
fn normed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, dim: usize) -> Result<Tensor> {
    in_f32(x, |x| {
        let centred = x.broadcast_sub(&x.mean_keepdim(dim)?)?;
        let size = (centred.sqr()?.mean_keepdim(dim)? + eps)?.sqrt()?;
        let normed = centred.broadcast_div(&size)?;
        normed.broadcast_mul(&weight.to_dtype(DType::F32)?)?.broadcast_add(&bias.to_dtype(DType::F32)?)
    })
}

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    match x.rank() {
        0 => bail!("layer norm: the input has no dimension"),
        rank => normed(x, weight, bias, eps, rank - 1),
    }
}

/// `x [b, t, c]`, over time.
pub(crate) fn channel_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    normed(x, weight, bias, eps, 1)
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| x.gelu_erf())
}

pub(crate) fn silu_glu(x: &Tensor) -> Result<Tensor> {
    let wide = x.dim(D::Minus1)?;
    if wide % 2 != 0 {
        bail!("gated unit: the last dimension is {wide}, expected gate and up side by side");
    }
    in_f32(x, |x| x.narrow(D::Minus1, 0, wide / 2)?.silu()? * x.narrow(D::Minus1, wide / 2, wide / 2)?)
}

/// `x [rows, width]`, `points [count, width]` to `[rows, count]`.
pub(crate) fn distances(x: &Tensor, points: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| {
        // Point by point: nothing of rows x points x width is kept, and no difference of large squares is taken.
        let of = |p: usize| {
            let squared = x.broadcast_sub(&points.narrow(0, p, 1)?.to_dtype(DType::F32)?)?.sqr()?.sum_keepdim(1)?;
            // At the point itself the root has no slope, and the gradient is 0.
            let apart = squared.detach().gt(0.0)?.to_dtype(DType::F32)?;
            (&squared + (1.0 - &apart)?)?.sqrt()? * apart
        };
        Tensor::cat(&(0..points.dim(0)?).map(of).collect::<Result<Vec<_>>>()?, 1)
    })
}

/// Turns the first `turned` of the heads of `x [b, t, heads, d]` by `cos` and `sin [b, t, half]`.
pub(crate) fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, style: RotaryStyle, turned: usize) -> Result<Tensor> {
    let (b, t, heads, d) = x.dims4()?;
    let half = cos.dim(2)?;
    if 2 * half > d || turned > heads {
        bail!("rotary: tables of shape {:?} for input {:?}", cos.dims(), x.dims());
    }
    let table = |t: &Tensor| t.to_device(x.device())?.unsqueeze(2); // (b, t, 1, half)
    let (cos, sin) = (table(cos)?, table(sin)?);
    in_f32(x, |x| {
        let part = x.narrow(2, 0, turned)?.narrow(3, 0, 2 * half)?; // (b, t, turned, 2 half)
        let turn = |first: &Tensor, second: &Tensor| {
            let a = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
            let b = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
            Ok::<_, candle_core::Error>((a, b))
        };
        let rotated = match style {
            RotaryStyle::Half => {
                let (a, b) = turn(&part.narrow(3, 0, half)?, &part.narrow(3, half, half)?)?;
                Tensor::cat(&[a, b], 3)?
            }
            RotaryStyle::Interleaved => {
                let pairs = part.reshape((b, t, turned, half, 2))?;
                let (a, second) = turn(&pairs.narrow(4, 0, 1)?.squeeze(4)?, &pairs.narrow(4, 1, 1)?.squeeze(4)?)?;
                Tensor::stack(&[a, second], 4)?.reshape((b, t, turned, 2 * half))?
            }
        };
        let mut whole = rotated;
        if 2 * half < d {
            whole = Tensor::cat(&[whole, x.narrow(2, 0, turned)?.narrow(3, 2 * half, d - 2 * half)?], 3)?;
        }
        if turned < heads {
            whole = Tensor::cat(&[whole, x.narrow(2, turned, heads - turned)?], 2)?;
        }
        Ok(whole)
    })
}

/// Mean cross entropy; targets are checked, negative ones do not count.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &[i64]) -> Result<Tensor> {
    let (mut rows, mut classes) = (Vec::new(), Vec::new());
    for (row, &target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        rows.push(row as u32);
        classes.push(target as u32);
    }
    let (device, count) = (logits.device(), rows.len());
    if count == 0 {
        return Tensor::zeros((), DType::F32, device);
    }
    let logits = logits.contiguous()?.index_select(&Tensor::from_vec(rows, count, device)?, 0)?.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let sums = shifted.exp()?.sum_keepdim(1)?.log()?; // (count, 1)
    let chosen = shifted.gather(&Tensor::from_vec(classes, (count, 1), device)?, 1)?;
    (sums - chosen)?.mean_all()
}

/// Rows of `x [n, places, c]` in the order of `index`, `fill` where it is `places`: `[n, index, c]`.
pub(crate) fn places(x: &Tensor, index: Vec<u32>, fill: f64) -> Result<Tensor> {
    let (n, _, c) = x.dims3()?;
    let outside = (Tensor::ones((n, 1, c), DType::F32, x.device())? * fill)?.to_dtype(x.dtype())?;
    let count = index.len();
    let index = Tensor::from_vec(index, count, x.device())?;
    Tensor::cat(&[x, &outside], 1)?.contiguous()?.index_select(&index, 1)
}

/// Windows of `kernel` frames every `stride`, side by side: `x [b, t, c]` to `[b, windows, kernel c]`.
pub(crate) fn unfold(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let (b, t, c) = x.dims3()?;
    if kernel == 0 || stride == 0 || t < kernel {
        bail!(
            "unfold: no window of {kernel} frames every {stride} in {:?}, expected [batch, frames, channels]",
            x.dims()
        );
    }
    let windows = (t - kernel) / stride + 1;
    let index = (0..windows).flat_map(|w| (0..kernel).map(move |i| (w * stride + i) as u32)).collect();
    places(x, index, 0.0)?.reshape((b, windows, kernel * c)) // (b, windows, kernel c)
}

#[cfg(test)]
mod tests;
