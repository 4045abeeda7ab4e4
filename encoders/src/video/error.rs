//! What can be wrong with video.

use super::face::FaceError;
use crate::image::ImageError;

/// An error of reading video. Every message names the file and says what to do next.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    /// The file or folder cannot be opened or read.
    #[error("{label}: cannot be read: {source}")]
    Io {
        /// Name of the file.
        label: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A pattern that is none.
    #[error("{label}: is no pattern of files: {why}; write one as frames/*.png")]
    Pattern {
        /// The pattern.
        label: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not one byte, or not one frame.
    #[error("{label}: is empty; give a video with at least one frame")]
    Empty {
        /// Name of the file.
        label: String,
    },
    /// A folder or a pattern without pictures.
    #[error(
        "{label}: has no pictures; give a folder or a pattern of PNG, JPEG, WebP, BMP, GIF or TIFF files, one a frame"
    )]
    NoPictures {
        /// The folder or pattern.
        label: String,
    },
    /// One picture, whatever the file is called.
    #[error("{label}: is a still picture ({format}), not a video; give a video, or a folder of pictures")]
    Still {
        /// Name of the file.
        label: String,
        /// Format of the picture.
        format: &'static str,
    },
    /// The container is not known, or its headers are damaged.
    #[error(
        "{label}: is not a video that can be read ({why}); readable are animated GIF and WebP, folders of pictures, and MP4 and \
         MOV with H.264: convert it, for example with `ffmpeg -i IN -r 25 FOLDER/%05d.png`"
    )]
    Format {
        /// Name of the file.
        label: String,
        /// What was found.
        why: String,
    },
    /// A container without pictures, as a sound file has.
    #[error("{label}: has no video track, only {found}; give a file that has pictures")]
    NoVideo {
        /// Name of the file.
        label: String,
        /// Tracks that it has.
        found: String,
    },
    /// The container is known, its codec is not.
    #[error(
        "{label}: its video is {codec}, which cannot be decoded; make frames of it with \
         `ffmpeg -i IN -r 25 FOLDER/%05d.png` and give the folder, or H.264 with `ffmpeg -i IN -c:v libx264 OUT.mp4`"
    )]
    Codec {
        /// Name of the file.
        label: String,
        /// Name of the codec.
        codec: String,
    },
    /// H.264, in a build without its decoder.
    #[error(
        "{label}: its video is H.264, which this build does not decode; build with the feature `h264` (mind the patents on it), or \
         make frames with `ffmpeg -i IN -r 25 FOLDER/%05d.png` and give the folder"
    )]
    NeedsH264 {
        /// Name of the file.
        label: String,
    },
    /// The file ends before it should.
    #[error("{label}: is cut off ({why}); fetch it again, or read it with `VideoOptions::lenient`")]
    Truncated {
        /// Name of the file.
        label: String,
        /// What is missing.
        why: String,
    },
    /// A frame that cannot be decoded.
    #[error("{label}: frame {frame} is damaged ({why}); fetch the file again, or read it with `VideoOptions::lenient`")]
    Damaged {
        /// Name of the file.
        label: String,
        /// Frames of the file before it.
        frame: usize,
        /// What the decoder says.
        why: String,
    },
    /// A picture of a folder.
    #[error(transparent)]
    Picture(#[from] ImageError),
    /// Frames of several sizes.
    #[error(
        "{label}: frame {frame} has {} x {} pixels, the ones before it {} x {}; bring all frames to one size",
        found.0, found.1, expected.0, expected.1
    )]
    Sizes {
        /// Name of the file.
        label: String,
        /// Frames of the file before it.
        frame: usize,
        /// Its width and height.
        found: (usize, usize),
        /// Width and height of the first frame.
        expected: (usize, usize),
    },
    /// More pixels than the caller allows.
    #[error(
        "{label}: frames have {width} x {height} pixels, more than {limit} in all; scale it down with \
         `ffmpeg -i IN -vf scale=1280:-2 OUT.mp4`, or raise `VideoOptions::max_pixels`"
    )]
    TooLarge {
        /// Name of the file.
        label: String,
        /// Pixels from left to right.
        width: usize,
        /// Pixels from top to bottom.
        height: usize,
        /// The limit.
        limit: usize,
    },
    /// More frames than the caller allows to be held at once.
    #[error(
        "{label}: is {seconds:.0} s long, where {limit:.0} s are held at once; cut it into clips, read it frame by frame \
         (`VideoReader`), or raise `VideoOptions::max_seconds`"
    )]
    TooLong {
        /// Name of the file.
        label: String,
        /// Its length.
        seconds: f64,
        /// The limit.
        limit: f64,
    },
    /// Frames in which the wanted part is not found.
    #[error("{label}: {why}")]
    Region {
        /// Name of the file.
        label: String,
        /// What was expected and what to do.
        why: String,
    },
    /// A face is not found, or not as it is wanted.
    #[error(transparent)]
    Face(#[from] FaceError),
    /// Options that make no sense.
    #[error("{0}")]
    Input(String),
}

/// A result of this module.
pub type VideoResult<T> = std::result::Result<T, VideoError>;

impl VideoError {
    /// Whether only one frame is lost, so that another one can stand in for it.
    pub(super) fn loses_one_frame(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Picture(ImageError::Damaged { .. } | ImageError::Unknown { .. }))
    }
}

impl From<VideoError> for candle_core::Error {
    fn from(error: VideoError) -> Self {
        candle_core::Error::wrap(error)
    }
}
