//! What can be wrong with sound.

/// An error of reading sound or of computing its features. Every message says what to do next.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file cannot be opened or read.
    #[error("{label}: cannot be read: {source}")]
    Io {
        /// Name of the file.
        label: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The container is not known, or its headers are damaged.
    #[error(
        "{label}: is not a sound file that can be read ({why}); readable are WAV, FLAC, MP3, Ogg Vorbis, AAC, M4A and the \
         sound track of MP4: convert it, for example with `ffmpeg -i IN -ac 1 -ar 16000 OUT.wav`"
    )]
    Format {
        /// Name of the file.
        label: String,
        /// What was found.
        why: String,
    },
    /// A container without sound.
    #[error("{label}: has no sound track; give a file that has one")]
    NoSound {
        /// Name of the file.
        label: String,
    },
    /// The container is known, its codec is not.
    #[error(
        "{label}: its sound cannot be decoded ({why}); convert it, for example with `ffmpeg -i IN -ac 1 -ar 16000 OUT.wav`"
    )]
    Codec {
        /// Name of the file.
        label: String,
        /// What was found.
        why: String,
    },
    /// The file ends before its header says.
    #[error(
        "{label}: ends after {decoded:.2} s of {expected:.2} s; fetch it again, or read it with `AudioOptions::lenient`"
    )]
    Truncated {
        /// Name of the file.
        label: String,
        /// Seconds that could be decoded.
        decoded: f64,
        /// Seconds that the header announces.
        expected: f64,
    },
    /// A packet inside the file cannot be decoded.
    #[error("{label}: is damaged at {at:.2} s ({why}); fetch it again, or read it with `AudioOptions::lenient`")]
    Damaged {
        /// Name of the file.
        label: String,
        /// Seconds from the start.
        at: f64,
        /// What the decoder says.
        why: String,
    },
    /// Not one sample.
    #[error("{label}: holds no sound; give a file with at least one sample")]
    Empty {
        /// Name of the file.
        label: String,
    },
    /// More sound than the caller allows to be held at once.
    #[error(
        "{label}: is longer than {limit:.0} s, the most that is read at once; read it in blocks (`AudioReader`), or raise \
         `AudioOptions::max_seconds`"
    )]
    TooLong {
        /// Name of the file.
        label: String,
        /// The limit in seconds.
        limit: f64,
    },
    /// A sample that is no number.
    #[error("{label}: sample {index} is {value}; sound must be finite: repair the file or the samples")]
    NotFinite {
        /// Name of the file, or of the input.
        label: String,
        /// Index of the sample, or of the frame of a file.
        index: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// Options or samples that make no sense.
    #[error("{0}")]
    Input(String),
}

/// A result of this module.
pub type AudioResult<T> = std::result::Result<T, AudioError>;

impl From<AudioError> for candle_core::Error {
    fn from(error: AudioError) -> Self {
        candle_core::Error::wrap(error)
    }
}

/// Fails on a sample that is NaN or infinite.
pub(super) fn finite(samples: &[f32], label: &str, first: u64) -> AudioResult<()> {
    match samples.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(AudioError::NotFinite { label: label.to_string(), index: first + i as u64, value: samples[i] }),
    }
}
