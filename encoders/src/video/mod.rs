//! Video: from a file, a folder of pictures or an animation to frames, and to the pixels of lips.
//!
//! ```text
//! folder, pattern, GIF, WebP, MP4 ─ VideoReader ─▶ RGB frames, 25 a second ─ MouthReader ─▶ mouths, 96x96 or 88x88 ─ LipFrames ─▶ [t, 88, 88]
//! ```
//!
//! | source | told by | needs |
//! | --- | --- | --- |
//! | a folder of pictures, in natural order | being a folder | feature `video` |
//! | a pattern such as `frames/*.png` | `*`, `?` or `[` in a path that does not exist | feature `video` |
//! | animated GIF and WebP | their bytes | feature `video` |
//! | MP4 and MOV with H.264 | their bytes | feature `h264` |
//!
//! What a file is follows from its bytes, whatever its name says. Frames stream: a reader holds one of them, and of the file only
//! where its frames lie and when they are shown. A frame goes to the nearest place of 25 a second and stays until the next one, so
//! variable rates become constant.

#[cfg(feature = "video")]
mod animation;
#[cfg(feature = "video")]
mod canvas;
#[cfg(feature = "video")]
mod error;
#[cfg(feature = "video")]
pub mod face;
mod lips;
#[cfg(feature = "video")]
mod mouth;
#[cfg(feature = "video")]
mod mp4;
#[cfg(feature = "video")]
mod pictures;
#[cfg(feature = "video")]
mod reader;
#[cfg(feature = "video")]
mod timeline;

#[cfg(feature = "video")]
pub use error::{VideoError, VideoResult};
#[cfg(feature = "video")]
pub use face::{FaceChoice, FaceOptions, FaceReport};
pub use lips::{CROP, LipFrames, LipVariant};
#[cfg(feature = "video")]
pub use mouth::{MouthClip, MouthOptions, MouthReader, Roi};
#[cfg(feature = "video")]
pub use reader::{FRAME_RATE, Frame, VideoInfo, VideoOptions, VideoReader};
