//! Encoders: raw media to features to modality tokens.
//!
//! Images, speech, sound and music enter here and leave as [`Tokens`] that a projector maps into a backbone. The crate
//! holds nothing yet; the vision encoders come first.
//!
//! [`Tokens`]: https://docs.rs/moesaic-kernels/latest/moesaic_kernels/struct.Tokens.html
