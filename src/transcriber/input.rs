//! Recordings: sound and lips, window by window.

use std::path::Path;

use moesaic_encoders::audio::{AudioError, AudioOptions, AudioReader};
#[cfg(feature = "video")]
use moesaic_encoders::video::{MouthReader, VideoError, VideoReader};
use moesaic_models::avsr::SAMPLES_PER_FRAME;

use super::{MouthFrames, Senses, TranscribeOptions};
use crate::error::{Error, Result};

/// Frames of 40 ms a second.
const RATE: f64 = 25.0;
/// Frames that sound and lips may differ in length by, which are filled up or cut.
const SLACK: usize = 12;
/// Frames that are too few to be transcribed beside a longer rest of the other.
const STUB: usize = 10;
/// Frames of a window that loudness is measured over.
const QUIET: usize = 5;

/// Sound and lips of a file, or of two, as they are read. Memory does not grow with its length.
pub struct Recording {
    sound: Option<Sound>,
    lips: Option<Lips>,
    senses: Senses,
    /// Frames before what is held.
    start: usize,
    /// Frames at the start of what is held that were in the window before.
    common: usize,
    /// Frames of sound and of lips so far.
    lengths: [usize; 2],
    remarks: Vec<String>,
    over: bool,
}

struct Sound {
    reader: AudioReader,
    held: Vec<f32>,
    over: bool,
}

/// RGB frames of one size.
struct Lips {
    #[cfg(feature = "video")]
    reader: MouthReader,
    held: Vec<u8>,
    /// Rows and columns.
    sides: (usize, usize),
    over: bool,
}

/// A window of a recording.
pub(super) struct Part {
    /// Seconds.
    pub start: f64,
    pub end: f64,
    /// Seconds at its start that the window before it had, too.
    pub common: f64,
    pub sound: Option<Vec<f32>>,
    pub lips: Option<MouthFrames>,
}

impl Recording {
    /// Opens what of a file is wanted, or, where nothing is said, what it has of `takes`; lips from another file, where one is
    /// given.
    pub(super) fn open(path: &Path, lips: Option<&Path>, takes: Senses, options: &TranscribeOptions) -> Result<Self> {
        let wanted = options.senses.unwrap_or(takes);
        let mut remarks = Vec::new();
        let sound = if wanted.hears() { Some(open_sound(path, options)) } else { None };
        let seen = if wanted.sees() { Some(open_lips(lips.unwrap_or(path), options)) } else { None };
        let optional = options.senses.is_none() && lips.is_none();
        let (sound, seen) = match (sound, seen) {
            (Some(Err(sound)), Some(Ok(seen))) if optional && sound.absent => (None, Some(seen)),
            (Some(Ok(sound)), Some(Err(seen))) if optional && seen.absent => {
                remarks.extend(seen.remark);
                (Some(sound), None)
            }
            // Of two complaints the one that knows what the file is.
            (Some(Err(sound)), Some(Err(seen))) => return Err(if sound.absent { seen.error } else { sound.error }),
            (sound, seen) => (sound.transpose().map_err(|e| e.error)?, seen.transpose().map_err(|e| e.error)?),
        };
        let Some(senses) = Senses::of(sound.is_some(), seen.is_some()) else {
            return Err(Error::Media(format!("{}: has nothing that can be transcribed", path.display())));
        };
        let (start, common, lengths) = (0, 0, [0; 2]);
        Ok(Self { sound, lips: seen, senses, start, common, lengths, remarks, over: false })
    }

    /// What of the recording is used.
    pub fn senses(&self) -> Senses {
        self.senses
    }

    /// Seconds so far.
    pub fn seconds(&self) -> f64 {
        let [sound, lips] = self.lengths;
        sound.max(lips) as f64 / RATE
    }

    /// What is worth knowing of how it was read.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.remarks.clone();
        let [sound, lips] = self.lengths;
        if self.over && self.senses == Senses::AudioVisual && sound.abs_diff(lips) > SLACK {
            let seconds = |frames: usize| frames as f64 / RATE;
            remarks.push(format!("the sound is {:.2} s long, the video {:.2} s", seconds(sound), seconds(lips)));
        }
        #[cfg(feature = "video")]
        if let Some(lips) = &self.lips {
            match lips.reader.video().damaged() {
                0 => {}
                n => remarks.push(format!("{n} damaged frames were replaced by those before them")),
            }
            if let Some(faces) = lips.reader.faces().filter(|f| f.most_faces > 1 || f.without_face > 0 || f.jumps > 0) {
                remarks.push(faces.to_string());
            }
        }
        remarks
    }

    /// The next window of so many seconds; `None` at the end.
    pub(super) fn next(&mut self, window: f64, overlap: f64) -> Result<Option<Part>> {
        if self.over {
            return Ok(None);
        }
        let frames = ((window * RATE) as usize).max(1);
        // One more frame tells whether the recording goes on.
        if let Some(sound) = &mut self.sound {
            sound.fill((frames + 1) * SAMPLES_PER_FRAME)?;
        }
        if let Some(lips) = &mut self.lips {
            lips.fill(frames + 1)?;
        }
        // Blocks of sound may be longer than what was asked for: only what was counts, so that the shorter one of both has ended.
        let held = |sound: &Sound| sound.held.len().div_ceil(SAMPLES_PER_FRAME).min(frames + 1);
        let heard = self.sound.as_ref().map_or(0, held);
        let seen = self.lips.as_ref().map_or(0, |lips| lips.frames().min(frames + 1));
        let longest = |held: usize, before: usize| if held > 0 { before.max(self.start + held) } else { before };
        self.lengths = [longest(heard, self.lengths[0]), longest(seen, self.lengths[1])];
        // One of the two may end long before the other, which then goes on alone; a few frames of it say nothing.
        let stub = |own: usize, other: usize| own < STUB && other > own + SLACK;
        let (heard, seen) = (if stub(heard, seen) { 0 } else { heard }, if stub(seen, heard) { 0 } else { seen });
        let length = match (heard, seen) {
            (0, other) | (other, 0) => other,
            (heard, seen) if heard.abs_diff(seen) > SLACK => heard.min(seen),
            (heard, seen) => heard.max(seen),
        };
        let uneven = heard.min(seen) > 0 && heard.abs_diff(seen) > SLACK;
        let taken = length.min(frames);
        if taken <= self.common && !uneven {
            self.over = true;
            return if self.start == 0 && taken == 0 {
                Err(Error::Media("there is not one frame of sound or video".into()))
            } else {
                Ok(None)
            };
        }
        let last = heard.max(seen) <= frames && !uneven;
        let sound = self.sound.as_ref().filter(|_| heard > 0).map(|sound| sound.first(taken));
        let lips = self.lips.as_ref().filter(|_| seen > 0).map(|lips| lips.first(taken));
        let common = if last || length < frames { 0 } else { ((overlap * RATE) as usize).min(taken / 2) };
        // The next window starts where it is quietest in what they have in common; without sound, as early as it may.
        let next = match &sound {
            Some(sound) if common > 0 => quietest(sound, taken - common, taken),
            _ => taken - common,
        };
        let (start, before) = (self.start as f64 / RATE, self.common as f64 / RATE);
        self.drop_frames(next);
        (self.common, self.over) = (taken - next, last);
        Ok(Some(Part { start, end: start + taken as f64 / RATE, common: before, sound, lips }))
    }

    fn drop_frames(&mut self, frames: usize) {
        self.start += frames;
        if let Some(sound) = &mut self.sound {
            sound.held.drain(..(frames * SAMPLES_PER_FRAME).min(sound.held.len()));
        }
        if let Some(lips) = &mut self.lips {
            let bytes = (frames * lips.bytes()).min(lips.held.len());
            lips.held.drain(..bytes);
        }
    }
}

/// The frame from `from` to `to` about which sound is quietest.
fn quietest(sound: &[f32], from: usize, to: usize) -> usize {
    let loudness = |frame: usize| {
        let first = frame.saturating_sub(QUIET / 2) * SAMPLES_PER_FRAME;
        let part = sound.get(first..).unwrap_or_default();
        part.iter().take(QUIET * SAMPLES_PER_FRAME).map(|v| f64::from(*v).powi(2)).sum::<f64>()
    };
    let last = to.saturating_sub(QUIET / 2).max(from);
    (from..=last)
        .map(|frame| (frame, loudness(frame)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(from, |(frame, _)| frame)
}

impl Sound {
    fn fill(&mut self, samples: usize) -> Result<()> {
        while self.held.len() < samples && !self.over {
            match self.reader.next_block()? {
                Some(block) => self.held.extend_from_slice(block),
                None => self.over = true,
            }
        }
        Ok(())
    }

    fn first(&self, frames: usize) -> Vec<f32> {
        self.held.iter().take(frames * SAMPLES_PER_FRAME).copied().collect()
    }
}

impl Lips {
    /// Of a frame.
    fn bytes(&self) -> usize {
        self.sides.0 * self.sides.1 * 3
    }

    fn frames(&self) -> usize {
        self.held.len().checked_div(self.bytes()).unwrap_or(0)
    }

    #[cfg(feature = "video")]
    fn fill(&mut self, frames: usize) -> Result<()> {
        while self.frames() < frames && !self.over {
            match self.reader.next().transpose()? {
                Some(frame) => {
                    self.sides = (frame.height, frame.width);
                    self.held.extend_from_slice(&frame.rgb);
                }
                None => self.over = true,
            }
        }
        Ok(())
    }

    #[cfg(not(feature = "video"))]
    fn fill(&mut self, _: usize) -> Result<()> {
        self.over = true;
        Ok(())
    }

    fn first(&self, frames: usize) -> MouthFrames {
        let taken = frames.min(self.frames());
        let rgb = self.held.get(..taken * self.bytes()).unwrap_or_default().to_vec();
        MouthFrames { rgb, size: (taken, self.sides.0, self.sides.1) }
    }
}

/// What a sense has, or why it has nothing.
type Opened<T> = std::result::Result<T, Box<Without>>;

/// Why a sense has nothing.
struct Without {
    error: Error,
    /// The file has none of it; another sense may do.
    absent: bool,
    remark: Option<String>,
}

fn open_sound(path: &Path, options: &TranscribeOptions) -> Opened<Sound> {
    let absent = |error: &AudioError| {
        path.is_dir() || matches!(error, AudioError::Format { .. } | AudioError::NoSound { .. }) || !path.exists()
    };
    match AudioReader::open(path, AudioOptions { lenient: options.lenient, ..AudioOptions::default() }) {
        Ok(reader) => Ok(Sound { reader, held: Vec::new(), over: false }),
        Err(error) => Err(Box::new(Without { absent: absent(&error), error: error.into(), remark: None })),
    }
}

#[cfg(feature = "video")]
fn open_lips(path: &Path, options: &TranscribeOptions) -> Opened<Lips> {
    let mut mouth = options.mouth.clone();
    mouth.video.lenient |= options.lenient;
    match VideoReader::open(path, mouth.video) {
        Ok(reader) => {
            Ok(Lips { reader: MouthReader::new(reader, mouth), held: Vec::new(), sides: (0, 0), over: false })
        }
        Err(error) => {
            let unread = matches!(error, VideoError::NeedsH264 { .. } | VideoError::Codec { .. });
            let absent = unread || matches!(error, VideoError::Format { .. } | VideoError::NoVideo { .. });
            let remark = unread.then(|| format!("only the sound is used: {error}"));
            Err(Box::new(Without { absent, error: error.into(), remark }))
        }
    }
}

#[cfg(not(feature = "video"))]
fn open_lips(path: &Path, _: &TranscribeOptions) -> Opened<Lips> {
    let problem = format!("{}: this build reads no video: build with the feature `video`", path.display());
    Err(Box::new(Without { error: Error::Media(problem), absent: true, remark: None }))
}

#[cfg(feature = "video")]
impl From<VideoError> for Error {
    fn from(error: VideoError) -> Self {
        match error {
            VideoError::Io { label, source } => Error::io("read", Path::new(&label), source),
            other => Error::Media(other.to_string()),
        }
    }
}

/// Without what is held of it.
impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("senses", &self.senses)
            .field("seconds", &self.seconds())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_meet_where_it_is_quiet() {
        let mut sound = vec![0.5f32; 50 * SAMPLES_PER_FRAME];
        sound[40 * SAMPLES_PER_FRAME..45 * SAMPLES_PER_FRAME].fill(0.0);
        let frame = quietest(&sound, 30, 50);
        assert_eq!(frame, 42);
        assert_eq!(quietest(&[], 3, 5), 3);
    }
}
