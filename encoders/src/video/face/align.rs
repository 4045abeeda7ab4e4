//! From landmarks to the place of the mouth: smoothing over time, and a similarity to a mean face.

use super::net::POINTS;

/// The 68 points of a face in the order of iBUG 300-W, as (x, y).
pub type Landmarks = [(f32, f32); POINTS];

/// Frames before and after that landmarks are smoothed over.
pub(crate) const MARGIN: usize = 6;
/// Rows and columns of a crop.
pub const PATCH: usize = 96;

/// The points that move little when speaking, of a mean face of 256x256 pixels: bridge of the nose, below the nose, corners of
/// the eyes, corners of the mouth. The shape is the mean face of dlib's 68-point predictor (Kazemi and Sullivan 2014), as the
/// OpenFace project published it, made symmetric; size and place are those which published crops have: 144 pixels for its unit,
/// eyes level, within 4 pixels of auto-avsr's mean face.
const MEAN_FACE: [(usize, (f32, f32)); 8] = [
    (28, (129.2, 104.9)),
    (33, (129.2, 139.2)),
    (36, (91.0, 94.8)),
    (39, (112.8, 96.3)),
    (42, (145.6, 96.3)),
    (45, (167.4, 94.8)),
    (48, (104.3, 154.8)),
    (54, (154.1, 154.8)),
];

/// A place, and the one that it goes to.
type Pair = ((f32, f32), (f32, f32));

/// Turns, scales and shifts: `(x, y)` to `(a x - b y + X, b x + a y + Y)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Similarity {
    pub a: f32,
    pub b: f32,
    pub x: f32,
    pub y: f32,
}

impl Similarity {
    /// An upright square with `pixels` a side onto the square of `side` about a centre, turned by `roll` radians.
    pub fn square((x, y): (f32, f32), side: f32, roll: f32, pixels: usize) -> Self {
        let scale = side / pixels as f32;
        let (a, b) = (scale * roll.cos(), scale * roll.sin());
        let half = pixels as f32 / 2.0;
        Self { a, b, x: x - a * half + b * half, y: y - b * half - a * half }
    }

    pub fn apply(&self, (x, y): (f32, f32)) -> (f32, f32) {
        (self.a * x - self.b * y + self.x, self.b * x + self.a * y + self.y)
    }

    pub fn scale(&self) -> f32 {
        self.a.hypot(self.b)
    }

    /// The way back. A map that makes everything one point has none, and stays.
    pub fn inverse(&self) -> Self {
        let n = self.a * self.a + self.b * self.b;
        if !(n > 0.0 && n.is_finite()) {
            return *self;
        }
        let (a, b) = (self.a / n, -self.b / n);
        Self { a, b, x: -(a * self.x - b * self.y), y: -(b * self.x + a * self.y) }
    }

    /// Least squares from the first to the second of each pair.
    fn fit(pairs: &[Pair]) -> Self {
        let n = pairs.len().max(1) as f32;
        let mean = |f: fn(&Pair) -> (f32, f32)| {
            let sum = pairs.iter().map(f).fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
            (sum.0 / n, sum.1 / n)
        };
        let (from, to) = (mean(|p| p.0), mean(|p| p.1));
        let (mut square, mut along, mut across) = (0.0, 0.0, 0.0);
        for (p, q) in pairs {
            let (px, py, qx, qy) = (p.0 - from.0, p.1 - from.1, q.0 - to.0, q.1 - to.1);
            square += px * px + py * py;
            along += px * qx + py * qy;
            across += px * qy - py * qx;
        }
        // One point in all places: only a shift can be told.
        let (a, b) = if square > f32::EPSILON { (along / square, across / square) } else { (1.0, 0.0) };
        Self { a, b, x: to.0 - (a * from.0 - b * from.1), y: to.1 - (b * from.0 + a * from.1) }
    }

    fn error(&self, (from, to): &Pair) -> f32 {
        let (x, y) = self.apply(*from);
        (x - to.0).powi(2) + (y - to.1).powi(2)
    }

    /// The similarity of a face to the mean face: of all pairs of points the one whose map has the least median error, then
    /// least squares over the points that agree with it (Rousseeuw 1984, as OpenCV's LMEDS, here over all pairs).
    pub fn to_mean_face(points: &Landmarks) -> Self {
        let pairs = MEAN_FACE.map(|(i, place)| (points[i], place));
        let mut best = (f32::INFINITY, Self::fit(&pairs));
        for i in 0..pairs.len() {
            for j in i + 1..pairs.len() {
                let map = Self::fit(&[pairs[i], pairs[j]]);
                let mut errors = pairs.map(|p| map.error(&p));
                errors.sort_by(f32::total_cmp);
                let median = (errors[3] + errors[4]) / 2.0;
                if median < best.0 {
                    best = (median, map);
                }
            }
        }
        // 2.5 robust standard deviations, corrected for few points; at least half a pixel.
        let reach = (2.5 * 1.4826 * (1.0 + 5.0 / (pairs.len() - 2) as f32)).powi(2) * best.0;
        let agree: Vec<_> = pairs.into_iter().filter(|p| best.1.error(p) <= reach.max(0.25)).collect();
        if agree.len() < 2 { best.1 } else { Self::fit(&agree) }
    }
}

pub(crate) fn mean(points: &[(f32, f32)]) -> (f32, f32) {
    let n = points.len().max(1) as f32;
    let (x, y) = points.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
    (x / n, y / n)
}

/// The middle of the lips: points 48 to 67.
pub fn mouth(points: &Landmarks) -> (f32, f32) {
    mean(&points[48..])
}

/// Places in the patch onto places in the frame: 96x96 pixels of the mean face about the middle of the lips. Published tools
/// round that middle to whole pixels; here it is kept, so the mouth does not jump.
pub(crate) fn patch(points: &Landmarks) -> Similarity {
    let map = Similarity::to_mean_face(points);
    let (x, y) = map.apply(mouth(points));
    let back = map.inverse();
    let half = PATCH as f32 / 2.0;
    let corner = back.apply((x - half, y - half));
    Similarity { a: back.a, b: back.b, x: corner.0, y: corner.1 }
}

/// The mean of faces, moved so that its middle is that of `middle`.
pub(crate) fn smooth<'a>(faces: impl Iterator<Item = &'a Landmarks>, middle: &Landmarks) -> Landmarks {
    let mut sum = [(0.0, 0.0); POINTS];
    let mut count = 0.0f32;
    for face in faces {
        sum.iter_mut().zip(face).for_each(|(s, p)| *s = (s.0 + p.0, s.1 + p.1));
        count += 1.0;
    }
    let sum = sum.map(|(x, y)| (x / count.max(1.0), y / count.max(1.0)));
    let (from, to) = (mean(&sum), mean(middle));
    sum.map(|(x, y)| (x + to.0 - from.0, y + to.1 - from.1))
}

/// How far the points of two faces are apart, in the mean.
pub(crate) fn distance(a: &Landmarks, b: &Landmarks) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a.0 - b.0).hypot(a.1 - b.1)).sum::<f32>() / a.len() as f32
}

/// The face at `part` (0 to 1) of the way between two.
pub(crate) fn between(a: &Landmarks, b: &Landmarks, part: f32) -> Landmarks {
    std::array::from_fn(|i| (a[i].0 + part * (b[i].0 - a[i].0), a[i].1 + part * (b[i].1 - a[i].1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: (f32, f32), b: (f32, f32)) -> bool {
        (a.0 - b.0).abs() < 1e-2 && (a.1 - b.1).abs() < 1e-2
    }

    #[test]
    fn the_mean_face_is_found_again() {
        let truth = Similarity::square((70.0, 90.0), 320.0, 0.3, 256);
        let mut face = [(50.0, 60.0); POINTS];
        MEAN_FACE.iter().for_each(|(i, p)| face[*i] = truth.apply(*p));
        let map = Similarity::to_mean_face(&face);
        assert!(MEAN_FACE.iter().all(|(i, p)| near(map.apply(face[*i]), *p)));
        assert!(near(map.inverse().apply((129.0, 150.0)), truth.apply((129.0, 150.0))));
        // Two points that are far off, such as an open mouth's corners, do not turn it.
        (face[48], face[54]) = ((0.0, 0.0), (400.0, 10.0));
        let map = Similarity::to_mean_face(&face);
        assert!(MEAN_FACE[..6].iter().all(|(i, p)| near(map.apply(face[*i]), *p)));
    }

    #[test]
    fn the_patch_is_centred_on_the_lips() {
        let mut face = [(0.0, 0.0); POINTS];
        MEAN_FACE.iter().for_each(|(i, p)| face[*i] = (p.0 * 2.0 + 9.0, p.1 * 2.0 - 3.0));
        let corners = (face[48], face[54]);
        face[49..].fill(mean(&[corners.0, corners.1]));
        (face[48], face[54]) = corners;
        let patch = patch(&face);
        assert!(near(patch.apply((48.0, 48.0)), mouth(&face)));
        assert!((patch.scale() - 2.0).abs() < 1e-3 && patch.b.abs() < 1e-3);
    }

    #[test]
    fn no_face_at_all_makes_finite_maps_or_none() {
        for face in [[(5.0, 5.0); POINTS], [(f32::NAN, 0.0); POINTS], [(f32::MAX, f32::MIN); POINTS]] {
            let map = patch(&face);
            let _ = map.inverse();
            assert!(face[0].0.is_nan() || face[0].0 > 1e9 || map.a.is_finite());
        }
    }

    #[test]
    fn smoothing_keeps_the_middle() {
        let faces: [Landmarks; 3] = std::array::from_fn(|t| std::array::from_fn(|i| ((i + 10 * t) as f32, t as f32)));
        let smoothed = smooth(faces.iter(), &faces[2]);
        assert!(near(mean(&smoothed), mean(&faces[2])));
        assert!(near(between(&faces[0], &faces[2], 0.5)[7], faces[1][7]));
    }
}
