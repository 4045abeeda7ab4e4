//! Sound: from a media file to what an encoder takes.
//!
//! ```text
//! file ─ AudioFile ─▶ frames of all channels ─ AudioReader ─▶ one channel at 16 kHz ─┬─ WhisperFeatures  ─▶ [80, 3000]
//!        (container,                           (downmix,                            ├─ AvHubertFeatures ─▶ [t, 104]
//!         codec)                                resampling)                         ├─ CedFeatures      ─▶ [64, t]
//!                                                                                   └─ WaveNorm         ─▶ [n]
//! ```
//!
//! Containers and codecs: WAV (8 to 32 bit, float), FLAC, MP3, Ogg Vorbis, AAC-LC bare or in M4A, and the sound track of MP4. What
//! a file is follows from its bytes, whatever its name says. Files stream: [`AudioReader`] holds one block, and
//! [`AudioReader::windows`] one window, however long the file is.

mod decode;
mod edits;
mod error;
mod features;
mod mel;
mod reader;
mod resample;
mod spectrum;

pub use decode::{AudioFile, AudioInfo};
pub use error::{AudioError, AudioResult};
pub use features::{AvHubertFeatures, CedFeatures, Features, SAMPLE_RATE, WaveNorm, WhisperFeatures};
pub use reader::{AudioOptions, AudioReader, Downmix, Windows, read_audio, read_audio_bytes};
pub use resample::{Resampler, resample};
