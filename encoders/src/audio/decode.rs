//! Sound files, one block of samples after the other, at their own rate and with their own channels.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::Path;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as MediaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use super::edits::{Edit, edit};
use super::error::{AudioError, AudioResult, finite};

/// Channels that a file may have.
const MOST_CHANNELS: usize = 64;
/// Samples of one packet, all channels together: half a minute of a file with many channels. None of the codecs makes more.
const MOST_PACKET: usize = 1 << 26;
/// Missing seconds that are no sign of a truncated file: headers round.
const SLACK: f64 = 0.1;
/// A data chunk of a WAV file from this size on has no size: a program wrote it into a pipe.
const STREAMED: u64 = 0x7fff_0000;

/// What a sound file is.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioInfo {
    /// Container, such as `wave` or `isomp4`.
    pub container: String,
    /// Samples a second, of each channel.
    pub sample_rate: u32,
    /// Channels.
    pub channels: usize,
    /// Length that the header announces, where it does.
    pub seconds: Option<f64>,
}

/// A sound file that is being decoded. What an encoder put before the sound to get going, and after it to fill its last
/// block, is left out where the file says how much it is: LAME headers of MP3, granule positions of Ogg, edit lists of MP4 (at the
/// end only whole packets go, as in FFmpeg).
pub struct AudioFile {
    label: String,
    info: AudioInfo,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    lenient: bool,
    edit: Option<Edit>,
    /// Frames that an edit list says are not to be heard.
    skip: u64,
    frames: u64,
    /// Samples of the block that was read last, channel after channel in each frame.
    block: Vec<f32>,
    /// The first block, decoded to learn the true rate and channels, has not been taken yet.
    waiting: bool,
    over: bool,
}

impl AudioFile {
    /// Opens a file. `lenient` takes what can be decoded of a truncated or damaged one, with silence for damaged packets.
    ///
    /// # Errors
    /// The file cannot be read, is no sound file, or has a codec that is not supported.
    pub fn open(path: &Path, lenient: bool) -> AudioResult<Self> {
        let label = path.display().to_string();
        let io = |source| AudioError::Io { label: label.clone(), source };
        let file = File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if about.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut again = File::open(path).map_err(io)?;
        Self::start(label.clone(), Box::new(file), about.len(), &mut again, lenient)
    }

    /// A file that is in memory; `label` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(label: &str, bytes: impl Into<Vec<u8>>, lenient: bool) -> AudioResult<Self> {
        let bytes: std::sync::Arc<[u8]> = bytes.into().into();
        let length = bytes.len() as u64;
        let source = Box::new(Cursor::new(bytes.clone()));
        Self::start(label.to_string(), source, length, &mut Cursor::new(bytes), lenient)
    }

    fn start(
        label: String,
        source: Box<dyn MediaSource>,
        length: u64,
        again: &mut (impl Read + Seek),
        lenient: bool,
    ) -> AudioResult<Self> {
        if length == 0 {
            return Err(AudioError::Empty { label });
        }
        let bad = |why: String| AudioError::Format { label: label.clone(), why };
        let stream = MediaSourceStream::new(source, Default::default());
        // No hint by the name's extension: what a file holds decides.
        let (format, metadata) = (FormatOptions::default(), MetadataOptions::default());
        let format = match guarded(|| symphonia::default::get_probe().probe(&Hint::new(), stream, format, metadata)) {
            Ok(format) => format,
            Err(MediaError::IoError(e)) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
                return Err(AudioError::Io { label, source: e });
            }
            Err(e) => return Err(bad(e.to_string())),
        };
        let container = format.format_info().short_name.to_string();
        let Some(track) = format.default_track(TrackType::Audio) else { return Err(AudioError::NoSound { label }) };
        let Some(CodecParameters::Audio(parameters)) = &track.codec_params else {
            return Err(AudioError::NoSound { label });
        };
        let codec = |e: MediaError| AudioError::Codec { label: label.clone(), why: e.to_string() };
        let decoder = guarded(|| {
            symphonia::default::get_codecs().make_audio_decoder(parameters, &AudioDecoderOptions::default())
        });
        let decoder = decoder.map_err(codec)?;
        let id = track.id;
        // Without a Xing or LAME header the demuxers of MP3 and bare AAC estimate lengths.
        let estimated = matches!(container.as_str(), "mp1" | "mp2" | "mp3" | "adts" | "aac") && track.delay.is_none();
        let bytes_per_frame = parameters.channels.as_ref().map_or(1, |c| c.count() as u64)
            * u64::from(parameters.bits_per_coded_sample.or(parameters.bits_per_sample).unwrap_or(8).div_ceil(8));
        let streamed = track.num_frames.is_some_and(|n| n.saturating_mul(bytes_per_frame) >= STREAMED && n > length);
        let announced = match (track.time_base, track.duration) {
            (Some(base), Some(duration)) if !estimated && !streamed => base.calc_duration(duration),
            _ => None,
        };
        let edit = if container == "isomp4" { edit(again, id) } else { None };
        let mut seconds = announced.map(|t| t.as_secs_f64());
        if let (Some(edit), Some(all)) = (edit, seconds) {
            let second = |ticks: u64| ticks as f64 / f64::from(edit.timescale);
            seconds = Some((edit.end.map_or(all, second).min(all) - second(edit.start)).max(0.0));
        }
        let info = AudioInfo { container, sample_rate: 0, channels: 0, seconds };
        let (block, track) = (Vec::new(), id);
        let (skip, frames, waiting, over) = (0, 0, false, false);
        let mut file = Self { label, info, format, decoder, track, lenient, edit, skip, frames, block, waiting, over };
        // Rate and channels are those that come out: headers of AAC may tell something else.
        file.waiting = file.decode()?;
        if !file.waiting {
            return Err(AudioError::Empty { label: file.label });
        }
        Ok(file)
    }

    /// What the file is.
    pub fn info(&self) -> &AudioInfo {
        &self.info
    }

    /// Its name in errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The next samples, one frame of all channels after the other, in -1 to 1; `None` at the end.
    ///
    /// # Errors
    /// The file is damaged or truncated, or a sample is no number.
    pub fn next_block(&mut self) -> AudioResult<Option<&[f32]>> {
        let there = std::mem::take(&mut self.waiting) || self.decode()?;
        Ok(there.then_some(&self.block))
    }

    fn at(&self) -> f64 {
        self.frames as f64 / f64::from(self.info.sample_rate.max(1))
    }

    /// Decodes packets until there is a block with samples.
    fn decode(&mut self) -> AudioResult<bool> {
        loop {
            if self.over {
                return Ok(false);
            }
            let packet = match guarded(|| self.format.next_packet()) {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end(None),
                Err(MediaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return self.end(None),
                Err(MediaError::IoError(source)) => return Err(AudioError::Io { label: self.label.clone(), source }),
                Err(MediaError::ResetRequired) => {
                    return self.end(Some("another stream with its own header follows".to_string()));
                }
                Err(e) => return self.end(Some(e.to_string())),
            };
            if packet.track_id != self.track {
                continue;
            }
            if let Some(Edit { end: Some(end), .. }) = self.edit
                && packet.pts.get() >= i64::try_from(end).unwrap_or(i64::MAX)
            {
                self.over = true;
                continue;
            }
            let lost = match guarded(|| self.decoder.decode(&packet).map(|_| ())) {
                Ok(()) => None,
                Err(e) => Some(e.to_string()),
            };
            match lost {
                None => self.take()?,
                Some(why) if !self.lenient => {
                    return Err(AudioError::Damaged { label: self.label.clone(), at: self.at(), why });
                }
                // As long as the packet would have been, so that what follows stays in its place.
                Some(_) if self.info.channels > 0 => {
                    let frames = usize::try_from(packet.dur.get()).unwrap_or(0).min(1 << 16);
                    self.block.clear();
                    self.block.resize(frames * self.info.channels, 0.0);
                }
                Some(_) => self.block.clear(),
            }
            self.trim();
            if !self.block.is_empty() {
                finite(&self.block, &self.label, self.frames * self.info.channels as u64)?;
                self.frames += (self.block.len() / self.info.channels.max(1)) as u64;
                return Ok(true);
            }
        }
    }

    /// Copies what the decoder made.
    fn take(&mut self) -> AudioResult<()> {
        let decoded = self.decoder.last_decoded();
        self.block.clear();
        let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
        if decoded.frames() == 0 {
            return Ok(());
        }
        let refuse = |why: String| AudioError::Codec { label: self.label.clone(), why };
        if self.info.channels == 0 {
            if rate == 0 || !(1..=MOST_CHANNELS).contains(&channels) {
                return Err(refuse(format!("{channels} channels of {rate} Hz")));
            }
            (self.info.sample_rate, self.info.channels) = (rate, channels);
            if let Some(edit) = self.edit {
                let frames = u128::from(edit.start) * u128::from(rate) / u128::from(edit.timescale);
                self.skip = u64::try_from(frames).unwrap_or(u64::MAX);
            }
        } else if (rate, channels) != (self.info.sample_rate, self.info.channels) {
            let (old_rate, old) = (self.info.sample_rate, self.info.channels);
            return Err(refuse(format!("it changes from {old} channels of {old_rate} Hz to {channels} of {rate} Hz")));
        }
        if decoded.samples_interleaved() > MOST_PACKET {
            return Err(refuse(format!("one packet holds {} samples", decoded.samples_interleaved())));
        }
        decoded.copy_to_vec_interleaved::<f32>(&mut self.block);
        Ok(())
    }

    /// Takes off what comes before the start of the edit.
    fn trim(&mut self) {
        if self.skip > 0 && self.info.channels > 0 {
            let frames = (self.block.len() / self.info.channels) as u64;
            let gone = self.skip.min(frames);
            self.block.drain(..gone as usize * self.info.channels);
            self.skip -= gone;
        }
    }

    /// Nothing more comes: is that as it should be?
    fn end(&mut self, problem: Option<String>) -> AudioResult<bool> {
        self.over = true;
        self.block.clear();
        if self.lenient {
            return Ok(false);
        }
        if let Some(why) = problem {
            return Err(AudioError::Damaged { label: self.label.clone(), at: self.at(), why });
        }
        match self.info.seconds {
            Some(expected) if self.at() + SLACK < expected => {
                Err(AudioError::Truncated { label: self.label.clone(), decoded: self.at(), expected })
            }
            _ => Ok(false),
        }
    }
}

/// Calls into the decoders. A panic of theirs, which only a damaged file can bring about, is that file's error.
fn guarded<T>(call: impl FnOnce() -> Result<T, MediaError>) -> Result<T, MediaError> {
    // What the call was changing is not used after an error, except by reads that reset it.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        .unwrap_or(Err(MediaError::DecodeError("the decoder gave up on it")))
}
