//! Samples of files in fragments, as cameras in browsers and streaming write them: each `moof` has tables of its own.

use super::super::error::{VideoError, VideoResult};
use super::super::reader::Media;
use super::Movie;
use super::tables::{Sample, most_samples};
use crate::boxes::{child, children, u32_at, u64_at};

/// Bytes of a fragment's tables at most.
const MOST_BYTES: u64 = 16 << 20;

/// What holds for samples that do not say otherwise.
#[derive(Clone, Copy, Default)]
struct Defaults {
    duration: u32,
    size: u32,
}

/// Appends the samples of all fragments of the track `id`.
pub(super) fn append(media: &mut Media, movie: &Movie, id: u32, samples: &mut Vec<Sample>) -> VideoResult<()> {
    let defaults = defaults(&movie.moov, id).unwrap_or_default();
    let mut time = samples.last().map_or(0, |s| s.time.saturating_add(i64::from(s.duration)));
    let (mut moof, most) = (Vec::new(), most_samples(media.length));
    for top in &movie.moofs {
        moof.clear();
        media.read(top.body, (top.end - top.body).min(MOST_BYTES), &mut moof)?;
        if fragment(&moof, (top.start, most), id, defaults, &mut time, samples).is_none() {
            let why = "the tables of a fragment contradict themselves".into();
            return Err(VideoError::Format { label: media.label.clone(), why });
        }
    }
    Ok(())
}

fn defaults(moov: &[u8], id: u32) -> Option<Defaults> {
    let mut all = children(child(moov, b"mvex")?).filter(|(kind, _)| kind == b"trex").map(|(_, trex)| trex);
    let trex = all.find(|trex| u32_at(trex, 4) == Some(id))?;
    Some(Defaults { duration: u32_at(trex, 12)?, size: u32_at(trex, 16)? })
}

/// Fields of a table, one after the other.
struct Fields<'a> {
    table: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let value = u32_at(self.table, self.at)?;
        self.at += 4;
        Some(value)
    }

    fn u64(&mut self) -> Option<u64> {
        let value = u64_at(self.table, self.at)?;
        self.at += 8;
        Some(value)
    }
}

/// The samples of one fragment, which begins at `start`, with those before it `most` at most; times of decoding go on at `time`.
fn fragment(
    moof: &[u8],
    (start, most): (u64, usize),
    id: u32,
    defaults: Defaults,
    time: &mut i64,
    samples: &mut Vec<Sample>,
) -> Option<()> {
    for (_, traf) in children(moof).filter(|(kind, _)| kind == b"traf") {
        let tfhd = child(traf, b"tfhd")?;
        let (flags, mut head) = (u32_at(tfhd, 0)?, Fields { table: tfhd, at: 4 });
        if head.u32()? != id {
            continue;
        }
        let base = if flags & 1 != 0 { head.u64()? } else { start };
        if flags & 2 != 0 {
            head.u32()?;
        }
        let mut defaults = defaults;
        if flags & 8 != 0 {
            defaults.duration = head.u32()?;
        }
        if flags & 0x10 != 0 {
            defaults.size = head.u32()?;
        }
        if let Some(tfdt) = child(traf, b"tfdt") {
            let wide = tfdt.first() == Some(&1);
            let decode = if wide { u64_at(tfdt, 4)? } else { u64::from(u32_at(tfdt, 4)?) };
            *time = i64::try_from(decode).ok()?;
        }
        // A run without a place follows the one before it.
        let mut at = base;
        for (_, trun) in children(traf).filter(|(kind, _)| kind == b"trun") {
            let (flags, mut fields) = (u32_at(trun, 0)?, Fields { table: trun, at: 4 });
            let count = fields.u32()? as usize;
            if count > most.saturating_sub(samples.len()) {
                return None;
            }
            if flags & 1 != 0 {
                at = base.checked_add_signed(i64::from(fields.u32()? as i32))?;
            }
            if flags & 4 != 0 {
                fields.u32()?;
            }
            for _ in 0..count {
                let duration = if flags & 0x100 != 0 { fields.u32()? } else { defaults.duration };
                let size = if flags & 0x200 != 0 { fields.u32()? } else { defaults.size };
                if flags & 0x400 != 0 {
                    fields.u32()?;
                }
                let later = if flags & 0x800 != 0 { i64::from(fields.u32()? as i32) } else { 0 };
                samples.push(Sample { at, size, time: time.checked_add(later)?, duration });
                at = at.checked_add(u64::from(size))?;
                *time = time.checked_add(i64::from(duration))?;
            }
        }
    }
    Some(())
}
