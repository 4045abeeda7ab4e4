//! Video of lips: from decoded frames to the pixels that AV-HuBERT takes.
//!
//! ```text
//! RGB crops of the mouth, 96x96, 25 frames a second ─ grey, centre 88x88, (x / 255 - 0.421) / 0.165 ─▶ [t, 88, 88]
//! ```
//!
//! Such crops come from a `MouthReader` (feature `video`), or from other tools: a patch of 96x96 pixels around the mean of the
//! lips' landmarks, after a similarity transform of the face to a mean one of 256x256.

use candle_core::{Device, Result, Tensor, bail};

/// Rows and columns that the encoder sees.
pub const CROP: usize = 88;
/// Mean and standard deviation of grey values from 0 to 1, over the frames that AV-HuBERT was trained on.
const MEAN: f32 = 0.421;
const STD: f32 = 0.165;
/// Pixels of a side of a frame at most.
const MOST: usize = 1 << 13;

/// Whose way it is done, up to one grey level and one pixel apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LipVariant {
    /// Llama-AVSR (arXiv 2409.12319), after auto-avsr: grey values are kept as floats, half a pixel of offset rounds to even.
    #[default]
    LlamaAvsr,
    /// AV-HuBERT (arXiv 2201.02184): grey values are rounded to bytes first, as OpenCV does; half a pixel of offset is dropped.
    AvHubert,
}

/// Makes pixels of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LipFrames {
    /// Whose way it is done.
    pub variant: LipVariant,
}

impl LipFrames {
    /// The way of one of both.
    pub fn new(variant: LipVariant) -> Self {
        Self { variant }
    }

    /// First row or column of the crop.
    fn offset(&self, side: usize) -> usize {
        let spare = side - CROP;
        match self.variant {
            // Python's round: (side - 88) / 2 to the nearest, halves to even.
            LipVariant::LlamaAvsr => spare / 2 + usize::from(spare % 4 == 3),
            LipVariant::AvHubert => spare / 2,
        }
    }

    fn value(&self, rgb: &[u8; 3]) -> f32 {
        let grey = match self.variant {
            LipVariant::LlamaAvsr => {
                let [r, g, b] = rgb.map(|v| f32::from(v) / 255.0);
                0.2989 * r + 0.587 * g + 0.114 * b
            }
            LipVariant::AvHubert => {
                // 0.299, 0.587 and 0.114 in units of 2^-15, rounded.
                let [r, g, b] = rgb.map(u32::from);
                ((9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15) as f32 / 255.0
            }
        };
        (grey - MEAN) / STD
    }

    /// The pixels of `frames` RGB frames of `height` rows and `width` columns, one byte a value, row after row.
    ///
    /// # Shapes
    /// `frames * height * width * 3` bytes to `frames * 88 * 88` values
    ///
    /// # Errors
    /// Frames smaller than 88x88 or larger than 8192, or another number of bytes.
    pub fn pixels(&self, rgb: &[u8], (frames, height, width): (usize, usize, usize)) -> Result<Vec<f32>> {
        let sides = CROP..=MOST;
        if !sides.contains(&height) || !sides.contains(&width) {
            bail!(
                "frames of {height}x{width} pixels, expected {CROP} to {MOST} a side: crop the mouth to 96x96 pixels"
            );
        }
        let size = height * width * 3;
        if frames.checked_mul(size) != Some(rgb.len()) {
            bail!("{frames} RGB frames of {height}x{width} pixels take {size} bytes each, found {} in all", rgb.len());
        }
        let (top, left) = (self.offset(height), self.offset(width));
        let mut pixels = Vec::with_capacity(frames * CROP * CROP);
        for frame in rgb.chunks_exact(size) {
            for row in frame.chunks_exact(width * 3).skip(top).take(CROP) {
                let (row, _) = row.as_chunks::<3>();
                pixels.extend(row.iter().skip(left).take(CROP).map(|rgb| self.value(rgb)));
            }
        }
        Ok(pixels)
    }

    /// The pixels of one clip as the encoder takes them.
    ///
    /// # Shapes
    /// `rgb [t, h, w, 3]` of u8 to `[1, 1, t, 88, 88]`
    ///
    /// # Errors
    /// As [`pixels`](Self::pixels), or a tensor of another shape or dtype.
    pub fn clip(&self, rgb: &Tensor) -> Result<Tensor> {
        let &[t, h, w, 3] = rgb.dims() else {
            bail!("frames of shape {:?}, expected [frames, rows, columns, 3]", rgb.dims());
        };
        let pixels = self.pixels(&rgb.flatten_all()?.to_vec1::<u8>()?, (t, h, w))?;
        Tensor::from_vec(pixels, (1, 1, t, CROP, CROP), &Device::Cpu)?.to_device(rgb.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_round_as_their_models_do() {
        let (avsr, hubert) = (LipFrames::new(LipVariant::LlamaAvsr), LipFrames::new(LipVariant::AvHubert));
        // Spare pixels 0, 1, 2, 3, 5, 8, 9, 11: halves are 0.5, 1.5, 2.5, 4.5, 5.5.
        let sides = [88, 89, 90, 91, 93, 96, 97, 99];
        assert_eq!(sides.map(|side| avsr.offset(side)), [0, 0, 1, 2, 2, 4, 4, 6]);
        assert_eq!(sides.map(|side| hubert.offset(side)), [0, 0, 1, 1, 2, 4, 4, 5]);
    }

    #[test]
    fn grey_values_by_hand() {
        let grey = |variant, rgb| LipFrames::new(variant).value(&rgb) * STD + MEAN;
        assert!((grey(LipVariant::LlamaAvsr, [255, 0, 0]) - 0.2989).abs() < 1e-6);
        // 0.299 * 10 + 0.587 * 20 + 0.114 * 30 = 18.15 rounds to 18.
        assert!((grey(LipVariant::AvHubert, [10, 20, 30]) - 18.0 / 255.0).abs() < 1e-6);
        assert!((grey(LipVariant::AvHubert, [255, 255, 255]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_clip_is_refused() -> Result<()> {
        let lips = LipFrames::default();
        assert!(lips.pixels(&[0; 3 * 87 * 96], (1, 87, 96)).is_err());
        assert!(lips.pixels(&[0; 100], (1, 88, 88)).is_err());
        assert!(lips.pixels(&[], (usize::MAX, 4096, 4096)).is_err());
        assert!(lips.pixels(&[], (0, 96, 96))?.is_empty());
        let error = lips.clip(&Tensor::zeros((1, 96, 96, 1), candle_core::DType::U8, &Device::Cpu)?);
        assert!(error.unwrap_err().to_string().contains("expected [frames, rows, columns, 3]"));
        assert!(lips.clip(&Tensor::zeros((1, 96, 96, 3), candle_core::DType::F32, &Device::Cpu)?).is_err());
        assert_eq!(
            lips.clip(&Tensor::zeros((2, 96, 97, 3), candle_core::DType::U8, &Device::Cpu)?)?.dims(),
            [1, 1, 2, 88, 88]
        );
        Ok(())
    }
}
