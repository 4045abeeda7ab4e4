//! Files that appear complete or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::NamedTempFile;

/// A file to be written later. Opening it finds out early whether the place can be written to; the content goes to a
/// temporary file beside it, which takes its place at the end and is removed on failure and on Ctrl-C.
pub(super) struct Output {
    path: PathBuf,
    file: NamedTempFile,
}

/// The temporary files to remove on Ctrl-C, which runs no destructors.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static HANDLER: Once = Once::new();

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Output {
    /// A picture.
    pub fn picture(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(extension) if extension.eq_ignore_ascii_case("svg") => Self::open(path),
            _ => bail!("cannot write {}: pictures are SVG; give a name that ends in .svg", path.display()),
        }
    }

    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        if path.is_dir() {
            bail!("cannot write {shown}: it is a folder; give a file name");
        }
        if fs::metadata(path).is_ok_and(|file| file.permissions().readonly()) {
            bail!("cannot write {shown}: it is read-only; give another name");
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            bail!("cannot write {shown}: {} is not a folder; create it first", folder.display());
        }
        // Without the handler an interrupted run would leave its temporary file; nothing else depends on it.
        HANDLER.call_once(|| {
            let _ = super::interrupt::leave_after(|| {
                for path in unfinished().drain(..) {
                    let _ = fs::remove_file(path);
                }
            });
        });
        let mut waiting = unfinished();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".moesaic-");
        // Temporary files are private by default; this one becomes an ordinary file, readable as the user's mask says.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder);
        // Only the kind: the error's own text names the temporary file, which means nothing to the reader.
        let file = file.map_err(|error| anyhow!("cannot write {shown}: {}", error.kind()))?;
        waiting.push(file.path().to_path_buf());
        Ok(Output { path: path.to_path_buf(), file })
    }

    /// Puts the file in place with this content.
    pub fn write(mut self, content: &[u8]) -> Result<()> {
        let shown = self.path.display().to_string();
        let context = || format!("cannot write {shown}");
        self.file.write_all(content).with_context(context)?;
        self.file.as_file().sync_all().with_context(context)?;
        let temporary = self.file.path().to_path_buf();
        self.file.persist(&self.path).map_err(|error| error.error).with_context(context)?;
        unfinished().retain(|path| *path != temporary);
        Ok(())
    }
}
