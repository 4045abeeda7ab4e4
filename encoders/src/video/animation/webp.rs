//! Frames of an animated WebP file ([container](https://developers.google.com/speed/webp/docs/riff_container), RFC 9649).

use super::super::canvas::{Area, Dispose};
use super::super::error::{VideoError, VideoResult};
use super::{Cel, Found, MOST_FRAMES, Scan};
use crate::image::webp_sizes;

fn three([a, b, c]: [u8; 3]) -> usize {
    u32::from_le_bytes([a, b, c, 0]) as usize
}

/// Finds the frames.
pub(super) fn scan(file: &mut Scan<'_>) -> VideoResult<Found> {
    let mut found = Found { size: (0, 0), head: Vec::new(), cels: Vec::new(), cut: None };
    found.cut = chunks(file, &mut found)?;
    Ok(found)
}

/// What is missing at the end, if the file is cut off.
fn chunks(file: &mut Scan<'_>, found: &mut Found) -> VideoResult<Option<&'static str>> {
    let (short, inside) = (Some("its head is incomplete"), Some("it ends inside a frame"));
    let Some([_, _, _, _, s0, s1, s2, s3, ..]) = file.take::<12>()? else { return Ok(short) };
    let end = u64::from(u32::from_le_bytes([s0, s1, s2, s3])) + 8;
    let Some(name) = file.take::<4>()? else { return Ok(short) };
    let Some(size) = file.take::<4>()?.map(u32::from_le_bytes) else { return Ok(short) };
    let Some(head) = file.take::<10>()? else { return Ok(short) };
    let [flags, _, _, _, w0, w1, w2, h0, h1, h2] = head;
    if &name != b"VP8X" || flags & 2 == 0 {
        return Err(VideoError::Still { label: file.media.label.clone(), format: "WebP" });
    }
    if size < 10 || !file.skip(u64::from(size) + u64::from(size % 2) - 10)? {
        return file.bad("its head is broken");
    }
    found.size = (three([w0, w1, w2]) + 1, three([h0, h1, h2]) + 1);
    while file.at + 8 <= end {
        let (Some(name), Some(size)) = (file.take::<4>()?, file.take::<4>()?) else { return Ok(inside) };
        let size = u64::from(u32::from_le_bytes(size));
        let next = file.at + size + size % 2;
        if &name == b"ANMF" {
            if size < 24 {
                return file.bad("a frame has no room for its head");
            }
            let Some([x0, x1, x2, y0, y1, y2, w0, w1, w2, h0, h1, h2, d0, d1, d2, flags]) = file.take()? else {
                return Ok(inside);
            };
            let area = Area {
                x: 2 * three([x0, x1, x2]),
                y: 2 * three([y0, y1, y2]),
                width: three([w0, w1, w2]) + 1,
                height: three([h0, h1, h2]) + 1,
            };
            let dispose = if flags & 1 == 1 { Dispose::Clear } else { Dispose::Keep };
            if found.cels.len() == MOST_FRAMES {
                return file.bad("it has more frames than a day");
            }
            found.cels.push(Cel {
                at: file.at,
                length: size - 16,
                area,
                blend: flags & 2 == 0,
                dispose,
                clear: None,
                duration: three([d0, d1, d2]) as u64,
            });
        }
        // The last byte of padding may be missing.
        if next > file.media.length && next - size % 2 == file.media.length {
            return Ok(None);
        }
        if !file.skip(next - file.at)? {
            return Ok(inside);
        }
    }
    // What follows the last chunk is not looked at.
    Ok(None)
}

/// Room for the head of a frame that is a file of its own.
pub(super) fn begin(file: &mut Vec<u8>) {
    file.extend_from_slice(&[0; 30]);
}

/// Writes that head, once the frame is there.
pub(super) fn end(cel: &Cel, file: &mut [u8]) {
    let riff = (file.len() as u32).wrapping_sub(8).to_le_bytes();
    let Some((head, data)) = file.split_at_mut_checked(30) else { return };
    // A plane of opacity, or a picture without loss that says it has one.
    let alpha = match data {
        [b'A', b'L', b'P', b'H', ..] => true,
        [b'V', b'P', b'8', b'L', _, _, _, _, _, _, _, _, top, ..] => *top & 0x10 != 0,
        _ => false,
    };
    head[..4].copy_from_slice(b"RIFF");
    head[4..8].copy_from_slice(&riff);
    head[8..16].copy_from_slice(b"WEBPVP8X");
    head[16..20].copy_from_slice(&10u32.to_le_bytes());
    head[20..24].copy_from_slice(&[if alpha { 0x10 } else { 0 }, 0, 0, 0]);
    for (at, side) in [(24, cel.area.width), (27, cel.area.height)] {
        head[at..at + 3].copy_from_slice(&(side as u32).wrapping_sub(1).to_le_bytes()[..3]);
    }
}

/// Fails where a picture inside a frame has another size than the frame.
pub(super) fn check(file: &[u8], area: Area) -> Result<(), String> {
    let sizes = webp_sizes(file.get(30..).unwrap_or_default());
    match sizes.into_iter().find(|&size| size != (area.width, area.height)) {
        Some((w, h)) => Err(format!("a picture of {w} x {h} pixels in an area of {} x {}", area.width, area.height)),
        None => Ok(()),
    }
}
