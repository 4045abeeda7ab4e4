//! Stored positions spread over pictures of other sizes.

use candle_core::{DType, Result, Tensor, bail};

/// Which patches of each picture have a real pixel, row by row.
///
/// # Shapes
/// `mask [b, h, w]` of `pixels [b, 3, h, w]`
pub(super) fn real_patches(
    mask: &Tensor,
    pixels: &[usize],
    patch: usize,
    (rows, columns): (usize, usize),
) -> Result<Vec<Vec<bool>>> {
    let &[b, _, h, w] = pixels else { bail!("a tower takes pixels [b, 3, h, w], not {pixels:?}") };
    if mask.dims() != [b, h, w] {
        bail!("a pixel mask of shape {:?} for pictures {pixels:?}, expected [{b}, {h}, {w}]", mask.dims());
    }
    let pictures = mask.to_dtype(DType::F32)?.to_vec3::<f32>()?;
    let one = |picture: Vec<Vec<f32>>| {
        let mut real = vec![false; rows * columns];
        for (y, line) in picture.iter().take(rows * patch).enumerate() {
            let patches = real.iter_mut().skip(y / patch * columns).take(columns);
            for (real, pixels) in patches.zip(line.chunks(patch)) {
                *real |= pixels.iter().any(|m| *m != 0.0);
            }
        }
        real
    };
    Ok(pictures.into_iter().map(one).collect())
}

/// The stored position, of `side` x `side`, of each real patch of a picture. The patches of the first row and column say how
/// many there are.
pub(super) fn places(real: &[bool], (rows, columns): (usize, usize), side: usize) -> Result<Vec<u32>> {
    let high = real.iter().step_by(columns.max(1)).filter(|r| **r).count();
    let wide = real.iter().take(columns).filter(|r| **r).count();
    if high == 0 || wide == 0 {
        bail!(
            "a pixel mask without a real pixel in the first row or column of patches: pictures start at the top left"
        );
    }
    let down: Vec<usize> = (0..rows).map(|i| bucket(i, high, side)).collect();
    let across: Vec<usize> = (0..columns).map(|i| bucket(i, wide, side)).collect();
    let all = down.iter().flat_map(|r| across.iter().map(move |c| (r * side + c) as u32));
    Ok(all.zip(real).filter(|(_, real)| **real).map(|(place, _)| place).collect())
}

/// The one of `side` places along a side that patch `i` of `n` falls to, in the reference's arithmetic: `i / n` in f32 among the
/// multiples of `1 / side`.
fn bucket(i: usize, n: usize, side: usize) -> usize {
    let at = (i as f32 * (1.0 / n as f32)).min((1.0 - 1e-6) as f32);
    let step = 1.0 / side as f64;
    let bound = |k: usize| (step + step * k as f64) as f32;
    // Where it should be, and then as rounding has it.
    let mut place = (at as f64 * side as f64) as usize;
    while place > 0 && bound(place - 1) > at {
        place -= 1;
    }
    while place + 1 < side && bound(place) <= at {
        place += 1;
    }
    place.min(side.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn positions_as_torch_puts_them() {
        // By torch.bucketize (2.8). A picture as large as the tower's has the stored positions at the published sizes; at others
        // f32 rounds some multiples below their bound, and they stay behind it.
        for side in [1, 2, 4, 16, 24, 27, 32, 35, 64, 70] {
            assert!((0..side).all(|i| bucket(i, side, side) == i), "{side}");
        }
        let off = |n: usize, side: usize| (0..n).filter(|&i| bucket(i, n, side) != i * side / n).collect::<Vec<_>>();
        assert_eq!(off(25, 35), [5, 10, 15, 20]);
        assert_eq!(off(49, 70), [7, 14, 28, 35]);
        assert_eq!(off(55, 70), [11, 22, 33, 44]);
        assert_eq!(off(48, 70), [0usize; 0]);
        let places = |n: usize, side: usize| (0..n).map(|i| bucket(i, n, side)).collect::<Vec<_>>();
        assert_eq!(places(35, 70), (0..70).step_by(2).collect::<Vec<_>>());
        assert_eq!(places(3, 4), [0, 1, 2]);
        assert_eq!(places(4, 2), [0, 0, 1, 1]);
    }

    #[test]
    fn a_patch_is_real_if_one_of_its_pixels_is() -> Result<()> {
        // 6 x 4 pixels in patches of 2: two columns of three rows, of which the last has one real pixel at the left.
        let mut mask = vec![0u8; 24];
        mask[..16].fill(1);
        mask[16] = 1;
        let mask = Tensor::from_vec(mask, (1, 6, 4), &Device::Cpu)?;
        let real = real_patches(&mask, &[1, 3, 6, 4], 2, (3, 2))?;
        assert_eq!(real, [[true, true, true, true, true, false]]);
        assert_eq!(places(&real[0], (3, 2), 6)?, [0, 3, 12, 15, 24]);
        assert!(places(&[false, true, false, true], (2, 2), 2).is_err());
        assert!(real_patches(&mask, &[1, 3, 6, 6], 2, (3, 3)).is_err());
        Ok(())
    }
}
