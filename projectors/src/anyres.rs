//! The features of a picture that was cut into tiles ("anyres" of LLaVA-NeXT), as one sequence.
//!
//! Reference: `pack_image_features` and `unpad_image` in
//! [`modeling_llava_next.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/llava_next/modeling_llava_next.py).

use candle_core::{Result, Tensor, bail};

/// The features of the whole picture, then those of the tiles as one large picture, row by row, without those of the padding
/// around it, and with `newline` behind each row (`mm_patch_merge_type: spatial_unpad`).
///
/// # Shapes
/// `features [1 + columns * rows, side * side, h]`, the whole picture first and then tiles row by row, `newline [h]`, to
/// `[1, n, h]`. `picture` is `(width, height)` in pixels before anything was done to it.
pub fn spatial_unpad(
    features: &Tensor,
    (columns, rows): (usize, usize),
    picture: (usize, usize),
    newline: Option<&Tensor>,
) -> Result<Tensor> {
    let (n, t, h) = features.dims3()?;
    let side = t.isqrt();
    if picture.0 == 0 || picture.1 == 0 {
        bail!("a picture of {} x {} pixels has no features", picture.0, picture.1);
    }
    let newline = newline.map(|line| line.to_dtype(features.dtype())?.reshape((1, 1, h))).transpose()?;
    if n == 1 {
        return Tensor::cat(&[Some(features.clone()), newline].into_iter().flatten().collect::<Vec<_>>(), 1);
    }
    if n != 1 + columns * rows || side * side != t {
        bail!("{n} times {t} features for a picture and {columns} x {rows} square tiles of it");
    }
    let whole = features.narrow(0, 0, 1)?;
    let large = features.narrow(0, 1, n - 1)?.reshape((rows, columns, side, side, h))?;
    let large = large.permute((0, 2, 1, 3, 4))?.reshape((rows * side, columns * side, h))?;
    let (dim, first, kept) = unpadded((columns * side, rows * side), picture);
    let large = large.narrow(dim, first, kept)?;
    let high = large.dim(0)?;
    let large = match newline {
        Some(line) => Tensor::cat(&[large, line.broadcast_as((high, 1, h))?.contiguous()?], 1)?,
        None => large.contiguous()?,
    };
    let wide = large.dim(1)?;
    Tensor::cat(&[whole, large.reshape((1, high * wide, h))?], 1)
}

/// The axis along which a grid of features `(width, height)` is padded, and the first and the number of those that belong to a
/// picture `(width, height)`.
pub fn unpadded((wide, high): (usize, usize), (w, h): (usize, usize)) -> (usize, usize, usize) {
    // Rounded to seven digits and cut off.
    let cut = |x: f64| if (x - x.round()).abs() <= 5e-8 { x.round() as usize } else { x as usize };
    let around = |all: usize, real: usize| {
        let padding = all.saturating_sub(real) / 2;
        (padding, all - 2 * padding)
    };
    if w as f64 / h as f64 > wide as f64 / high as f64 {
        let (first, n) = around(high, cut(h as f64 * (wide as f64 / w as f64)));
        (0, first, n)
    } else {
        let (first, n) = around(wide, cut(w as f64 * (high as f64 / h as f64)));
        (1, first, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn tiles_become_rows_without_their_padding() -> Result<()> {
        // A whole picture of 2 x 2 features, and two tiles side by side, whose features are numbered over both.
        let whole: Vec<f32> = vec![100.0, 101.0, 102.0, 103.0];
        let tiles = [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0];
        let features = Tensor::from_vec([&whole[..], &tiles].concat(), (3, 4, 1), &Device::Cpu)?;
        let line = Tensor::new(&[-1f32], &Device::Cpu)?;
        let values = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
        let all = values(spatial_unpad(&features, (2, 1), (40, 20), Some(&line))?)?;
        assert_eq!(all, [&whole[..], &[0.0, 1.0, 2.0, 3.0, -1.0, 4.0, 5.0, 6.0, 7.0, -1.0]].concat());
        // A square picture fills the middle.
        let all = values(spatial_unpad(&features, (2, 1), (20, 20), None)?)?;
        assert_eq!(all, [&whole[..], &[1.0, 2.0, 5.0, 6.0]].concat());
        let one = features.narrow(0, 0, 1)?;
        assert_eq!(values(spatial_unpad(&one, (1, 1), (9, 9), Some(&line))?)?, [&whole[..], &[-1.0]].concat());
        assert!(spatial_unpad(&features, (2, 2), (20, 20), None).is_err());
        assert!(spatial_unpad(&features.to_dtype(DType::F32)?, (2, 1), (0, 20), None).is_err());
        Ok(())
    }

    #[test]
    fn padding_is_found_as_in_the_reference() {
        // By `unpad_image` of transformers 4.57.6.
        assert_eq!(unpadded((48, 48), (640, 480)), (0, 6, 36));
        assert_eq!(unpadded((48, 48), (333, 500)), (1, 8, 32));
        assert_eq!(unpadded((24, 72), (100, 1000)), (1, 8, 8));
        assert_eq!(unpadded((48, 24), (1000, 501)), (1, 0, 48));
    }
}
