//! Initial values of tensors that no checkpoint gives.

use crate::rng::Rng;

/// Initial values of a tensor that no checkpoint gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero: biases.
    Zeros,
    /// All one: norms.
    Ones,
    /// All this: slopes.
    Constant(f64),
    /// Normal with this standard deviation: `initializer_range`.
    Normal(f64),
    /// Uniform between minus this and this.
    Uniform(f64),
    /// The places of a square grid of `side` cells a side, row by row, behind `lead` rows of zeros (a class token has no place):
    /// sines and cosines of a cell's row, then of its column, a quarter of the width each ("Better plain ViT baselines for
    /// ImageNet-1k", arXiv 2205.01580). Normal values as small as those of other embeddings drown in patches, and a tower then
    /// sees for long a bag of patches without order.
    Grid {
        /// Rows of zeros before the grid.
        lead: usize,
        /// Cells a side.
        side: usize,
    },
}

impl Init {
    /// The values of a tensor whose last axis has `width` elements, in order.
    pub(super) fn values(self, mut rng: Rng, width: usize) -> impl FnMut() -> f64 {
        let mut next = 0;
        move || match self {
            Self::Zeros => 0.0,
            Self::Ones => 1.0,
            Self::Constant(value) => value,
            Self::Normal(std) => std * rng.normal(),
            Self::Uniform(bound) => rng.range(-bound, bound),
            Self::Grid { lead, side } => {
                let (row, column) = (next / width, next % width);
                next += 1;
                row.checked_sub(lead).map_or(0.0, |cell| place(cell, side, column, width))
            }
        }
    }
}

/// Element `i` of the `width` elements that stand for a cell.
fn place(cell: usize, side: usize, i: usize, width: usize) -> f64 {
    let quarter = (width / 4).max(1);
    let (axis, wave) = (i / quarter, i % quarter);
    let at = if axis < 2 { cell / side.max(1) } else { cell % side.max(1) } as f64;
    // Wave lengths from 2 pi to 2 pi * 10000 cells, as a transformer's positions.
    let angle = at * 10_000f64.powf(-(wave as f64) / quarter as f64);
    match axis {
        0 | 2 => angle.sin(),
        1 | 3 => angle.cos(),
        // A width that four does not divide: the rest says nothing.
        _ => 0.0,
    }
}
