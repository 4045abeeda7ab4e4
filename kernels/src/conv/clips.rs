//! Convolutions over pictures and clips, channels last, on the tiles that every product of the CPU uses.
//!
//! A window is a linear map of its values, as over time; here the windows are never laid out in memory as a whole: a task packs
//! those of some dozens of outputs straight into tiles and multiplies them with all columns of the weight.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::cpu::gemm::{WORTH, block};
use crate::cpu::math::for_isa;
use crate::cpu::pack::{Packed, pack_lanes};
use crate::cpu::tile::{MR, Out, Rows, most_rows, tiles};
use crate::cpu::{Scratch, SendPtr, isa, parallel, threads};
use crate::host::{as_f32, storage_of, tensor, with_f32};

/// Windows over frames, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Frames, rows and columns of a window.
    pub size: [usize; 3],
    /// From one window to the next.
    pub stride: [usize; 3],
    /// Zeros before and after.
    pub pad: [(usize, usize); 3],
}

impl Windows {
    /// Square windows of one frame, with `pad` zeros on all sides.
    pub const fn square(size: usize, stride: usize, pad: usize) -> Self {
        Self { size: [1, size, size], stride: [1, stride, stride], pad: [(0, 0), (pad, pad), (pad, pad)] }
    }

    /// Windows along each axis of `[frames, rows, columns]`; `None` where there is no whole one.
    pub fn count(&self, dims: [usize; 3]) -> Option<[usize; 3]> {
        let mut out = [0; 3];
        for (axis, out) in out.iter_mut().enumerate() {
            let (before, after) = self.pad[axis];
            let padded = dims[axis].checked_add(before)?.checked_add(after)?;
            *out = padded.checked_sub(self.size[axis])?.checked_div(self.stride[axis])? + 1;
        }
        (self.size.iter().all(|&s| s > 0)).then_some(out)
    }

    /// Values of a window of `channels`.
    pub fn width(&self, channels: usize) -> usize {
        self.size.iter().product::<usize>() * channels
    }
}

/// The places of windows in a clip `[n, t, h, w, c]`.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    windows: Windows,
    /// `t`, `h`, `w`
    dims: [usize; 3],
    pub channels: usize,
    pub clips: usize,
    /// Windows along each axis.
    pub out: [usize; 3],
}

/// The clip of a window, and its first frame, row and column, which may lie in the padding.
type Corner = (usize, [isize; 3]);

/// A run of the values of a window, those of one row of one frame: `skip` zeros, `len` values from `at` on, and zeros.
#[derive(Clone, Copy, Default)]
pub(super) struct Line {
    pub skip: usize,
    pub at: usize,
    pub len: usize,
}

impl Grid {
    pub fn new(windows: Windows, dims: &[usize]) -> Result<Self> {
        let &[n, t, h, w, c] = dims else {
            bail!("clips of shape {dims:?}, expected [clips, frames, rows, columns, channels]");
        };
        match windows.count([t, h, w]) {
            Some(out) if c > 0 => Ok(Self { windows, dims: [t, h, w], channels: c, clips: n, out }),
            _ => bail!("clips of shape {dims:?} hold no window of {:?}", windows.size),
        }
    }

    /// Windows in all.
    pub fn rows(&self) -> usize {
        self.clips * self.out.iter().product::<usize>()
    }

    /// Values of a run.
    pub fn run(&self) -> usize {
        self.windows.size[2] * self.channels
    }

    /// Runs of a window.
    pub fn runs(&self) -> usize {
        self.windows.size[0] * self.windows.size[1]
    }

    /// The corners of window `row` and all behind it.
    pub fn corners(&self, row: usize) -> impl Iterator<Item = Corner> {
        let Self { windows: Windows { stride, pad, .. }, out: [to, ho, wo], .. } = *self;
        let (mut clip, mut place) = (row / wo / ho / to, [row / wo / ho % to, row / wo % ho, row % wo]);
        std::iter::repeat_with(move || {
            let corner = std::array::from_fn(|axis| (place[axis] * stride[axis]) as isize - pad[axis].0 as isize);
            let this = (clip, corner);
            place[2] += 1;
            if place[2] == wo {
                (place[1], place[2]) = (place[1] + 1, 0);
                if place[1] == ho {
                    (place[0], place[1]) = (place[0] + 1, 0);
                    if place[0] == to {
                        (clip, place[0]) = (clip + 1, 0);
                    }
                }
            }
            this
        })
    }

    /// Whether windows are single values in their order.
    fn is_plain(&self) -> bool {
        self.windows == Windows::square(1, 1, 0)
    }

    /// Run `s` of the window at a corner.
    #[inline(always)]
    pub fn line(&self, (clip, [t, y, x]): Corner, s: usize) -> Line {
        let [frames, height, width] = self.dims;
        let (t, y) = (t + (s / self.windows.size[1]) as isize, y + (s % self.windows.size[1]) as isize);
        if t < 0 || y < 0 || t as usize >= frames || y as usize >= height {
            return Line::default();
        }
        let (from, to) = (x.max(0), (x + self.windows.size[2] as isize).min(width as isize));
        if from >= to {
            return Line::default();
        }
        let pixel = ((clip * frames + t as usize) * height + y as usize) * width + from as usize;
        let c = self.channels;
        Line { skip: (from - x) as usize * c, at: pixel * c, len: (to - from) as usize * c }
    }

    /// Packs windows `first..first + mr` into `[k][mr]`. `edge` has room for `mr` runs, `zeros` are those of one.
    fn pack(&self, x: &[f32], (first, mr): (usize, usize), dst: &mut [f32], edge: &mut [f32], zeros: &[f32]) {
        let run = self.run();
        if self.is_plain() {
            let row = |i: usize| &x[(first + i) * run..][..run];
            return pack_lanes(mr, run, row, |row, p| row[p], &mut dst[..run * mr]);
        }
        let mut corners = [(0, [0; 3]); MR];
        corners.iter_mut().take(mr).zip(self.corners(first)).for_each(|(corner, at)| *corner = at);
        for s in 0..self.runs() {
            let lines: [Line; MR] = std::array::from_fn(|i| self.line(corners[i], s));
            for (line, edge) in lines.iter().zip(edge.chunks_exact_mut(run)).take(mr) {
                if line.len > 0 && line.len < run {
                    edge.fill(0.0);
                    edge[line.skip..][..line.len].copy_from_slice(&x[line.at..][..line.len]);
                }
            }
            let edge = &*edge;
            let row = |i: usize| match lines[i].len {
                0 => zeros,
                len if len == run => &x[lines[i].at..][..run],
                _ => &edge[i * run..][..run],
            };
            pack_lanes(mr, run, row, |row, p| row[p], &mut dst[s * run * mr..][..run * mr]);
        }
    }
}

#[inline(always)]
fn finish_body<const FMA: bool>(y: &mut [f32], bias: &[f32], residual: Option<&[f32]>, slope: Option<&[f32]>) {
    let n = bias.len();
    for (i, row) in y.chunks_exact_mut(n).enumerate() {
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        if let Some(residual) = residual {
            row.iter_mut().zip(&residual[i * n..][..n]).for_each(|(v, r)| *v += r);
        }
        if let Some(slope) = slope {
            row.iter_mut().zip(slope).for_each(|(v, s)| *v = if *v > 0.0 { *v } else { s * *v });
        }
    }
}

for_isa! {
    /// Adds what there is to rows of outputs, then scales negative ones.
    fn finish(y: &mut [f32], bias: &[f32], residual: Option<&[f32]>, slope: Option<&[f32]>) = finish_body
}

/// Tiles of rows that a task takes at most: their windows stay in the second level of the cache in most layers.
const TILES: usize = 6;
/// Tasks for each thread, at least, where there are rows for them.
const TASKS: usize = 4;

/// A convolution over clips with its weight in tiles for the CPU: `act(windows · W^T + bias + residual)`, where `act` scales
/// negative values by a slope for each output (PReLU; He et al., arXiv 1502.01852; slope 0 is ReLU). Forward only.
#[derive(Clone, Debug)]
pub struct ClipConv {
    weight: Packed,
    bias: Arc<[f32]>,
    slope: Option<Arc<[f32]>>,
}

impl ClipConv {
    /// # Shapes
    /// `weight [out, window]`, the values of a window as frames, rows, columns, channels; `bias` and `slope` `[out]`
    ///
    /// # Errors
    /// Other shapes.
    pub fn new(weight: &Tensor, bias: &Tensor, slope: Option<&Tensor>) -> Result<Self> {
        let (out, inputs) = weight.dims2()?;
        if out == 0 || inputs == 0 {
            bail!("a convolution with weights of shape [{out}, {inputs}]");
        }
        let values = |t: &Tensor| match t.dims() {
            [n] if *n == out => Ok(Arc::from(t.to_dtype(DType::F32)?.to_vec1::<f32>()?)),
            other => {
                bail!("a convolution with {out} outputs takes a bias and slopes of shape [{out}], found {other:?}")
            }
        };
        let weight = Packed::new(&weight.to_dtype(DType::F32)?)?;
        Ok(Self { weight, bias: values(bias)?, slope: slope.map(values).transpose()? })
    }

    /// # Shapes
    /// `x [n, t, h, w, c]` to `[n, t', h', w', out]` as [`Windows::count`] says; `residual` as the result
    ///
    /// # Errors
    /// Windows that do not fit the weight or the clip, or a residual of another shape.
    pub fn forward(&self, x: &Tensor, windows: &Windows, residual: Option<&Tensor>) -> Result<Tensor> {
        let (conv, windows) = (self.clone(), *windows);
        let (x, op) = (x.contiguous()?, Apply { conv, windows });
        match residual {
            None => x.apply_op1_no_bwd(&op),
            Some(residual) => x.apply_op2_no_bwd(&residual.contiguous()?, &op),
        }
    }

    fn run(&self, grid: Grid, x: &[f32], residual: Option<&[f32]>) -> Result<Vec<f32>> {
        let (_, outs, k) = self.weight.dims();
        if grid.runs() * grid.run() != k {
            bail!(
                "windows of {:?} with {} channels do not fit a weight of {k} inputs",
                grid.windows.size,
                grid.channels
            );
        }
        let (rows, isa) = (grid.rows(), isa());
        if residual.is_some_and(|r| r.len() != rows * outs) {
            bail!("a residual of {} values for {rows} windows and {outs} outputs", residual.map_or(0, <[f32]>::len));
        }
        let most = most_rows(isa);
        // Which rows a task takes does not change their bits: every output is one chain over its window.
        let per_task = (rows / (most * threads() * TASKS)).clamp(1, TILES) * most;
        let zeros = vec![0f32; grid.run()];
        let mut y = vec![0f32; rows * outs];
        let out = SendPtr::new(&mut y);
        parallel(rows.div_ceil(per_task), rows.saturating_mul(outs).saturating_mul(k) > WORTH, |task| {
            let first = task * per_task;
            let count = per_task.min(rows - first);
            let blocks = count.div_ceil(most);
            let (mut a, mut edge) = (Scratch::new(count * k), Scratch::new(most * grid.run()));
            for (start, mr) in (0..blocks).map(|i| block(count, blocks, i)) {
                grid.pack(x, (first + start, mr), &mut a[start * k..][..mr * k], &mut edge, &zeros);
            }
            for j in 0..self.weight.panels() {
                let columns = self.weight.columns(j);
                let each = |i: usize| {
                    let (start, mr) = block(count, blocks, i);
                    // SAFETY: row `first + start` and column `columns.start` lie inside `y`.
                    let ptr = unsafe { out.at((first + start) * outs + columns.start) };
                    let tile = Out { ptr, ld: outs, n: columns.len(), accumulate: false };
                    (mr, Rows::F32(&a[start * k..][..mr * k]), tile)
                };
                // SAFETY: the rows of a task are its own, and `mr` of them from `start` on end at `count`, inside `y`.
                unsafe { tiles(isa, k, self.weight.panel(0, j), blocks, each) };
            }
            // SAFETY: as above.
            let y = unsafe { out.slice(first * outs, count * outs) };
            finish(isa, y, &self.bias, residual.map(|r| &r[first * outs..][..count * outs]), self.slope.as_deref());
        });
        Ok(y)
    }
}

struct Apply {
    conv: ClipConv,
    windows: Windows,
}

impl Apply {
    const NAME: &'static str = "moesaic-clip-conv";

    fn fwd(&self, x: (&CpuStorage, &Layout), residual: Option<(&CpuStorage, &Layout)>) -> Result<(CpuStorage, Shape)> {
        let grid = Grid::new(self.windows, x.1.dims())?;
        let residual = residual.map(|(s, l)| as_f32(s, l, Self::NAME)).transpose()?;
        let y = self.conv.run(grid, &as_f32(x.0, x.1, Self::NAME)?, residual.as_deref())?;
        let [t, h, w] = grid.out;
        let shape = (grid.clips, t, h, w, self.conv.bias.len()).into();
        Ok((storage_of(y, x.0.dtype(), Self::NAME)?, shape))
    }
}

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.fwd((s, l), None)
    }
}

impl CustomOp2 for Apply {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.fwd((s1, l1), Some((s2, l2)))
    }
}

/// Windows that a task lays out at once.
pub(super) const ROWS: usize = 64;

struct UnfoldClips(Windows);

impl CustomOp1 for UnfoldClips {
    fn name(&self) -> &'static str {
        "moesaic-unfold-clips"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = Grid::new(self.0, l.dims())?;
        let x = as_f32(s, l, self.name())?;
        let (rows, run, width) = (grid.rows(), grid.run(), grid.runs() * grid.run());
        let mut out = vec![0f32; rows * width];
        let to = SendPtr::new(&mut out);
        parallel(rows.div_ceil(ROWS), rows * width > 1 << 14, |i| {
            for (row, corner) in (i * ROWS..((i + 1) * ROWS).min(rows)).zip(grid.corners(i * ROWS)) {
                // SAFETY: each row is written by one task.
                let out = unsafe { to.slice(row * width, width) };
                for (s, out) in out.chunks_exact_mut(run).enumerate() {
                    let line = grid.line(corner, s);
                    out[line.skip..][..line.len].copy_from_slice(&x[line.at..][..line.len]);
                }
            }
        });
        let shape = (grid.clips, rows / grid.clips.max(1), width).into();
        Ok((storage_of(out, s.dtype(), self.name())?, shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let grid = Grid::new(self.0, x.dims())?;
        let (run, width) = (grid.run(), grid.runs() * grid.run());
        let (rows, len) = (grid.rows() / grid.clips.max(1), x.elem_count() / grid.clips.max(1));
        let mut dx = vec![0f32; x.elem_count()];
        let to = SendPtr::new(&mut dx);
        with_f32(dy, self.name(), |dy| {
            parallel(grid.clips, dy.len() > 1 << 14, |clip| {
                // SAFETY: each clip is written by one task.
                let dx = unsafe { to.slice(clip * len, len) };
                for (row, corner) in (clip * rows..(clip + 1) * rows).zip(grid.corners(clip * rows)) {
                    for (s, dy) in dy[row * width..][..width].chunks_exact(run).enumerate() {
                        let line = grid.line(corner, s);
                        if line.len > 0 {
                            let dx = &mut dx[line.at - clip * len..][..line.len];
                            dx.iter_mut().zip(&dy[line.skip..]).for_each(|(x, y)| *x += y);
                        }
                    }
                }
            });
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// All windows as rows, the values of each as frames, rows, columns, channels; with gradients. For training: a [`ClipConv`] takes
/// a fraction of the memory.
///
/// # Shapes
/// `x [n, t, h, w, c]` to `[n, t' h' w', window]`
pub fn unfold_clips(x: &Tensor, windows: &Windows) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return super::composed::unfold_clips(x, windows);
    }
    x.contiguous()?.apply_op1(UnfoldClips(*windows))
}

struct MaxPool(Windows);

#[inline(always)]
fn most_body<const FMA: bool>(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = if *x > *y { *x } else { *y });
}

for_isa! {
    /// The larger of both.
    fn most(y: &mut [f32], x: &[f32]) = most_body
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "moesaic-max-pool"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = Grid::new(self.0, l.dims())?;
        let x = as_f32(s, l, self.name())?;
        let (rows, c, isa) = (grid.rows(), grid.channels, isa());
        let mut out = vec![f32::NEG_INFINITY; rows * c];
        let to = SendPtr::new(&mut out);
        parallel(rows.div_ceil(ROWS), x.len() > 1 << 14, |i| {
            for (row, corner) in (i * ROWS..((i + 1) * ROWS).min(rows)).zip(grid.corners(i * ROWS)) {
                // SAFETY: each row is written by one task.
                let out = unsafe { to.slice(row * c, c) };
                for line in (0..grid.runs()).map(|s| grid.line(corner, s)) {
                    x[line.at..][..line.len].chunks_exact(c).for_each(|x| most(isa, out, x));
                }
            }
        });
        let [t, h, w] = grid.out;
        Ok((storage_of(out, s.dtype(), self.name())?, (grid.clips, t, h, w, c).into()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let grid = Grid::new(self.0, x.dims())?;
        let c = grid.channels;
        let (rows, len) = (grid.rows() / grid.clips.max(1), x.elem_count() / grid.clips.max(1));
        let mut dx = vec![0f32; x.elem_count()];
        let to = SendPtr::new(&mut dx);
        with_f32(x, self.name(), |x| {
            with_f32(y, self.name(), |y| {
                with_f32(dy, self.name(), |dy| {
                    parallel(grid.clips, x.len() > 1 << 14, |clip| {
                        // SAFETY: each clip is written by one task.
                        let dx = unsafe { to.slice(clip * len, len) };
                        let mut taken = vec![false; c];
                        for (row, corner) in (clip * rows..(clip + 1) * rows).zip(grid.corners(clip * rows)) {
                            // The first of equal values gets the gradient.
                            taken.fill(false);
                            for line in (0..grid.runs()).map(|s| grid.line(corner, s)) {
                                for at in (line.at..line.at + line.len).step_by(c) {
                                    for k in 0..c {
                                        if !taken[k] && x[at + k] == y[row * c + k] {
                                            taken[k] = true;
                                            dx[at + k - clip * len] += dy[row * c + k];
                                        }
                                    }
                                }
                            }
                        }
                    });
                    Ok(())
                })
            })
        })?;
        Ok(Some(tensor(dx, x.shape(), x.dtype())?))
    }
}

/// The largest value of each channel in each window, padding left out; with gradients.
///
/// # Shapes
/// `x [n, t, h, w, c]` to `[n, t', h', w', c]`
pub fn max_pool(x: &Tensor, windows: &Windows) -> Result<Tensor> {
    if crate::composed::wanted(x) {
        return super::composed::max_pool(x, windows);
    }
    x.contiguous()?.apply_op1(MaxPool(*windows))
}
