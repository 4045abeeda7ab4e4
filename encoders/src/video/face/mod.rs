//! Mouths out of videos of faces, as models of lip reading take them.
//!
//! ```text
//! frame ─▶ face box ─▶ 68 landmarks ─▶ smoothed over time ─▶ similarity to a mean face ─▶ 96x96 pixels about the lips
//! ```
//!
//! The steps are those of auto-avsr (arXiv 2303.14307) and AV-HuBERT (arXiv 2201.02184), whose crops published models were
//! trained on: landmarks smoothed over six frames on each side and moved back onto the frame's own middle, frames without a face
//! interpolated between their neighbours, the first and last ones copied; a similarity by least median of squares from eight
//! points that move little; a patch of 96x96 pixels of a mean face of 256x256, about the mean of the lips' points. The networks
//! differ: theirs are far larger, ours are two tiny ones (see [`FaceFinder`]).
//!
//! The patch is sampled out of the frame itself, with as many samples a pixel as the frame is finer.

mod align;
mod cropper;
mod debug;
mod error;
mod find;
mod net;
mod pixels;

pub use align::{Landmarks, PATCH, mouth};
pub use cropper::{FaceChoice, FaceCropper, FaceOptions, FaceReport, MouthCrop};
pub(super) use debug::write_crop;
pub use error::{FaceError, FaceResult};
pub use find::{FaceBox, FaceFinder};
pub use net::POINTS;
pub use pixels::Frame;
