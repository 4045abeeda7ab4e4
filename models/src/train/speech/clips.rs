//! Clips of speech to train on.

use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};
use moesaic_encoders::audio::{AudioOptions, AudioReader, SAMPLE_RATE, read_audio};
#[cfg(feature = "video")]
use moesaic_encoders::video::{MouthClip, MouthOptions, VideoReader};
use moesaic_kernels::checkpoint::Checkpoint;

use super::super::at;
use super::super::data::text::Tokenise;

/// RGB frames of the mouth, 25 a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// `frames * height * width * 3` bytes.
    pub rgb: Vec<u8>,
    /// Frames, rows and columns.
    pub size: (usize, usize, usize),
}

/// A clip and what is said in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Sound at 16 kHz in -1 to 1, where the model hears.
    pub sound: Option<Vec<f32>>,
    /// Lips, where the model sees.
    pub lips: Option<Frames>,
    /// Token ids of the text, without first and last token.
    pub text: Vec<u32>,
}

/// Where clips come from.
pub trait Clips: Send + Sync {
    /// Lengths of all clips, in frames of 40 ms.
    fn lengths(&self) -> &[usize];

    /// One clip, with its sound and its lips where they are wanted and there.
    ///
    /// # Errors
    /// It cannot be read: the message names its file.
    fn clip(&self, index: usize, sound: bool, lips: bool) -> Result<Clip>;
}

/// A CSV file with a line for each clip. Its columns:
///
/// - `text`, what is said;
/// - `audio`, a sound file;
/// - `video`, the mouth of the speaker: all that [`MouthClip::open`](moesaic_encoders::video) reads, which is 25 frames a second of
///   about 96x96 pixels as animated WebP or GIF, a folder of pictures, a pattern such as `clip/*.png`, or MP4 (feature `h264`); or
///   a safetensors file with the tensor `video [frames, rows, columns, 3]` of u8;
/// - `frames`, the length in frames of 40 ms, which is otherwise taken from the files' heads.
///
/// Paths are relative to the file.
#[derive(Debug)]
pub struct Manifest {
    entries: Vec<Entry>,
    lengths: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    audio: Option<PathBuf>,
    video: Option<PathBuf>,
    text: Vec<u32>,
}

/// Samples of a frame of 40 ms.
pub(in crate::train) const FRAME: usize = SAMPLE_RATE as usize / 25;

impl Manifest {
    /// Reads the file, and of the media what their lengths need.
    ///
    /// # Errors
    /// The file cannot be read, lacks a column that the model needs, or a line of it is broken: the message names file and line.
    pub fn load(path: &Path, hears: bool, sees: bool, tokenise: &Tokenise<'_>) -> Result<Self> {
        Self::labelled(path, "text", hears, sees, tokenise)
    }

    /// The same, where the ids are those of another column than `text`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn labelled(path: &Path, label: &str, hears: bool, sees: bool, tokenise: &Tokenise<'_>) -> Result<Self> {
        let mut reader = csv::Reader::from_path(path).map_err(|e| at(path, e))?;
        let header = reader.headers().map_err(|e| at(path, e))?.clone();
        let column = |name: &str| header.iter().position(|h| h.trim() == name);
        let Some(text) = column(label) else { return Err(at(path, format!("has no column {label}"))) };
        let media = |name: &str, needed: bool| match (needed, column(name)) {
            (false, _) => Ok(None),
            (true, Some(at)) => Ok(Some(at)),
            (true, None) => Err(at(path, format!("has no column {name}, which this model needs"))),
        };
        let (audio, video, frames) = (media("audio", hears)?, media("video", sees)?, column("frames"));
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut entries, mut lengths) = (Vec::new(), Vec::new());
        for record in reader.records() {
            let record = record.map_err(|e| at(path, e))?;
            let line = record.position().map_or(0, csv::Position::line);
            let wrong = |e: &dyn std::fmt::Display| at(path, format!("line {line}: {e}"));
            let cell = |column: usize| record.get(column).unwrap_or_default().trim();
            let file = |column: Option<usize>, name: &str| match column.map(cell) {
                None => Ok(None),
                Some("") => Err(wrong(&format!("{name} is empty"))),
                Some(file) => Ok(Some(folder.join(file))),
            };
            let entry = Entry {
                audio: file(audio, "audio")?,
                video: file(video, "video")?,
                text: tokenise(cell(text)).map_err(|e| wrong(&e))?,
            };
            if entry.text.is_empty() {
                return Err(wrong(&format!("{label} is empty")));
            }
            let length = match frames.map(cell) {
                Some(n) if !n.is_empty() => {
                    n.parse().map_err(|_| wrong(&format!("frames is {:.40}, expected a whole number", n)))?
                }
                _ => entry.length().map_err(|e| wrong(&e))?,
            };
            if length == 0 {
                return Err(wrong(&"the clip is empty"));
            }
            entries.push(entry);
            lengths.push(length);
        }
        if entries.is_empty() {
            return Err(at(path, "has no clips"));
        }
        Ok(Self { entries, lengths })
    }
}

impl Entry {
    /// Frames of 40 ms.
    fn length(&self) -> Result<usize> {
        if let Some(video) = &self.video {
            return frames_of(video);
        }
        let Some(audio) = &self.audio else { bail!("a clip without sound and video") };
        frames_of_sound(audio)
    }
}

/// The length of a sound file in frames of 40 ms, from its head where that says it.
pub(in crate::train) fn frames_of_sound(path: &Path) -> Result<usize> {
    let reader = AudioReader::open(path, AudioOptions::default()).map_err(Error::wrap)?;
    let samples = match reader.info().seconds {
        Some(seconds) if seconds.is_finite() => (seconds * f64::from(SAMPLE_RATE)) as usize,
        _ => read_audio(path, AudioOptions::default()).map_err(Error::wrap)?.len(),
    };
    Ok(samples.div_ceil(FRAME))
}

/// Whether a file is in the format safetensors: by its name, or as it begins with the length of a header in JSON.
fn is_safetensors(path: &Path) -> bool {
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
        return true;
    }
    let mut head = [0; 9];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    // Headers have less than 2^32 bytes.
    read.is_ok() && head[4..] == [0, 0, 0, 0, b'{']
}

/// The length of a clip of lips, from the head of its file.
fn frames_of(path: &Path) -> Result<usize> {
    if is_safetensors(path) {
        return Ok(size(&Checkpoint::open(path)?, path)?.0);
    }
    #[cfg(feature = "video")]
    {
        let reader = VideoReader::open(path, MouthOptions::default().video).map_err(Error::wrap)?;
        usize::try_from(reader.info().frames).map_err(|_| at(path, "has too many frames"))
    }
    #[cfg(not(feature = "video"))]
    Err(unread(path))
}

/// A clip of lips.
fn see(path: &Path) -> Result<Frames> {
    if is_safetensors(path) {
        let file = Checkpoint::open(path)?;
        let size = size(&file, path)?;
        let frames = file.read_any("video")?;
        if frames.dtype() != candle_core::DType::U8 {
            return Err(at(path, format!("video is {:?}, expected bytes (u8)", frames.dtype())));
        }
        return Ok(Frames { rgb: frames.flatten_all()?.to_vec1()?, size });
    }
    #[cfg(feature = "video")]
    {
        let MouthClip { rgb, size, .. } = MouthClip::open(path, &MouthOptions::default()).map_err(Error::wrap)?;
        Ok(Frames { rgb, size })
    }
    #[cfg(not(feature = "video"))]
    Err(unread(path))
}

#[cfg(not(feature = "video"))]
fn unread(path: &Path) -> Error {
    at(path, "is no safetensors file, and this build reads no other video: build with the feature `video`")
}

/// Frames, rows and columns of a safetensors file of lips.
fn size(file: &Checkpoint, path: &Path) -> Result<(usize, usize, usize)> {
    match file.info("video").map(|info| info.shape.as_slice()) {
        Some(&[t, h, w, 3]) => Ok((t, h, w)),
        Some(other) => Err(at(path, format!("video has shape {other:?}, expected [frames, rows, columns, 3]"))),
        None => Err(at(path, "has no tensor video")),
    }
}

impl Clips for Manifest {
    fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    fn clip(&self, index: usize, sound: bool, lips: bool) -> Result<Clip> {
        let Some(entry) = self.entries.get(index) else { bail!("clip {index} of {}", self.entries.len()) };
        let read = |path: &PathBuf| read_audio(path, AudioOptions::default()).map_err(Error::wrap);
        Ok(Clip {
            sound: entry.audio.as_ref().filter(|_| sound).map(read).transpose()?,
            lips: entry.video.as_deref().filter(|_| lips).map(see).transpose()?,
            text: entry.text.clone(),
        })
    }
}
