//! Aria's pictures: the longer side to 490 or 980 pixels, the shorter one in proportion, black below or at the right, and a
//! mask of what is real. A large picture may be split into crops first, each of which is a picture of its own then.
//!
//! Reference: [`image_processing_aria.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/aria/image_processing_aria.py).

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use super::preprocess::{grids, on, parse, planes, read, tables, values, whole};
use super::tiles::{cut, fitted};
use super::{Filter, ImageError, Limits, Picture, best_grid};

/// Aria's image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct AriaProcessor {
    /// Pixels of a side: 490 or 980, as the model has queries for.
    pub side: usize,
    /// The shorter side's pixels at least.
    pub least: usize,
    /// Pictures are split into crops of [`side`](Self::side).
    pub split: bool,
    /// Grids of crops, `(width, height)` in pixels.
    pub grids: Vec<(usize, usize)>,
    /// How pixels are weighed.
    pub filter: Filter,
    /// Multiplies values, usually 1 / 255.
    pub rescale: Option<f64>,
    /// Mean and standard deviation of the three colours.
    pub normalise: Option<([f64; 3], [f64; 3])>,
    /// What pictures may measure.
    pub limits: Limits,
}

/// A square picture, and the `(width, height)` of what is real in it.
pub type Crop = (Picture, (usize, usize));

/// Pixels of pictures, as Aria's tower takes them.
#[derive(Clone, Debug)]
pub struct AriaPixels {
    /// `[n, 3, S, S]`
    pub pixels: Tensor,
    /// `[n, S, S]` of u8, 1 for real pixels.
    pub mask: Tensor,
    /// How many of the `n` each picture became: one, unless it was split.
    pub crops: Vec<usize>,
}

impl AriaProcessor {
    /// Reads `preprocessor_config.json` of a model's folder, or a file of that kind.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        Self::from_map(&read(path, "preprocessor_config.json")?)
    }

    /// Reads the text of a `preprocessor_config.json`.
    pub fn from_json(text: &str) -> Result<Self, ImageError> {
        Self::from_map(&parse(text)?)
    }

    fn from_map(json: &Map<String, Value>) -> Result<Self, ImageError> {
        let (side, least) = (whole(json, "max_image_size", 980)?, whole(json, "min_image_size", 336)?);
        if !matches!(side, 490 | 980) || least > side {
            return Err(ImageError::Config(format!(
                "max_image_size is {side} and min_image_size {least}, expected 490 or 980 and no more than that"
            )));
        }
        let mut grids = grids(json, "split_resolutions")?;
        if grids.is_empty() {
            // Rows and columns of 490 pixels, up to eight in all.
            let rows = [(1, 2..=8), (2, 1..=4), (3, 1..=2), (4, 1..=2)];
            let mut all: Vec<(usize, usize)> = Vec::new();
            for (row, columns) in rows {
                // In the reference's order, which decides between equals: two rows are listed from four columns down.
                let columns: Vec<usize> = if row == 2 { columns.rev().collect() } else { columns.collect() };
                all.extend(columns.into_iter().map(|column| (column, row)));
            }
            all.extend((5..=8).map(|row| (1, row)));
            grids = all.into_iter().map(|(w, h)| (490 * w, 490 * h)).collect();
        }
        let (filter, rescale, normalise) = values(json, Some(([0.5; 3], [0.5; 3])))?;
        let (split, limits) = (on(json, "split_image", false), Limits::default());
        Ok(Self { side, least, split, grids, filter, rescale, normalise, limits })
    }

    /// The bytes before they become numbers: the crops of a picture, `side x side` with black behind what is real, and the
    /// size of that, `(width, height)`.
    pub fn crops(&self, picture: &Picture) -> Result<Vec<Crop>, ImageError> {
        let crops = match self.split {
            false => vec![picture.clone()],
            true => {
                let grid = best_grid((picture.width, picture.height), &self.grids)
                    .ok_or_else(|| ImageError::Config("split_resolutions is empty".into()))?;
                cut(&fitted(picture, grid, self.filter, &self.limits)?, self.side)
            }
        };
        let one = |crop: &Picture| {
            let (w, h) = (crop.width, crop.height);
            let scale = self.side as f64 / w.max(h) as f64;
            let short = |n: usize| ((n as f64 * scale) as usize).max(self.least);
            let real = if w >= h { (self.side, short(h)) } else { (short(w), self.side) };
            let mut whole = Picture::filled(self.side, self.side, [0; 3]);
            whole.paste(&crop.resize(real, self.filter, None, &self.limits)?, (0, 0));
            Ok((whole, real))
        };
        crops.iter().map(one).collect()
    }

    /// Pixels of several pictures.
    ///
    /// # Errors
    /// There is no picture, or one is too large to split.
    pub fn process(&self, pictures: &[Picture]) -> Result<AriaPixels, ImageError> {
        let (mut all, mut sizes, mut crops) = (Vec::new(), Vec::new(), Vec::new());
        for picture in pictures {
            let own = self.crops(picture)?;
            crops.push(own.len());
            for (crop, real) in own {
                all.push(crop);
                sizes.push(real);
            }
        }
        if all.is_empty() {
            return Err(ImageError::Shape("there is no picture to process".into()));
        }
        let s = self.side;
        let mut mask = vec![0u8; all.len() * s * s];
        for (mask, (w, h)) in mask.chunks_exact_mut(s * s).zip(sizes) {
            mask.chunks_exact_mut(s).take(h).for_each(|row| row[..w].fill(1));
        }
        let mask = Tensor::from_vec(mask, (all.len(), s, s), &Device::Cpu)?;
        Ok(AriaPixels { pixels: planes(&all, &tables(self.rescale, self.normalise))?, mask, crops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_stand_in_the_order_of_the_reference() {
        let grids = AriaProcessor::from_json("{}").unwrap().grids;
        let rows: Vec<(usize, usize)> = grids.iter().map(|(w, h)| (h / 490, w / 490)).collect();
        let wanted = [
            (1, 2),
            (1, 3),
            (1, 4),
            (1, 5),
            (1, 6),
            (1, 7),
            (1, 8),
            (2, 4),
            (2, 3),
            (2, 2),
            (2, 1),
            (3, 1),
            (3, 2),
            (4, 1),
            (4, 2),
            (5, 1),
            (6, 1),
            (7, 1),
            (8, 1),
        ];
        assert_eq!(rows, wanted);
        for bad in [r#"{"max_image_size": 500}"#, r#"{"min_image_size": 981}"#, r#"{"split_resolutions": [[1]]}"#, "["]
        {
            assert!(AriaProcessor::from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_real_stands_at_the_top_left() {
        let processor = AriaProcessor { side: 490, ..AriaProcessor::from_json("{}").unwrap() };
        let AriaPixels { pixels, mask, crops } =
            processor.process(&[Picture::filled(30_000, 1, [255; 3]), Picture::filled(10, 20, [0, 255, 0])]).unwrap();
        assert_eq!((pixels.dims(), mask.dims(), crops), (&[2, 3, 490, 490][..], &[2, 490, 490][..], vec![1, 1]));
        let count = |i: usize| mask.get(i).unwrap().to_dtype(candle_core::DType::F32).unwrap().sum_all().unwrap();
        assert_eq!(count(0).to_scalar::<f32>().unwrap(), 490.0 * 336.0);
        assert_eq!(count(1).to_scalar::<f32>().unwrap(), 336.0 * 490.0);
        assert!(processor.process(&[]).is_err());
    }
}
