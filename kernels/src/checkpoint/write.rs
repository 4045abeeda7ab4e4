//! Writing safetensors: the same tensors give the same bytes, and a target file is either whole or untouched.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::cast_slice;
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::slice::HalfFloatSliceExt;

use super::CHUNK;
use super::text::{error, one_line, refuse, shown};

/// Writes tensors to one safetensors file.
///
/// The header lists names in byte order and `metadata` in the order of its keys, so the file depends on nothing but its
/// contents. Data stands in order of falling element size, then name, which keeps every tensor aligned for readers that map
/// the file. The bytes go to a temporary file beside `path`, are flushed to disk, and take the place of `path` in one
/// rename: after a crash, a full disk or any error `path` is what it was before.
///
/// Tensors of any device and layout; beyond them this needs memory for one tensor where it is not contiguous on the CPU.
///
/// # Errors
/// A name that stands twice or is `__metadata__`, a dtype that the format or [`super::Checkpoint`] lacks, or a file that
/// cannot be written.
pub fn save(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    let mut order: Vec<&(String, Tensor)> = tensors.iter().collect();
    order.sort_by(|a, b| in_order((a.1.dtype(), &a.0), (b.1.dtype(), &b.0)));
    let header = header(path, order.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.dims())), metadata)?;
    write_whole(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in &order {
            write_values(tensor, out)?;
        }
        Ok(())
    })
}

/// The order of data in a file: falling element size, then name.
pub(super) fn in_order(a: (DType, &str), b: (DType, &str)) -> std::cmp::Ordering {
    (b.0.size_in_bytes(), a.1).cmp(&(a.0.size_in_bytes(), b.1))
}

/// The header's JSON of tensors in the order of their data.
pub(super) fn header<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let label = path.display();
    let mut entries = BTreeMap::new();
    let mut at = 0u64;
    for (name, dtype, shape) in tensors {
        let Some(stored) = dtype_name(dtype) else {
            refuse!("{label}: tensor {}: {} cannot be written", shown(name), dtype.as_str());
        };
        let end = at + shape.iter().product::<usize>() as u64 * dtype.size_in_bytes() as u64;
        let entry = serde_json::json!({ "dtype": stored, "shape": shape, "data_offsets": [at, end] });
        if name == "__metadata__" || entries.insert(name, entry).is_some() {
            refuse!("{label}: cannot be written: the tensor name {} is reserved or stands twice", shown(name));
        }
        at = end;
    }
    let count = entries.len();
    if !metadata.is_empty() {
        let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        entries.insert("__metadata__", serde_json::json!(metadata));
    }
    let mut header = serde_json::to_vec(&entries).map_err(|e| error(e.to_string()))?;
    // Spaces up to a multiple of 8, so that the data is aligned in the file.
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > super::MAX_HEADER {
        refuse!("{label}: cannot be written: the names of its {count} tensors need too long a header");
    }
    Ok(header)
}

fn dtype_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => return None,
    })
}

/// An error of the disk, or of candle while it brought a tensor to the CPU.
#[derive(Debug)]
pub(super) enum Failed {
    Io(std::io::Error),
    Candle(candle_core::Error),
}

impl From<std::io::Error> for Failed {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<candle_core::Error> for Failed {
    fn from(e: candle_core::Error) -> Self {
        Self::Candle(e)
    }
}

/// Writes the values of one tensor; a contiguous tensor on the CPU is written from where it is.
pub(super) fn write_values(tensor: &Tensor, out: &mut impl Write) -> std::result::Result<(), Failed> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(error("a tensor was not on the CPU after it was moved there").into());
    };
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let gone = || Failed::from(error("a tensor's layout reaches past its values"));
    let bytes: &[u8] = match storage {
        CpuStorage::F64(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::F32(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::F16(v) => cast_slice(v.get(range).ok_or_else(gone)?.reinterpret_cast()),
        CpuStorage::BF16(v) => cast_slice(v.get(range).ok_or_else(gone)?.reinterpret_cast()),
        CpuStorage::I64(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::I32(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::I16(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::U32(v) => cast_slice(v.get(range).ok_or_else(gone)?),
        CpuStorage::U8(v) => v.get(range).ok_or_else(gone)?,
        _ => return Err(error("a tensor of a dtype that cannot be written").into()),
    };
    Ok(out.write_all(bytes)?)
}

/// Makes `path` from what `write` writes, all of it or nothing.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::result::Result<(), Failed>,
) -> Result<()> {
    let label = path.display();
    if path.is_dir() || path.file_name().is_none() {
        refuse!("{label}: cannot be written: it is a folder, give a file name");
    }
    let (file, temporary) = match create_beside(path) {
        Ok(made) => made,
        Err(e) => {
            refuse!("{label}: cannot be written: {}: choose a folder that exists and may be written", one_line(e))
        }
    };
    let written = (|| {
        let mut out = BufWriter::with_capacity(CHUNK, &file);
        write(&mut out)?;
        out.flush()?;
        drop(out);
        file.sync_all()?;
        std::fs::rename(&temporary.path, path)?;
        Ok(())
    })();
    match written {
        Ok(()) => {
            temporary.keep();
            sync_folder(path);
            Ok(())
        }
        Err(Failed::Io(e)) => refuse!("{label}: cannot be written: {}: nothing was changed", one_line(e)),
        Err(Failed::Candle(e)) => refuse!("{label}: cannot be written: {}: nothing was changed", one_line(e)),
    }
}

/// A file that goes away unless it is kept.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // The write has already failed; that a remainder cannot be removed either adds nothing to the message.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A new file in the folder of `path`: a rename is atomic only within one file system.
fn create_beside(path: &Path) -> std::io::Result<(File, Temporary)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, Temporary { path: temporary, kept: false })),
            // Left by a process of this number that was killed: take the next name.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Makes the rename itself last through a power cut, where the system can; the file is whole either way.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_midway_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, b"before").unwrap();
        let full = |out: &mut BufWriter<&File>| {
            out.write_all(b"half of it")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into())
        };
        let message = write_whole(&path, full).unwrap_err().to_string();
        assert!(message.contains("nothing was changed") && message.lines().count() == 1, "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(listing(dir.path()), ["model.safetensors"]);
        let new = dir.path().join("new.safetensors");
        assert!(write_whole(&new, |_| Err(error("no").into())).is_err());
        assert_eq!(listing(dir.path()), ["model.safetensors"]);
    }
}
