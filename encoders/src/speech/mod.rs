//! Encoders of speech, sounds and music: one file a model, in the order of its paper.
//!
//! | model | takes | gives |
//! | --- | --- | --- |
//! | [`WhisperEncoder`] | [`WhisperFeatures`](crate::audio::WhisperFeatures) `[b, 80, 3000]` | `[b, 1500, d]`, 50 tokens a second |
//! | [`Wav2Vec2`], [`Hubert`], [`WavLm`] | samples `[b, n]` at 16 kHz, through [`WaveNorm`](crate::audio::WaveNorm) | `[b, n / 320, h]` about, 50 tokens a second |
//! | [`AvHubert`] | [`LipFrames`](crate::video::LipFrames) `[b, 1, t, 88, 88]`, [`AvHubertFeatures`](crate::audio::AvHubertFeatures) `[b, 104, t]`, or one of them | `[b, t, d]`, 25 tokens a second |
//! | [`Ced`] | [`CedFeatures`](crate::audio::CedFeatures) `[b, 64, t]` | `[b, n, d]`, 25 tokens a second, by frequency within a chunk |
//!
//! Tensor names and `config.json` are those of the models' Hugging Face pages; for AV-HuBERT, fairseq's. With [`Params::resume`](moesaic_kernels::Params::resume) or
//! [`frozen`](moesaic_kernels::Params::frozen) gradients flow through them; loaded for inference on the CPU, their weights are in tiles.

pub mod av_hubert;
mod blocks;
mod ced;
mod hubert;
mod layer;
mod wav2vec2;
mod wave;
mod wavlm;
mod whisper;

pub use av_hubert::{AvHubert, AvHubertConfig};
pub use ced::{Ced, CedConfig};
pub use hubert::Hubert;
pub use wav2vec2::Wav2Vec2;
pub use wave::{MOST_SAMPLES, StemNorm, WaveConfig, WeightNorm};
pub use wavlm::WavLm;
pub use whisper::{WhisperConfig, WhisperEncoder};
