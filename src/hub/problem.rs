//! What went wrong, while it is not yet known for which model.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::error::{Error, one_line};

/// Why the Hub, or the cache, could not give a model; by what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// The Hub refuses: the model is private or gated, or the token is missing or wrong. (Without a token, the Hub answers
    /// in this way for ids that do not exist, too.)
    Access,
    /// There is no such model, revision or file, or the model holds no weights that load.
    NotFound,
    /// The cache does not hold it, and the options forbid the network.
    Offline,
    /// The Hub cannot be reached, or a connection broke more often than [`HubOptions::retries`](super::HubOptions::retries).
    Network,
    /// The Hub answers, but not as a Hub does, or that it cannot answer now.
    Server,
    /// What came is not what the Hub declared: another size, or another SHA-256.
    Damaged,
    /// The cache cannot be written: a full disk, or missing permissions.
    Storage,
}

/// A kind and a message, without the model's id in front.
#[derive(Debug)]
pub(super) struct Problem {
    pub kind: HubErrorKind,
    pub text: String,
}

pub(super) type Outcome<T> = std::result::Result<T, Problem>;

impl Problem {
    pub fn new(kind: HubErrorKind, text: impl Into<String>) -> Self {
        Problem { kind, text: text.into() }
    }

    pub fn server(text: impl Into<String>) -> Self {
        Self::new(HubErrorKind::Server, text)
    }

    pub fn network(text: impl Into<String>) -> Self {
        Self::new(HubErrorKind::Network, text)
    }

    pub fn damaged(text: impl Into<String>) -> Self {
        Self::new(HubErrorKind::Damaged, text)
    }

    /// A folder or file of the cache that cannot be read or written.
    pub fn storage(action: &str, path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "free some space there, or set HF_HOME to a folder with more, and start again: what is there is kept"
            }
            _ => "check its permissions, or set HF_HOME to another folder",
        };
        let reason = one_line(&error.to_string());
        Self::new(HubErrorKind::Storage, format!("cannot {action} {}: {reason}: {advice}", path.display()))
    }

    /// Whether the same request may succeed later, so that it is worth repeating, and a copy in the cache worth using.
    pub fn passes(&self) -> bool {
        matches!(self.kind, HubErrorKind::Network | HubErrorKind::Server)
    }

    /// The error that callers see.
    pub fn of(self, id: impl ToString) -> Error {
        Error::Hub { id: id.to_string(), kind: self.kind, problem: self.text }
    }
}
