//! Differentiable row-wise operations that candle's fused forms cut gradients in: softmax, RMSNorm, LayerNorm and gated units; and distances.

mod distance;
mod gelu;

pub use distance::distances;
pub use gelu::gelu;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{SendPtr, isa, math, parallel};
use crate::host::{as_f32, storage_of, tensor, tracked, with_f32};

/// Rows that a task takes at once, and that a partial sum of a weight gradient covers: fixed, so that results do not
/// depend on the number of threads.
const ROWS: usize = 64;

/// Calls `f(row range)` for blocks of rows.
fn row_blocks(rows: usize, cols: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    let blocks = rows.div_ceil(ROWS);
    parallel(blocks, rows * cols > 1 << 14, |i| f(i * ROWS..((i + 1) * ROWS).min(rows)));
}

fn last_dim(layout: &Layout, op: &str) -> Result<usize> {
    match layout.dims().last() {
        Some(&n) if n > 0 => Ok(n),
        _ => bail!("{op}: the input has shape {:?}, expected a last dimension of at least 1", layout.dims()),
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "moesaic-softmax"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = last_dim(l, self.name())?;
        let mut y = as_f32(s, l, self.name())?.into_owned();
        let (isa, rows) = (isa(), y.len() / cols);
        let out = SendPtr::new(&mut y);
        row_blocks(rows, cols, |range| {
            for i in range {
                // SAFETY: each row belongs to one task.
                math::softmax(isa, unsafe { out.slice(i * cols, cols) }, 1.0);
            }
        });
        Ok((storage_of(y, candle_core::backend::BackendStorage::dtype(s), self.name())?, l.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let inner = (y * dy)?.sum_keepdim(D::Minus1)?;
        Ok(Some((y * dy.broadcast_sub(&inner)?)?))
    }
}

/// Softmax over the last dimension, in f32, with gradients.
///
/// # Shapes
/// any `[.., n]` to the same.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if composed::wanted(x) {
        return composed::softmax(x);
    }
    x.contiguous()?.apply_op1(Softmax)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "moesaic-rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let cols = last_dim(l1, self.name())?;
        let (x, w) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        if w.len() != cols {
            bail!("rms norm: {} weights for rows of {cols}", w.len());
        }
        let mut y = vec![0f32; x.len()];
        let (isa, rows) = (isa(), x.len() / cols);
        let out = SendPtr::new(&mut y);
        row_blocks(rows, cols, |range| {
            for i in range {
                // SAFETY: each row belongs to one task.
                math::rms_norm(isa, &x[i * cols..][..cols], &w, self.eps, unsafe { out.slice(i * cols, cols) });
            }
        });
        Ok((storage_of(y, candle_core::backend::BackendStorage::dtype(s1), self.name())?, l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let cols = w.elem_count();
        let rows = x.elem_count() / cols;
        let blocks = rows.div_ceil(ROWS);
        let mut dx = vec![0f32; x.elem_count()];
        let mut partial = vec![0f32; blocks * cols];
        let (dx_out, partial_out) = (SendPtr::new(&mut dx), SendPtr::new(&mut partial));
        let isa = isa();
        with_f32(x, self.name(), |xs| {
            with_f32(w, self.name(), |ws| {
                with_f32(dy, self.name(), |dys| {
                    row_blocks(rows, cols, |range| {
                        // SAFETY: each block of rows, and its partial sum, belongs to one task.
                        let dw = unsafe { partial_out.slice(range.start / ROWS * cols, cols) };
                        for i in range {
                            let (x, dy) = (&xs[i * cols..][..cols], &dys[i * cols..][..cols]);
                            // SAFETY: as above.
                            let dx = unsafe { dx_out.slice(i * cols, cols) };
                            math::rms_norm_grad(isa, x, ws, self.eps, dy, dx, dw);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        let mut dw = vec![0f32; cols];
        for block in partial.chunks_exact(cols) {
            dw.iter_mut().zip(block).for_each(|(a, b)| *a += b);
        }
        let dx = tracked(x).then(|| tensor(dx, x.shape(), x.dtype())).transpose()?;
        let dw = tracked(w).then(|| tensor(dw, w.shape(), w.dtype())).transpose()?;
        Ok((dx, dw))
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in f32, with gradients for both.
///
/// # Shapes
/// `x [.., h]`, `weight [h]` to `[.., h]`
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if composed::wanted(x) {
        return composed::rms_norm(x, weight, eps);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "moesaic-layer-norm"
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
        let cols = last_dim(l1, self.name())?;
        let (x, w) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        let b = as_f32(s3, l3, self.name())?;
        if w.len() != cols || b.len() != cols {
            bail!("layer norm: {} weights and {} biases for rows of {cols}", w.len(), b.len());
        }
        let mut y = vec![0f32; x.len()];
        let (isa, rows) = (isa(), x.len() / cols);
        let out = SendPtr::new(&mut y);
        row_blocks(rows, cols, |range| {
            for i in range {
                // SAFETY: each row belongs to one task.
                math::layer_norm(isa, &x[i * cols..][..cols], &w, &b, self.eps, unsafe { out.slice(i * cols, cols) });
            }
        });
        Ok((storage_of(y, candle_core::backend::BackendStorage::dtype(s1), self.name())?, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let cols = w.elem_count();
        let rows = x.elem_count() / cols;
        let blocks = rows.div_ceil(ROWS);
        let mut dx = vec![0f32; x.elem_count()];
        // Of each block of rows: the sums for the weight, then those for the bias.
        let mut partial = vec![0f32; blocks * 2 * cols];
        let (dx_out, partial_out) = (SendPtr::new(&mut dx), SendPtr::new(&mut partial));
        let isa = isa();
        with_f32(x, self.name(), |xs| {
            with_f32(w, self.name(), |ws| {
                with_f32(dy, self.name(), |dys| {
                    row_blocks(rows, cols, |range| {
                        // SAFETY: each block of rows, and its partial sums, belongs to one task.
                        let sums = unsafe { partial_out.slice(range.start / ROWS * 2 * cols, 2 * cols) };
                        let (dw, db) = sums.split_at_mut(cols);
                        for i in range {
                            let (x, dy) = (&xs[i * cols..][..cols], &dys[i * cols..][..cols]);
                            // SAFETY: as above.
                            let dx = unsafe { dx_out.slice(i * cols, cols) };
                            math::layer_norm_grad(isa, x, ws, self.eps, dy, dx, dw, db);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        let (mut dw, mut db) = (vec![0f32; cols], vec![0f32; cols]);
        for block in partial.chunks_exact(2 * cols) {
            let (w, b) = block.split_at(cols);
            dw.iter_mut().zip(w).for_each(|(a, v)| *a += v);
            db.iter_mut().zip(b).for_each(|(a, v)| *a += v);
        }
        let grad = |t: &Tensor, g: Vec<f32>| tracked(t).then(|| tensor(g, t.shape(), t.dtype())).transpose();
        Ok((grad(x, dx)?, grad(w, dw)?, grad(b, db)?))
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension, in f32, with gradients for all three.
/// The variance is the biased one, as everywhere.
///
/// # Shapes
/// `x [.., h]`, `weight [h]`, `bias [h]` to `[.., h]`
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let bias = match bias {
        Some(bias) => bias.contiguous()?,
        None => Tensor::zeros(weight.elem_count(), DType::F32, x.device())?,
    };
    if composed::wanted(x) {
        return composed::layer_norm(x, weight, &bias, eps);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, LayerNorm { eps: eps as f32 })
}

struct SiluGlu;

impl CustomOp1 for SiluGlu {
    fn name(&self) -> &'static str {
        "moesaic-silu-glu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let wide = last_dim(l, self.name())?;
        if wide % 2 != 0 {
            bail!("gated unit: the last dimension is {wide}, expected gate and up side by side");
        }
        let cols = wide / 2;
        let x = as_f32(s, l, self.name())?;
        let (isa, rows) = (isa(), x.len() / wide);
        let mut y = vec![0f32; rows * cols];
        let out = SendPtr::new(&mut y);
        row_blocks(rows, cols, |range| {
            for i in range {
                let (gate, up) = x[i * wide..][..wide].split_at(cols);
                // SAFETY: each row belongs to one task.
                math::silu_glu(isa, gate, up, unsafe { out.slice(i * cols, cols) });
            }
        });
        let mut dims = l.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = cols;
        }
        Ok((storage_of(y, candle_core::backend::BackendStorage::dtype(s), self.name())?, dims.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let wide = x.dim(D::Minus1)?;
        let (cols, rows) = (wide / 2, x.elem_count() / wide);
        let mut dx = vec![0f32; x.elem_count()];
        let out = SendPtr::new(&mut dx);
        let isa = isa();
        with_f32(x, self.name(), |xs| {
            with_f32(dy, self.name(), |dys| {
                row_blocks(rows, cols, |range| {
                    for i in range {
                        let (gate, up) = xs[i * wide..][..wide].split_at(cols);
                        // SAFETY: each row belongs to one task.
                        let (dgate, dup) = unsafe { out.slice(i * wide, wide) }.split_at_mut(cols);
                        math::silu_glu_grad(isa, gate, up, &dys[i * cols..][..cols], dgate, dup);
                    }
                });
                Ok(())
            })
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// `silu(gate) * up` of gate and up side by side (SwiGLU, Shazeer 2020), with gradients.
///
/// # Shapes
/// `[.., 2 i]` to `[.., i]`
pub fn silu_glu(gate_up: &Tensor) -> Result<Tensor> {
    if composed::wanted(gate_up) {
        return composed::silu_glu(gate_up);
    }
    gate_up.contiguous()?.apply_op1(SiluGlu)
}
