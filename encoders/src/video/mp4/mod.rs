//! MP4 and MOV files (ISO/IEC 14496-12): which video track they have, where its frames lie and when they are shown.
//!
//! Read are the tables of whole files and of files in fragments; times of composition, so that frames that are decoded out of
//! order come in order; of an edit list what is before its first part with pictures, and where that part begins and ends; and
//! turns by quarters, which phones write.

#[cfg(feature = "h264")]
mod fragments;
#[cfg(feature = "h264")]
mod h264;
#[cfg(feature = "h264")]
mod sps;
#[cfg(feature = "h264")]
mod tables;
#[cfg(feature = "h264")]
mod yuv;

use super::error::{VideoError, VideoResult};
use super::reader::{Media, Source, VideoOptions};
use super::timeline::Timeline;
#[cfg(feature = "h264")]
use crate::boxes::track_id;
use crate::boxes::{Top, child, children, top};

/// Boxes that are looked at before a file is given up: one in fragments has two or three for each.
const MOST_BOXES: usize = 1 << 20;
/// Bytes of a table of contents at most: that of a film of hours has some megabytes.
const MOST_BYTES: u64 = 64 << 20;

/// A file's table of contents.
struct Movie {
    moov: Vec<u8>,
    /// Tables of the fragments.
    #[cfg_attr(not(feature = "h264"), expect(dead_code, reason = "what lies where matters to the decoder"))]
    moofs: Vec<Top>,
    /// Whether the file ends before its last box does.
    cut: bool,
}

/// A file's video track.
struct Video<'a> {
    trak: &'a [u8],
    /// The configuration of its decoder.
    config: &'a [u8],
}

/// Opens the video track of a file.
pub(super) fn open(mut media: Media, options: &VideoOptions) -> VideoResult<(Box<dyn Source>, Timeline)> {
    let movie = movie(&mut media)?;
    let video = video(&movie.moov, &media.label)?;
    if movie.cut && !options.lenient {
        return Err(VideoError::Truncated { label: media.label, why: "it ends inside a box".into() });
    }
    #[cfg(feature = "h264")]
    {
        let track = tables::track(&mut media, &movie, &video, options.lenient)?;
        let timeline = track.timeline();
        Ok((Box::new(h264::H264::new(media, track, video.config, options.max_pixels)?), timeline))
    }
    #[cfg(not(feature = "h264"))]
    {
        let _ = (video.trak, video.config);
        Err(VideoError::NeedsH264 { label: media.label })
    }
}

fn movie(media: &mut Media) -> VideoResult<Movie> {
    let (mut at, mut moov, mut moofs) = (0, None, Vec::new());
    for _ in 0..MOST_BOXES {
        let Some(found) = top(&mut media.bytes, at, media.length) else { break };
        match &found.kind {
            b"moov" if moov.is_none() && found.end <= media.length => {
                let (mut body, length) = (Vec::new(), found.end - found.body);
                if length > MOST_BYTES {
                    let why = format!("its table of contents has {length} bytes");
                    return Err(VideoError::Format { label: media.label.clone(), why });
                }
                media.read(found.body, length, &mut body)?;
                moov = Some(body);
            }
            b"moof" if found.end <= media.length => moofs.push(found),
            _ => {}
        }
        at = found.end;
    }
    let (cut, label) = (at != media.length, media.label.clone());
    match moov {
        Some(moov) => Ok(Movie { moov, moofs, cut }),
        None if cut => Err(VideoError::Truncated { label, why: "its table of contents is missing".into() }),
        None => Err(VideoError::Format { label, why: "it has no table of contents (moov)".into() }),
    }
}

/// The first video track, if its codec is H.264.
fn video<'a>(moov: &'a [u8], label: &str) -> VideoResult<Video<'a>> {
    let label = || label.to_string();
    let traks = || children(moov).filter(|(kind, _)| kind == b"trak").map(|(_, trak)| trak);
    let Some((trak, stbl)) = traks().find_map(|trak| (handler(trak)? == b"vide").then_some((trak, table(trak)?)))
    else {
        let mut kinds: Vec<String> = traks().filter_map(handler).map(track_name).collect();
        kinds.dedup();
        let found = if kinds.is_empty() { "no track at all".into() } else { kinds.join(", ") };
        return Err(VideoError::NoVideo { label: label(), found });
    };
    let broken = |why: &str| VideoError::Format { label: label(), why: why.into() };
    let entries = child(stbl, b"stsd").and_then(|stsd| stsd.get(8..));
    let Some((kind, entry)) = entries.and_then(|entries| children(entries).next()) else {
        return Err(broken("its video track does not say how it is coded"));
    };
    if !matches!(&kind, b"avc1" | b"avc3") {
        return Err(VideoError::Codec { label: label(), codec: codec_name(kind) });
    }
    let config = entry.get(78..).and_then(|boxes| child(boxes, b"avcC"));
    Ok(Video { trak, config: config.ok_or_else(|| broken("its video track has no configuration of H.264"))? })
}

/// What a track is for.
fn handler(trak: &[u8]) -> Option<&[u8]> {
    child(child(trak, b"mdia")?, b"hdlr")?.get(8..12)
}

/// Tables of a track's samples.
fn table(trak: &[u8]) -> Option<&[u8]> {
    child(child(child(trak, b"mdia")?, b"minf")?, b"stbl")
}

fn track_name(handler: &[u8]) -> String {
    match handler {
        b"soun" => "sound".into(),
        b"text" | b"sbtl" | b"subt" => "text".into(),
        other => format!("a track of kind {}", other.escape_ascii()),
    }
}

fn codec_name(kind: [u8; 4]) -> String {
    let name = match &kind {
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => "H.265 (HEVC)",
        b"av01" => "AV1",
        b"vp08" => "VP8",
        b"vp09" => "VP9",
        b"mp4v" => "MPEG-4 Part 2",
        b"s263" | b"h263" => "H.263",
        b"jpeg" | b"mjpa" | b"mjpb" => "Motion JPEG",
        b"apch" | b"apcn" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "ProRes",
        b"encv" => "encrypted",
        b"vvc1" | b"vvi1" => "H.266 (VVC)",
        other => return format!("of kind {}", other.escape_ascii()),
    };
    name.into()
}

/// The number of a track.
#[cfg(feature = "h264")]
fn number(trak: &[u8]) -> Option<u32> {
    track_id(child(trak, b"tkhd")?)
}
