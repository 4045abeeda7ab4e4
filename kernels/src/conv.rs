//! What convolutions need: over time, windows as rows for a [`Linear`](crate::Linear) and a norm; over pictures and clips, all.

mod clips;
#[cfg(test)]
mod clips_tests;
pub(crate) mod composed;
mod depthwise;

pub use clips::{ClipConv, Windows, max_pool, unfold_clips};
pub use depthwise::depthwise;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{SendPtr, parallel};
use crate::host::{as_f32, storage_of, tensor, tracked, with_f32};

/// Rows that a task copies at once.
const ROWS: usize = 256;

struct Unfold {
    kernel: usize,
    stride: usize,
}

impl Unfold {
    /// `(batch, frames, channels, windows)`
    fn sizes(&self, dims: &[usize]) -> Result<(usize, usize, usize, usize)> {
        let (k, s) = (self.kernel, self.stride);
        match *dims {
            [b, t, c] if k > 0 && s > 0 && t >= k => Ok((b, t, c, (t - k) / s + 1)),
            _ => bail!("unfold: no window of {k} frames every {s} in {dims:?}, expected [batch, frames, channels]"),
        }
    }
}

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "moesaic-unfold"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, t, c, windows) = self.sizes(layout.dims())?;
        let x = as_f32(storage, layout, self.name())?;
        let width = self.kernel * c;
        let mut out = vec![0f32; b * windows * width];
        let to = SendPtr::new(&mut out);
        let rows = b * windows;
        parallel(rows.div_ceil(ROWS), rows * width > 1 << 14, |i| {
            for row in i * ROWS..((i + 1) * ROWS).min(rows) {
                let from = (row / windows * t + row % windows * self.stride) * c;
                // SAFETY: each row is written by one task.
                unsafe { to.slice(row * width, width) }.copy_from_slice(&x[from..from + width]);
            }
        });
        Ok((storage_of(out, storage.dtype(), self.name())?, (b, windows, width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (b, t, c, windows) = self.sizes(x.dims())?;
        let width = self.kernel * c;
        let mut dx = vec![0f32; x.elem_count()];
        let to = SendPtr::new(&mut dx);
        with_f32(dy, self.name(), |dy| {
            parallel(b, dy.len() > 1 << 14, |i| {
                // SAFETY: each row of the batch is written by one task.
                let dx = unsafe { to.slice(i * t * c, t * c) };
                for (j, dy) in dy[i * windows * width..][..windows * width].chunks_exact(width.max(1)).enumerate() {
                    dx[j * self.stride * c..][..width].iter_mut().zip(dy).for_each(|(x, y)| *x += y);
                }
            });
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// Windows of `kernel` frames every `stride` frames, each laid out as one row: a convolution over time is a linear map of
/// them whose weight is `[out, kernel, channels]`. With gradients.
///
/// # Shapes
/// `x [b, t, c]` to `[b, (t - kernel) / stride + 1, kernel * c]`
pub fn unfold(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return crate::composed::unfold(x, kernel, stride);
    }
    x.contiguous()?.apply_op1(Unfold { kernel, stride })
}

struct ChannelNorm {
    eps: f64,
}

/// Mean and `1 / sqrt(variance + eps)` of each channel of `x [t, c]`, summed in f64: there may be a hundred thousand frames.
fn statistics(x: &[f32], c: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / c) as f64;
    let mut mean = vec![0f64; c];
    x.chunks_exact(c).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v)));
    mean.iter_mut().for_each(|m| *m /= n);
    let mut scale = vec![0f64; c];
    for row in x.chunks_exact(c) {
        for ((s, m), &v) in scale.iter_mut().zip(&mean).zip(row) {
            *s += (f64::from(v) - m).powi(2);
        }
    }
    scale.iter_mut().for_each(|s| *s = 1.0 / (*s / n + eps).sqrt());
    (mean, scale)
}

impl CustomOp3 for ChannelNorm {
    fn name(&self) -> &'static str {
        "moesaic-channel-norm"
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
        let (b, t, c) = l1.shape().dims3()?;
        let (x, w) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        let bias = as_f32(s3, l3, self.name())?;
        if w.len() != c || bias.len() != c || c == 0 || t == 0 {
            bail!("channel norm: {} weights and {} biases for frames {:?}", w.len(), bias.len(), l1.dims());
        }
        let mut out = vec![0f32; x.len()];
        let to = SendPtr::new(&mut out);
        parallel(b, x.len() > 1 << 14, |i| {
            let x = &x[i * t * c..][..t * c];
            let (mean, scale) = statistics(x, c, self.eps);
            let (mean, scale): (Vec<f32>, Vec<f32>) =
                mean.iter().zip(&scale).map(|(&m, &s)| (m as f32, s as f32)).unzip();
            // SAFETY: each row of the batch is written by one task.
            let out = unsafe { to.slice(i * t * c, t * c) };
            for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                for k in 0..c {
                    out[k] = (x[k] - mean[k]) * scale[k] * w[k] + bias[k];
                }
            }
        });
        Ok((storage_of(out, s1.dtype(), self.name())?, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, t, c) = x.dims3()?;
        let (mut dx, mut dw, mut db) = (vec![0f32; x.elem_count()], vec![0f32; c], vec![0f32; c]);
        with_f32(x, self.name(), |xs| {
            with_f32(w, self.name(), |ws| {
                with_f32(dy, self.name(), |dys| {
                    let rows = xs.chunks_exact(t * c).zip(dys.chunks_exact(t * c));
                    for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(t * c)) {
                        let (mean, scale) = statistics(x, c, self.eps);
                        let (mut sum, mut inner) = (vec![0f64; c], vec![0f64; c]);
                        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
                            for k in 0..c {
                                sum[k] += f64::from(dy[k]);
                                inner[k] += f64::from(dy[k]) * (f64::from(x[k]) - mean[k]) * scale[k];
                            }
                        }
                        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
                            for k in 0..c {
                                let normed = (f64::from(x[k]) - mean[k]) * scale[k];
                                let centred = f64::from(dy[k]) - (sum[k] + normed * inner[k]) / t as f64;
                                dx[k] = (centred * scale[k] * f64::from(ws[k])) as f32;
                            }
                        }
                        for k in 0..c {
                            dw[k] += inner[k] as f32;
                            db[k] += sum[k] as f32;
                        }
                    }
                    Ok(())
                })
            })
        })?;
        let grad = |t: &Tensor, g: Vec<f32>| tracked(t).then(|| tensor(g, t.shape(), t.dtype())).transpose();
        Ok((grad(x, dx)?, grad(w, dw)?, grad(bias, db)?))
    }
}

/// Each channel of each batch row with mean 0 and variance 1 over time, then `* weight + bias`: GroupNorm (Wu and He, arXiv
/// 1803.08494) with a group for each channel. With gradients for all three.
///
/// # Shapes
/// `x [b, t, c]`, `weight [c]`, `bias [c]` to `[b, t, c]`
pub fn channel_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return crate::composed::channel_norm(x, weight, bias, eps);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, ChannelNorm { eps })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, Params};
    use candle_core::{Device, Var};

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("a tensor of f32")
    }

    fn near(a: &Tensor, b: &Tensor, tolerance: f32) {
        assert_eq!(a.dims(), b.dims());
        for (a, b) in values(a).iter().zip(values(b)) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} {b}");
        }
    }

    fn normal(name: &str, shape: &[usize]) -> Result<Var> {
        Var::from_tensor(&Params::init(5, &Device::Cpu).tensor(name, shape, Init::Normal(1.0))?.detach())
    }

    #[test]
    fn a_linear_map_of_windows_is_candles_convolution() -> Result<()> {
        for (t, k, s) in [(20, 3, 1), (21, 3, 2), (33, 10, 5), (4, 4, 3), (9, 2, 2)] {
            let (x, w) = (normal("x", &[2, t, 4])?, normal("w", &[6, 4, k])?);
            let rows = w.permute((0, 2, 1))?.reshape((6, k * 4))?;
            let ours = unfold(&x, k, s)?.broadcast_matmul(&rows.t()?)?;
            let theirs = x.transpose(1, 2)?.contiguous()?.conv1d(&w, 0, s, 1, 1)?.transpose(1, 2)?;
            near(&ours, &theirs.contiguous()?, 1e-5);
            // Gradients against windows cut out one by one.
            let windows = (0..=(t - k) / s).map(|i| x.narrow(1, i * s, k)?.reshape((2, k * 4)));
            let windows = Tensor::stack(&windows.collect::<Result<Vec<_>>>()?, 1)?;
            let theirs = windows.broadcast_matmul(&rows.t()?)?;
            let gradient = |y: &Tensor| -> Result<Tensor> {
                let grads = y.sqr()?.sum_all()?.backward()?;
                Ok(grads.get(&x).expect("a gradient").clone())
            };
            near(&gradient(&ours)?, &gradient(&theirs)?, 1e-4);
        }
        assert!(unfold(&Tensor::zeros((1, 2, 3), candle_core::DType::F32, &Device::Cpu)?, 3, 1).is_err());
        Ok(())
    }

    #[test]
    fn channels_are_normed_over_time() -> Result<()> {
        let (x, w, b) = (normal("x", &[2, 9, 3])?, normal("w", &[3])?, normal("b", &[3])?);
        let ours = channel_norm(&x, &w, &b, 1e-5)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let theirs = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?.broadcast_mul(&w)?.broadcast_add(&b)?;
        near(&ours, &theirs, 1e-5);
        let weights = normal("g", &[2, 9, 3])?.detach();
        let (ours, theirs) = ((ours * &weights)?.sum_all()?.backward()?, (theirs * &weights)?.sum_all()?.backward()?);
        for var in [&x, &w, &b] {
            near(ours.get(var).expect("a gradient"), theirs.get(var).expect("a gradient"), 1e-4);
        }
        Ok(())
    }
}
