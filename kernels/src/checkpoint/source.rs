//! Where the bytes of one safetensors file come from.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Error, Result};

use super::text::{error, one_line, refuse, shown};

/// A file on disk or bytes in memory, with a length that was taken once, when it was opened. Cheap to clone.
#[derive(Clone)]
pub(super) struct Source {
    label: String,
    len: u64,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Disk(PathBuf),
    Memory(Arc<Cow<'static, [u8]>>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.label, self.len)
    }
}

impl Source {
    pub(super) fn memory(label: &str, bytes: Cow<'static, [u8]>) -> Self {
        Self { label: label.to_string(), len: bytes.len() as u64, place: Place::Memory(Arc::new(bytes)) }
    }

    /// A regular file: a pipe or a device would block or never end.
    pub(super) fn disk(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => refuse!("{label}: there is no such file: check the path"),
            Err(e) => refuse!("{label}: cannot be read: {}", one_line(e)),
        };
        if meta.is_dir() {
            refuse!(
                "{label}: is a folder where a safetensors file should be: move it away and download the file again"
            );
        }
        if !meta.is_file() {
            refuse!("{label}: is not a regular file: copy the weights to one");
        }
        Ok(Self { label, len: meta.len(), place: Place::Disk(path.to_path_buf()) })
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A reader at byte `offset`. Each read of a tensor opens the file anew: no descriptor is held for each of hundreds of
    /// shards, and threads read side by side without a shared cursor. The price, a few microseconds, is nothing beside a
    /// tensor's read.
    pub(super) fn reader(&self, offset: u64) -> Result<Reader<'_>> {
        match &self.place {
            Place::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|o| bytes.get(o..));
                Ok(Reader::Memory(from.ok_or_else(|| self.shrunk())?))
            }
            Place::Disk(path) => {
                let fail = |e: std::io::Error| error(format!("{}: cannot be read: {}", self.label, one_line(e)));
                let mut file = File::open(path).map_err(fail)?;
                if file.metadata().map_err(fail)?.len() != self.len {
                    refuse!("{}: has changed since it was opened: load the model again", self.label);
                }
                file.seek(SeekFrom::Start(offset)).map_err(fail)?;
                Ok(Reader::Disk(file))
            }
        }
    }

    /// A reader that goes anywhere.
    pub(super) fn seekable(&self) -> Result<Box<dyn ReadSeek + '_>> {
        match (&self.place, self.reader(0)?) {
            (Place::Memory(bytes), _) => Ok(Box::new(Cursor::new(&***bytes))),
            (_, Reader::Disk(file)) => Ok(Box::new(BufReader::new(file))),
            (_, Reader::Memory(bytes)) => Ok(Box::new(Cursor::new(bytes))),
        }
    }

    /// Fills `dst`, or says which tensor (or part of the file) could not be had.
    pub(super) fn fill(&self, reader: &mut Reader<'_>, dst: &mut [u8], what: &str) -> Result<()> {
        match reader.read_exact(dst) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(self.shrunk()),
            Err(e) => refuse!("{}: {}: cannot be read: {}", self.label, shown(what), one_line(e)),
        }
    }

    fn shrunk(&self) -> Error {
        error(format!("{}: became shorter while it was read: download it again", self.label))
    }
}

/// What reads from any place.
pub(super) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// Reads forward from one place of a [`Source`].
pub(super) enum Reader<'a> {
    Memory(&'a [u8]),
    Disk(File),
}

impl Read for Reader<'_> {
    fn read(&mut self, dst: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.read(dst),
            Self::Disk(file) => file.read(dst),
        }
    }
}
