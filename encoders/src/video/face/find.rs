//! Faces in a frame, and the landmarks of a face.

use serde::Serialize;

use super::align::{Landmarks, Similarity, mean};
use super::error::{FaceError, FaceResult};
use super::net::{self, ANCHORS, DetectorNet, FACE, FIELDS, LandmarkNet};
use super::pixels::{Area, Frame, Part};

/// Score from which on a face is one.
pub(crate) const SURE: f32 = 0.5;
/// Score from which on a face that was there in the frame before still is one.
pub(crate) const STILL: f32 = 0.4;
/// Rows and columns that the detector sees of a whole frame: for faces that fill it, usual ones, and small ones.
const WHOLE: [usize; 3] = [224, 416, 832];
/// The same about a face found in the whole frame, and the side of that square in sides of the face. On 240 squares without a
/// face the detector finds none there; on 14 faces in six photos, each a tenth beside its place and at it, the least score is 0.59.
const CLOSE: (usize, f32) = (160, 2.2);
/// The same about a face of the frame before: a third of the work, none and 0.61.
const AGAIN: (usize, f32) = (96, 1.8);
/// Faces of a whole frame that are looked at closer, at most.
const MOST_FACES: usize = 32;
/// Boxes that overlap by more than this part of their union are one face.
const OVERLAP: f32 = 0.4;
/// A face that moved by more than this part of its side since the frame before is looked at anew.
const MOVED: f32 = 0.15;
/// A landmark network's square in sides of the landmarks' own.
const ROOM: f32 = 1.2;

/// Where a face is, in pixels of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FaceBox {
    /// Left edge; may lie outside the frame.
    pub x: f32,
    /// Upper edge; may lie outside the frame.
    pub y: f32,
    /// Columns.
    pub width: f32,
    /// Rows.
    pub height: f32,
    /// From 0 to 1.
    pub score: f32,
}

impl FaceBox {
    /// The middle.
    pub fn centre(&self) -> (f32, f32) {
        (self.x + self.width / 2.0, self.y + self.height / 2.0)
    }

    /// The longer side.
    pub fn side(&self) -> f32 {
        self.width.max(self.height)
    }

    /// The box at `part` (0 to 1) of the way to another, with the lower score.
    pub(crate) fn towards(&self, to: &Self, part: f32) -> Self {
        let between = |a: f32, b: f32| a + part * (b - a);
        Self {
            x: between(self.x, to.x),
            y: between(self.y, to.y),
            width: between(self.width, to.width),
            height: between(self.height, to.height),
            score: self.score.min(to.score),
        }
    }

    /// Shared area as a part of the union.
    pub(crate) fn overlap(&self, other: &Self) -> f32 {
        let across = (self.x + self.width).min(other.x + other.width) - self.x.max(other.x);
        let down = (self.y + self.height).min(other.y + other.height) - self.y.max(other.y);
        let both = across.max(0.0) * down.max(0.0);
        let union = self.width * self.height + other.width * other.height - both;
        if union > 0.0 { both / union } else { 0.0 }
    }
}

/// A face with its landmarks.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub place: FaceBox,
    pub points: Landmarks,
}

/// The square about landmarks that the network looks at next: its centre, side and turn, eyes level in it.
fn square(points: &Landmarks) -> ((f32, f32), f32, f32) {
    let (left, right) = (mean(&points[36..42]), mean(&points[42..48]));
    let roll = (right.1 - left.1).atan2(right.0 - left.0);
    let turn = Similarity { a: roll.cos(), b: -roll.sin(), x: 0.0, y: 0.0 };
    let mut edges = (f32::MAX, f32::MAX, f32::MIN, f32::MIN);
    for (x, y) in points.map(|p| turn.apply(p)) {
        edges = (edges.0.min(x), edges.1.min(y), edges.2.max(x), edges.3.max(y));
    }
    let centre = turn.inverse().apply(((edges.0 + edges.2) / 2.0, (edges.1 + edges.3) / 2.0));
    (centre, (edges.2 - edges.0).max(edges.3 - edges.1) * ROOM, roll)
}

/// Finds faces and their landmarks in single frames: [`FaceCropper`](super::FaceCropper) does so in videos.
///
/// The networks are the tiny ones of face-api (MIT; 0.27 MB, inside the program): tried on faces seen from the front, down to
/// 1/14 of the frame's longer side.
pub struct FaceFinder {
    detector: DetectorNet,
    landmarks: LandmarkNet,
}

impl FaceFinder {
    /// Loads the networks.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn new() -> FaceResult<Self> {
        let (detector, landmarks) = net::load()?;
        Ok(Self { detector, landmarks })
    }

    /// The faces of a frame, from left to right.
    ///
    /// # Errors
    /// A frame that is none.
    pub fn faces(&self, frame: &Frame) -> FaceResult<Vec<FaceBox>> {
        check(frame)?;
        self.whole(frame, true)
    }

    /// The faces in the square at the upper left of the frame that holds all of it, seen by the detector in `side` by `side`
    /// pixels (a multiple of 32), by falling score.
    ///
    /// # Errors
    /// A frame that is none, or another side.
    pub fn detect(&self, frame: &Frame, side: usize) -> FaceResult<Vec<FaceBox>> {
        check(frame)?;
        if side == 0 || !side.is_multiple_of(32) || side > 2048 {
            return Err(FaceError::Input(format!(
                "a detector of {side} pixels a side; take a multiple of 32 up to 2048"
            )));
        }
        let longer = frame.width.max(frame.height);
        let part = Part::whole(frame, longer / side);
        let area = Area { x: 0.0, y: 0.0, width: longer as f32, height: longer as f32 };
        self.boxes(&part, area, side, SURE)
    }

    /// 68 landmarks of the face in a box, in the order of iBUG 300-W, in pixels of the frame.
    ///
    /// # Errors
    /// A frame that is none.
    pub fn landmarks(&self, frame: &Frame, place: &FaceBox) -> FaceResult<Landmarks> {
        check(frame)?;
        self.points(&Part::whole(frame, 1), place.centre(), place.side(), 0.0)
    }

    /// As [`landmarks`](Self::landmarks), and twice more in the square that those give, turned so that the eyes are level: the
    /// result hardly depends on the box.
    ///
    /// # Errors
    /// A frame that is none.
    pub fn refined_landmarks(&self, frame: &Frame, place: &FaceBox) -> FaceResult<Landmarks> {
        check(frame)?;
        self.refined(&Part::whole(frame, 1), place)
    }

    /// The faces of a whole frame from left to right; `thorough` also looks for small ones.
    ///
    /// What the detector takes for a face in the whole frame is one if it does so again from near.
    pub(crate) fn whole(&self, frame: &Frame, thorough: bool) -> FaceResult<Vec<FaceBox>> {
        let longer = frame.width.max(frame.height);
        let mut found = Vec::new();
        for side in WHOLE {
            // Enlarging a frame shows nothing new.
            if side <= 416 || (thorough && longer * 3 >= side * 2) {
                found.extend(self.detect(frame, side)?);
            }
        }
        let mut faces = Vec::new();
        for place in distinct(found).into_iter().take(MOST_FACES) {
            let area = Area::square(place.centre(), place.side() * CLOSE.1);
            let part = Part::cut(frame, area, (area.width / CLOSE.0 as f32) as usize);
            faces.extend(self.near(&part, &place, CLOSE, SURE)?);
        }
        let mut faces = distinct(faces);
        faces.sort_by(|a, b| a.centre().0.total_cmp(&b.centre().0));
        Ok(faces)
    }

    /// The face of the frame before, if it is still there.
    pub(crate) fn again(&self, part: &Part, before: &Face) -> FaceResult<Option<Face>> {
        // Where landmarks say that it was: unlike the detector's boxes those do not tremble.
        let (centre, side, _) = square(&before.points);
        let area = Area::square(centre, side);
        let square = FaceBox { x: area.x, y: area.y, width: side, height: side, score: 1.0 };
        let Some(place) = self.near(part, &square, AGAIN, STILL)? else { return Ok(None) };
        let ((x, y), (x0, y0)) = (place.centre(), before.place.centre());
        let points = if (x - x0).hypot(y - y0) < MOVED * side {
            self.closer(part, &before.points)?
        } else {
            self.refined(part, &place)?
        };
        Ok(Some(Face { place, points }))
    }

    /// The face that the detector sees from near, where one may be.
    fn near(
        &self,
        part: &Part,
        place: &FaceBox,
        (side, reach): (usize, f32),
        least: f32,
    ) -> FaceResult<Option<FaceBox>> {
        let area = Area::square(place.centre(), place.side() * reach);
        // Means of pixels are made once, rather than at every place of the picture.
        let coarse = ((area.width / side as f32) as usize / part.reduce().max(1) >= 2)
            .then(|| part.coarser((area.width / side as f32) as usize / part.reduce().max(1)));
        let faces = self.boxes(coarse.as_ref().unwrap_or(part), area, side, least)?;
        let near = faces.into_iter().map(|face| (face.overlap(place), face)).filter(|(overlap, _)| *overlap > 0.3);
        Ok(near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, face)| face))
    }

    pub(crate) fn refined(&self, part: &Part, place: &FaceBox) -> FaceResult<Landmarks> {
        let points = self.points(part, place.centre(), place.side(), 0.0)?;
        self.closer(part, &self.closer(part, &points)?)
    }

    /// Landmarks in the square of landmarks.
    fn closer(&self, part: &Part, points: &Landmarks) -> FaceResult<Landmarks> {
        let (centre, side, roll) = square(points);
        self.points(part, centre, side, roll)
    }

    fn points(&self, part: &Part, centre: (f32, f32), side: f32, roll: f32) -> FaceResult<Landmarks> {
        let map = Similarity::square(centre, side, roll, FACE);
        let points = self.landmarks.forward(part.sample(&map, (FACE, FACE)))?;
        Ok(points.map(|(x, y)| map.apply((x * FACE as f32, y * FACE as f32))))
    }

    /// The faces in a square of the frame that the detector sees in `side` by `side` pixels, by falling score.
    fn boxes(&self, part: &Part, area: Area, side: usize, least: f32) -> FaceResult<Vec<FaceBox>> {
        let scale = area.width / side as f32;
        let map = Similarity { a: scale, b: 0.0, x: area.x, y: area.y };
        let (raw, cells) = self.detector.forward(part.sample(&map, (side, side)), side)?;
        let sigmoid = |v: f32| 1.0 / (1.0 + (-v).exp());
        let cell = area.width / cells as f32;
        let mut found = Vec::new();
        for (i, fields) in raw.chunks_exact(FIELDS).enumerate() {
            let (anchor, column, row) =
                (ANCHORS[i % ANCHORS.len()], i / ANCHORS.len() % cells, i / ANCHORS.len() / cells);
            let &[x, y, width, height, score] = fields else { continue };
            let score = sigmoid(score);
            if score > least {
                let (width, height) = (width.exp() * anchor.0 * cell, height.exp() * anchor.1 * cell);
                let x = area.x + (column as f32 + sigmoid(x)) * cell - width / 2.0;
                let y = area.y + (row as f32 + sigmoid(y)) * cell - height / 2.0;
                // A box far larger than what was looked at is none.
                if width < 4.0 * area.width && height < 4.0 * area.width {
                    found.push(FaceBox { x, y, width, height, score });
                }
            }
        }
        Ok(distinct(found))
    }
}

/// The boxes without those that overlap a box of a higher score, by falling score.
fn distinct(mut found: Vec<FaceBox>) -> Vec<FaceBox> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<FaceBox> = Vec::new();
    for face in found {
        if kept.iter().all(|k| k.overlap(&face) <= OVERLAP) {
            kept.push(face);
        }
    }
    kept
}

fn check(frame: &Frame) -> FaceResult<()> {
    frame.check().map_err(|why| FaceError::Frame { label: "picture".into(), frame: 0, why })
}
