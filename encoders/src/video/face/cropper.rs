//! One face followed through a video, and crops of its mouth.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

use moesaic_kernels::cpu::with_threads;
use serde::Serialize;

use super::align::{self, Landmarks, MARGIN, PATCH};
use super::debug::Debug;
use super::error::{FaceError, FaceResult};
use super::find::{Face, FaceBox, FaceFinder};
use super::pixels::{Area, Frame, Part};

/// Of so many frames one is looked at, while the face stays in sight and moves; landmarks of the others lie between. They are
/// smoothed over thirteen frames anyway.
const MOVING: usize = 3;
/// The same while it rests.
const RESTING: usize = 6;
/// A face rests if its landmarks move by less than this part of its side from frame to frame, in the mean.
const REST: f32 = 0.004;
/// Frames after which a whole frame is searched again, to count its faces.
const RECOUNT: usize = 125;
/// Frames without the face after which another one far from it may be taken: a cut of the video, rather than a hand.
const PATIENCE: usize = 5;
/// Frames without a face after which small ones are looked for again.
const RETRY: usize = 8;
/// A face is small if more than so many fit along the frame: only beside such a one are others searched for, which takes long,
/// when faces are counted.
const SMALL: f32 = 8.0;
/// What is kept of a frame about a face, in sides of its box.
const KEPT: f32 = 3.0;
/// Side of a face's box in the mean face, about: a frame finer than that is kept coarser.
const MEAN_SIDE: f32 = 123.0;
/// Pixels of the longer side of a frame without a face that are kept at most, about.
const KEPT_SIDE: usize = 1920;

/// Which of several faces is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum FaceChoice {
    /// The largest one of the first frame with a face.
    #[default]
    Largest,
    /// One of that frame, counted from the left, from 0.
    Nth(usize),
    /// The one nearest to a point of it, in pixels.
    At(f32, f32),
}

/// How mouths are cropped.
#[derive(Clone, Debug)]
pub struct FaceOptions {
    /// Name of the video in errors.
    pub label: String,
    /// Which of several faces is followed.
    pub choice: FaceChoice,
    /// Pixels of the width of a face at least; the mean face's is 123, smaller ones are enlarged.
    pub min_face: f32,
    /// Frames without a face that are interpolated over at most. Their pixels are held: about 6 MB each at 1920x1080
    /// and at 3840x2160.
    pub max_gap: usize,
    /// A folder that gets each crop as `crop-NNNNNN.png` and the landmarks as `landmarks.jsonl`.
    pub debug: Option<PathBuf>,
}

impl Default for FaceOptions {
    /// The largest face of at least 40 pixels, up to 50 frames (two seconds) without one.
    fn default() -> Self {
        Self { label: "video".into(), choice: FaceChoice::Largest, min_face: 40.0, max_gap: 50, debug: None }
    }
}

/// A mouth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MouthCrop {
    /// Which frame it is of, from 0; none is left out.
    pub frame: usize,
    /// Whether a face was seen there, or in frames not farther than two before and after, rather than lost.
    pub seen: bool,
    /// `[96, 96, 3]`: RGB, row after row.
    pub rgb: Vec<u8>,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FaceReport {
    /// Frames of the video.
    pub frames: usize,
    /// Those without a face, interpolated or copied.
    pub without_face: usize,
    /// The longest run of them.
    pub longest_gap: usize,
    /// Faces in one frame at most, among the frames that were searched as a whole: the first with a face, every 125th, and those
    /// where the face was lost.
    pub most_faces: usize,
    /// The face that is followed, where it was first seen.
    pub followed: Option<FaceBox>,
    /// Which frame that was.
    pub first_seen: Option<usize>,
    /// Times that another face, far from the one before, was taken: cuts of the video.
    pub jumps: usize,
    /// Width of the smallest face followed, in pixels.
    pub smallest: Option<f32>,
}

impl fmt::Display for FaceReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(face) = self.followed else { return write!(f, "no face in {} frames", self.frames) };
        let (x, y) = face.centre();
        write!(
            f,
            "{} frames, {} of them without a face; followed the one at {x:.0},{y:.0} ({:.0} pixels wide), {} in sight at most",
            self.frames, self.without_face, face.width, self.most_faces
        )?;
        match self.jumps {
            0 => Ok(()),
            n => write!(f, "; it changed place {n} times"),
        }
    }
}

/// A frame on its way.
struct Entry {
    /// Pixels until it is cropped.
    part: Part,
    place: Option<FaceBox>,
    points: Option<Landmarks>,
}

/// Follows a face through the frames of a video, given in order, and crops its mouth.
///
/// Crops come up to eleven frames late, later while no face is seen. Memory does not grow with the video: parts of twelve frames are
/// held at most, and up to [`FaceOptions::max_gap`] more while no face is seen.
pub struct FaceCropper {
    finder: FaceFinder,
    options: FaceOptions,
    debug: Option<Debug>,
    size: Option<(usize, usize)>,
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: usize,
    /// Number of the next frame to crop.
    next: usize,
    /// What was followed, in the frame that last had it.
    last: Option<Face>,
    /// Frames since then without a face.
    gap: usize,
    /// Frames since then that were not looked at; there are none in a gap.
    passed: usize,
    /// Of so many frames one is looked at.
    every: usize,
    /// The largest face that was too small: its frame and width.
    small: Option<(usize, f32)>,
    report: FaceReport,
}

impl FaceCropper {
    /// # Errors
    /// Options that make no sense, or a folder for debugging that cannot be written.
    pub fn new(options: FaceOptions) -> FaceResult<Self> {
        if options.min_face.is_nan() || options.min_face < 0.0 {
            return Err(FaceError::Input(format!(
                "faces of at least {} pixels; take a number from 0 on",
                options.min_face
            )));
        }
        if options.max_gap > 10_000 {
            return Err(FaceError::Input(format!("gaps of up to {} frames; take at most 10000", options.max_gap)));
        }
        Ok(Self {
            finder: FaceFinder::new()?,
            debug: options.debug.clone().map(Debug::new).transpose()?,
            options,
            size: None,
            entries: VecDeque::new(),
            first: 0,
            next: 0,
            last: None,
            gap: 0,
            passed: 0,
            every: MOVING,
            small: None,
            report: FaceReport::default(),
        })
    }

    /// What was seen so far.
    pub fn report(&self) -> &FaceReport {
        &self.report
    }

    /// Takes the next frame; gives the crops that are certain by now, in order.
    ///
    /// # Errors
    /// A frame that is none or of another size than the first, no face in more frames than
    /// [`max_gap`](FaceOptions::max_gap), a face that is too small, or not as many as were asked for.
    pub fn push(&mut self, frame: &Frame) -> FaceResult<Vec<MouthCrop>> {
        let number = self.report.frames;
        let wrong = |why| FaceError::Frame { label: self.options.label.clone(), frame: number, why };
        frame.check().map_err(wrong)?;
        let size = (frame.width, frame.height);
        let expected = *self.size.get_or_insert(size);
        if size != expected {
            let ((w, h), (w0, h0)) = (size, expected);
            return Err(wrong(format!("is {w}x{h} pixels, those before are {w0}x{h0}; give frames of one size")));
        }
        if let Some(last) = self.last.as_ref().filter(|_| self.passes(number)) {
            self.entries.push_back(Entry { part: cut(frame, &last.place), place: None, points: None });
            self.report.frames += 1;
            self.passed += 1;
            return Ok(Vec::new());
        }
        let (part, face) = self.locate(frame)?;
        self.report.frames += 1;
        self.entries.push_back(Entry { part, place: None, points: None });
        match face {
            Some(face) => self.seen(number, face),
            None => {
                self.unseen();
                if self.gap > self.options.max_gap {
                    return Err(self.missing());
                }
            }
        }
        // A gap is the newest entries; those before are known.
        let known = self.report.frames - self.gap;
        let certain = known.saturating_sub(MARGIN);
        self.crops(certain, known)
    }

    /// The last crops, and what was seen.
    ///
    /// # Errors
    /// No frame, no face in any, or files for debugging that cannot be written.
    pub fn finish(mut self) -> FaceResult<(Vec<MouthCrop>, FaceReport)> {
        if self.report.frames == 0 {
            return Err(FaceError::Empty { label: self.options.label });
        }
        self.look_back()?;
        let known = self.report.frames - self.gap;
        let Some(points) = known.checked_sub(self.first + 1).and_then(|i| self.entries.get(i)?.points) else {
            return Err(self.missing());
        };
        for entry in self.entries.iter_mut().filter(|e| e.points.is_none()) {
            entry.points = Some(points);
        }
        let frames = self.report.frames;
        let crops = self.crops(frames, frames)?;
        self.debug.as_mut().map_or(Ok(()), Debug::finish)?;
        Ok((crops, self.report))
    }

    /// Why there is no face.
    fn missing(&self) -> FaceError {
        let label = self.options.label.clone();
        match (&self.last, self.small) {
            (Some(_), _) => FaceError::Lost { label, first: self.report.frames - self.gap, frames: self.gap },
            (None, Some((frame, side))) => FaceError::TooSmall { label, frame, side, least: self.options.min_face },
            (None, None) => FaceError::NoFace { label, frames: self.report.frames },
        }
    }

    /// Whether frame `number` need not be looked at.
    fn passes(&self, number: usize) -> bool {
        self.gap == 0 && self.passed + 1 < self.every && !number.is_multiple_of(RECOUNT)
    }

    /// Looks at the frames that were passed over, where the face is not found again behind them.
    fn look_back(&mut self) -> FaceResult<()> {
        let passed = std::mem::take(&mut self.passed);
        for number in self.report.frames - passed..self.report.frames {
            let face = match (self.entries.get(number - self.first), &self.last) {
                (Some(entry), Some(last)) if self.gap == 0 => self.finder.again(&entry.part, last)?,
                _ => None,
            };
            match face {
                Some(face) => self.seen(number, face),
                None => self.unseen(),
            }
        }
        Ok(())
    }

    /// The face in a frame, if it is there, and what has to be kept of the frame.
    fn locate(&mut self, frame: &Frame) -> FaceResult<(Part, Option<Face>)> {
        if let Some(before) = self.last.as_ref().filter(|_| self.gap == 0) {
            let part = cut(frame, &before.place);
            // One thread is as fast for such small networks, and leaves the others to whoever decodes.
            if let Some(face) = with_threads(1, || self.finder.again(&part, before))? {
                if self.report.frames.is_multiple_of(RECOUNT) {
                    let small = face.place.side() * SMALL < frame.width.max(frame.height) as f32;
                    let faces = with_threads(1, || self.finder.whole(frame, small))?.len();
                    self.report.most_faces = self.report.most_faces.max(faces);
                }
                return Ok((part, Some(face)));
            }
        }
        self.look_back()?;
        let thorough = self.gap.is_multiple_of(RETRY);
        let found = self.finder.whole(frame, thorough)?;
        if let Some(place) = self.choose(found)? {
            let part = cut(frame, &place);
            let points = self.finder.refined(&part, &place)?;
            return Ok((part, Some(Face { place, points })));
        }
        // Nothing is seen there: coarse pixels do.
        let coarse = frame.width.max(frame.height).div_ceil(KEPT_SIDE);
        Ok((Part::whole(frame, self.last.as_ref().map_or(1, |face| fineness(&face.place)).max(coarse)), None))
    }

    /// The face to follow among those of a frame, from left to right.
    fn choose(&mut self, mut faces: Vec<FaceBox>) -> FaceResult<Option<FaceBox>> {
        let number = self.report.frames;
        self.report.most_faces = self.report.most_faces.max(faces.len());
        for face in faces.iter().filter(|f| f.width < self.options.min_face) {
            if self.small.is_none_or(|(_, side)| side < face.width) {
                self.small = Some((number, face.width));
            }
        }
        faces.retain(|f| f.width >= self.options.min_face);
        let nearest = |faces: &[FaceBox], (x, y): (f32, f32)| {
            let away = |f: &FaceBox| (f.centre().0 - x).hypot(f.centre().1 - y);
            faces.iter().copied().map(|f| (away(&f), f)).min_by(|a, b| a.0.total_cmp(&b.0))
        };
        if let Some(last) = self.last.as_ref().map(|face| face.place) {
            let (least, most) = (last.side() / 2.0, last.side() * 2.0);
            let alike: Vec<_> = faces.iter().copied().filter(|f| (least..most).contains(&f.side())).collect();
            let near = nearest(&alike, last.centre()).filter(|(away, _)| *away < 1.5 * last.side());
            if near.is_some() || self.gap < PATIENCE {
                return Ok(near.map(|(_, face)| face));
            }
        }
        if faces.is_empty() {
            return Ok(None);
        }
        Ok(match self.options.choice {
            FaceChoice::Largest => faces.into_iter().max_by(|a, b| a.side().total_cmp(&b.side())),
            FaceChoice::At(x, y) => nearest(&faces, (x, y)).map(|(_, face)| face),
            FaceChoice::Nth(index) => match faces.get(index) {
                None if self.last.is_none() => {
                    let (label, found) = (self.options.label.clone(), faces.len());
                    return Err(FaceError::NoSuchFace { label, index, frame: number, found });
                }
                face => face.copied(),
            },
        })
    }

    /// No face in the next frame that nothing is known of.
    fn unseen(&mut self) {
        self.gap += 1;
        self.report.without_face += 1;
        self.report.longest_gap = self.report.longest_gap.max(self.gap);
    }

    /// A face in frame `number`: closes the gap before it.
    fn seen(&mut self, number: usize, face: Face) {
        let (gap, passed) = (std::mem::take(&mut self.gap), std::mem::take(&mut self.passed));
        let behind = gap + passed;
        let at = number - self.first;
        let before = at.checked_sub(behind + 1).and_then(|i| self.entries.get(i)?.points);
        let last = self.last.as_ref().filter(|_| passed > 0).map(|last| last.place);
        for (i, entry) in self.entries.range_mut(at - behind..at).enumerate() {
            let part = (i + 1) as f32 / (behind + 1) as f32;
            entry.points = Some(before.map_or(face.points, |before| align::between(&before, &face.points, part)));
            entry.place = last.map(|last| last.towards(&face.place, part));
        }
        if let Some(entry) = self.entries.get_mut(at) {
            (entry.points, entry.place) = (Some(face.points), Some(face.place));
        }
        if let Some(last) = &self.last {
            let ((x, y), (x0, y0)) = (face.place.centre(), last.place.centre());
            self.report.jumps += usize::from((x - x0).hypot(y - y0) > 1.5 * last.place.side());
            let moved = align::distance(&face.points, &last.points) / (behind + 1) as f32;
            self.every = if moved < REST * face.place.side() { RESTING } else { MOVING };
        }
        self.report.followed.get_or_insert(face.place);
        self.report.first_seen.get_or_insert(number);
        self.report.smallest = Some(self.report.smallest.map_or(face.place.width, |s| s.min(face.place.width)));
        self.last = Some(face);
    }

    /// Crops the frames before `end`, of which `known` have landmarks.
    fn crops(&mut self, end: usize, known: usize) -> FaceResult<Vec<MouthCrop>> {
        let mut crops = Vec::new();
        while self.next < end {
            let (number, at) = (self.next, self.next - self.first);
            let margin = MARGIN.min(number).min(known - 1 - number);
            let around = self.entries.range(at - margin..=at + margin).filter_map(|e| e.points.as_ref());
            let Some(points) = self.entries.get(at).and_then(|e| e.points) else { break };
            let smoothed = align::smooth(around, &points);
            let Some(entry) = self.entries.get_mut(at) else { break };
            let pixels = std::mem::take(&mut entry.part).sample(&align::patch(&smoothed), (PATCH, PATCH));
            let rgb: Vec<u8> = pixels.into_iter().map(|v| v.round() as u8).collect();
            if let Some(debug) = &mut self.debug {
                debug.write(number, entry.place, &smoothed, &rgb)?;
            }
            crops.push(MouthCrop { frame: number, seen: entry.place.is_some(), rgb });
            self.next += 1;
            if at >= MARGIN {
                self.entries.pop_front();
                self.first += 1;
            }
        }
        Ok(crops)
    }
}

/// Pixels of the frame that one of the mean face shows, whole.
fn fineness(face: &FaceBox) -> usize {
    (face.side() / MEAN_SIDE) as usize
}

/// What has to be kept of a frame with a face, or with a face in the frame before.
fn cut(frame: &Frame, face: &FaceBox) -> Part {
    Part::cut(frame, Area::square(face.centre(), KEPT * face.side()), fineness(face))
}
