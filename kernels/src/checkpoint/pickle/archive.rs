//! The zip archive that torch writes: entries stand in it as they are, so that tensors can be read from their place.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use candle_core::Result;
use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::super::source::Source;
use super::super::text::{one_line, refuse, shown};

/// Most entries of an archive: one for each storage, and a few others.
const MAX_ENTRIES: usize = 1 << 18;

/// Bytes of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What torch's archives hold, by names without the folder that all of them are in.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) pickle: Entry,
    /// By key.
    pub(super) storages: BTreeMap<String, Entry>,
}

/// Finds the entries of a file.
///
/// # Errors
/// It is no zip archive of torch, or one that is compressed, encrypted, big-endian or damaged.
pub(super) fn read(source: &Source) -> Result<Archive> {
    let label = source.label();
    let mut first = [0u8; 8];
    let length = first.len().min(usize::try_from(source.len()).unwrap_or(usize::MAX));
    source.fill(&mut source.reader(0)?, &mut first[..length], "start")?;
    match first {
        [b'P', b'K', 3, 4, ..] => {}
        [0x80, 0..=5, ..] => refuse!(
            "{label}: is a pickle in the form that torch wrote before version 1.6 (or with \
             _use_new_zipfile_serialization=False), which is not read: load it in torch where you trust it, and save it again"
        ),
        _ => refuse!("{label}: is no zip archive, as torch writes since version 1.6: check what file it is"),
    }
    // The start is known, so that nothing is searched for.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = match ZipArchive::with_config(config, source.seekable()?) {
        Ok(archive) => archive,
        Err(e) => refuse!("{label}: its zip archive is damaged or cut off ({}): download it again", one_line(e)),
    };
    if archive.len() > MAX_ENTRIES || archive.has_duplicate_names() {
        refuse!("{label}: its zip archive has over {MAX_ENTRIES} entries, or names one twice: save the weights alone");
    }
    let (mut folder, mut pickle, mut storages, mut order) = (None, None, BTreeMap::new(), None);
    for i in 0..archive.len() {
        let (name, entry) = entry(source, &mut archive, i)?;
        let Some((top, name)) = name.split_once('/') else { continue };
        if *folder.get_or_insert_with(|| top.to_string()) != top {
            continue;
        }
        match name.strip_prefix("data/") {
            Some(key) => drop(storages.insert(key.to_string(), entry)),
            None if name == "data.pkl" => pickle = Some(entry),
            None if name == "byteorder" => order = Some(entry),
            None => {}
        }
    }
    let Some(pickle) = pickle else {
        refuse!(
            "{label}: is a zip archive, but not one that torch.save wrote (it has no data.pkl): check what file it is"
        )
    };
    if let Some(order) = order {
        let mut text = [0u8; 6];
        let known = order.len == 6 && source.fill(&mut source.reader(order.offset)?, &mut text, "byteorder").is_ok();
        if !known || &text != b"little" {
            refuse!("{label}: was written on a big-endian machine: save it again on a little-endian one");
        }
    }
    Ok(Archive { pickle, storages })
}

fn entry<R: Read + Seek>(source: &Source, archive: &mut ZipArchive<R>, i: usize) -> Result<(String, Entry)> {
    let label = source.label();
    let file = match archive.by_index_raw(i) {
        Ok(file) => file,
        Err(e) => refuse!("{label}: entry {i} of its zip archive is damaged ({}): download it again", one_line(e)),
    };
    let name = match file.name() {
        Ok(name) => name.into_owned(),
        Err(_) => refuse!("{label}: the name of entry {i} of its zip archive is no text: download it again"),
    };
    if file.compression() != CompressionMethod::Stored || file.encrypted() || file.size() != file.compressed_size() {
        refuse!(
            "{label}: entry {} is compressed or encrypted, which torch does not do: unpack the archive and zip it again without \
             compression (zip -0)",
            shown(&name)
        );
    }
    let (offset, len) = (file.data_start(), file.size());
    match offset {
        Some(offset) if offset.checked_add(len).is_some_and(|end| end <= source.len()) => {
            Ok((name, Entry { offset, len }))
        }
        _ => refuse!("{label}: entry {} ends beyond the file: download it again", shown(&name)),
    }
}
