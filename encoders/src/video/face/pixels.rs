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
    /// `height * width * 3` bytes.
    rgb: Vec<u8>,
}

/// Pixels of a line that are sampled at once.
const LANES: usize = 16;

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
            for (first, pixels) in line.chunks_mut(LANES * 3).enumerate() {
                for (dy, dx) in within.iter().flat_map(|dy| within.iter().map(move |dx| (dy, dx))) {
                    let place = |i: usize| own.apply(((first * LANES + i) as f32 + dx, row as f32 + dy));
                    if !self.add_inside(&std::array::from_fn(place), share, pixels) {
                        for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                            let (x, y) = place(i);
                            pixel.iter_mut().zip(self.at(x, y)).for_each(|(p, v)| *p += v * share);
                        }
                    }
                }
            }
        }
        out
    }

    /// Adds a share of what lies at so many places to as many pixels, if each of them has four pixels around it. What can be done
    /// for all of them at once is.
    fn add_inside(&self, places: &[(f32, f32); LANES], share: f32, pixels: &mut [f32]) -> bool {
        let (right, bottom) = (self.width as f32 - 1.0, self.height as f32 - 1.0);
        // Not negative, so that the casts below are the floor; NaN is not inside.
        let inside = |&(x, y): &(f32, f32)| x >= 0.0 && y >= 0.0 && x < right && y < bottom;
        if pixels.len() != LANES * 3 || !places.iter().all(inside) {
            return false;
        }
        // Of the two pixels above and the two below, values by channel.
        let mut around = [[0u8; LANES]; 12];
        let (mut across, mut down) = ([0f32; LANES], [0f32; LANES]);
        for (i, &(x, y)) in places.iter().enumerate() {
            let (left, top) = (x as i32 as usize, y as i32 as usize);
            (across[i], down[i]) = (x - left as f32, y - top as f32);
            let at = (top * self.width + left) * 3;
            let (upper, lower) = (&self.rgb[at..at + 6], &self.rgb[at + self.width * 3..][..6]);
            for (k, (upper, lower)) in upper.iter().zip(lower).enumerate() {
                (around[k][i], around[k + 6][i]) = (*upper, *lower);
            }
        }
        for c in 0..3 {
            let [p, q, r, s] = [c, c + 3, c + 6, c + 9].map(|k| around[k].map(f32::from));
            for i in 0..LANES {
                let (a, b) = (p[i] + (q[i] - p[i]) * across[i], r[i] + (s[i] - r[i]) * across[i]);
                pixels[3 * i + c] += (a + (b - a) * down[i]) * share;
            }
        }
        true
    }

    /// What lies at a place anywhere: at the border and beyond it pixels are black.
    fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let mut value = [0.0; 3];
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

/// Each pixel the mean of `reduce` by `reduce` of these rows, which hold `height` by `width` of them, rounded.
fn means<'a>(rows: impl Iterator<Item = &'a [u8]>, width: usize, height: usize, reduce: usize) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(width * height * 3);
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
