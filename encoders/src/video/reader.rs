//! Video as models want it: RGB frames at a constant rate.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use super::animation::Animation;
use super::error::{VideoError, VideoResult};
use super::timeline::Timeline;
use super::{mp4, pictures};

/// Frames a second that models of lips take.
pub const FRAME_RATE: f64 = 25.0;

/// A picture of 8-bit RGB, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// `height * width * 3` values.
    pub rgb: Vec<u8>,
}

/// How video is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoOptions {
    /// Frames a second that are wanted.
    pub fps: f64,
    /// Frames a second that the pictures of a folder or a pattern are, as they have no times.
    pub frame_rate: f64,
    /// Seconds that [`MouthClip`](super::MouthClip) holds in memory at most. [`VideoReader`] has no limit, as it holds one frame.
    pub max_seconds: f64,
    /// Pixels of a frame at most, compared before memory is taken.
    pub max_pixels: usize,
    /// Takes what can be decoded of a truncated or damaged file, with the previous frame for damaged ones, instead of failing.
    pub lenient: bool,
}

impl Default for VideoOptions {
    /// 25 frames a second of frames up to 40 million pixels (8K), ten minutes (415 MB of mouths) at once.
    fn default() -> Self {
        Self { fps: FRAME_RATE, frame_rate: FRAME_RATE, max_seconds: 600.0, max_pixels: 40_000_000, lenient: false }
    }
}

impl VideoOptions {
    fn check(&self) -> VideoResult<()> {
        for (name, value) in [("fps", self.fps), ("frame_rate", self.frame_rate)] {
            if !(0.001..=1000.0).contains(&value) {
                return Err(VideoError::Input(format!("VideoOptions::{name} is {value}, expected 0.001 to 1000")));
            }
        }
        Ok(())
    }
}

/// What a video is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoInfo {
    /// What it was read as, such as `gif`, `webp`, `pictures` or `mp4`.
    pub format: &'static str,
    /// Frames at the wanted rate.
    pub frames: u64,
    /// Length.
    pub seconds: f64,
}

/// Where frames come from, in the order in which they are shown.
pub(super) trait Source: Send {
    /// Passes to the frame with this index, one after the last call's, and returns it if it is `shown`.
    fn next(&mut self, index: usize, shown: bool) -> VideoResult<Option<Frame>>;
}

/// What files are read from.
pub(super) trait Bytes: Read + Seek + Send {}
impl<T: Read + Seek + Send> Bytes for T {}

/// An open file.
pub(super) struct Media {
    pub label: String,
    pub bytes: BufReader<Box<dyn Bytes>>,
    pub length: u64,
}

impl Media {
    pub fn io(&self, source: std::io::Error) -> VideoError {
        VideoError::Io { label: self.label.clone(), source }
    }

    /// Appends `length` bytes from `at` on, or as many as there are.
    pub fn read(&mut self, at: u64, length: u64, into: &mut Vec<u8>) -> VideoResult<()> {
        let result = self.bytes.seek(SeekFrom::Start(at)).and_then(|_| {
            // Reserved as it comes, whatever a header says.
            self.bytes.by_ref().take(length).read_to_end(into)
        });
        result.map(|_| ()).map_err(|e| self.io(e))
    }
}

/// A video as frames at a constant rate: an iterator whose memory does not grow with the frames' number but for some bytes each.
/// An error ends it.
pub struct VideoReader {
    label: String,
    source: Box<dyn Source>,
    timeline: Timeline,
    info: VideoInfo,
    options: VideoOptions,
    /// The next frame to give.
    at: u64,
    /// The frame of the source that was shown last, and the next one to decode.
    shown: usize,
    next: usize,
    current: Option<Frame>,
    size: Option<(usize, usize)>,
    damaged: usize,
}

impl VideoReader {
    /// Opens a file, a folder of pictures or a pattern of picture files.
    ///
    /// # Errors
    /// There is no such file, it is no video, or has a codec that is not supported.
    pub fn open(path: &Path, options: VideoOptions) -> VideoResult<Self> {
        options.check()?;
        let label = path.display().to_string();
        let about = match std::fs::metadata(path) {
            Ok(about) => about,
            Err(_) if pictures::is_pattern(path) => {
                return Self::of_pictures(label, pictures::matching(path)?, options);
            }
            Err(source) => return Err(VideoError::Io { label, source }),
        };
        if about.is_dir() {
            return Self::of_pictures(label, pictures::inside(path)?, options);
        }
        let file = File::open(path).map_err(|source| VideoError::Io { label: label.clone(), source })?;
        Self::start(Media { label, bytes: BufReader::new(Box::new(file)), length: about.len() }, options)
    }

    /// A file that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(label: &str, bytes: impl Into<Vec<u8>>, options: VideoOptions) -> VideoResult<Self> {
        options.check()?;
        let bytes: Vec<u8> = bytes.into();
        let length = bytes.len() as u64;
        let bytes = BufReader::new(Box::new(Cursor::new(bytes)) as Box<dyn Bytes>);
        Self::start(Media { label: label.to_string(), bytes, length }, options)
    }

    fn of_pictures(label: String, files: Vec<std::path::PathBuf>, options: VideoOptions) -> VideoResult<Self> {
        if files.is_empty() {
            return Err(VideoError::NoPictures { label });
        }
        // In thousandths of a frame, so that rates such as 29.97 are kept.
        let scale = (options.frame_rate * 1000.0).round().max(1.0) as u32;
        let timeline = Timeline::of_durations(files.iter().map(|_| 1000), scale);
        let source = pictures::Pictures::new(files, options.max_pixels);
        Ok(Self::new(label, "pictures", Box::new(source), timeline, options))
    }

    fn start(mut media: Media, options: VideoOptions) -> VideoResult<Self> {
        let label = media.label.clone();
        let mut head = Vec::new();
        media.read(0, 32, &mut head)?;
        match kind(&head) {
            Kind::Empty => Err(VideoError::Empty { label }),
            Kind::Gif | Kind::WebP => {
                let (format, (animation, timeline)) = match kind(&head) {
                    Kind::Gif => ("gif", Animation::gif(media, &options)?),
                    _ => ("webp", Animation::webp(media, &options)?),
                };
                Ok(Self::new(label, format, Box::new(animation), timeline, options))
            }
            Kind::Mp4 => {
                let (source, timeline) = mp4::open(media, &options)?;
                Ok(Self::new(label, "mp4", source, timeline, options))
            }
            Kind::Still(format) => Err(VideoError::Still { label, format }),
            Kind::Sound => Err(VideoError::NoVideo { label, found: "sound".into() }),
            Kind::Other(why) => Err(VideoError::Format { label, why: why.into() }),
        }
    }

    fn new(
        label: String,
        format: &'static str,
        source: Box<dyn Source>,
        timeline: Timeline,
        options: VideoOptions,
    ) -> Self {
        let info = VideoInfo { format, frames: timeline.frames(options.fps), seconds: timeline.seconds() };
        let (at, shown, next, current, size, damaged) = (0, 0, 0, None, None, 0);
        Self { label, source, timeline, info, options, at, shown, next, current, size, damaged }
    }

    /// What the video is.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Its name in errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Frames of the source so far that could not be decoded, with [`VideoOptions::lenient`].
    pub fn damaged(&self) -> usize {
        self.damaged
    }

    fn produce(&mut self) -> VideoResult<Frame> {
        let fps = self.options.fps;
        self.shown = self.timeline.shown(self.at, fps, self.shown);
        let mut lost = None;
        // Where nothing was decoded so far, the first frame that can be stands in.
        while self.next <= self.shown || self.current.is_none() {
            let index = self.next;
            if index >= self.timeline.starts.len() {
                return Err(lost.unwrap_or_else(|| VideoError::Empty { label: self.label.clone() }));
            }
            self.next += 1;
            match self.source.next(index, index >= self.shown) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let found = (frame.width, frame.height);
                    let expected = *self.size.get_or_insert(found);
                    if found != expected {
                        return Err(VideoError::Sizes { label: self.label.clone(), frame: index, found, expected });
                    }
                    self.current = Some(frame);
                }
                Err(error) if self.options.lenient && error.loses_one_frame() => {
                    self.damaged += 1;
                    lost = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        self.at += 1;
        // It is given away where nobody needs it again.
        let again = self.options.lenient
            || (self.at < self.info.frames && self.timeline.shown(self.at, fps, self.shown) < self.next);
        let frame = if again { self.current.clone() } else { self.current.take() };
        frame.ok_or_else(|| VideoError::Empty { label: self.label.clone() })
    }
}

impl Iterator for VideoReader {
    type Item = VideoResult<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.info.frames {
            return None;
        }
        let frame = self.produce();
        if frame.is_err() {
            self.at = self.info.frames;
        }
        Some(frame)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, usize::try_from(self.info.frames - self.at).ok())
    }
}

enum Kind {
    Empty,
    Gif,
    WebP,
    Mp4,
    Still(&'static str),
    Sound,
    Other(&'static str),
}

/// What a file is by its first bytes.
fn kind(head: &[u8]) -> Kind {
    use image::ImageFormat;
    let inside = head.get(8..12).unwrap_or_default();
    match head {
        [] => return Kind::Empty,
        [b'G', b'I', b'F', b'8', ..] => return Kind::Gif,
        [b'R', b'I', b'F', b'F', ..] => match inside {
            b"WEBP" => return Kind::WebP,
            b"AVI " => return Kind::Other("it is an AVI file"),
            b"WAVE" => return Kind::Sound,
            _ => {}
        },
        [0x1a, 0x45, 0xdf, 0xa3, ..] => return Kind::Other("it is a Matroska or WebM file"),
        [b'O', b'g', b'g', b'S', ..] => return Kind::Other("it is an Ogg file"),
        [b'F', b'L', b'V', ..] => return Kind::Other("it is a Flash file"),
        [0, 0, 1, 0xba | 0xb3, ..] => return Kind::Other("it is an MPEG program stream"),
        [0, 0, 0, 1, ..] => return Kind::Other("it is a bare stream without times"),
        [b'f', b'L', b'a', b'C', ..] | [b'I', b'D', b'3', ..] => return Kind::Sound,
        _ => {}
    }
    match head.get(4..8) {
        Some(b"ftyp") if matches!(inside, b"avif" | b"avis") => return Kind::Still("AVIF"),
        Some(b"ftyp") if matches!(inside, b"heic" | b"heix" | b"mif1") => return Kind::Still("HEIF"),
        Some(b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot") => return Kind::Mp4,
        _ => {}
    }
    match image::guess_format(head) {
        Ok(ImageFormat::Png) => Kind::Still("PNG"),
        Ok(ImageFormat::Jpeg) => Kind::Still("JPEG"),
        Ok(ImageFormat::Bmp) => Kind::Still("BMP"),
        Ok(ImageFormat::Tiff) => Kind::Still("TIFF"),
        _ => Kind::Other("its first bytes are of no known format"),
    }
}
