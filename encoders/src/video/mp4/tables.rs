//! Tables of a track: where its samples lie, and when each is shown.

use super::super::error::{VideoError, VideoResult};
use super::super::reader::Media;
use super::super::timeline::Timeline;
use super::{Movie, Video, fragments, number, table};
use crate::boxes::{child, timescale, u16_at, u32_at, u64_at};

/// Samples of a track at most: a day at 50 frames a second.
const MOST_SAMPLES: usize = 50 * 24 * 3600;

/// Samples that a file of so many bytes has at most: each takes one, so that a small file cannot state millions.
pub(super) fn most_samples(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).min(MOST_SAMPLES)
}

/// One coded frame, in the order of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub at: u64,
    pub size: u32,
    /// When it is shown, and how long, in ticks of the track.
    pub time: i64,
    pub duration: u32,
}

/// By how many quarters, clockwise, frames are turned to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    None,
    Quarter,
    Half,
    ThreeQuarters,
}

/// What an edit list leaves of a track, in its ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    /// Ticks before anything is shown.
    pub delay: u64,
    /// The first tick that is shown, and the first one that is not.
    pub start: i64,
    pub end: Option<i64>,
}

/// A video track.
pub(super) struct Track {
    pub samples: Vec<Sample>,
    /// Samples in the order in which they are shown.
    pub order: Vec<u32>,
    pub scale: u32,
    pub edit: Edit,
    pub turn: Turn,
}

impl Track {
    /// When the frames are shown, in that order.
    pub fn timeline(&self) -> Timeline {
        let Edit { delay, start, end } = self.edit;
        let shown = |tick: i64| {
            let tick = end.map_or(tick, |end| tick.min(end));
            u64::try_from(tick.saturating_sub(start)).unwrap_or(0).saturating_add(delay)
        };
        let sample = |&i: &u32| self.samples.get(i as usize);
        let starts = self.order.iter().filter_map(sample).map(|s| shown(s.time)).collect();
        let last = self.samples.iter().map(|s| s.time.saturating_add(i64::from(s.duration))).max();
        Timeline { starts, end: last.map_or(0, shown), scale: self.scale }
    }
}

/// Reads all tables of a track.
pub(super) fn track(media: &mut Media, movie: &Movie, video: &Video<'_>, lenient: bool) -> VideoResult<Track> {
    let label = media.label.clone();
    let broken = |why: &str| VideoError::Format { label: label.clone(), why: why.into() };
    let mdia = child(video.trak, b"mdia").unwrap_or_default();
    let Some(scale) = child(mdia, b"mdhd").and_then(timescale) else {
        return Err(broken("its video track has no unit of time"));
    };
    let stbl = table(video.trak).unwrap_or_default();
    let mut samples = samples(stbl, most_samples(media.length))
        .ok_or_else(|| broken("the tables of its video track contradict themselves"))?;
    if let Some(id) = number(video.trak) {
        fragments::append(media, movie, id, &mut samples)?;
    }
    let all = samples.len();
    samples.retain(|s| s.at.checked_add(u64::from(s.size)).is_some_and(|end| end <= media.length));
    if samples.len() < all && !lenient {
        let why = format!("{} of {all} frames are missing", all - samples.len());
        return Err(VideoError::Truncated { label, why });
    }
    if samples.is_empty() {
        return Err(VideoError::Empty { label });
    }
    let mut order: Vec<u32> = (0..samples.len() as u32).collect();
    order.sort_by_key(|&i| samples.get(i as usize).map(|s| s.time));
    let movie_scale = child(&movie.moov, b"mvhd").and_then(timescale).unwrap_or(1000);
    let edit = edit(video.trak, scale, movie_scale).unwrap_or_default();
    Ok(Track { samples, order, scale, edit, turn: turn(video.trak).unwrap_or(Turn::None) })
}

/// Samples of the tables in `moov`, so many at most; none in a file of fragments.
fn samples(stbl: &[u8], most: usize) -> Option<Vec<Sample>> {
    let (sizes, count) = match (child(stbl, b"stsz"), child(stbl, b"stz2")) {
        (Some(stsz), _) => (stsz, u32_at(stsz, 8)? as usize),
        (None, Some(stz2)) => (stz2, u32_at(stz2, 8)? as usize),
        (None, None) => return None,
    };
    if count > most {
        return None;
    }
    // The size of all of them, or the bits of each.
    let (plain, one) = (child(stbl, b"stsz").is_some(), u32_at(sizes, 4)?);
    let size = |i: usize| match (plain, one) {
        (true, 0) => u32_at(sizes, 12 + 4 * i),
        (true, all) => Some(all),
        (false, 16) => u16_at(sizes, 12 + 2 * i).map(u32::from),
        (false, 8) => sizes.get(12 + i).copied().map(u32::from),
        (false, 4) => sizes.get(12 + i / 2).map(|byte| u32::from(byte >> (4 * ((i + 1) % 2)) & 15)),
        (false, _) => None,
    };
    let mut all = Vec::new();
    if count > 0 {
        let chunks = child(stbl, b"stsc")?.get(8..)?;
        let (offsets, wide) = match child(stbl, b"stco") {
            Some(stco) => (stco.get(8..)?, 4),
            None => (child(stbl, b"co64")?.get(8..)?, 8),
        };
        let (mut run, mut index) = (0, 0);
        'all: for chunk in 0..offsets.len() / wide {
            // Runs of chunks, counted from 1: the first one, samples in each, how they are coded.
            while u32_at(chunks, 12 * (run + 1)).is_some_and(|first| first as usize <= chunk + 1) {
                run += 1;
            }
            let (samples, coded) = (u32_at(chunks, 12 * run + 4)?, u32_at(chunks, 12 * run + 8)?);
            let mut at = if wide == 4 { u64::from(u32_at(offsets, 4 * chunk)?) } else { u64_at(offsets, 8 * chunk)? };
            for _ in 0..samples {
                if index == count {
                    break 'all;
                }
                // All samples are coded in the first way, the only one that is looked at.
                (coded == 1).then_some(())?;
                let size = size(index)?;
                all.push(Sample { at, size, time: 0, duration: 0 });
                at = at.checked_add(u64::from(size))?;
                index += 1;
            }
        }
        (index == count).then_some(())?;
    }
    times(stbl, &mut all)?;
    Some(all)
}

/// Puts times to samples: those of decoding, and by how much each is shown later.
fn times(stbl: &[u8], samples: &mut [Sample]) -> Option<()> {
    fn runs<'a>(stbl: &'a [u8], kind: &[u8; 4]) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let table = child(stbl, kind).and_then(|table| table.get(8..)).unwrap_or_default();
        table.chunks_exact(8).filter_map(|run| Some((u32_at(run, 0)?, u32_at(run, 4)?)))
    }
    let mut index = 0;
    let mut time = 0i64;
    for (count, duration) in runs(stbl, b"stts") {
        for sample in samples.iter_mut().skip(index).take(count as usize) {
            (sample.time, sample.duration) = (time, duration);
            time = time.checked_add(i64::from(duration))?;
            index += 1;
        }
    }
    (index == samples.len()).then_some(())?;
    let mut index = 0;
    for (count, offset) in runs(stbl, b"ctts") {
        for sample in samples.iter_mut().skip(index).take(count as usize) {
            // Version 0 has no sign, but is written with one, too.
            sample.time = sample.time.checked_add(i64::from(offset as i32))?;
            index += 1;
        }
    }
    Some(())
}

/// The edit list: what comes before its first part with pictures, and that part.
fn edit(trak: &[u8], scale: u32, movie_scale: u32) -> Option<Edit> {
    let list = child(child(trak, b"edts")?, b"elst")?;
    let wide = list.first() == Some(&1);
    let (count, size) = (u32_at(list, 4)? as usize, if wide { 20 } else { 12 });
    let ticks = |length: u64| u64::try_from(u128::from(length) * u128::from(scale) / u128::from(movie_scale)).ok();
    let mut delay = 0u64;
    for entry in list.get(8..)?.chunks_exact(size).take(count) {
        let (length, start) = match wide {
            true => (u64_at(entry, 0)?, u64_at(entry, 8)? as i64),
            false => (u64::from(u32_at(entry, 0)?), i64::from(u32_at(entry, 4)? as i32)),
        };
        if start >= 0 {
            // A length of 0 stands for all, as in files written in fragments.
            let end = if length > 0 { start.checked_add(i64::try_from(ticks(length)?).ok()?) } else { None };
            return Some(Edit { delay, start, end });
        }
        delay = delay.checked_add(ticks(length)?)?;
    }
    None
}

/// The turn in the matrix of a track's head.
fn turn(trak: &[u8]) -> Option<Turn> {
    let head = child(trak, b"tkhd")?;
    let at = if head.first() == Some(&1) { 52 } else { 40 };
    let number = |i: usize| u32_at(head, at + 4 * i).map(|v| (v as i32).signum());
    Some(match (number(0)?, number(1)?, number(3)?, number(4)?) {
        (0, 1, -1, 0) => Turn::Quarter,
        (-1, 0, 0, -1) => Turn::Half,
        (0, -1, 1, 0) => Turn::ThreeQuarters,
        _ => Turn::None,
    })
}
