//! Windows of clips from candle's operations, for devices other than the CPU.

use candle_core::{D, Result, Tensor, bail};

use super::Windows;
use super::clips::Grid;
use crate::composed::places;

/// The values of all windows of a clip, `fill` for padding: `[n, windows, window, c]`.
fn windows_of(x: &Tensor, grid: &Grid, fill: f64) -> Result<Tensor> {
    let (n, c) = (grid.clips, grid.channels);
    let outside = x.elem_count() / (n * c).max(1);
    let rows = grid.rows() / n.max(1);
    let mut index = Vec::with_capacity(rows * grid.runs() * grid.run() / c);
    for corner in grid.corners(0).take(rows) {
        for s in 0..grid.runs() {
            let line = grid.line(corner, s);
            let (skip, len) = (line.skip / c, line.len / c);
            index.extend((0..grid.run() / c).map(|i| match i.checked_sub(skip) {
                Some(i) if i < len => (line.at / c + i) as u32,
                _ => outside as u32,
            }));
        }
    }
    let all = places(&x.reshape((n, outside, c))?, index, fill)?;
    all.reshape((n, rows, grid.runs() * grid.run() / c, c)) // (n, windows, window, c)
}

pub(crate) fn unfold_clips(x: &Tensor, windows: &Windows) -> Result<Tensor> {
    windows_of(x, &Grid::new(*windows, x.dims())?, 0.0)?.flatten_from(2) // (n, windows, window c)
}

pub(crate) fn max_pool(x: &Tensor, windows: &Windows) -> Result<Tensor> {
    let grid = Grid::new(*windows, x.dims())?;
    let [t, h, w] = grid.out;
    let all = windows_of(x, &grid, f64::NEG_INFINITY)?;
    // The first of equal values gets the gradient: that of candle's `max` goes to all of them whole.
    let most = all.gather(&all.argmax_keepdim(2)?, 2)?;
    most.reshape((grid.clips, t, h, w, grid.channels)) // (n, t', h', w', c)
}

pub(crate) fn depthwise(x: &Tensor, filters: &Tensor, windows: &Windows) -> Result<Tensor> {
    let grid = Grid::new(*windows, x.dims())?;
    let (c, size) = (grid.channels, grid.runs() * grid.run() / grid.channels);
    if filters.dims() != [size, c] {
        bail!("depthwise filters of shape {:?}, expected [{size}, {c}]", filters.dims());
    }
    let [t, h, w] = grid.out;
    let all = windows_of(x, &grid, 0.0)?.broadcast_mul(filters)?;
    all.sum(D::Minus2)?.reshape((grid.clips, t, h, w, c)) // (n, t', h', w', c)
}
