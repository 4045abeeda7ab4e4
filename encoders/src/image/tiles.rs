//! A large picture as tiles of the encoder's size ("anyres" of LLaVA-NeXT; in CuMo's code `mm_utils.py`).

use super::{Filter, ImageError, Limits, Picture};

/// The `(width, height)` among `grids` that keeps most of a picture of `size`: the largest area of the fitted picture, at
/// most its own, and of those the least waste. The first of equals; `None` without grids.
pub fn best_grid((width, height): (usize, usize), grids: &[(usize, usize)]) -> Option<(usize, usize)> {
    let mut best: Option<((usize, usize), (usize, usize))> = None;
    for &(w, h) in grids {
        let scale = (w as f64 / width as f64).min(h as f64 / height as f64);
        let fitted = ((width as f64 * scale) as usize).saturating_mul((height as f64 * scale) as usize);
        let area = fitted.min(width.saturating_mul(height));
        let waste = w.saturating_mul(h).saturating_sub(area);
        if best.is_none_or(|(_, (a, least))| area > a || (area == a && waste < least)) {
            best = Some(((w, h), (area, waste)));
        }
    }
    best.map(|(grid, _)| grid)
}

/// The picture fitted into `grid` and padded with black around.
///
/// # Errors
/// The grid is empty or has more pixels than `limits` admit.
pub(super) fn fitted(
    picture: &Picture,
    (w, h): (usize, usize),
    filter: Filter,
    limits: &Limits,
) -> Result<Picture, ImageError> {
    if w == 0 || h == 0 || w.checked_mul(h).is_none_or(|n| n > limits.pixels) {
        let what = format!("a grid of {w} x {h} exceeds {} pixels", limits.pixels);
        return Err(ImageError::TooLarge { name: "the picture".into(), what });
    }
    let (scale_w, scale_h) = (w as f64 / picture.width as f64, h as f64 / picture.height as f64);
    let along = |side: usize, scale: f64, most: usize| ((side as f64 * scale).ceil() as usize).clamp(1, most);
    let size = match scale_w < scale_h {
        true => (w, along(picture.height, scale_w, h)),
        false => (along(picture.width, scale_h, w), h),
    };
    let fitted = picture.resize(size, filter, None, limits)?;
    let mut padded = Picture::filled(w, h, [0; 3]);
    padded.paste(&fitted, ((w - size.0) / 2, (h - size.1) / 2));
    Ok(padded)
}

/// The tiles of `side x side` that the picture makes, row by row, after it was fitted into `grid` and padded with black around.
///
/// # Errors
/// The grid is no multiple of the side, or has more pixels than `limits` admit.
pub fn tiles(
    picture: &Picture,
    grid: (usize, usize),
    side: usize,
    filter: Filter,
    limits: &Limits,
) -> Result<Vec<Picture>, ImageError> {
    let (w, h) = grid;
    if side == 0 || w == 0 || h == 0 || w % side != 0 || h % side != 0 {
        return Err(ImageError::Config(format!("a grid of {w} x {h} pixels does not hold tiles of {side} x {side}")));
    }
    Ok(cut(&fitted(picture, grid, filter, limits)?, side))
}

/// A picture in tiles of `side x side`, row by row; smaller ones at the right and at the bottom where it is no multiple.
pub(super) fn cut(picture: &Picture, side: usize) -> Vec<Picture> {
    let (w, h) = (picture.width, picture.height);
    let at = (0..h).step_by(side.max(1)).flat_map(|y| (0..w).step_by(side.max(1)).map(move |x| (x, y)));
    at.map(|(x, y)| picture.cut((x, y), (side.min(w - x), side.min(h - y)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_that_keeps_most() {
        let grids = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
        // All of it fits into the second grid already, which wastes less than the third.
        assert_eq!(best_grid((451, 300), &grids), Some((672, 336)));
        assert_eq!(best_grid((600, 500), &grids), Some((672, 672)));
        assert_eq!(best_grid((1000, 300), &grids), Some((1008, 336)));
        assert_eq!(best_grid((100, 100), &grids), Some((336, 672)));
        assert_eq!(best_grid((3000, 3000), &grids), Some((672, 672)));
        assert_eq!(best_grid((1, 1), &[]), None);
    }

    #[test]
    fn a_wide_picture_has_black_above_and_below() {
        let picture = Picture::filled(40, 10, [9, 8, 7]);
        let all = tiles(&picture, (16, 16), 8, Filter::Bicubic, &Limits::default()).unwrap();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|t| (t.width, t.height) == (8, 8)));
        // 16 x 4 pixels from row 6 on.
        assert_eq!(all[0].rgb[..3 * 8 * 6], [0; 3 * 8 * 6]);
        assert_eq!(all[0].rgb[3 * 8 * 6..], [9, 8, 7].repeat(16));
        assert_eq!(all[2].rgb[..3 * 16], [9, 8, 7].repeat(16));
        assert!(tiles(&picture, (16, 12), 8, Filter::Bicubic, &Limits::default()).is_err());
    }
}
