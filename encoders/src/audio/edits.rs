//! Edit lists of MP4 files (ISO/IEC 14496-12, 8.6.6), which the demuxer does not apply: they say how much of a track's
//! start the encoder only put there to get going.

use std::io::{Read, Seek, SeekFrom};

use crate::boxes::{child, children, timescale, top, track_id, u32_at, u64_at};

/// What of a track is to be heard, in units of `timescale` per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    /// First tick that is heard.
    pub start: u64,
    /// First tick that is not; absent for all that follows.
    pub end: Option<u64>,
    /// Ticks in a second.
    pub timescale: u32,
}

/// Boxes that are looked at before a file is given up.
const MOST_BOXES: usize = 1 << 12;
/// Bytes of a `moov` box that are read at most: one of a film of hours has some megabytes.
const MOST_BYTES: u64 = 64 << 20;

/// The edit of the track `id`, where the file is an MP4 with an edit list. Anything that does not fit is no edit: the
/// demuxer has its own say on whether the file is sound.
pub(super) fn edit(file: &mut (impl Read + Seek), id: u32) -> Option<Edit> {
    let length = file.seek(SeekFrom::End(0)).ok()?;
    let mut at = 0u64;
    for _ in 0..MOST_BOXES {
        let found = top(file, at, length)?;
        if found.end > length {
            return None;
        }
        if &found.kind == b"moov" {
            file.seek(SeekFrom::Start(found.body)).ok()?;
            let mut moov = Vec::new();
            file.take((found.end - found.body).min(MOST_BYTES)).read_to_end(&mut moov).ok()?;
            return in_movie(&moov, id);
        }
        at = found.end;
    }
    None
}

fn in_movie(moov: &[u8], id: u32) -> Option<Edit> {
    let movie_scale = timescale(child(moov, b"mvhd")?)?;
    let mut traks = children(moov).filter(|(kind, _)| kind == b"trak").map(|(_, body)| body);
    let trak = traks.find(|trak| child(trak, b"tkhd").and_then(track_id) == Some(id))?;
    let media_scale = timescale(child(child(trak, b"mdia")?, b"mdhd")?)?;
    let list = child(child(trak, b"edts")?, b"elst")?;
    let wide = list.first() == Some(&1);
    let (count, size) = (u32_at(list, 4)? as usize, if wide { 20 } else { 12 });
    // Entries without media only delay the track; the first one with media says where it starts.
    let entries = list.get(8..)?.chunks_exact(size).take(count);
    let entry = entries.map(|e| match wide {
        true => (u64_at(e, 0), u64_at(e, 8).map(|v| v as i64)),
        false => (u32_at(e, 0).map(u64::from), u32_at(e, 4).map(|v| i64::from(v as i32))),
    });
    let (length, start) = entry.filter_map(|(length, start)| Some((length?, start?))).find(|(_, start)| *start >= 0)?;
    let start = start as u64;
    // A length of 0 stands for all, as in files written in fragments.
    let ticks = (length > 0).then(|| u128::from(length) * u128::from(media_scale) / u128::from(movie_scale));
    let end = ticks.and_then(|t| u64::try_from(t).ok()).and_then(|t| start.checked_add(t));
    Some(Edit { start, end, timescale: media_scale })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes()[..], kind, body].concat()
    }

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_be_bytes()).collect()
    }

    fn movie(entries: &[u32]) -> Vec<u8> {
        let list = words(&[&[0, entries.len() as u32 / 3], entries].concat());
        let trak = [
            boxed(b"tkhd", &words(&[0, 0, 0, 7, 0, 0])),
            boxed(b"edts", &boxed(b"elst", &list)),
            boxed(b"mdia", &boxed(b"mdhd", &words(&[0, 0, 0, 44100, 0]))),
        ]
        .concat();
        let moov = [boxed(b"mvhd", &words(&[0, 0, 0, 1000, 0])), boxed(b"trak", &trak)].concat();
        [boxed(b"ftyp", b"M4A "), boxed(b"mdat", &[0; 100]), boxed(b"moov", &moov)].concat()
    }

    #[test]
    fn the_first_entry_with_media_counts() {
        let file = movie(&[500, u32::MAX, 1 << 16, 2000, 1024, 1 << 16]);
        let found = edit(&mut Cursor::new(&file), 7);
        assert_eq!(found, Some(Edit { start: 1024, end: Some(1024 + 88200), timescale: 44100 }));
        assert_eq!(edit(&mut Cursor::new(&file), 8), None);
        assert_eq!(edit(&mut Cursor::new(&movie(&[0, 512, 1 << 16])), 7).map(|e| (e.start, e.end)), Some((512, None)));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let file = movie(&[2000, 1024, 1 << 16]);
        for end in 0..file.len() {
            edit(&mut Cursor::new(&file[..end]), 7);
            for value in [0, 1, 0x7f, 0xff] {
                let mut file = file.clone();
                file[end] = value;
                edit(&mut Cursor::new(&file), 7);
            }
        }
    }
}
