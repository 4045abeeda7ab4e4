//! Convolutions that leave channels apart.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::clips::{Grid, ROWS, Windows};
use crate::cpu::math::{fma, for_isa};
use crate::cpu::{SendPtr, isa, parallel};
use crate::host::{as_f32, storage_of};

/// Channels that are summed at once.
const LANES: usize = 8;

/// Where a value of the clip and what it is multiplied by start.
type Tap = (usize, usize);

#[inline(always)]
fn pixel_body<const FMA: bool>(out: &mut [f32], x: &[f32], filters: &[f32], taps: &[Tap]) {
    let whole = out.len() / LANES * LANES;
    let (blocks, rest) = out.as_chunks_mut::<LANES>();
    for (i, out) in blocks.iter_mut().enumerate() {
        let mut sums = [0f32; LANES];
        for &(x_at, filter_at) in taps {
            let (x, filter) = (&x[x_at + i * LANES..][..LANES], &filters[filter_at + i * LANES..][..LANES]);
            for ((sum, x), filter) in sums.iter_mut().zip(x).zip(filter) {
                *sum = fma::<FMA>(*x, *filter, *sum);
            }
        }
        *out = sums;
    }
    for (i, out) in rest.iter_mut().enumerate() {
        let product =
            |sum, &(x_at, filter_at): &Tap| fma::<FMA>(x[x_at + whole + i], filters[filter_at + whole + i], sum);
        *out = taps.iter().fold(0.0, product);
    }
}

for_isa! {
    /// All channels of an output.
    fn pixel(out: &mut [f32], x: &[f32], filters: &[f32], taps: &[Tap]) = pixel_body
}

struct Depthwise(Windows);

impl CustomOp2 for Depthwise {
    fn name(&self) -> &'static str {
        "moesaic-depthwise"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = Grid::new(self.0, l1.dims())?;
        let (c, size) = (grid.channels, self.0.size.iter().product::<usize>());
        if l2.dims() != [size, c] {
            bail!("depthwise filters of shape {:?}, expected [{size}, {c}]", l2.dims());
        }
        let (x, filters) = (as_f32(s1, l1, self.name())?, as_f32(s2, l2, self.name())?);
        let (rows, isa) = (grid.rows(), isa());
        let mut out = vec![0f32; rows * c];
        let to = SendPtr::new(&mut out);
        parallel(rows.div_ceil(ROWS), rows.saturating_mul(c).saturating_mul(size) > 1 << 15, |task| {
            let mut taps = Vec::with_capacity(size);
            for (row, corner) in (task * ROWS..((task + 1) * ROWS).min(rows)).zip(grid.corners(task * ROWS)) {
                taps.clear();
                for s in 0..grid.runs() {
                    let line = grid.line(corner, s);
                    let filter = s * grid.run() + line.skip;
                    taps.extend((0..line.len).step_by(c).map(|at| (line.at + at, filter + at)));
                }
                // SAFETY: each row is written by one task.
                pixel(isa, unsafe { to.slice(row * c, c) }, &x, &filters, &taps);
            }
        });
        let [t, h, w] = grid.out;
        Ok((storage_of(out, s1.dtype(), self.name())?, (grid.clips, t, h, w, c).into()))
    }
}

/// A filter for each channel alone, the spatial part of a depthwise separable convolution (Howard et al., arXiv 1704.04861).
/// Forward only.
///
/// # Shapes
/// `x [n, t, h, w, c]` and `filters [window, c]`, its rows in the order of frames, rows, columns, to `[n, t', h', w', c]`
///
/// # Errors
/// Other shapes.
pub fn depthwise(x: &Tensor, filters: &Tensor, windows: &Windows) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return super::composed::depthwise(x, filters, windows);
    }
    x.contiguous()?.apply_op2_no_bwd(&filters.contiguous()?, &Depthwise(*windows))
}
