//! What can be wrong with a video of a face.

/// An error of finding a face and cropping its mouth. Every message says what to do next.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum FaceError {
    /// Not one frame came before the end.
    #[error("{label}: holds no frame; give a video with at least one")]
    Empty {
        /// Name of the video.
        label: String,
    },
    /// No face in any frame.
    #[error(
        "{label}: no face was found in {frames} frames; give a video in which a face is seen from the front, the box of the \
         mouth (`--roi x,y,w,h`), or mouths already cropped to 96x96 pixels"
    )]
    NoFace {
        /// Name of the video.
        label: String,
        /// Frames that were looked at.
        frames: usize,
    },
    /// Faces, but none large enough.
    #[error(
        "{label}: the largest face, in frame {frame}, is {side:.0} pixels wide, less than the {least:.0} that are needed to \
         read lips; give a video of a closer or larger face, or lower `FaceOptions::min_face`"
    )]
    TooSmall {
        /// Name of the video.
        label: String,
        /// Where it was largest.
        frame: usize,
        /// Pixels of a side of it.
        side: f32,
        /// The limit.
        least: f32,
    },
    /// The face was out of sight for too long.
    #[error(
        "{label}: no face was found from frame {first} on, for {frames} frames, more than lips are interpolated over; cut \
         that part out, or raise `FaceOptions::max_gap`"
    )]
    Lost {
        /// Name of the video.
        label: String,
        /// The first frame without a face.
        first: usize,
        /// Frames without a face.
        frames: usize,
    },
    /// The face that was asked for is not there.
    #[error(
        "{label}: face {index} was asked for, but frame {frame} shows {found} (they are counted from the left, from 0)"
    )]
    NoSuchFace {
        /// Name of the video.
        label: String,
        /// What was asked for.
        index: usize,
        /// The first frame with a face.
        frame: usize,
        /// Faces in it.
        found: usize,
    },
    /// A frame whose bytes do not make a picture.
    #[error("{label}: frame {frame}: {why}")]
    Frame {
        /// Name of the video.
        label: String,
        /// Which frame.
        frame: usize,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// Options that make no sense.
    #[error("{0}")]
    Input(String),
    /// What the model sees cannot be written for debugging.
    #[error("{path}: cannot be written: {why}; give another folder for debugging, or none")]
    Debug {
        /// The file.
        path: String,
        /// What the system says.
        why: String,
    },
    /// The networks could not be computed.
    #[error("{0}")]
    Compute(#[from] candle_core::Error),
}

/// A result of this module.
pub type FaceResult<T> = std::result::Result<T, FaceError>;

impl From<FaceError> for candle_core::Error {
    fn from(error: FaceError) -> Self {
        match error {
            FaceError::Compute(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
