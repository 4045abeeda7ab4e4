//! Pictures as tokens: patches, and for small towers convolutions in front of them.
//!
//! A tower that starts from nothing, and has little to learn from, learns to see sooner behind some convolutions with small steps
//! than behind one with large steps: Xiao et al., "Early Convolutions Help Transformers See Better" (arXiv 2106.14881).

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::conv::{Windows, unfold_clips};
use moesaic_kernels::{Activation, Init, Linear, Params};

use crate::blocks::{linear, scaled};
use crate::config::Object;

/// Convolutions of 3 x 3 pixels that each halve the sides, with a GELU behind each.
#[derive(Clone, Debug)]
struct Stem(Vec<Linear>);

/// Windows of [`Stem`].
const HALVE: Windows = Windows::square(3, 2, 1);

impl Stem {
    /// `{i}.weight [channels, 3, 3, channels before]` and `{i}.bias [channels]`: channels last, as they are multiplied.
    fn load(p: &Params, channels: &[usize]) -> Result<Self> {
        let mut before = 3;
        let map = |(i, &after): (usize, &usize)| {
            let (p, width) = (p.pp(i), 9 * before);
            let weight = p.stack(&[after, width], &[("weight".into(), vec![after, 3, 3, before])], scaled(width))?;
            before = after;
            linear(&p, weight, Some(p.tensor("bias", [after], Init::Zeros)?))
        };
        Ok(Self(channels.iter().enumerate().map(map).collect::<Result<_>>()?))
    }

    /// `x [b, 1, h, w, 3]` to `[b, 1, h / 2^n, w / 2^n, channels]`, halves rounded up
    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for map in &self.0 {
            let (b, _, h, w, _) = x.dims5()?;
            let y = Activation::Gelu.apply(&map.forward(&unfold_clips(&x, &HALVE)?)?)?; // (b, h / 2 * w / 2, channels)
            x = y.reshape((b, 1, h.div_ceil(2), w.div_ceil(2), y.dim(2)?))?;
        }
        Ok(x)
    }
}

/// The channels of the convolutions in front of the patches (`stem_channels`); none in published towers. Checks that a patch is
/// as many halvings wide, or wider.
pub(crate) fn stem(object: &Object<'_>, patch: usize, image: usize) -> Result<Vec<usize>> {
    let channels = object.sizes("stem_channels")?;
    if channels.is_empty() {
        return Ok(channels);
    }
    let halvings = 1usize.checked_shl(channels.len() as u32).filter(|&n| n <= patch && patch.is_multiple_of(n));
    if halvings.is_none() || !image.is_multiple_of(patch) {
        let n = channels.len();
        bail!(
            "config.json: {n} stem_channels halve a patch of {patch} pixels {n} times, and pictures of {image}: that must come out even"
        );
    }
    Ok(channels)
}

/// Cuts pictures into patches and maps each to a token: a convolution whose stride is its width.
#[derive(Clone, Debug)]
pub(crate) struct Patches {
    stem: Option<Stem>,
    map: Linear,
    /// Of what the stem puts out, where there is one.
    patch: usize,
    dtype: DType,
}

impl Patches {
    /// `{name}.weight [h, 3, patch, patch]` and, if `bias`, `{name}.bias [h]`.
    pub fn load(p: &Params, name: &str, h: usize, patch: usize, bias: bool) -> Result<Self> {
        Self::of(p, name, h, (3, patch), bias)
    }

    /// With `stem.{i}` in front, the patches' weight `[h, channels, patch, patch]` for patches of what those put out.
    pub fn with_stem(p: &Params, name: &str, h: usize, patch: usize, channels: &[usize]) -> Result<Self> {
        let Some(&last) = channels.last() else { return Self::load(p, name, h, patch, false) };
        let stem = Some(Stem::load(&p.pp("stem"), channels)?);
        Ok(Self { stem, ..Self::of(p, name, h, (last, patch >> channels.len()), false)? })
    }

    fn of(p: &Params, name: &str, h: usize, (channels, patch): (usize, usize), bias: bool) -> Result<Self> {
        let width = channels * patch * patch;
        let parts = [(format!("{name}.weight"), vec![h, channels, patch, patch])];
        let weight = p.stack(&[h, width], &parts, scaled(width))?;
        let bias = if bias { Some(p.tensor(&format!("{name}.bias"), [h], Init::Zeros)?) } else { None };
        // As in the decoder: on the CPU activations stay in f32 whatever the weights are.
        let dtype = if p.device().is_cpu() { DType::F32 } else { p.dtype() };
        Ok(Self { stem: None, map: linear(p, weight, bias)?, patch, dtype })
    }

    /// `pixels [b, 3, h, w]` to tokens `[b, rows * columns, width]` and `(rows, columns)`; what is left of a patch at the right
    /// and at the bottom is not seen.
    pub fn forward(&self, pixels: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let &[b, 3, h, w] = pixels.dims() else {
            bail!("a vision tower takes pixels [b, 3, h, w], not {:?}", pixels.dims());
        };
        let mut x = pixels.to_dtype(self.dtype)?;
        if let Some(stem) = &self.stem {
            let last = x.permute((0, 2, 3, 1))?.unsqueeze(1)?; // (b, 1, h, w, 3)
            x = stem.forward(last)?.squeeze(1)?.permute((0, 3, 1, 2))?; // (b, channels, h', w')
        }
        let p = self.patch;
        let (rows, columns) = (x.dim(2)? / p, x.dim(3)? / p);
        if b == 0 || rows == 0 || columns == 0 {
            bail!("{b} pictures of {w} x {h} pixels have no patch of {p} x {p}");
        }
        let c = x.dim(1)?;
        let x = x.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?;
        let x = x.reshape((b, c, rows, p, columns, p))?.permute((0, 2, 4, 1, 3, 5))?; // (b, rows, columns, c, p, p)
        let x = x.reshape((b, rows * columns, c * p * p))?;
        Ok((self.map.forward(&x)?, (rows, columns)))
    }
}
