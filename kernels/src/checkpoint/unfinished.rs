//! Files and folders that appear complete or not at all.

use std::ffi::OsString;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// A place beside that of a new file or folder, in which it is made. Whatever stands there goes away unless
/// [`finish`](Self::finish) is reached.
#[derive(Debug)]
pub struct Unfinished {
    place: PathBuf,
    output: PathBuf,
}

impl Unfinished {
    /// A place for `output`, whose folder is made if need be; nothing stands there yet.
    ///
    /// # Errors
    /// `output` exists ([`ErrorKind::AlreadyExists`]) or is no name ([`ErrorKind::InvalidInput`]), or its folder cannot be made.
    pub fn beside(output: &Path) -> Result<Self> {
        let Some(name) = output.file_name() else {
            return Err(Error::new(ErrorKind::InvalidInput, "is no name for something new: give another"));
        };
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let unfinished = Self { place: parent.join(hidden), output: output.to_path_buf() };
        unfinished.free()?;
        std::fs::create_dir_all(parent)?;
        Ok(unfinished)
    }

    /// A folder for `output`, made and empty.
    ///
    /// # Errors
    /// As [`beside`](Self::beside); the folder cannot be made.
    pub fn folder(output: &Path) -> Result<Self> {
        let unfinished = Self::beside(output)?;
        std::fs::create_dir(&unfinished.place)?;
        Ok(unfinished)
    }

    /// Where it is made.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// Something appeared there meanwhile, or it cannot be moved; then nothing is left of it.
    pub fn finish(self) -> Result<()> {
        // Moved onto an empty folder, another would take its place.
        self.free()?;
        std::fs::rename(&self.place, &self.output)
    }

    fn free(&self) -> Result<()> {
        match self.output.symlink_metadata() {
            Ok(_) => Err(Error::new(ErrorKind::AlreadyExists, "exists already: give another name, or remove it")),
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already where all went well; else what failed is being told, and a remainder adds nothing to it.
        let _ = match self.place.is_dir() {
            true => std::fs::remove_dir_all(&self.place),
            false => std::fs::remove_file(&self.place),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_or_not_at_all() -> Result<()> {
        let root = tempfile::tempdir()?;
        let output = root.path().join("new/model.v1");
        let made = Unfinished::folder(&output)?;
        std::fs::write(made.path().join("a"), "a")?;
        assert!(!output.exists());
        made.finish()?;
        assert_eq!(std::fs::read_to_string(output.join("a"))?, "a");
        // What is there stays, and what was begun leaves nothing.
        assert_eq!(Unfinished::folder(&output).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let other = root.path().join("new/other");
        let begun = Unfinished::beside(&other)?;
        std::fs::write(begun.path(), "half")?;
        std::fs::create_dir(&other)?;
        assert_eq!(begun.finish().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_dir(root.path().join("new"))?.count(), 2);
        assert_eq!(Unfinished::beside(Path::new("..")).unwrap_err().kind(), ErrorKind::InvalidInput);
        Ok(())
    }
}
