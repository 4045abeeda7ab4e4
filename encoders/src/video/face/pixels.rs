//! Parts of frames, and pictures sampled out of them along a similarity.
//!
//! Coordinates are continuous: pixel `i` covers `i..i + 1`, its middle lies at `i + 0.5`.

use super::align::Similarity;

/// Pixels of a side of a frame at most: twice 8K.
pub(crate) const MOST_SIDE: usize = 1 << 14;
/// Samples along each axis that make a pixel, at most.
const MOST_SAMPLES: usize = 16;

/// A frame of a video, borrowed: RGB, one byte a value, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub rgb: &'a [u8],
}

impl Frame<'_> {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (w, h) = (self.width, self.height);
        if w == 0 || h == 0 || w > MOST_SIDE || h > MOST_SIDE {
            return Err(format!("{w}x{h} pixels; a frame has 1 to {MOST_SIDE} a side"));
        }
        match w * h * 3 {
            bytes if bytes == self.rgb.len() => Ok(()),
            bytes => Err(format!("an RGB frame of {w}x{h} pixels takes {bytes} bytes, found {}", self.rgb.len())),
        }
    }
}

/// A rectangle: left, top, width, height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Area {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

impl Area {
    /// A square about a centre.
    pub fn square((x, y): (f32, f32), side: f32) -> Self {
        Self { x: x - side / 2.0, y: y - side / 2.0, width: side, height: side }
    }
}

/// A copy of a part of a frame, each pixel the mean of `reduce` by `reduce` of the frame's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    left: usize,
    top: usize,
    reduce: usize,
    width: usize,
    height: usize,
    /// `height * width * 3` bytes and [`BEHIND`].
    rgb: Vec<u8>,
}

/// Bytes behind the last pixel, so that each can be read as four values.
const BEHIND: [u8; 1] = [0];

impl Part {
    /// The whole of a frame, reduced; pixels at the right and bottom that do not fill a block are left out, unless there are no
    /// others.
    pub fn whole(frame: &Frame, reduce: usize) -> Self {
        Self::cut(frame, Area { x: 0.0, y: 0.0, width: frame.width as f32, height: frame.height as f32 }, reduce)
    }

    /// What lies in `area` of a frame that was checked; at least one pixel of it.
    pub fn cut(frame: &Frame, area: Area, reduce: usize) -> Self {
        // Casts saturate, and NaN becomes 0.
        let range = |start: f32, len: f32, most: usize| {
            let first = (start.floor() as usize).min(most - 1);
            let last = ((start + len).ceil() as usize).clamp(first + 1, most);
            (first, last - first)
        };
        let (left, across) = range(area.x, area.width, frame.width);
        let (top, down) = range(area.y, area.height, frame.height);
        let reduce = reduce.clamp(1, across.min(down));
        let (width, height) = (across / reduce, down / reduce);
        let rows = frame.rgb.chunks_exact(frame.width * 3).skip(top).take(height * reduce);
        let rgb = means(rows.map(|row| &row[left * 3..][..width * reduce * 3]), width, height, reduce);
        Self { left, top, reduce, width, height, rgb }
    }

    /// The same coarser by a whole number, as [`cut`](Self::cut) would have made it.
    pub fn coarser(&self, by: usize) -> Self {
        let by = by.clamp(1, self.width.min(self.height).max(1));
        let (width, height) = (self.width / by, self.height / by);
        let rows = self.rgb.chunks_exact(self.width.max(1) * 3).take(height * by);
        let rgb = means(rows.map(|row| &row[..width * by * 3]), width, height, by);
        Self { reduce: self.reduce * by, width, height, rgb, ..*self }
    }

    /// Pixels of the frame along a side of one of these.
    pub fn reduce(&self) -> usize {
        self.reduce
    }

    /// A picture of `width` by `height` pixels whose place `p` shows place `map(p)` of the frame, by bilinear interpolation, as
    /// the mean of several places where the picture is coarser than the pixels; black outside.
    ///
    /// # Shapes
    /// `[height, width, 3]` of values from 0 to 255
    pub fn sample(&self, map: &Similarity, (width, height): (usize, usize)) -> Vec<f32> {
        let each = self.reduce as f32;
        let coarse = map.scale() / each;
        // Up to half a pixel more than one to one, bilinear interpolation alone sees every pixel.
        let n = if coarse <= 1.5 { 1 } else { (coarse.ceil() as usize).min(MOST_SAMPLES) };
        let share = 1.0 / (n * n) as f32;
        // To pixels of this part, counted from the middle of the first.
        let own = Similarity {
            a: map.a / each,
            b: map.b / each,
            x: (map.x - self.left as f32) / each - 0.5,
            y: (map.y - self.top as f32) / each - 0.5,
        };
        let within: Vec<f32> = (0..n).map(|k| (k as f32 + 0.5) / n as f32).collect();
        let mut out = vec![0f32; width * height * 3];
        for (row, line) in out.chunks_exact_mut((width * 3).max(1)).enumerate() {
            for (column, pixel) in line.chunks_exact_mut(3).enumerate() {
                let mut sum = [0f32; 4];
                for dy in &within {
                    for dx in &within {
                        let (x, y) = own.apply((column as f32 + dx, row as f32 + dy));
                        let value = self.inside(x, y).unwrap_or_else(|| self.border(x, y));
                        sum.iter_mut().zip(value).for_each(|(s, v)| *s += v);
                    }
                }
                pixel.iter_mut().zip(sum).for_each(|(p, s)| *p = s * share);
            }
        }
        out
    }

    /// What lies between the middles of four pixels, and a fourth value of no meaning: four at once are as fast as one. `None`
    /// where there are no four.
    #[inline(always)]
    fn inside(&self, x: f32, y: f32) -> Option<[f32; 4]> {
        // Not negative, so that the cast is the floor; NaN is neither.
        if !(x >= 0.0 && y >= 0.0) {
            return None;
        }
        let (left, top) = (x as i32, y as i32);
        let (fx, fy) = (x - left as f32, y - top as f32);
        let (left, top) = (left as usize, top as usize);
        if left + 1 >= self.width || top + 1 >= self.height {
            return None;
        }
        let at = (top * self.width + left) * 3;
        let upper: &[u8; 7] = self.rgb.get(at..at + 7)?.try_into().ok()?;
        let at = at + self.width * 3;
        let lower: &[u8; 7] = self.rgb.get(at..at + 7)?.try_into().ok()?;
        let pixel = |row: &[u8; 7], at: usize| -> [f32; 4] { std::array::from_fn(|c| f32::from(row[at + c])) };
        let (p, q, r, s) = (pixel(upper, 0), pixel(upper, 3), pixel(lower, 0), pixel(lower, 3));
        Some(std::array::from_fn(|c| {
            let (a, b) = (p[c] + (q[c] - p[c]) * fx, r[c] + (s[c] - r[c]) * fx);
            a + (b - a) * fy
        }))
    }

    /// The same at the border and beyond it, where pixels are black.
    #[cold]
    fn border(&self, x: f32, y: f32) -> [f32; 4] {
        let mut value = [0.0; 4];
        let (left, top) = (x.floor(), y.floor());
        if !(left >= -1.0 && top >= -1.0 && left < self.width as f32 && top < self.height as f32) {
            return value;
        }
        let (fx, fy) = (x - left, y - top);
        let (left, top) = (left as isize, top as isize);
        let corners = [(0, 0, 1.0 - fx, 1.0 - fy), (1, 0, fx, 1.0 - fy), (0, 1, 1.0 - fx, fy), (1, 1, fx, fy)];
        for (dx, dy, wx, wy) in corners {
            let (x, y) = (left + dx, top + dy);
            if x < 0 || y < 0 || x >= self.width as isize || y >= self.height as isize {
                continue;
            }
            let at = (y as usize * self.width + x as usize) * 3;
            if let Some(rgb) = self.rgb.get(at..at + 3) {
                value.iter_mut().zip(rgb).for_each(|(p, v)| *p += wx * wy * f32::from(*v));
            }
        }
        value
    }
}

/// Each pixel the mean of `reduce` by `reduce` of these rows, which hold `height` by `width` of them, rounded; and [`BEHIND`].
fn means<'a>(rows: impl Iterator<Item = &'a [u8]>, width: usize, height: usize, reduce: usize) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(width * height * 3 + BEHIND.len());
    if reduce == 1 {
        rows.for_each(|row| rgb.extend_from_slice(row));
    } else {
        let (mut sums, area) = (vec![0u32; width * 3], (reduce * reduce) as u32);
        for (y, row) in rows.enumerate() {
            for (sum, block) in sums.chunks_exact_mut(3).zip(row.chunks_exact(reduce * 3)) {
                for pixel in block.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(s, v)| *s += u32::from(*v));
                }
            }
            if (y + 1) % reduce == 0 {
                rgb.extend(sums.iter().map(|s| ((s + area / 2) / area) as u8));
                sums.fill(0);
            }
        }
    }
    rgb.extend(BEHIND);
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_means_of_blocks_and_keep_their_place() {
        // 6x4 pixels with value 10 x + y in red.
        let rgb: Vec<u8> = (0..24).flat_map(|i| [(i % 6 * 10 + i / 6) as u8, 7, 0]).collect();
        let frame = Frame { width: 6, height: 4, rgb: &rgb };
        assert!(frame.check().is_ok());
        assert!(Frame { width: 6, height: 5, rgb: &rgb }.check().is_err());
        let part = Part::cut(&frame, Area { x: 2.0, y: 0.0, width: 40.0, height: 4.0 }, 2);
        assert_eq!((part.width, part.height), (2, 2));
        // Means of 20, 30, 21, 31 and so on: 25.5 rounds up.
        let red = |part: &Part| part.rgb.iter().step_by(3).take(part.width * part.height).copied().collect::<Vec<_>>();
        assert_eq!(red(&part), [26, 46, 28, 48]);
        let later = Part::cut(&frame, Area { x: 2.0, y: 0.0, width: 40.0, height: 4.0 }, 1).coarser(2);
        assert_eq!((red(&later), later.reduce(), later.left), (red(&part), 2, part.left));
        // The same place of the frame, whole or reduced, within the rounding.
        let map = Similarity { a: 1.0, b: 0.0, x: 2.9, y: 0.9 };
        let (fine, coarse) = (Part::whole(&frame, 1).sample(&map, (1, 1)), part.sample(&map, (1, 1)));
        assert!((fine[0] - (29.0 + 0.9)).abs() < 1e-3, "{fine:?}");
        assert!((fine[0] - coarse[0]).abs() <= 1.0, "{fine:?} {coarse:?}");
        // Beside the frame there is nothing, and no place at all is no place.
        for x in [50.0, -50.0, f32::NAN, f32::INFINITY, f32::MAX] {
            assert_eq!(part.sample(&Similarity { a: 1.0, b: 0.0, x, y: 0.0 }, (1, 1)), [0.0; 3]);
            let cut = Part::cut(&frame, Area { x, y: x, width: x, height: 1.0 }, 3);
            assert!(cut.width > 0 && cut.height > 0);
        }
    }
}
