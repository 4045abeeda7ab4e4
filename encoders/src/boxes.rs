//! Boxes of MP4 and MOV files (ISO/IEC 14496-12), and numbers in them. Anything that does not fit is `None`.

use std::io::{Read, Seek, SeekFrom};

/// A box of the file itself: its kind, and where its body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Top {
    pub kind: [u8; 4],
    /// Where the box begins.
    pub start: u64,
    /// Where its body begins.
    pub body: u64,
    /// Where it ends; beyond the end of a file that is cut off.
    pub end: u64,
}

/// The box that begins at `at` in a file of `length` bytes.
pub(crate) fn top(file: &mut (impl Read + Seek), at: u64, length: u64) -> Option<Top> {
    if at.checked_add(8)? > length {
        return None;
    }
    file.seek(SeekFrom::Start(at)).ok()?;
    let mut header = [0u8; 16];
    file.read_exact(&mut header[..8]).ok()?;
    let (kind, mut size, mut head) = ([header[4], header[5], header[6], header[7]], u64::from(u32_at(&header, 0)?), 8);
    if size == 1 {
        file.read_exact(&mut header[8..]).ok()?;
        (size, head) = (u64_at(&header, 8)?, 16);
    } else if size == 0 {
        size = length - at;
    }
    (size >= head).then_some(())?;
    Some(Top { kind, start: at, body: at + head, end: at.checked_add(size)? })
}

/// The first box of a kind inside another one.
pub(crate) fn child<'a>(body: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(body).find(|(k, _)| k == kind).map(|(_, body)| body)
}

/// The boxes inside another one.
pub(crate) fn children(mut body: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = u32_at(body, 0)? as usize;
        let kind = body.get(4..8)?.try_into().ok()?;
        let size = if size == 0 { body.len() } else { size };
        let inner = body.get(8..size)?;
        body = &body[size..];
        Some((kind, inner))
    })
}

/// Ticks in a second, of `mvhd` or `mdhd`.
#[cfg(any(feature = "audio", feature = "h264"))]
pub(crate) fn timescale(header: &[u8]) -> Option<u32> {
    u32_at(header, if header.first() == Some(&1) { 20 } else { 12 }).filter(|&scale| scale > 0)
}

/// The number of a track, of `tkhd`.
#[cfg(any(feature = "audio", feature = "h264"))]
pub(crate) fn track_id(header: &[u8]) -> Option<u32> {
    u32_at(header, if header.first() == Some(&1) { 20 } else { 12 })
}

#[cfg(feature = "h264")]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
