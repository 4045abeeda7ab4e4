//! Euclidean distances of rows to a few points.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::row_blocks;
use crate::cpu::{SendPtr, isa, math, parallel};
use crate::host::{Values, as_f32, storage_of, tensor, tracked};

struct Distances;

/// `(rows, points, width)`
fn sizes(x: &[usize], points: &[usize]) -> Result<(usize, usize, usize)> {
    match (x, points) {
        (&[rows, width], &[count, other]) if width == other && width > 0 => Ok((rows, count, width)),
        _ => bail!("distances: rows {x:?} and points {points:?} do not fit"),
    }
}

impl CustomOp2 for Distances {
    fn name(&self) -> &'static str {
        "moesaic-distances"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, count, width) = sizes(l1.dims(), l2.dims())?;
        let (x, points) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        let mut y = vec![0f32; rows * count];
        let (isa, out) = (isa(), SendPtr::new(&mut y));
        row_blocks(rows, count * width, |range| {
            for i in range {
                // SAFETY: each row belongs to one task.
                let y = unsafe { out.slice(i * count, count) };
                for (y, point) in y.iter_mut().zip(points.chunks_exact(width)) {
                    *y = math::squared_distance(isa, &x[i * width..][..width], point).sqrt();
                }
            }
        });
        Ok((storage_of(y, s1.dtype(), self.name())?, (rows, count).into()))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, count, width) = sizes(x.dims(), p.dims())?;
        let of = |t| Values::of(t, self.name());
        let (xs, points, ys, dys) = (of(x)?, of(p)?, of(y)?, of(dy)?);
        let (xs, points, ys, dys) = (&xs[..], &points[..], &ys[..], &dys[..]);
        // At the point itself no direction leads away: the gradient is 0 there.
        let weight = |at: usize| if ys[at] > 0.0 { dys[at] / ys[at] } else { 0.0 };
        let isa = isa();
        let dx = tracked(x).then(|| {
            let mut dx = vec![0f32; rows * width];
            let out = SendPtr::new(&mut dx);
            row_blocks(rows, count * width, |range| {
                for i in range {
                    // SAFETY: each row belongs to one task.
                    let dx = unsafe { out.slice(i * width, width) };
                    for (e, point) in points.chunks_exact(width).enumerate() {
                        math::add_difference(isa, weight(i * count + e), &xs[i * width..][..width], point, dx);
                    }
                }
            });
            tensor(dx, x.shape(), x.dtype())
        });
        let dp = tracked(p).then(|| {
            let mut dp = vec![0f32; count * width];
            let out = SendPtr::new(&mut dp);
            parallel(count, rows * width > 1 << 14, |e| {
                // SAFETY: each point belongs to one task.
                let dp = unsafe { out.slice(e * width, width) };
                for (i, x) in xs.chunks_exact(width).enumerate() {
                    math::add_difference(isa, weight(i * count + e), &points[e * width..][..width], x, dp);
                }
            });
            tensor(dp, p.shape(), p.dtype())
        });
        Ok((dx.transpose()?, dp.transpose()?))
    }
}

/// `||x_i - p_j||`, in f32, with gradients for both.
///
/// # Shapes
/// `x [t, h]`, `points [e, h]` to `[t, e]`
pub fn distances(x: &Tensor, points: &Tensor) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        sizes(x.dims(), points.dims())?;
        return crate::composed::distances(x, points);
    }
    x.contiguous()?.apply_op2(&points.contiguous()?, Distances)
}
