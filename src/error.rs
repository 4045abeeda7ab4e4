//! One typed error for the whole crate. Every message is one line and says what to do next.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by who can put it right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model's `config.json` is unreadable, inconsistent, or of a kind that this version does not run.
    #[error("{path}: {problem}", path = path.display())]
    Config {
        /// The file, or `embedded` for the built-in model.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The weights are missing, truncated, corrupted, or do not fit the configuration.
    #[error("{problem}")]
    Weights {
        /// The model folder, or `embedded` for the built-in model.
        path: PathBuf,
        /// Which file and tensor, what was expected, what was found.
        problem: String,
    },
    /// The caller's data or options cannot be used.
    #[error("{at}{problem}")]
    Input {
        /// Where in the data; empty when the problem is not tied to a place.
        at: Place,
        /// What is wrong there, and what to do.
        problem: String,
    },
    /// A picture or a sound cannot be used: it is none, damaged, or beyond the limits.
    #[error("{0}")]
    Media(String),
    /// The compute device cannot be used.
    #[error("{0}")]
    Device(String),
    /// The computation itself failed.
    #[error("{0}")]
    Compute(String),
    /// The Hub, or the cache of what came from it, could not give a model.
    #[cfg(feature = "hub")]
    #[error("{id}: {problem}")]
    Hub {
        /// The model, `org/name` or `org/name@revision`.
        id: String,
        /// What kind of problem it is, by what helps.
        kind: crate::hub::HubErrorKind,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {reason}", path = path.display())]
    Io {
        /// `read`, `write`, `replace`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason. (Not the error's `source`: the message has it already, and a report that
        /// prints the chain would print it twice.)
        reason: std::io::Error,
    },
}

/// A place in the caller's data: as much as is known of file, line (counted from 1, the header included) or row, column,
/// and series.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// File name, or `standard input`.
    pub file: Option<String>,
    /// Line, counted from 1.
    pub line: Option<u64>,
    /// Row of a file that has no lines, counted from 1.
    pub row: Option<NonZeroU64>,
    /// Column name.
    pub column: Option<String>,
    /// Name of the series, for data that came through the library interface.
    pub series: Option<String>,
}

impl Place {
    /// A place known only by its file.
    pub fn file(name: impl Into<String>) -> Self {
        Place { file: Some(name.into()), ..Place::default() }
    }

    /// A place known only by its series.
    pub fn series(name: impl Into<String>) -> Self {
        Place { series: Some(name.into()), ..Place::default() }
    }

    /// The same place at a line (from 1).
    pub fn line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// The same place at a row (from 1).
    pub fn row(mut self, row: u64) -> Self {
        self.row = NonZeroU64::new(row);
        self
    }

    /// The same place in a column.
    pub fn column(mut self, name: impl Into<String>) -> Self {
        self.column = Some(name.into());
        self
    }
}

impl fmt::Display for Place {
    /// `data.csv, line 7, column 'sales': `, with what is not known left out, and nothing at all when nothing is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.file.as_deref().map(one_line));
        parts.extend(self.line.map(|line| format!("line {line}")));
        parts.extend(self.row.map(|row| format!("row {row}")));
        parts.extend(self.column.as_deref().map(|column| format!("column {}", quoted(column))));
        parts.extend(self.series.as_deref().map(|series| format!("series {}", quoted(series))));
        if parts.is_empty() { Ok(()) } else { write!(f, "{}: ", parts.join(", ")) }
    }
}

impl Error {
    pub(crate) fn input(at: Place, problem: impl Into<String>) -> Self {
        Error::Input { at, problem: problem.into() }
    }

    /// A problem with an option rather than with a place in the data.
    pub(crate) fn option(problem: impl Into<String>) -> Self {
        Error::Input { at: Place::default(), problem: problem.into() }
    }

    pub(crate) fn config(path: &Path, problem: impl Into<String>) -> Self {
        Error::Config { path: path.to_path_buf(), problem: problem.into() }
    }

    /// Checks that a model's folder is one, before anything of it is looked for.
    pub(crate) fn unless_folder(dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let what = if dir.exists() { "is not a folder" } else { "does not exist" };
        Err(Self::config(dir, format!("{what}: give a folder with config.json and model.safetensors")))
    }

    pub(crate) fn weights(path: &Path, error: &candle_core::Error) -> Self {
        let (name, message) = (path.display().to_string(), candle_message(error));
        if let Some(problem) = of_device(&message) {
            return Error::Device(format!("{name}: {problem}"));
        }
        // Most messages of the loader name their file.
        let problem = if message.contains(&name) { message } else { format!("{name}: {message}") };
        Error::Weights { path: path.to_path_buf(), problem }
    }

    pub(crate) fn compute(error: &candle_core::Error) -> Self {
        let message = candle_message(error);
        of_device(&message).map_or(Error::Compute(message), Error::Device)
    }

    /// What hinders that something new is made at a path.
    pub(crate) fn new_place(path: &Path, reason: std::io::Error) -> Self {
        match reason.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::InvalidInput => {
                Error::config(path, reason.to_string())
            }
            _ => Error::io("write", path, reason),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, reason: std::io::Error) -> Self {
        Error::Io { action, path: path.to_path_buf(), reason }
    }
}

/// What a message says of the device, where it is that which hinders.
fn of_device(message: &str) -> Option<String> {
    if ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|full| message.contains(full)) {
        return Some(
            "the GPU has no memory left for this: take weights in bf16 or a smaller model, give it less at a time, or compute on the CPU"
                .into(),
        );
    }
    ["; its kernels need 8.0 (Ampere) or newer", "the GPU's driver does not take the kernels"]
        .iter()
        .any(|of| message.contains(of))
        .then(|| message.to_string())
}

/// The message of a candle error on one line. Its own `Display` appends backtraces and puts each context on a line.
pub fn candle_message(error: &candle_core::Error) -> String {
    use candle_core::Error as E;
    match error {
        E::WithBacktrace { inner, .. } => candle_message(inner),
        E::Context { inner, context } => format!("{}: {}", one_line(&context.to_string()), candle_message(inner)),
        E::WrappedContext { wrapped, context } => format!("{}: {}", one_line(context), one_line(&wrapped.to_string())),
        E::WithPath { inner, path } => format!("{}: {}", path.display(), candle_message(inner)),
        other => {
            // A message may hold another error's text, with its backtrace: numbered frames, one a line.
            let text = other.to_string();
            let frame = |line: &str| line.trim_start().split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
            let message: Vec<&str> = text.lines().take_while(|line| !frame(line)).collect();
            one_line(&message.join(" "))
        }
    }
}

/// `text` with line breaks, tabs and control characters turned into single spaces, so that data cannot break a message
/// into lines or send escape sequences to a terminal.
pub(crate) fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Another library's message, which may repeat any length of the user's text, on one line and cut to a length that fits a
/// message.
pub(crate) fn brief(text: &str) -> String {
    const LONGEST: usize = 300;
    // Cut first: the rest is not worth a copy.
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", one_line(&text[..cut])),
        None => one_line(text),
    }
}

/// User text in quotes, on one line, cut to a length that fits a message.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 40;
    let clean = one_line(text);
    match clean.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("'{}…'", &clean[..cut]),
        None => format!("'{clean}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_on_one_line() {
        let inner = candle_core::Error::Msg("bad\nheader".into()).bt();
        let error = inner.context("reading 'lm_heads.0'\nfrom a file").bt();
        let shown = Error::weights(Path::new("models/x"), &error).to_string();
        assert_eq!(shown, "models/x: reading 'lm_heads.0' from a file: bad header");
        let nested = candle_core::Error::Msg("models/x/a: short file\n   0: candle_core::error\n   1: main".into());
        assert_eq!(Error::weights(Path::new("models/x"), &nested).to_string(), "models/x/a: short file");
    }

    #[test]
    fn what_the_device_lacks_is_said_as_that() {
        let full = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
        assert!(matches!(Error::compute(&full), Error::Device(problem) if problem.contains("no memory left")));
        assert!(
            matches!(Error::weights(Path::new("m"), &full), Error::Device(problem) if problem.starts_with("m: the GPU"))
        );
        let old = candle_core::Error::Msg(
            "layer.0: the GPU has compute capability 7.5; its kernels need 8.0 (Ampere) or newer".into(),
        );
        assert!(matches!(Error::compute(&old), Error::Device(problem) if problem.contains("7.5")));
        assert!(matches!(Error::compute(&candle_core::Error::Msg("shapes".into())), Error::Compute(_)));
    }

    #[test]
    fn a_place_names_what_is_known() {
        assert_eq!(Place::default().to_string(), "");
        let place = Place::file("a.csv").line(7).column("sales\u{1b}[2J");
        assert_eq!(place.to_string(), "a.csv, line 7, column 'sales [2J': ");
        assert_eq!(quoted(&"é".repeat(60)), format!("'{}…'", "é".repeat(40)));
    }
}
