//! Changing the size of grids of floats, with gradients: positions of another grid, pictures at another scale, sound at another
//! rate.

use candle_core::{DType, Result, Tensor, bail};

/// A row of weights for each of `to` outputs over `from` inputs: the cubic of Keys with a = -0.75 at corner-less positions,
/// borders repeated, nothing widened when shrinking. What torch's `interpolate(mode="bicubic")` does.
fn cubic(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f64 / to as f64;
    let mut weights = vec![0f32; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let at = (i as f64 + 0.5) * scale - 0.5;
        let t = at - at.floor();
        for (k, w) in [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].into_iter().enumerate() {
            let source = (at.floor() as i64 + k as i64 - 1).clamp(0, from as i64 - 1);
            row[source as usize] += w as f32;
        }
    }
    weights
}

/// Bicubic interpolation as torch computes it (a = -0.75, `align_corners=False`, no antialiasing).
///
/// # Shapes
/// `x [b, c, h, w]` to `[b, c, height, width]`, in f32
pub fn bicubic(x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if [b, c, h, w, height, width].contains(&0) {
        bail!("a grid of {h} x {w} cannot become {height} x {width}");
    }
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    if (h, w) == (height, width) {
        return Ok(x);
    }
    let down = Tensor::from_vec(cubic(h, height), (height, h), x.device())?;
    let across = Tensor::from_vec(cubic(w, width), (width, w), x.device())?.t()?; // (w, width)
    let x = x.reshape((b * c * h, w))?.matmul(&across.contiguous()?)?; // (b * c * h, width)
    let x = x.reshape((b * c, h, width))?;
    let down = down.broadcast_left(b * c)?.contiguous()?; // (b * c, height, h)
    down.matmul(&x)?.reshape((b, c, height, width))
}

/// Linear interpolation along time as torch computes it (`interpolate(mode="linear", align_corners=False)`): nothing is widened when
/// there become fewer tokens.
///
/// # Shapes
/// `x [b, t, c]` to `[b, to, c]`
pub fn linear_in_time(x: &Tensor, to: usize) -> Result<Tensor> {
    let (b, t, c) = x.dims3()?;
    if [b, t, c, to].contains(&0) {
        bail!("{t} tokens of width {c} in {b} rows cannot become {to}");
    }
    if t == to {
        return Ok(x.clone());
    }
    let scale = t as f64 / to as f64;
    let (mut before, mut after, mut share) = (Vec::with_capacity(to), Vec::with_capacity(to), Vec::with_capacity(to));
    for i in 0..to {
        let at = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(t - 1);
        before.push(low as u32);
        after.push((low + 1).min(t - 1) as u32);
        share.push((at - low as f64) as f32);
    }
    let pick = |at: Vec<u32>| x.index_select(&Tensor::from_vec(at, to, x.device())?, 1); // (b, to, c)
    let share = Tensor::from_vec(share, (1, to, 1), x.device())?.to_dtype(x.dtype())?;
    let (before, after) = (pick(before)?, pick(after)?);
    &before + (&after - &before)?.broadcast_mul(&share)?
}

/// The mean of each `n x n` cells.
///
/// # Shapes
/// `x [b, n rows, n columns, c]` to `[b, rows, columns, c]`
pub fn mean_pool(x: &Tensor, n: usize) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if n == 0 || h % n != 0 || w % n != 0 {
        bail!("a grid of {h} x {w} does not divide into cells of {n} x {n}");
    }
    if n == 1 {
        return Ok(x.clone());
    }
    x.reshape((b, h / n, n, w / n, n * c))?.sum(2)?.reshape((b, h / n, w / n, n, c))?.sum(3)? / (n * n) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn one_lit_cell_spreads_by_the_kernel() -> Result<()> {
        // Row 4 of 8, over two columns that stay as they are.
        let values: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i / 2 == 4))).collect();
        let x = Tensor::from_vec(values, (1, 1, 8, 2), &Device::Cpu)?;
        let y = bicubic(&x, (16, 2))?.squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?;
        // Distances 1.75, 1.25, 0.75, 0.25 and back.
        let half = [-0.035_156_25, -0.105_468_75, 0.261_718_75, 0.878_906_25];
        for (r, row) in y.iter().enumerate() {
            let expected = match r {
                5..=8 => half[r - 5],
                9..=12 => half[12 - r],
                _ => 0.0,
            };
            assert!(row.iter().all(|v| (v - expected).abs() < 1e-6), "{r}: {row:?} {expected}");
        }
        assert!(bicubic(&x, (0, 3)).is_err());
        Ok(())
    }

    #[test]
    fn time_is_stretched_and_squeezed() -> Result<()> {
        let x = Tensor::new(&[[[0f32, 10.], [4., 20.]]], &Device::Cpu)?;
        let rows = |to| linear_in_time(&x, to)?.squeeze(0)?.to_vec2::<f32>();
        assert_eq!(rows(4)?, [[0., 10.], [1., 12.5], [3., 17.5], [4., 20.]]);
        assert_eq!((rows(2)?, rows(1)?), (vec![vec![0., 10.], vec![4., 20.]], vec![vec![2., 15.]]));
        assert!(linear_in_time(&x, 0).is_err());
        // Every output's weights sum to one, so that the gradient of the sum does to the number of outputs.
        let x = candle_core::Var::from_tensor(&x)?;
        let grads = linear_in_time(x.as_tensor(), 5)?.sum_all()?.backward()?;
        let grad = grads.get(x.as_tensor()).expect("a gradient").sum(1)?.squeeze(0)?.to_vec1::<f32>()?;
        assert!(grad.iter().all(|g| (g - 5.0).abs() < 1e-6), "{grad:?}");
        Ok(())
    }

    #[test]
    fn cells() -> Result<()> {
        let x = Tensor::arange(0f32, 32., &Device::Cpu)?.reshape((1, 4, 4, 2))?;
        assert_eq!(mean_pool(&x, 2)?.flatten_all()?.to_vec1::<f32>()?, [5., 6., 9., 10., 21., 22., 25., 26.]);
        assert!(mean_pool(&x, 3).is_err());
        Ok(())
    }
}
