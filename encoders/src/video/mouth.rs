//! Clips of mouths: what speech models see of a video.

use std::collections::VecDeque;
use std::path::Path;

use super::error::{VideoError, VideoResult};
use super::face::{self, FaceCropper, FaceOptions, FaceReport, PATCH};
use super::lips::CROP;
use super::reader::{Frame, VideoOptions, VideoReader};
use crate::image::{Filter, Limits, Picture};

/// Frames that are read while a face is looked for in those before them, and their bytes, at most.
const AHEAD: (usize, usize) = (32, 32 << 20);
/// Sides of frames that are taken for cropped mouths.
const SIDES: std::ops::RangeInclusive<usize> = 64..=160;

/// Where in the frames the mouth is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roi {
    /// The frames are mouths if they have the size of such, and else show a face.
    #[default]
    Auto,
    /// The frames are mouths: 64 to 160 pixels a side, square within a tenth. They become 96x96 pixels; 88x88 stay.
    Cropped,
    /// The same part of each frame, which becomes 96x96 pixels; 88x88 stay.
    Box {
        /// First column.
        x: usize,
        /// First row.
        y: usize,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// In a face, which is found and followed ([`FaceCropper`]).
    Face,
}

/// How a clip of a mouth is read.
#[derive(Clone, Debug, Default)]
pub struct MouthOptions {
    /// How the video is read.
    pub video: VideoOptions,
    /// Where the mouth is.
    pub roi: Roi,
    /// How a face is found; its folder for debugging gets all mouths, however they were found.
    pub face: FaceOptions,
}

/// Mouths of a video, one for each frame, 25 a second unless [`VideoOptions::fps`] says otherwise: an iterator over RGB pictures of
/// 96x96 or 88x88 pixels, all of one size. Memory does not grow with the video. An error ends it.
///
/// Where a face is looked for, a second thread reads the next frames meanwhile.
pub struct MouthReader {
    reader: VideoReader,
    options: MouthOptions,
    way: Option<Way>,
    /// What was read ahead.
    ahead: Vec<VideoResult<Frame>>,
    ready: VecDeque<Frame>,
    report: Option<FaceReport>,
    written: usize,
    /// What comes behind all that is ready.
    error: Option<VideoError>,
    over: bool,
}

/// How mouths are found, once the first frame is known.
enum Way {
    Part(Roi),
    Face(Box<FaceCropper>),
}

impl MouthReader {
    /// The mouths in all that [`VideoReader::open`] opens.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path, options: MouthOptions) -> VideoResult<Self> {
        Ok(Self::new(VideoReader::open(path, options.video)?, options))
    }

    /// The mouths in the frames of a reader.
    pub fn new(reader: VideoReader, mut options: MouthOptions) -> Self {
        options.face.label = reader.label().to_string();
        let (way, ahead, ready, report) = (None, Vec::new(), VecDeque::new(), None);
        Self { reader, options, way, ahead, ready, report, written: 0, error: None, over: false }
    }

    /// The reader of the frames.
    pub fn video(&self) -> &VideoReader {
        &self.reader
    }

    /// What was seen of faces so far, where they are looked for.
    pub fn faces(&self) -> Option<&FaceReport> {
        match &self.way {
            Some(Way::Face(cropper)) => Some(cropper.report()),
            _ => self.report.as_ref(),
        }
    }

    /// Reads frames until a mouth is ready or none are left.
    fn fill(&mut self) -> VideoResult<()> {
        while self.ready.is_empty() {
            if self.ahead.is_empty() {
                self.ahead.extend(self.reader.next());
            }
            let frames = std::mem::take(&mut self.ahead);
            let Some(bytes) = frames.iter().flatten().map(|frame| frame.rgb.len()).max() else {
                // An error, or the end.
                frames.into_iter().collect::<VideoResult<Vec<_>>>()?;
                self.over = true;
                if let Some(Way::Face(cropper)) = self.way.take() {
                    let (crops, report) = cropper.finish()?;
                    self.report = Some(report);
                    self.ready.extend(crops.into_iter().map(|crop| patch(crop.rgb)));
                }
                return Ok(());
            };
            if self.way.is_none() {
                self.way = match (self.options.roi, frames.first()) {
                    (Roi::Auto, Some(Ok(frame))) if !mouth_sized(frame) => Some(Way::face(&self.options)?),
                    (Roi::Face, _) => Some(Way::face(&self.options)?),
                    (roi, _) => Some(Way::Part(roi)),
                };
            }
            match &mut self.way {
                Some(Way::Face(cropper)) => {
                    let (reader, ahead, ready) = (&mut self.reader, &mut self.ahead, &mut self.ready);
                    let next = (AHEAD.1 / bytes.max(1)).clamp(1, AHEAD.0);
                    std::thread::scope(|scope| {
                        let read = || ahead.extend(reader.take(next));
                        // Without another thread they are read when they are needed.
                        let _ = std::thread::Builder::new().name("frames".into()).spawn_scoped(scope, read);
                        frames.into_iter().try_for_each(|frame| -> VideoResult<()> {
                            let Frame { width, height, rgb } = frame?;
                            let crops = cropper.push(&face::Frame { width, height, rgb: &rgb })?;
                            ready.extend(crops.into_iter().map(|crop| patch(crop.rgb)));
                            Ok(())
                        })
                    })?;
                }
                Some(Way::Part(roi)) => {
                    for frame in frames {
                        let mouth = crop(frame?, *roi, self.reader.label())?;
                        if let Some(folder) = &self.options.face.debug {
                            face::write_crop(folder, self.written, (mouth.width, mouth.height), &mouth.rgb)?;
                            self.written += 1;
                        }
                        self.ready.push_back(mouth);
                    }
                }
                None => {}
            }
        }
        Ok(())
    }
}

impl Way {
    fn face(options: &MouthOptions) -> VideoResult<Self> {
        Ok(Self::Face(Box::new(FaceCropper::new(options.face.clone())?)))
    }
}

impl Iterator for MouthReader {
    type Item = VideoResult<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.over
            && let Err(error) = self.fill()
        {
            (self.over, self.way, self.error) = (true, None, Some(error));
        }
        self.ready.pop_front().map(Ok).or_else(|| self.error.take().map(Err))
    }
}

/// Without the frames that wait.
impl std::fmt::Debug for MouthReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MouthReader").field("video", &self.reader.label()).finish_non_exhaustive()
    }
}

fn patch(rgb: Vec<u8>) -> Frame {
    Frame { width: PATCH, height: PATCH, rgb }
}

/// RGB frames of a mouth as [`LipFrames`](super::LipFrames) takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct MouthClip {
    /// `frames * rows * columns * 3` bytes.
    pub rgb: Vec<u8>,
    /// Frames, rows and columns.
    pub size: (usize, usize, usize),
    /// Frames of the file that could not be decoded, with [`VideoOptions::lenient`].
    pub damaged: usize,
    /// What was seen of faces, where they were looked for.
    pub faces: Option<FaceReport>,
}

impl MouthClip {
    /// Reads all that [`VideoReader::open`] opens.
    ///
    /// # Errors
    /// As [`VideoReader`]; the video is longer than [`VideoOptions::max_seconds`], or its frames do not have what
    /// [`MouthOptions::roi`] asks for.
    pub fn open(path: &Path, options: &MouthOptions) -> VideoResult<Self> {
        Self::read(VideoReader::open(path, options.video)?, options)
    }

    /// Reads a file that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(label: &str, bytes: impl Into<Vec<u8>>, options: &MouthOptions) -> VideoResult<Self> {
        Self::read(VideoReader::from_bytes(label, bytes, options.video)?, options)
    }

    /// Reads all frames of a reader.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(reader: VideoReader, options: &MouthOptions) -> VideoResult<Self> {
        let (label, info) = (reader.label().to_string(), *reader.info());
        let (seconds, limit) = (info.frames as f64 / options.video.fps, options.video.max_seconds);
        let too_long = || VideoError::TooLong { label: label.clone(), seconds, limit };
        let fits = seconds <= limit;
        if !fits {
            return Err(too_long());
        }
        let count = usize::try_from(info.frames).map_err(|_| too_long())?;
        let mut mouths = MouthReader::new(reader, options.clone());
        let (mut rgb, mut frames, mut sides) = (Vec::new(), 0, (0, 0));
        for mouth in mouths.by_ref() {
            let mouth = mouth?;
            if frames == 0 {
                // Lengths are bounded by now.
                rgb.reserve_exact(count.saturating_mul(mouth.rgb.len()));
                sides = (mouth.height, mouth.width);
            }
            rgb.extend_from_slice(&mouth.rgb);
            frames += 1;
        }
        if frames == 0 {
            return Err(VideoError::Empty { label });
        }
        let (damaged, faces) = (mouths.reader.damaged(), mouths.faces().cloned());
        Ok(Self { rgb, size: (frames, sides.0, sides.1), damaged, faces })
    }
}

/// Whether a frame is taken for a mouth.
fn mouth_sized(frame: &Frame) -> bool {
    let Frame { width, height, .. } = frame;
    let square = 10 * width.abs_diff(*height) <= *width.max(height);
    square && SIDES.contains(width) && SIDES.contains(height)
}

/// The mouth in a frame.
fn crop(frame: Frame, roi: Roi, label: &str) -> VideoResult<Frame> {
    let Frame { width, height, .. } = frame;
    let region = |why: String| VideoError::Region { label: label.to_string(), why };
    match roi {
        Roi::Auto | Roi::Cropped | Roi::Face => {
            if !mouth_sized(&frame) {
                let (low, high) = (SIDES.start(), SIDES.end());
                return Err(region(format!(
                    "frames have {width} x {height} pixels, expected mouths of {low} to {high} pixels a side, nearly square; say \
                     where the mouth is (`--roi x,y,width,height`), or let a face be found (`--roi face`)"
                )));
            }
            sized(frame)
        }
        Roi::Box { x, y, width: w, height: h } => {
            let inside = |at: usize, n: usize, all| n > 0 && at.checked_add(n).is_some_and(|end| end <= all);
            if !inside(x, w, width) || !inside(y, h, height) {
                return Err(region(format!(
                    "the box of {w} x {h} pixels at column {x}, row {y} does not lie inside frames of {width} x {height} pixels"
                )));
            }
            let rows = frame.rgb.chunks_exact(3 * width).skip(y).take(h);
            let mut rgb = Vec::with_capacity(3 * w * h);
            rows.for_each(|row| rgb.extend_from_slice(&row[3 * x..3 * (x + w)]));
            sized(Frame { width: w, height: h, rgb })
        }
    }
}

/// Brings a mouth to 96x96 pixels, antialiased, unless it has 88x88.
fn sized(frame: Frame) -> VideoResult<Frame> {
    if [CROP, PATCH].iter().any(|&side| (frame.width, frame.height) == (side, side)) {
        return Ok(frame);
    }
    let picture = Picture::from_rgb(frame.width, frame.height, frame.rgb)?;
    let limits = Limits { pixels: usize::MAX, ..Limits::default() };
    let rgb = picture.resize((PATCH, PATCH), Filter::Bilinear, None, &limits)?.into_rgb();
    Ok(Frame { width: PATCH, height: PATCH, rgb })
}
