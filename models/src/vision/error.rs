//! What can be wrong with a vision model or with what it is given.

use std::fmt;

/// What the functions of this module return where the cause matters.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The model has no vision tower: a language model, or weights without one.
    NoTower {
        /// The model, and what was looked for.
        problem: String,
    },
    /// A row has another number of marks than of pictures.
    Marks {
        /// The row.
        row: usize,
        /// Marks in its ids.
        marks: usize,
        /// Its pictures.
        pictures: usize,
        /// Tokens that those pictures have.
        tokens: usize,
    },
    /// A row has no token.
    Empty {
        /// The row.
        row: usize,
    },
    /// Labels that are not one for each id.
    Labels {
        /// The row.
        row: usize,
        /// Its labels.
        labels: usize,
        /// Its ids.
        ids: usize,
    },
    /// The model cannot be read, or a computation fails.
    Model(candle_core::Error),
}

impl Error {
    pub(super) fn other(problem: impl Into<String>) -> Self {
        Self::Model(candle_core::Error::msg(problem.into()))
    }

    pub(super) fn no_tower(problem: impl Into<String>) -> Self {
        Self::NoTower { problem: problem.into() }
    }

    /// The same error behind the name of a file.
    pub(super) fn of_file(self, file: &dyn fmt::Display) -> Self {
        match self {
            Self::NoTower { problem } => Self::NoTower { problem: format!("{file}: {problem}") },
            other => Self::other(format!("{file}: {other}")),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTower { problem } => write!(f, "a model without a vision tower: {problem}"),
            Self::Marks { row, marks: 0, pictures, .. } => {
                write!(
                    f,
                    "row {row} has {} but no mark that says where: put one for each",
                    counted(*pictures, "picture")
                )
            }
            Self::Marks { row, marks, pictures: 0, .. } => {
                write!(f, "row {row} has {} but no picture: give one for each", counted(*marks, "picture mark"))
            }
            Self::Marks { row, marks, pictures, tokens } => write!(
                f,
                "row {row} has {} for {} of {tokens} tokens in all: give one mark for each picture, or one for each token",
                counted(*marks, "picture mark"),
                counted(*pictures, "picture")
            ),
            Self::Empty { row } => write!(f, "row {row} has no token; a prompt needs at least one"),
            Self::Labels { row, labels, ids } => write!(f, "row {row} has {labels} labels for {ids} ids"),
            Self::Model(error) => error.fmt(f),
        }
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Model(error) => Some(error),
            _ => None,
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error)
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Model(error) => error,
            other => Self::msg(other.to_string()),
        }
    }
}
