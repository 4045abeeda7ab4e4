//! Pictures: from files, bytes or raw values to the normalised pixels that a vision encoder takes.
//!
//! ```text
//! file ── Picture ──▶ pad to square | tiles ──▶ resize, crop ──▶ / 255, - mean, / std ──▶ [n, 3, S, S]
//! ```
//!
//! [`ImageProcessor`] does so for CLIP, SigLIP, LLaVA and LLaVA-NeXT, [`AriaProcessor`] for Aria, with a mask of real pixels, and
//! [`PatchProcessor`] for Qwen3-VL, whose pictures and videos become patches.
//!
//! Resizing gives the bytes that Pillow gives, since published models were trained and evaluated on those.

mod aria;
#[cfg(feature = "image")]
mod decode;
mod patches;
mod preprocess;
mod resize;
mod tiles;

pub use aria::{AriaPixels, AriaProcessor, Crop};
#[cfg(feature = "image")]
pub use decode::{DecodeOptions, decoding};
#[cfg(feature = "video")]
pub(crate) use decode::{guarded, webp_sizes};
pub use patches::{Grid, PatchProcessor, Patches};
pub use preprocess::{ImageProcessor, Sizing};
pub use resize::{Filter, Window};
pub use tiles::{best_grid, tiles};

use std::path::PathBuf;

use thiserror::Error;

/// What is wrong with a picture, and what to do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The bytes are no picture of a known format.
    #[error("{name} is no picture of a known format; give a JPEG, PNG, WebP, GIF, BMP or TIFF file")]
    Unknown {
        /// The file, or what stands for it.
        name: String,
    },
    /// The file is cut off or damaged.
    #[error("{name} is cut off or damaged: {reason}; fetch or save it again")]
    Damaged {
        /// The file, or what stands for it.
        name: String,
        /// What the decoder says.
        reason: String,
    },
    /// The format is known, but not this variant of it.
    #[error("{name} cannot be decoded: {reason}; save it as an 8-bit PNG or JPEG")]
    Unsupported {
        /// The file, or what stands for it.
        name: String,
        /// What the decoder says.
        reason: String,
    },
    /// More pixels or bytes than the limits admit.
    #[error("{name} is too large: {what}; scale it down, or raise the limit if you trust it")]
    TooLarge {
        /// The file, or what stands for it.
        name: String,
        /// What was found and what is admitted.
        what: String,
    },
    /// Raw values that are no picture, or a picture without pixels.
    #[error("{0}")]
    Shape(String),
    /// A `preprocessor_config.json` that cannot be followed.
    #[error("preprocessor_config.json: {0}")]
    Config(String),
    /// The pixels could not become a tensor.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<ImageError> for candle_core::Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Tensor(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// What a picture may measure. Sizes come from the file's head, before memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width and height at most.
    pub side: usize,
    /// Width times height at most, of the picture and of what it is resized to.
    pub pixels: usize,
    /// Bytes of the file at most.
    pub file: u64,
}

impl Default for Limits {
    /// 65,535 a side, 100 million pixels (300 MB as RGB), files of 256 MiB.
    fn default() -> Self {
        Self { side: 65_535, pixels: 100_000_000, file: 256 << 20 }
    }
}

/// A picture of 8-bit RGB, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// A picture from raw values, three for each pixel.
    ///
    /// # Errors
    /// A side is 0, or there are more or fewer values than `3 * width * height`.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, ImageError> {
        let wanted = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || wanted != Some(rgb.len()) {
            return Err(ImageError::Shape(format!(
                "a picture of {width} x {height} pixels does not have {} values: give three for each pixel, at least one pixel",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// One colour all over.
    pub(crate) fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Pixels from left to right.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values, three for each pixel.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The values alone.
    #[cfg(feature = "video")]
    pub(crate) fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// Copies `other` to the place whose top left corner is `(x, y)`; it must fit.
    pub(crate) fn paste(&mut self, other: &Self, (x, y): (usize, usize)) {
        let row = 3 * other.width;
        for (i, src) in other.rgb.chunks_exact(row.max(1)).enumerate() {
            let at = 3 * ((y + i) * self.width + x);
            self.rgb[at..at + row].copy_from_slice(src);
        }
    }

    /// The part of `width x height` whose top left corner is `(x, y)`; it must lie inside.
    pub(crate) fn cut(&self, (x, y): (usize, usize), (width, height): (usize, usize)) -> Self {
        let rows = (y..y + height).flat_map(|r| &self.rgb[3 * (r * self.width + x)..][..3 * width]);
        Self { width, height, rgb: rows.copied().collect() }
    }
}
