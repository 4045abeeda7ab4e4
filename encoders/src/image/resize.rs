//! Resizing as Pillow does it for 8-bit pictures (`src/libImaging/Resample.c`): a horizontal and a vertical pass, the filter
//! widened when shrinking, coefficients in fixed point, each pass rounded to bytes. The bytes are those of Pillow 13.
//!
//! Which pass comes first matters to single bytes, since the first is rounded before the second. Pillow up to 12 always begins
//! with the horizontal one. Pillow 13 begins with the vertical one where the height shrinks by more than twice as many pixels
//! as the width: found by comparing its results with both orders over thousands of sizes.

use std::ops::Range;

use moesaic_kernels::cpu::chunks;

use super::{ImageError, Limits, Picture};

/// How pixels are weighed, by the numbers that Pillow and `preprocessor_config.json` give the filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// 0: the nearest pixel.
    Nearest,
    /// 1: `sinc(x) sinc(x / 3)`
    Lanczos,
    /// 2: a triangle.
    Bilinear,
    /// 3: the cubic of Keys with a = -0.5.
    Bicubic,
    /// 4: the mean of a box.
    Box,
    /// 5: a box smoothed by a Hamming window.
    Hamming,
}

impl Filter {
    /// The filter of a number in `resample`.
    pub fn from_number(number: u64) -> Result<Self, ImageError> {
        Ok(match number {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            other => return Err(ImageError::Config(format!("resample is {other}, expected 0 to 5"))),
        })
    }

    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        use std::f64::consts::PI;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => match x.abs() {
                0.0 => 1.0,
                x if x >= 1.0 => 0.0,
                x => (x * PI).sin() / (x * PI) * (0.54 + 0.46 * (x * PI).cos()),
            },
            Self::Bicubic => {
                const A: f64 = -0.5;
                match x.abs() {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// A part of a resized picture: only these columns and rows are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// From left to right.
    pub columns: Range<usize>,
    /// From top to bottom.
    pub rows: Range<usize>,
}

/// Digits of the fixed point behind the point: 32 bits less 8 of the pixel and 2 for what sums overshoot.
const DIGITS: u32 = 32 - 8 - 2;

/// The source pixels of one target pixel and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of the targets in `range` for a side that goes from `from` to `to` pixels.
fn taps(filter: Filter, from: usize, to: usize, range: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    range
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            // Casts of floats to integers cut towards zero and stop at the ends, as wanted.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let mut weights: Vec<f64> =
                (first..last.max(first)).map(|i| filter.at((i as f64 - centre + 0.5) * (1.0 / widened))).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            let fixed = |w: &f64| (w * f64::from(1 << DIGITS) + if *w < 0.0 { -0.5 } else { 0.5 }) as i32;
            Taps { first, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

/// Bytes that are summed at once: 16 pixels of three values.
const LANES: usize = 48;
/// Rows that the horizontal pass takes at once.
const ROWS: usize = LANES / 3;

/// `out[i] = sum over k of weights[k] * rows[k * stride + i]`, rounded and cut to a byte.
#[inline(always)]
fn sum_body(weights: &[i32], rows: &[u8], stride: usize, out: &mut [u8; LANES]) {
    let mut sums = [1i32 << (DIGITS - 1); LANES];
    for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
        for (sum, value) in sums.iter_mut().zip(&row[..LANES]) {
            *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        *out = (sum >> DIGITS).clamp(0, 255) as u8;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(weights: &[i32], rows: &[u8], stride: usize, out: &mut [u8; LANES]) {
    sum_body(weights, rows, stride, out);
}

/// [`sum_body`] for the instruction set at hand; integers give the same sums on each.
fn sum(weights: &[i32], rows: &[u8], stride: usize, out: &mut [u8; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found AVX2.
        return unsafe { sum_avx2(weights, rows, stride, out) };
    }
    sum_body(weights, rows, stride, out);
}

impl Picture {
    /// The picture resized to `width x height`, of which only `window` is computed; `None` for all of it.
    ///
    /// # Errors
    /// A side is 0, the window lies outside, or the window has more pixels than `limits` admit.
    pub fn resize(
        &self,
        (width, height): (usize, usize),
        filter: Filter,
        window: Option<Window>,
        limits: &Limits,
    ) -> Result<Picture, ImageError> {
        let Window { columns, rows } = window.unwrap_or(Window { columns: 0..width, rows: 0..height });
        if columns.is_empty() || rows.is_empty() || columns.end > width || rows.end > height {
            return Err(ImageError::Shape(format!(
                "columns {columns:?} and rows {rows:?} are no part of a picture of {width} x {height} pixels"
            )));
        }
        let pixels = columns.len().checked_mul(rows.len());
        if pixels.is_none_or(|n| n > limits.pixels) {
            let what = format!("resized to {} x {} it exceeds {} pixels", columns.len(), rows.len(), limits.pixels);
            return Err(ImageError::TooLarge { name: "the picture".into(), what });
        }
        if (width, height) == (self.width, self.height) {
            return Ok(self.cut((columns.start, rows.start), (columns.len(), rows.len())));
        }
        if filter == Filter::Nearest {
            return Ok(self.nearest((width, height), columns, rows));
        }
        let (shorter, narrower) = (self.height as i64 - height as i64, self.width as i64 - width as i64);
        if shorter > 0 && shorter > 2 * narrower && width != self.width {
            return Ok(self.down_first((width, height), filter, columns, rows));
        }
        let vertical = taps(filter, self.height, height, rows.clone());
        let (first, last) = match height == self.height {
            true => (rows.start, rows.end),
            // Taps move on with their targets, so the ends are at the ends.
            false => (
                vertical.iter().map(|t| t.first).min().unwrap_or(0),
                vertical.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0),
            ),
        };
        // The rows of the source that matter, with the columns of the target.
        let narrow = match width == self.width {
            true => self.cut((columns.start, first), (columns.len(), last - first)),
            false => self.across(&taps(filter, self.width, width, columns.clone()), first..last),
        };
        Ok(if height == self.height { narrow } else { narrow.down(&vertical, first) })
    }

    /// The vertical pass over the columns that matter, then the horizontal one.
    fn down_first(
        &self,
        (width, height): (usize, usize),
        filter: Filter,
        columns: Range<usize>,
        rows: Range<usize>,
    ) -> Picture {
        let mut horizontal = taps(filter, self.width, width, columns);
        let vertical = taps(filter, self.height, height, rows);
        let ends = |taps: &[Taps]| {
            let last = taps.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
            (taps.iter().map(|t| t.first).min().unwrap_or(0), last)
        };
        let ((left, right), (top, bottom)) = (ends(&horizontal), ends(&vertical));
        let short = self.cut((left, top), (right - left, bottom - top)).down(&vertical, top);
        horizontal.iter_mut().for_each(|t| t.first -= left);
        let count = short.height;
        short.across(&horizontal, 0..count)
    }

    /// The horizontal pass over some rows.
    fn across(&self, taps: &[Taps], rows: Range<usize>) -> Picture {
        let (width, height) = (taps.len(), rows.len());
        let mut rgb = vec![0u8; 3 * width * height];
        chunks(&mut rgb, 3 * width * ROWS, 3 * self.width * height > 1 << 16, |block, out| {
            let n = out.len() / (3 * width);
            // Sixteen rows side by side: pixel x of all of them in 48 bytes.
            let mut turned = vec![0u8; self.width * LANES];
            for r in 0..n {
                let row = &self.rgb[3 * self.width * (rows.start + block * ROWS + r)..][..3 * self.width];
                for (pixel, to) in row.chunks_exact(3).zip(turned.chunks_exact_mut(LANES)) {
                    to[3 * r..3 * r + 3].copy_from_slice(pixel);
                }
            }
            let mut sums = [0u8; LANES];
            for (x, taps) in taps.iter().enumerate() {
                sum(&taps.weights, &turned[taps.first * LANES..], LANES, &mut sums);
                for (r, pixel) in sums.chunks_exact(3).take(n).enumerate() {
                    out[3 * (r * width + x)..][..3].copy_from_slice(pixel);
                }
            }
        });
        Picture { width, height, rgb }
    }

    /// The vertical pass; the picture's first row is row `first` of what the taps count in.
    fn down(&self, taps: &[Taps], first: usize) -> Picture {
        let (row, height) = (3 * self.width, taps.len());
        let mut rgb = vec![0u8; row * height];
        chunks(&mut rgb, row, row * self.height > 1 << 16, |y, out| {
            let Taps { first: tap, weights } = &taps[y];
            let src = &self.rgb[row * (tap - first)..][..row * weights.len()];
            let mut sums = [0u8; LANES];
            let whole = row / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                // The last row of the slice ends where the columns do, so that each has its 48 bytes.
                sum(weights, &src[at..], row, &mut sums);
                out[at..at + LANES].copy_from_slice(&sums);
            }
            if whole < row {
                // What is left of each row, filled up to 48 bytes.
                let rest = row - whole;
                let mut filled = vec![0u8; LANES * weights.len()];
                for (to, from) in filled.chunks_exact_mut(LANES).zip(src.chunks_exact(row)) {
                    to[..rest].copy_from_slice(&from[whole..]);
                }
                sum(weights, &filled, LANES, &mut sums);
                out[whole..].copy_from_slice(&sums[..rest]);
            }
        });
        Picture { width: self.width, height, rgb }
    }

    fn nearest(&self, (width, height): (usize, usize), columns: Range<usize>, rows: Range<usize>) -> Picture {
        // Pillow steps from pixel to pixel by adding the scale, which rounds otherwise than a product.
        let table = |from: usize, to: usize, range: Range<usize>| -> Vec<usize> {
            let scale = from as f64 / to as f64;
            let mut at = scale * 0.5;
            let mut all = Vec::with_capacity(range.len());
            for i in 0..range.end {
                if i >= range.start {
                    all.push((at as usize).min(from - 1));
                }
                at += scale;
            }
            all
        };
        let (xs, ys) = (table(self.width, width, columns), table(self.height, height, rows));
        let pixels = ys.iter().flat_map(|y| xs.iter().map(move |x| 3 * (y * self.width + x)));
        let rgb = pixels.flat_map(|at| &self.rgb[at..at + 3]).copied().collect();
        Picture { width: xs.len(), height: ys.len(), rgb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> Picture {
        let rgb = (0..3 * width * height).map(|i| (i * 7919 % 251) as u8).collect();
        Picture::from_rgb(width, height, rgb).unwrap()
    }

    /// Each pixel by itself, written down from the definition.
    fn slow(p: &Picture, (width, height): (usize, usize), filter: Filter) -> Vec<u8> {
        let pass = |src: &[u8], from: usize, to: usize, lines: usize, at: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
            let mut out = vec![0u8; lines * to * 3];
            for (i, t) in taps(filter, from, to, 0..to).iter().enumerate() {
                for line in 0..lines {
                    for c in 0..3 {
                        let sum: i64 = t
                            .weights
                            .iter()
                            .enumerate()
                            .map(|(k, w)| i64::from(src[at(line, t.first + k) + c]) * i64::from(*w))
                            .sum();
                        let value = (sum + (1 << (DIGITS - 1))) >> DIGITS;
                        out[(line * to + i) * 3 + c] = value.clamp(0, 255) as u8;
                    }
                }
            }
            out
        };
        if p.height as i64 - height as i64 > (2 * (p.width as i64 - width as i64)).max(0) && width != p.width {
            let turned = pass(&p.rgb, p.height, height, p.width, &|x, r| 3 * (r * p.width + x)); // (p.width, height, 3)
            return pass(&turned, p.width, width, height, &|r, x| 3 * (x * height + r));
        }
        let wide = if width == p.width {
            p.rgb.clone()
        } else {
            pass(&p.rgb, p.width, width, p.height, &|r, x| 3 * (r * p.width + x))
        };
        if height == p.height {
            return wide;
        }
        let turned = pass(&wide, p.height, height, width, &|x, r| 3 * (r * width + x)); // (width, height, 3)
        (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x * height + y) * 3 + c)))
            .map(|i| turned[i])
            .collect()
    }

    #[test]
    fn blocks_and_windows_give_the_pixels_of_the_definition() {
        for filter in [Filter::Bicubic, Filter::Bilinear, Filter::Lanczos, Filter::Box, Filter::Hamming] {
            for (from, to) in [
                ((37, 29), (16, 50)),
                ((5, 3), (40, 17)),
                ((64, 48), (64, 7)),
                ((40, 48), (47, 7)),
                ((30, 90), (20, 33)),
                ((33, 20), (11, 20)),
                ((1, 1), (9, 4)),
            ] {
                let p = picture(from.0, from.1);
                let whole = p.resize(to, filter, None, &Limits::default()).unwrap();
                assert_eq!(whole.rgb, slow(&p, to, filter), "{filter:?} {from:?} {to:?}");
                let window = Window { columns: to.0 / 3..to.0, rows: to.1 / 2..to.1 };
                let part = p.resize(to, filter, Some(window), &Limits::default()).unwrap();
                let cut = whole.cut((to.0 / 3, to.1 / 2), (to.0 - to.0 / 3, to.1 - to.1 / 2));
                assert_eq!(part, cut, "{filter:?} {from:?} {to:?}");
            }
        }
        let p = picture(5, 4);
        let same = p.resize((5, 4), Filter::Lanczos, None, &Limits::default()).unwrap();
        assert_eq!(same, p);
        assert_eq!(p.resize((2, 2), Filter::Nearest, None, &Limits::default()).unwrap().rgb[..3], p.rgb[3 * 6..][..3]);
    }

    #[test]
    fn a_window_outside_and_a_picture_beyond_the_limit() {
        let p = picture(4, 4);
        let limits = Limits { pixels: 100, ..Limits::default() };
        assert!(matches!(p.resize((11, 10), Filter::Bicubic, None, &limits), Err(ImageError::TooLarge { .. })));
        let window = Window { columns: 0..5, rows: 0..1 };
        assert!(matches!(p.resize((4, 4), Filter::Bicubic, Some(window), &limits), Err(ImageError::Shape(_))));
        assert!(p.resize((0, 4), Filter::Bicubic, None, &limits).is_err());
        // A strip whose other side would be huge costs what its window costs.
        let strip = Picture::filled(3000, 1, [1, 2, 3]);
        let window = Window { columns: 300_000..300_010, rows: 0..10 };
        let part = strip.resize((672_000, 224), Filter::Bicubic, Some(window), &limits).unwrap();
        assert_eq!(part.rgb, [1, 2, 3].repeat(100));
    }
}
