//! Encoders: raw media to features to modality tokens.
//!
//! Images, speech, sound and music enter here and leave as [`Tokens`](moesaic_kernels::Tokens) that a projector maps into a
//! backbone.

#[cfg(feature = "audio")]
pub mod audio;
pub mod speech;
