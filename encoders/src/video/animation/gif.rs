//! Frames of a GIF file ([GIF89a](https://www.w3.org/Graphics/GIF/spec-gif89a.txt)).

use super::super::canvas::{Area, Dispose};
use super::super::error::VideoResult;
use super::{Cel, Found, MOST_FRAMES, Scan};

const EXTENSION: u8 = 0x21;
const PICTURE: u8 = 0x2c;
const TRAILER: u8 = 0x3b;
/// The extension that says how the next picture is shown.
const CONTROL: u8 = 0xf9;

fn side(low: u8, high: u8) -> usize {
    usize::from(u16::from_le_bytes([low, high]))
}

/// Bytes of the palette that flags announce.
fn palette(flags: u8) -> u64 {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// Finds the frames.
pub(super) fn scan(file: &mut Scan<'_>) -> VideoResult<Found> {
    let mut found = Found { size: (0, 0), head: Vec::new(), cels: Vec::new(), cut: None };
    found.cut = blocks(file, &mut found)?;
    Ok(found)
}

/// What is missing at the end, if the file is cut off.
fn blocks(file: &mut Scan<'_>, found: &mut Found) -> VideoResult<Option<&'static str>> {
    let (short, inside) = (Some("its head is incomplete"), Some("it ends inside a frame"));
    let Some(head) = file.take::<13>()? else { return Ok(short) };
    let [_, _, _, _, b'7' | b'9', b'a', w0, w1, h0, h1, flags, _, _] = head else {
        return file.bad("its version of GIF is unknown");
    };
    found.size = (side(w0, w1), side(h0, h1));
    found.head.extend_from_slice(&head);
    for _ in 0..palette(flags) / 3 {
        let Some(colour) = file.take::<3>()? else { return Ok(short) };
        found.head.extend_from_slice(&colour);
    }
    // Disposal, time and clear colour for the next picture.
    let mut control = (Dispose::Keep, 0, None);
    loop {
        let at = file.at;
        let Some([kind]) = file.take()? else { return Ok(Some("the mark of its end is missing")) };
        match kind {
            TRAILER => return Ok(None),
            EXTENSION => {
                let Some([label]) = file.take()? else { return Ok(inside) };
                if label == CONTROL {
                    let Some([4, flags, low, high, clear]) = file.take()? else {
                        return file.bad("a control block is incomplete");
                    };
                    let dispose = match flags >> 2 & 7 {
                        2 => Dispose::Clear,
                        3 => Dispose::Restore,
                        _ => Dispose::Keep,
                    };
                    control = (dispose, 10 * side(low, high) as u64, (flags & 1 == 1).then_some(clear));
                }
                if !parts(file)? {
                    return Ok(inside);
                }
            }
            PICTURE => {
                let Some([x0, x1, y0, y1, w0, w1, h0, h1, flags]) = file.take()? else { return Ok(inside) };
                let area = Area { x: side(x0, x1), y: side(y0, y1), width: side(w0, w1), height: side(h0, h1) };
                let (dispose, duration, clear) = std::mem::replace(&mut control, (Dispose::Keep, 0, None));
                // Palette, smallest code, data.
                let whole = file.skip(palette(flags) + 1)? && parts(file)?;
                let end = if whole { file.at } else { file.media.length };
                if found.cels.len() == MOST_FRAMES {
                    return file.bad("it has more frames than a day");
                }
                found.cels.push(Cel { at, length: end - at, area, blend: true, dispose, clear, duration });
                if !whole {
                    return Ok(inside);
                }
            }
            // Padding that some writers leave between blocks.
            0 => {}
            _ => return file.bad("it has a block of an unknown kind"),
        }
    }
}

/// Passes over parts of up to 255 bytes and the empty one at their end; whether all are there.
fn parts(file: &mut Scan<'_>) -> VideoResult<bool> {
    loop {
        match file.take()? {
            None => return Ok(false),
            Some([0]) => return Ok(true),
            Some([n]) if !file.skip(u64::from(n))? => return Ok(false),
            Some(_) => {}
        }
    }
}

/// What stands before a frame that is a file of its own: a head of its size, the palette, and its clear colour.
pub(super) fn begin(head: &[u8], cel: &Cel, file: &mut Vec<u8>) {
    file.extend_from_slice(head);
    let sides = [cel.area.width, cel.area.height].map(|side| (side as u16).to_le_bytes());
    if let Some(place) = file.get_mut(6..10) {
        place.copy_from_slice(sides.as_flattened());
    }
    if let Some(clear) = cel.clear {
        file.extend_from_slice(&[EXTENSION, CONTROL, 4, 1, 0, 0, clear, 0]);
    }
}

/// Moves the picture to the top left, and ends the file.
pub(super) fn end(head: usize, file: &mut Vec<u8>) {
    if let Some(place) = file.get_mut(head + 1..head + 5) {
        place.fill(0);
    }
    file.push(TRAILER);
}
