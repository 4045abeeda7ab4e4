//! Luma and chroma to red, green and blue.

use super::sps::Colours;

/// Planes of a frame of 4:2:0: luma, and two of chroma with a value for four pixels.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    pub y: &'a [u8],
    pub u: &'a [u8],
    pub v: &'a [u8],
    /// Bytes from row to row, of luma and of chroma.
    pub strides: (usize, usize),
}

/// Units of the fixed point.
const DIGITS: i32 = 14;

/// Factors in fixed point: luma, red of v, green of u and of v, blue of u; and what black is.
struct Factors {
    y: i32,
    rv: i32,
    gu: i32,
    gv: i32,
    bu: i32,
    black: i32,
}

impl Factors {
    /// Of ITU-R BT.601 and BT.709: weights of red and blue in luma, from which the rest follows.
    fn new(colours: Colours) -> Self {
        let (red, blue) = if colours.bt709 { (0.2126, 0.0722) } else { (0.299, 0.114) };
        let green = 1.0 - red - blue;
        let (luma, chroma) = if colours.full { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |v: f64| (v * f64::from(1 << DIGITS)).round() as i32;
        Self {
            y: fixed(luma),
            rv: fixed(2.0 * (1.0 - red) * chroma),
            gu: fixed(-2.0 * (1.0 - blue) * blue / green * chroma),
            gv: fixed(-2.0 * (1.0 - red) * red / green * chroma),
            bu: fixed(2.0 * (1.0 - blue) * chroma),
            black: if colours.full { 0 } else { 16 },
        }
    }

    fn pair(&self, y: &[u8], u: u8, v: u8, rgb: &mut [u8]) {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let (red, green, blue) = (self.rv * v, self.gu * u + self.gv * v, self.bu * u);
        let (pixels, _) = rgb.as_chunks_mut::<3>();
        for (&y, pixel) in y.iter().zip(pixels) {
            let luma = self.y * (i32::from(y) - self.black) + (1 << (DIGITS - 1));
            *pixel = [red, green, blue].map(|chroma| ((luma + chroma) >> DIGITS).clamp(0, 255) as u8);
        }
    }
}

/// RGB of a frame; `None` where the planes are too small for it.
pub(super) fn rgb(planes: Planes<'_>, (width, height): (usize, usize), colours: Colours) -> Option<Vec<u8>> {
    let factors = Factors::new(colours);
    let mut rgb = vec![0; width.checked_mul(height)?.checked_mul(3)?];
    let half = width.div_ceil(2);
    for (row, out) in rgb.chunks_exact_mut((3 * width).max(1)).enumerate() {
        let y = line(planes.y, row, planes.strides.0, width)?;
        let u = line(planes.u, row / 2, planes.strides.1, half)?;
        let v = line(planes.v, row / 2, planes.strides.1, half)?;
        for ((y, out), (&u, &v)) in y.chunks(2).zip(out.chunks_mut(6)).zip(u.iter().zip(v)) {
            factors.pair(y, u, v, out);
        }
    }
    Some(rgb)
}

/// The first values of a row.
fn line(plane: &[u8], row: usize, stride: usize, n: usize) -> Option<&[u8]> {
    plane.get(row.checked_mul(stride)?..)?.get(..n)
}
