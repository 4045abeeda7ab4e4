//! H.264 through Cisco's OpenH264, which this project builds from source.
//!
//! The decoder gives frames in the order in which they are shown, without saying which ones they are: they are those of the
//! samples it took without complaint, by their times.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

use super::super::error::{VideoError, VideoResult};
use super::super::reader::{Frame, Media, Source};
use super::sps::{Colours, Sequence};
use super::tables::{Track, Turn};
use super::yuv::{Planes, rgb};
use crate::boxes::u16_at;

/// Blocks of 16x16 pixels that the decoder takes: those of level 5.2, a bit more than 4K.
const MOST_BLOCKS: usize = 36_864;
/// Bytes of a coded frame at most.
const MOST_BYTES: u32 = 64 << 20;

/// A decoder's configuration (ISO/IEC 14496-15, 5.3.3.1).
struct Config {
    /// Bytes of the lengths before units.
    length: usize,
    /// Sets of parameters, as units with starts.
    sets: Vec<u8>,
    colours: Colours,
}

/// A video track that is being decoded.
pub(super) struct H264 {
    media: Media,
    track: Track,
    config: Config,
    /// The place in the order of showing of each sample.
    rank: Vec<u32>,
    max_pixels: usize,
    decoder: Decoder,
    /// The next sample to decode.
    next: usize,
    /// Ranks of samples whose frames have not come out yet.
    waiting: BinaryHeap<Reverse<u32>>,
    /// Frames that came out and were not asked for yet.
    ready: VecDeque<(usize, Frame)>,
    /// Why samples could not be decoded, by rank.
    lost: Vec<(usize, String)>,
    over: bool,
    sample: Vec<u8>,
    units: Vec<u8>,
}

impl H264 {
    pub fn new(media: Media, track: Track, config: &[u8], max_pixels: usize) -> VideoResult<Self> {
        let label = media.label.clone();
        let config = Config::read(config, &label, max_pixels)?;
        // Frames come out when they are due, as flushing after each would undo their order.
        let options = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let decoder = Decoder::with_api_config(OpenH264API::from_source(), options)
            .map_err(|e| VideoError::Codec { label, codec: format!("H.264, whose decoder does not start: {e}") })?;
        let mut rank = vec![0; track.samples.len()];
        for (place, &sample) in track.order.iter().enumerate() {
            if let Some(rank) = rank.get_mut(sample as usize) {
                *rank = place as u32;
            }
        }
        let (waiting, ready, lost) = (BinaryHeap::new(), VecDeque::new(), Vec::new());
        let (next, over, sample, units) = (0, false, Vec::new(), Vec::new());
        Ok(Self { media, track, config, rank, max_pixels, decoder, next, waiting, ready, lost, over, sample, units })
    }

    /// Decodes the next sample, or takes the last frames out; false where nothing is left.
    fn advance(&mut self, wanted: usize) -> VideoResult<bool> {
        let Some((&sample, &rank)) = self.track.samples.get(self.next).zip(self.rank.get(self.next)) else {
            if std::mem::replace(&mut self.over, true) {
                return Ok(false);
            }
            if let Ok(frames) = self.decoder.flush_remaining() {
                for frame in &frames {
                    keep(frame, &mut self.waiting, &mut self.ready, 0, self.config.colours, self.track.turn);
                }
            }
            return Ok(true);
        };
        let first = self.next == 0;
        self.next += 1;
        self.units.clear();
        if first {
            self.units.extend_from_slice(&self.config.sets);
        }
        self.sample.clear();
        self.media.read(sample.at, u64::from(sample.size.min(MOST_BYTES)), &mut self.sample)?;
        let mut why = None;
        if sample.size > MOST_BYTES || self.sample.len() != sample.size as usize {
            why = Some(format!("it has {} of {} bytes", self.sample.len(), sample.size));
        } else if let Err(reason) = self.split()? {
            why = Some(reason.into());
        }
        match self.decoder.decode(&self.units) {
            _ if why.is_some() => {}
            Ok(frame) => {
                self.waiting.push(Reverse(rank));
                if let Some(frame) = frame {
                    keep(&frame, &mut self.waiting, &mut self.ready, wanted, self.config.colours, self.track.turn);
                }
            }
            Err(e) => why = Some(e.to_string()),
        }
        if let Some(why) = why {
            self.lost.push((rank as usize, why));
        }
        Ok(true)
    }

    /// Appends the units of a sample, each after a start, to `units`.
    fn split(&mut self) -> VideoResult<Result<(), &'static str>> {
        let (mut rest, mut pictures) = (self.sample.as_slice(), false);
        while !rest.is_empty() {
            let length = rest.get(..self.config.length).unwrap_or_default();
            let length = length.iter().fold(0usize, |all, &byte| all << 8 | usize::from(byte));
            let Some((unit, after)) = rest.get(self.config.length..).and_then(|rest| rest.split_at_checked(length))
            else {
                return Ok(Err("its units do not fit into it"));
            };
            rest = after;
            match unit.first().map(|head| head & 31) {
                // Pictures, and sets of parameters; the rest is of no use here.
                Some(kind @ (1 | 5 | 8)) => {
                    pictures |= kind != 8;
                    start(unit, &mut self.units);
                }
                Some(7) => {
                    self.config.colours = check(unit, &self.media.label, self.max_pixels)?;
                    start(unit, &mut self.units);
                }
                _ => {}
            }
        }
        Ok(if pictures { Ok(()) } else { Err("there is no picture in it") })
    }
}

/// Takes a frame that came out; only those from `wanted` on are looked at.
fn keep(
    frame: &DecodedYUV<'_>,
    waiting: &mut BinaryHeap<Reverse<u32>>,
    ready: &mut VecDeque<(usize, Frame)>,
    wanted: usize,
    colours: Colours,
    turn: Turn,
) {
    let Some(Reverse(rank)) = waiting.pop() else { return };
    if (rank as usize) < wanted {
        return;
    }
    let (width, height) = frame.dimensions();
    let (y, u, v) = frame.strides();
    let planes = Planes { y: frame.y(), u: frame.u(), v: frame.v(), strides: (y, u.min(v)) };
    if let Some(rgb) = rgb(planes, (width, height), colours) {
        ready.push_back((rank as usize, turned(Frame { width, height, rgb }, turn)));
    }
}

impl Source for H264 {
    fn next(&mut self, index: usize, shown: bool) -> VideoResult<Option<Frame>> {
        if !shown {
            return Ok(None);
        }
        loop {
            while self.ready.front().is_some_and(|(rank, _)| *rank < index) {
                self.ready.pop_front();
            }
            match self.ready.front() {
                Some((rank, _)) if *rank == index => return Ok(self.ready.pop_front().map(|(_, frame)| frame)),
                // A later frame comes first: this one is lost.
                Some(_) => break,
                None => {}
            }
            if !self.advance(index)? {
                break;
            }
        }
        let place = self.lost.iter().position(|(rank, _)| *rank == index);
        let why = place.map_or_else(|| "nothing came out of the decoder".into(), |i| self.lost.swap_remove(i).1);
        self.lost.retain(|(rank, _)| *rank > index);
        Err(VideoError::Damaged { label: self.media.label.clone(), frame: index, why })
    }
}

impl Config {
    fn read(bytes: &[u8], label: &str, max_pixels: usize) -> VideoResult<Self> {
        let mut config = Self { length: 0, sets: Vec::new(), colours: Colours::default() };
        let mut units = Vec::new();
        if config.units(bytes, &mut units).is_none() {
            let why = "the configuration of its H.264 is broken".into();
            return Err(VideoError::Format { label: label.to_string(), why });
        }
        for unit in units {
            if unit.first().is_some_and(|head| head & 31 == 7) {
                config.colours = check(unit, label, max_pixels)?;
            }
            start(unit, &mut config.sets);
        }
        Ok(config)
    }

    fn units<'a>(&mut self, bytes: &'a [u8], units: &mut Vec<&'a [u8]>) -> Option<()> {
        let [1, _, _, _, length, sequences, ..] = bytes else { return None };
        self.length = usize::from(length & 3) + 1;
        let mut at = 6;
        let mut count = sequences & 31;
        for last in [false, true] {
            for _ in 0..count {
                let length = usize::from(u16_at(bytes, at)?);
                units.push(bytes.get(at + 2..at + 2 + length)?);
                at += 2 + length;
            }
            if !last {
                count = *bytes.get(at)?;
                at += 1;
            }
        }
        Some(())
    }
}

/// Appends a unit after a start.
fn start(unit: &[u8], units: &mut Vec<u8>) {
    units.extend_from_slice(&[0, 0, 0, 1]);
    units.extend_from_slice(unit);
}

/// Looks at a set of parameters before the decoder does.
fn check(unit: &[u8], label: &str, limit: usize) -> VideoResult<Colours> {
    let label = || label.to_string();
    let Some(Sequence { width, height, refused, colours }) = Sequence::read(unit) else {
        return Err(VideoError::Format { label: label(), why: "the parameters of its H.264 are broken".into() });
    };
    if width.checked_mul(height).is_none_or(|n| n > limit) {
        return Err(VideoError::TooLarge { label: label(), width, height, limit });
    }
    if width * height > 256 * MOST_BLOCKS {
        return Err(VideoError::Codec { label: label(), codec: format!("H.264 of {width} x {height} pixels") });
    }
    match refused {
        Some(codec) => Err(VideoError::Codec { label: label(), codec: codec.into() }),
        None => Ok(colours),
    }
}

/// A frame as it is to be shown.
fn turned(frame: Frame, turn: Turn) -> Frame {
    let Frame { width, height, rgb } = frame;
    let (pixels, _) = rgb.as_chunks::<3>();
    let pixel = |x: usize, y: usize| pixels.get(y * width + x).copied().unwrap_or_default();
    let columns = 0..width;
    let out: Vec<[u8; 3]> = match turn {
        Turn::None => return Frame { width, height, rgb },
        Turn::Half => pixels.iter().rev().copied().collect(),
        // The left column, from below, becomes the top row.
        Turn::Quarter => {
            columns.flat_map(|x| (0..height).rev().map(move |y| (x, y))).map(|(x, y)| pixel(x, y)).collect()
        }
        Turn::ThreeQuarters => {
            columns.rev().flat_map(|x| (0..height).map(move |y| (x, y))).map(|(x, y)| pixel(x, y)).collect()
        }
    };
    let (width, height) = if turn == Turn::Half { (width, height) } else { (height, width) };
    Frame { width, height, rgb: out.into_flattened() }
}
