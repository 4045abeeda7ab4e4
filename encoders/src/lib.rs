//! Encoders: raw media to features to modality tokens.
//!
//! Media decoding and feature extraction stand apart from the neural part: [`image`] makes pixels of picture files, `audio`
//! features of sound files, [`video`] frames of videos and pixels of lips; a tower or a [speech] encoder makes [`Tokens`](moesaic_kernels::Tokens) of them. A projector maps those into
//! a backbone.
//!
//! | tower | file | published as |
//! | --- | --- | --- |
//! | [`ClipVision`] | `clip.rs` | `openai/clip-vit-*`, and inside LLaVA and MoE-LLaVA |
//! | [`SiglipVision`] | `siglip.rs` | `google/siglip-*`, and inside MoE-LLaVA 384 |
//! | [`DinoVision`] | `dino.rs` | `facebook/dinov2-*`, with and without registers |
//! | [`Qwen3VlVision`] | `qwen3_vl.rs` | inside `Qwen/Qwen3-VL-*` |
//! | [`CumoVision`] | `cumo.rs` | `shi-labs/CuMo-*`: CLIP with sparse networks, at several scales |

#[cfg(feature = "audio")]
pub mod audio;
mod blocks;
#[cfg(any(feature = "audio", feature = "video"))]
mod boxes;
mod clip;
mod config;
mod cumo;
mod dino;
pub mod image;
mod interpolate;
mod qwen3_vl;
mod siglip;
pub mod speech;
mod tower;
pub mod video;

pub use clip::{ClipConfig, ClipOutput, ClipVision, Head};
pub use cumo::{CumoConfig, CumoLosses, CumoOutput, CumoVision};
pub use dino::{DinoConfig, DinoOutput, DinoVision};
pub use interpolate::{bicubic, linear_in_time, mean_pool};
pub use qwen3_vl::{Qwen3VlConfig, Qwen3VlVision};
pub use siglip::{SiglipConfig, SiglipOutput, SiglipVision};
pub use tower::{Features, Select, Tower};
