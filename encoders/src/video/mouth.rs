//! Clips of mouths: what speech models see of a video.

use std::path::Path;

use super::error::{VideoError, VideoResult};
use super::lips::CROP;
use super::reader::{Frame, VideoOptions, VideoReader};
use crate::image::{Filter, Limits, Picture};

/// Rows and columns of a mouth, unless its frames have 88 already.
const SIDE: usize = 96;
/// Sides of frames that are taken for cropped mouths.
const SIDES: std::ops::RangeInclusive<usize> = 64..=160;

/// Where in the frames the mouth is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roi {
    /// The frames are mouths: 64 to 160 pixels a side, square within a tenth. They become 96x96 pixels; 88x88 stay.
    #[default]
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
}

/// How a clip of a mouth is read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MouthOptions {
    /// How the video is read.
    pub video: VideoOptions,
    /// Where the mouth is.
    pub roi: Roi,
}

/// RGB frames of a mouth, 25 a second unless [`VideoOptions::fps`] says otherwise, as [`LipFrames`](super::LipFrames) takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MouthClip {
    /// `frames * rows * columns * 3` bytes.
    pub rgb: Vec<u8>,
    /// Frames, rows and columns.
    pub size: (usize, usize, usize),
    /// Frames of the file that could not be decoded, with [`VideoOptions::lenient`].
    pub damaged: usize,
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
    pub fn read(mut reader: VideoReader, options: &MouthOptions) -> VideoResult<Self> {
        let (label, info) = (reader.label().to_string(), *reader.info());
        let (seconds, limit) = (info.frames as f64 / options.video.fps, options.video.max_seconds);
        let too_long = || VideoError::TooLong { label: label.clone(), seconds, limit };
        let fits = seconds <= limit;
        if !fits {
            return Err(too_long());
        }
        let count = usize::try_from(info.frames).map_err(|_| too_long())?;
        let (mut rgb, mut frames, mut sides) = (Vec::new(), 0, (0, 0));
        for frame in reader.by_ref() {
            let mouth = crop(frame?, options.roi, &label)?;
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
        Ok(Self { rgb, size: (frames, sides.0, sides.1), damaged: reader.damaged() })
    }
}

/// The mouth in a frame.
fn crop(frame: Frame, roi: Roi, label: &str) -> VideoResult<Frame> {
    let Frame { width, height, .. } = frame;
    let region = |why: String| VideoError::Region { label: label.to_string(), why };
    match roi {
        Roi::Cropped => {
            let square = 10 * width.abs_diff(height) <= width.max(height);
            if !square || !SIDES.contains(&width) || !SIDES.contains(&height) {
                let (low, high) = (SIDES.start(), SIDES.end());
                return Err(region(format!(
                    "frames have {width} x {height} pixels, expected mouths of {low} to {high} pixels a side, nearly square; say \
                     where the mouth is with `Roi::Box`"
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
    if [CROP, SIDE].iter().any(|&side| (frame.width, frame.height) == (side, side)) {
        return Ok(frame);
    }
    let picture = Picture::from_rgb(frame.width, frame.height, frame.rgb)?;
    let limits = Limits { pixels: usize::MAX, ..Limits::default() };
    let rgb = picture.resize((SIDE, SIDE), Filter::Bilinear, None, &limits)?.into_rgb();
    Ok(Frame { width: SIDE, height: SIDE, rgb })
}
