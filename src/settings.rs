//! Settings that people write, in TOML: evaluation plans and training runs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result, brief};

/// Settings longer than this are another file given by mistake.
const LONGEST: u64 = 4 << 20;

/// Reads the settings in a file.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Config`] with its line when it does not hold such settings.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|reason| Error::io("read", path, reason))?;
    // One byte more than is allowed shows that there is more, also of a device without an end.
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(|reason| Error::io("read", path, reason))?;
    if text.len() as u64 > LONGEST {
        return Err(Error::config(
            path,
            format!("has more than {LONGEST} bytes, which no settings have: check the file"),
        ));
    }
    parse(path, &text)
}

/// Settings from the text of a file; `path` is what messages call it.
///
/// # Errors
/// [`Error::Config`], as [`read`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    let line = |at: usize| text.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    let utf8 = std::str::from_utf8(text).map_err(|error| {
        Error::config(path, format!("line {}: is not UTF-8 text: save it as UTF-8", line(error.valid_up_to())))
    })?;
    toml::from_str(utf8).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Error::config(path, format!("line {}: {}", line(at), brief(error.message())))
    })
}
