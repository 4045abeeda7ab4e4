//! Fewer tokens out of many, before or without a projector.

use candle_core::{Result, bail};
use moesaic_kernels::Tokens;

/// How tokens are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Each `n` tokens that follow each other become their mean; what is left at the end is dropped (Llama-AVSR's
    /// `avg-pooling`).
    Average(usize),
    /// Each `n` tokens that follow each other stand side by side in the width; the rest is dropped (`stack`).
    Stack(usize),
    /// The means of `n x n` cells of a square grid of tokens, row by row.
    AverageGrid(usize),
    /// `n x n` cells of a square grid stand side by side in the width, row by row (space to depth; InternVL's and Idefics3's
    /// pixel shuffle).
    PixelShuffle(usize),
}

impl Compression {
    /// Width of a token afterwards.
    pub fn width(&self, width: usize) -> usize {
        match *self {
            Self::Average(_) | Self::AverageGrid(_) => width,
            Self::Stack(n) => width * n,
            Self::PixelShuffle(n) => width * n * n,
        }
    }

    /// Tokens that `tokens` become; of a grid, where it divides into cells.
    pub fn count(&self, tokens: usize) -> usize {
        match *self {
            Self::Average(n) | Self::Stack(n) => tokens / n.max(1),
            Self::AverageGrid(n) | Self::PixelShuffle(n) => tokens / (n * n).max(1),
        }
    }

    /// Checks that `tokens` can be joined.
    ///
    /// # Errors
    /// Fewer tokens than one cell, or a grid that is not square or does not divide into cells.
    pub fn check(&self, tokens: usize) -> Result<()> {
        match *self {
            Self::Average(n) | Self::Stack(n) if n == 0 || tokens < n => {
                bail!("{tokens} tokens do not make one of {n}")
            }
            Self::AverageGrid(n) | Self::PixelShuffle(n) => {
                let side = tokens.isqrt();
                if n == 0 || side * side != tokens || side < n || !side.is_multiple_of(n) {
                    bail!("{tokens} tokens are no square grid that divides into cells of {n} x {n}");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The compression of a config: `{"type": "pixel_shuffle", "size": 2}`; types are `average`, `stack`, `average_grid` and
    /// `pixel_shuffle`.
    ///
    /// # Errors
    /// The type is not known, or the size is not from 1 to 64.
    pub fn named(kind: &str, size: usize) -> Result<Self> {
        if !(1..=64).contains(&size) {
            bail!("a compression of size {size}, expected 1 to 64");
        }
        Ok(match kind {
            "average" => Self::Average(size),
            "stack" => Self::Stack(size),
            "average_grid" => Self::AverageGrid(size),
            "pixel_shuffle" => Self::PixelShuffle(size),
            other => {
                let other = moesaic_kernels::shown(other);
                bail!(
                    "a compression of type {other} is not known; known are average, stack, average_grid, pixel_shuffle"
                )
            }
        })
    }

    /// A joined token is real if all of its parts are. Positions and features for later layers are dropped.
    ///
    /// # Shapes
    /// tokens `[b, t, h]` to `[b, t / n, h or n h]` along the sequence, `[b, t / n^2, h or n^2 h]` on a grid
    ///
    /// # Errors
    /// Fewer tokens than one cell, or a grid that is not square or does not divide into cells.
    pub fn apply(&self, tokens: &Tokens) -> Result<Tokens> {
        let x = &tokens.embeds;
        let (b, t, h) = x.dims3()?;
        self.check(t)?;
        let (embeds, mask) = match *self {
            Self::Average(n) | Self::Stack(n) => {
                let count = t / n;
                let cells = x.narrow(1, 0, count * n)?.contiguous()?;
                let embeds = match self {
                    Self::Stack(_) => cells.reshape((b, count, n * h))?,
                    _ => (cells.reshape((b, count, n, h))?.sum(2)? / n as f64)?,
                };
                let mask =
                    tokens.mask.as_ref().map(|mask| mask.narrow(1, 0, count * n)?.contiguous()?.reshape((b, count, n)));
                (embeds, mask.transpose()?.map(|m| m.min(2)).transpose()?)
            }
            Self::AverageGrid(n) | Self::PixelShuffle(n) => {
                let side = t.isqrt();
                if tokens.mask.is_some() {
                    bail!("a grid of tokens has no padding");
                }
                let g = side / n;
                let cells = x.reshape((b, g, n, g, n * h))?.transpose(2, 3)?.contiguous()?; // (b, g, g, n, n h)
                let embeds = match self {
                    Self::PixelShuffle(_) => cells.reshape((b, g * g, n * n * h))?,
                    _ => (cells.reshape((b, g * g, n * n, h))?.sum(2)? / (n * n) as f64)?,
                };
                (embeds, None)
            }
        };
        Ok(Tokens { embeds, mask, modality: tokens.modality, positions: Vec::new(), taps: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use moesaic_kernels::Modality;

    fn tokens(t: usize) -> Result<Tokens> {
        Ok(Tokens::new(Tensor::arange(0f32, t as f32, &Device::Cpu)?.reshape((1, t, 1))?, Modality::Image))
    }

    #[test]
    fn cells_along_and_across() -> Result<()> {
        let values = |c: Compression, t: usize| c.apply(&tokens(t)?)?.embeds.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(Compression::Average(2), 5)?, [0.5, 2.5]);
        assert_eq!(values(Compression::Stack(2), 5)?, [0., 1., 2., 3.]);
        assert_eq!(values(Compression::AverageGrid(2), 16)?, [2.5, 4.5, 10.5, 12.5]);
        let shuffled = Compression::PixelShuffle(2).apply(&tokens(16)?)?;
        assert_eq!(shuffled.embeds.dims(), [1, 4, Compression::PixelShuffle(2).width(1)]);
        assert_eq!(shuffled.embeds.to_vec3::<f32>()?[0][1], [2., 3., 6., 7.]);
        for (c, t) in [(Compression::Average(3), 2), (Compression::Stack(0), 2), (Compression::AverageGrid(2), 9)] {
            assert!(c.apply(&tokens(t)?).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_token_with_padding_in_it_is_padding() -> Result<()> {
        let mask = Tensor::new(&[[1u8, 1, 1, 0]], &Device::Cpu)?.to_dtype(DType::F32)?;
        let tokens = Tokens { mask: Some(mask), ..tokens(4)? };
        let mask = Compression::Average(2).apply(&tokens)?.mask.map(|m| m.to_vec2::<f32>()).transpose()?;
        assert_eq!(mask, Some(vec![vec![1., 0.]]));
        Ok(())
    }
}
