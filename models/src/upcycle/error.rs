//! What can go wrong, by who can put it right.

use std::fmt;
use std::path::PathBuf;

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model was not made.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No supported sparse family computes what this dense model computes.
    Unsupported {
        /// `model_type` of the dense model.
        model_type: String,
        /// What does not fit.
        reason: String,
    },
    /// The options do not fit each other or the model.
    Options(String),
    /// Siblings that are to become one model differ.
    Siblings {
        /// The one that differs from the first.
        path: PathBuf,
        /// In what.
        problem: String,
    },
    /// The disk is too small.
    Space {
        /// Where the model was to go.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file or folder cannot be read or written.
    Files {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Stopped on request; nothing is left of the output.
    Stopped,
    /// The dense model cannot be read, or a tensor cannot be made.
    Model(candle_core::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { model_type, reason } => {
                write!(f, "a {model_type} like this cannot be upcycled: {reason}; supported are {}", super::SUPPORTED)
            }
            Self::Options(problem) => f.write_str(problem),
            Self::Siblings { path, problem } => write!(f, "{}: {problem}", path.display()),
            Self::Space { path, needed, free } => write!(
                f,
                "{}: the model takes {} and {} are free there: choose fewer experts or layers, a smaller dtype or \
                 another disk",
                path.display(),
                gigabytes(*needed),
                gigabytes(*free)
            ),
            Self::Files { path, problem } => write!(f, "{}: {problem}", path.display()),
            Self::Stopped => f.write_str("stopped; nothing was written"),
            Self::Model(error) => error.fmt(f),
        }
    }
}

/// `12.3 GB`, or with a unit in which it is not 0.0.
fn gigabytes(bytes: u64) -> String {
    match bytes {
        b if b >= 100_000_000 => format!("{:.1} GB", b as f64 / 1e9),
        b => format!("{:.1} MB", b as f64 / 1e6),
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error)
    }
}
