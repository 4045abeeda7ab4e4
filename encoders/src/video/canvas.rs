//! The picture onto which the frames of an animation are painted, on black.

use super::reader::Frame;

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

/// What becomes of a frame when the next one is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dispose {
    /// It stays.
    Keep,
    /// Its area becomes black.
    Clear,
    /// Its area becomes what it was.
    Restore,
}

/// What is shown. Compositing is associative, so painting onto black gives what a viewer on black shows.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    /// The area to clear or restore before the next frame.
    pending: Option<(Area, Option<Vec<u8>>)>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![0; 3 * width * height], pending: None }
    }

    /// Whether a frame covers all of it.
    pub fn is(&self, area: Area) -> bool {
        area == Area { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Paints all of it, in exchange for what was there.
    pub fn swap(&mut self, rgb: &mut Vec<u8>) {
        if rgb.len() == self.rgb.len() {
            std::mem::swap(&mut self.rgb, rgb);
        }
    }

    /// A copy of what is shown.
    pub fn frame(&self) -> Frame {
        Frame { width: self.width, height: self.height, rgb: self.rgb.clone() }
    }

    /// Clears or restores what the last frame left, and keeps what the next one may want back.
    pub fn before(&mut self, area: Area, dispose: Dispose) {
        if let Some((area, saved)) = self.pending.take() {
            match saved {
                Some(rgb) => self.rgb = rgb,
                None => self.rows(area, |_, row| row.fill(0)),
            }
        }
        self.pending = match dispose {
            Dispose::Keep => None,
            Dispose::Clear => Some((area, None)),
            Dispose::Restore => Some((area, Some(self.rgb.clone()))),
        };
    }

    /// Calls with each row of the area that is inside, and its number.
    fn rows(&mut self, area: Area, mut call: impl FnMut(usize, &mut [u8])) {
        let columns = area.x.min(self.width)..area.x.saturating_add(area.width).min(self.width);
        let rows = self.rgb.chunks_exact_mut(3 * self.width.max(1)).skip(area.y).take(area.height);
        for (i, row) in rows.enumerate() {
            call(i, &mut row[3 * columns.start..3 * columns.end]);
        }
    }

    /// Paints pixels of 3 (RGB) or 4 bytes (RGB and opacity); without `blend` what was there is gone also where they are clear.
    pub fn paint(&mut self, area: Area, pixels: &[u8], channels: usize, blend: bool) {
        let stride = channels * area.width;
        self.rows(area, |i, row| {
            let Some(source) = pixels.get(i * stride..(i + 1) * stride) else { return };
            if channels == 3 {
                let n = row.len();
                row.copy_from_slice(&source[..n]);
                return;
            }
            let (to, _) = row.as_chunks_mut::<3>();
            let (from, _) = source.as_chunks::<4>();
            for (to, &[r, g, b, alpha]) in to.iter_mut().zip(from) {
                match alpha {
                    255 => *to = [r, g, b],
                    0 if blend => {}
                    _ => {
                        let under = if blend { *to } else { [0; 3] };
                        let mix = |top: u8, below: u8| {
                            let (top, below, alpha) = (u32::from(top), u32::from(below), u32::from(alpha));
                            ((top * alpha + below * (255 - alpha) + 127) / 255) as u8
                        };
                        *to = [mix(r, under[0]), mix(g, under[1]), mix(b, under[2])];
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(x: usize, y: usize, width: usize, height: usize) -> Area {
        Area { x, y, width, height }
    }

    fn reds(canvas: &Canvas) -> Vec<u8> {
        canvas.rgb.iter().step_by(3).copied().collect()
    }

    #[test]
    fn frames_are_blended_cleared_and_taken_back() {
        let mut canvas = Canvas::new(3, 2);
        canvas.before(area(0, 0, 3, 2), Dispose::Keep);
        canvas.paint(area(0, 0, 3, 2), &[100; 18], 3, true);
        canvas.before(area(1, 0, 2, 1), Dispose::Restore);
        canvas.paint(area(1, 0, 2, 1), &[200, 0, 0, 255, 200, 0, 0, 0], 4, true);
        assert_eq!(reds(&canvas), [100, 200, 100, 100, 100, 100]);
        canvas.before(area(0, 1, 1, 1), Dispose::Clear);
        canvas.paint(area(0, 1, 1, 1), &[200, 0, 0, 51], 4, true);
        // 200 at a fifth over 100.
        assert_eq!(reds(&canvas), [100, 100, 100, 120, 100, 100]);
        // Half outside; without blending what is clear becomes black.
        canvas.before(area(2, 1, 5, 5), Dispose::Keep);
        canvas.paint(area(2, 1, 5, 5), &[0; 100], 4, false);
        assert_eq!(reds(&canvas), [100, 100, 100, 0, 100, 0]);
        canvas.before(area(9, 9, 1, 1), Dispose::Keep);
        canvas.paint(area(9, 9, 1, 1), &[7; 3], 3, true);
        assert_eq!(reds(&canvas), [100, 100, 100, 0, 100, 0]);
    }
}
