//! Animated pictures as video: where the frames lie is read first, then each is decoded as a picture of its own and painted.
//!
//! So a damaged frame does not spoil the ones after it, and memory does not grow with the length. The decoders are those of the crate
//! `image`.

mod gif;
mod webp;

use std::io::{Cursor, ErrorKind, Read};

use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, ImageResult};

use super::canvas::{Area, Canvas, Dispose};
use super::error::{VideoError, VideoResult};
use super::reader::{Frame, Media, Source, VideoOptions};
use super::timeline::Timeline;
use crate::image::guarded;

/// Bytes of one frame in the file at most.
const MOST_BYTES: u64 = 256 << 20;
/// Frames of an animation at most: a day at 50 frames a second.
const MOST_FRAMES: usize = 50 * 24 * 3600;
/// Frames of up to so many milliseconds ...
const HASTY: u64 = 10;
/// ... are shown for so many, as browsers and FFmpeg do.
const USUAL: u64 = 100;

/// One frame in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cel {
    /// Where its data lie, without what was read already.
    at: u64,
    length: u64,
    area: Area,
    blend: bool,
    dispose: Dispose,
    /// The colour of a GIF's palette that is clear.
    clear: Option<u8>,
    /// Milliseconds as they stand in the file.
    duration: u64,
}

/// What a file says about itself.
struct Found {
    size: (usize, usize),
    /// Head and global palette of a GIF.
    head: Vec<u8>,
    cels: Vec<Cel>,
    /// What is missing at the end.
    cut: Option<&'static str>,
}

/// An animation that is being decoded.
pub(super) struct Animation {
    media: Media,
    format: Format,
    head: Vec<u8>,
    cels: Vec<Cel>,
    canvas: Canvas,
    max_pixels: usize,
    /// The frame as a file of its own, and its pixels.
    file: Vec<u8>,
    pixels: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Gif,
    WebP,
}

impl Animation {
    pub fn gif(mut media: Media, options: &VideoOptions) -> VideoResult<(Self, Timeline)> {
        let found = gif::scan(&mut Scan::new(&mut media)?)?;
        Self::start(media, Format::Gif, found, options)
    }

    pub fn webp(mut media: Media, options: &VideoOptions) -> VideoResult<(Self, Timeline)> {
        let found = webp::scan(&mut Scan::new(&mut media)?)?;
        Self::start(media, Format::WebP, found, options)
    }

    fn start(media: Media, format: Format, found: Found, options: &VideoOptions) -> VideoResult<(Self, Timeline)> {
        let Found { size: (width, height), head, cels, cut } = found;
        let (label, limit) = (media.label.clone(), options.max_pixels);
        if let Some(why) = cut.filter(|_| !options.lenient) {
            return Err(VideoError::Truncated { label, why: why.into() });
        }
        if width == 0 || height == 0 || cels.is_empty() {
            return Err(VideoError::Empty { label });
        }
        if width.checked_mul(height).is_none_or(|n| n > limit) {
            return Err(VideoError::TooLarge { label, width, height, limit });
        }
        let shown = |duration| if duration <= HASTY { USUAL } else { duration };
        let timeline = Timeline::of_durations(cels.iter().map(|cel| shown(cel.duration)), 1000);
        let (canvas, file, pixels) = (Canvas::new(width, height), Vec::new(), Vec::new());
        Ok((Self { media, format, head, cels, canvas, max_pixels: limit, file, pixels }, timeline))
    }

    /// Decodes one frame into `pixels`; how many bytes a pixel has, or why it cannot be.
    fn decode(&mut self, cel: &Cel) -> Result<usize, String> {
        let (file, pixels, area) = (&self.file, &mut self.pixels, cel.area);
        let decoded = match self.format {
            Format::Gif => guarded(|| fill(GifDecoder::new(Cursor::new(file)), area, pixels)),
            Format::WebP => {
                // Sizes inside, which the decoder takes memory for before it compares them.
                webp::check(file, area)?;
                guarded(|| fill(WebPDecoder::new(Cursor::new(file)), area, pixels))
            }
        };
        decoded.unwrap_or_else(|| Err("it contradicts itself".into()))
    }
}

/// The pixels of a picture that must have the size of `area`.
fn fill<D: ImageDecoder>(decoder: ImageResult<D>, area: Area, pixels: &mut Vec<u8>) -> Result<usize, String> {
    let refused = |e| moesaic_kernels::one_line(&e);
    let decoder = decoder.map_err(refused)?;
    let (width, height) = decoder.dimensions();
    if (width as usize, height as usize) != (area.width, area.height) {
        return Err(format!("it has {width} x {height} pixels for an area of {} x {}", area.width, area.height));
    }
    let channels = match decoder.color_type() {
        ColorType::Rgb8 => 3,
        ColorType::Rgba8 => 4,
        other => return Err(format!("its pixels are {other:?}")),
    };
    pixels.clear();
    pixels.resize(channels * area.width * area.height, 0);
    decoder.read_image(pixels).map_err(refused)?;
    Ok(channels)
}

impl Source for Animation {
    fn next(&mut self, index: usize, shown: bool) -> VideoResult<Option<Frame>> {
        let Some(cel) = self.cels.get(index).cloned() else { return Ok(None) };
        let area = cel.area;
        let damaged = |media: &Media, why| VideoError::Damaged { label: media.label.clone(), frame: index, why };
        if cel.length > MOST_BYTES {
            return Err(damaged(&self.media, format!("it takes {} bytes", cel.length)));
        }
        // A frame of a GIF may reach beyond the picture.
        if area.width.checked_mul(area.height).is_none_or(|n| n > self.max_pixels || n == 0) {
            return Err(damaged(&self.media, format!("it has {} x {} pixels", area.width, area.height)));
        }
        self.file.clear();
        match self.format {
            Format::Gif => gif::begin(&self.head, &cel, &mut self.file),
            Format::WebP => webp::begin(&mut self.file),
        }
        let head = self.file.len();
        self.media.read(cel.at, cel.length, &mut self.file)?;
        if (self.file.len() - head) as u64 != cel.length {
            return Err(damaged(&self.media, "the file ends inside it".into()));
        }
        match self.format {
            Format::Gif => gif::end(head, &mut self.file),
            Format::WebP => webp::end(&cel, &mut self.file),
        }
        let channels = self.decode(&cel).map_err(|why| damaged(&self.media, why))?;
        self.canvas.before(area, cel.dispose);
        if channels == 3 && self.canvas.is(area) {
            self.canvas.swap(&mut self.pixels);
        } else {
            self.canvas.paint(area, &self.pixels, channels, cel.blend);
        }
        Ok(shown.then(|| self.canvas.frame()))
    }
}

/// Reads through a file from its start.
struct Scan<'a> {
    media: &'a mut Media,
    at: u64,
}

impl<'a> Scan<'a> {
    fn new(media: &'a mut Media) -> VideoResult<Self> {
        media.read(0, 0, &mut Vec::new())?;
        Ok(Self { media, at: 0 })
    }

    /// The next bytes; `None` where the file ends before.
    fn take<const N: usize>(&mut self) -> VideoResult<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.media.bytes.read_exact(&mut bytes) {
            Ok(()) => {
                self.at += N as u64;
                Ok(Some(bytes))
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(self.media.io(e)),
        }
    }

    /// Passes over bytes; whether the file has them.
    fn skip(&mut self, n: u64) -> VideoResult<bool> {
        let end = self.at.saturating_add(n);
        if end > self.media.length {
            return Ok(false);
        }
        // Within the file, so it fits.
        self.media.bytes.seek_relative(n as i64).map_err(|e| self.media.io(e))?;
        self.at = end;
        Ok(true)
    }

    fn bad<T>(&self, why: &str) -> VideoResult<T> {
        Err(VideoError::Format { label: self.media.label.clone(), why: why.into() })
    }
}
