//! Pictures and videos as patches, cell after cell, in their own proportions: Qwen2-VL's and Qwen3-VL's.
//!
//! References:
//! [`image_processing_qwen2_vl.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py),
//! [`video_processing_qwen3_vl.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/qwen3_vl/video_processing_qwen3_vl.py).
//! Pictures are resized as Pillow does it, as the first of them has it; processors on torchvision's resizer round otherwise.

use std::path::Path;

use candle_core::{Device, Tensor};
use moesaic_kernels::cpu::chunks;
use serde_json::{Map, Value};

use super::preprocess::{number, on, parse, read, tables, values, whole};
use super::{Filter, ImageError, Limits, Picture};

/// Groups of frames, rows and columns of patches.
pub type Grid = (usize, usize, usize);

/// Patches of pictures or videos, one behind the other.
#[derive(Clone, Debug)]
pub struct Patches {
    /// `[n, 3 * frames * side * side]`
    pub values: Tensor,
    /// Of each picture or video.
    pub grids: Vec<Grid>,
}

/// A processor that makes patches.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchProcessor {
    /// Pictures are resized so that they hold whole cells and a number of pixels within the bounds.
    pub resize: bool,
    /// Pixels of a patch's side.
    pub patch: usize,
    /// Frames of a patch; a picture is repeated.
    pub frames: usize,
    /// Patches of a cell's side.
    pub cell: usize,
    /// Pixels of a picture, or of all frames of a video, at least and at most.
    pub pixels: (usize, usize),
    /// Frames of a video that are looked at in a second.
    pub fps: f64,
    /// Frames of a video that are looked at, at least and at most.
    pub sampled: (usize, usize),
    /// How pixels are weighed.
    pub filter: Filter,
    /// Multiplies values, usually 1 / 255.
    pub rescale: Option<f64>,
    /// Mean and standard deviation of the three colours.
    pub normalise: Option<([f64; 3], [f64; 3])>,
    /// What pictures may measure.
    pub limits: Limits,
}

/// What a file may leave out: pixels, patch, mean and standard deviation.
struct Usual {
    pixels: (usize, usize),
    patch: usize,
    values: ([f64; 3], [f64; 3]),
}

impl PatchProcessor {
    /// Reads `preprocessor_config.json` of a model's folder, or a file of that kind: for pictures.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        Self::for_images(&read(path, "preprocessor_config.json")?)
    }

    /// Reads `video_preprocessor_config.json` of a model's folder, or a file of that kind: for videos.
    pub fn load_video(path: &Path) -> Result<Self, ImageError> {
        Self::for_videos(&read(path, "video_preprocessor_config.json")?)
    }

    /// Reads the text of a `preprocessor_config.json`.
    pub fn from_json(text: &str) -> Result<Self, ImageError> {
        Self::for_images(&parse(text)?)
    }

    /// Reads the text of a `video_preprocessor_config.json`.
    pub fn video_from_json(text: &str) -> Result<Self, ImageError> {
        Self::for_videos(&parse(text)?)
    }

    fn for_images(json: &Map<String, Value>) -> Result<Self, ImageError> {
        const CLIP: ([f64; 3], [f64; 3]) =
            ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
        Self::from_map(json, &Usual { pixels: (56 * 56, 28 * 28 * 1280), patch: 14, values: CLIP })
    }

    fn for_videos(json: &Map<String, Value>) -> Result<Self, ImageError> {
        let pixels = (128 * 32 * 32, 32 * 32 * 768);
        Self::from_map(json, &Usual { pixels, patch: 16, values: ([0.5; 3], [0.5; 3]) })
    }

    fn from_map(json: &Map<String, Value>, usual: &Usual) -> Result<Self, ImageError> {
        let empty = Map::new();
        let size = match json.get("size") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(size)) if size.contains_key("shortest_edge") && size.contains_key("longest_edge") => {
                size
            }
            Some(_) => {
                return Err(ImageError::Config("size does not name pixels as shortest_edge and longest_edge".into()));
            }
        };
        let pixels = (
            whole(json, "min_pixels", whole(size, "shortest_edge", usual.pixels.0)?)?,
            whole(json, "max_pixels", whole(size, "longest_edge", usual.pixels.1)?)?,
        );
        let (filter, rescale, normalise) = values(json, Some(usual.values))?;
        let processor = Self {
            resize: on(json, "do_resize", true),
            patch: whole(json, "patch_size", usual.patch)?,
            frames: whole(json, "temporal_patch_size", 2)?,
            cell: whole(json, "merge_size", 2)?,
            pixels,
            fps: number(json, "fps", 2.0)?,
            sampled: (whole(json, "min_frames", 4)?, whole(json, "max_frames", 768)?),
            filter,
            rescale,
            normalise,
            limits: Limits::default(),
        };
        let Self { patch, frames, cell, .. } = processor;
        if patch > 1 << 10 || frames > 1 << 6 || cell > 1 << 6 || pixels.0 > pixels.1 || processor.fps <= 0.0 {
            return Err(ImageError::Config(format!(
                "patches of {patch} pixels and {frames} frames, cells of {cell} patches, {} to {} pixels and {} frames a \
                 second do not go together",
                pixels.0, pixels.1, processor.fps
            )));
        }
        Ok(processor)
    }

    /// The size, `(width, height)`, that a picture of a size is brought to, or the frames of a video of so many.
    ///
    /// # Errors
    /// One side is more than 200 times the other, or a video is smaller than a cell.
    pub fn size(&self, (w, h): (usize, usize), frames: Option<usize>) -> Result<(usize, usize), ImageError> {
        let factor = self.patch * self.cell;
        if w.max(h) > 200 * w.min(h) {
            let what = format!("a picture of {w} x {h} pixels has one side more than 200 times the other: cut it");
            return Err(ImageError::Shape(what));
        }
        if frames.is_some_and(|n| n < self.frames || w < factor || h < factor) {
            let what = format!(
                "a video needs {} frames of {factor} x {factor} pixels at least, this one has {} of {w} x {h}",
                self.frames,
                frames.unwrap_or(0)
            );
            return Err(ImageError::Shape(what));
        }
        // In f64, with halves rounded to even, as Python does it.
        let (f, least, most) = (factor as f64, self.pixels.0 as f64, self.pixels.1 as f64);
        let near = |n: usize| (n as f64 / f).round_ties_even() * f;
        let n = frames.map_or(1.0, |n| n as f64);
        let rounded = frames.map_or(1.0, |n| (n as f64 / self.frames as f64).round_ties_even() * self.frames as f64);
        let all = n * h as f64 * w as f64;
        let (mut high, mut wide) = (near(h), near(w));
        if rounded * high * wide > most {
            let beta = (all / most).sqrt();
            let down = |n: usize| f.max((n as f64 / beta / f).floor() * f);
            (high, wide) = (down(h), down(w));
        } else if rounded * high * wide < least {
            let beta = (least / all).sqrt();
            let up = |n: usize| (n as f64 * beta / f).ceil() * f;
            (high, wide) = (up(h), up(w));
        }
        Ok((wide as usize, high as usize))
    }

    /// The frames of a video of `total` frames that are looked at: [`fps`](Self::fps) a second, over all of it.
    pub fn sample(&self, total: usize, video_fps: f64) -> Vec<usize> {
        let wanted = (total as f64 / video_fps * self.fps) as usize;
        let n = wanted.max(self.sampled.0).min(self.sampled.1).min(total);
        let step = total.saturating_sub(1) as f64 / n.saturating_sub(1).max(1) as f64;
        let at = |i: usize| (i as f64 * step).round_ties_even() as usize;
        (0..n).map(|i| if i > 0 && i + 1 == n { total - 1 } else { at(i) }).collect()
    }

    /// Patches of several pictures, which may have different sizes.
    ///
    /// # Errors
    /// There is no picture, or one does not make whole cells, or too many pixels.
    pub fn process(&self, pictures: &[Picture]) -> Result<Patches, ImageError> {
        let all = pictures.iter().map(|p| self.one(std::slice::from_ref(p), false)).collect::<Result<Vec<_>, _>>()?;
        Self::joined(all)
    }

    /// Patches of several videos; the frames of each have one size.
    ///
    /// # Errors
    /// As [`process`](Self::process), or frames of several sizes.
    pub fn process_videos(&self, videos: &[Vec<Picture>]) -> Result<Patches, ImageError> {
        Self::joined(videos.iter().map(|frames| self.one(frames, true)).collect::<Result<Vec<_>, _>>()?)
    }

    fn joined(all: Vec<(Tensor, Grid)>) -> Result<Patches, ImageError> {
        if all.is_empty() {
            return Err(ImageError::Shape("there is no picture to process".into()));
        }
        let (values, grids): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        Ok(Patches { values: Tensor::cat(&values, 0)?, grids })
    }

    fn one(&self, pictures: &[Picture], video: bool) -> Result<(Tensor, Grid), ImageError> {
        let Some(first) = pictures.first() else { return Err(ImageError::Shape("a video has no frames".into())) };
        let (w, h) = (first.width, first.height);
        if pictures.iter().any(|p| (p.width, p.height) != (w, h)) {
            return Err(ImageError::Shape("the frames of a video have several sizes".into()));
        }
        let (patch, frames, cell) = (self.patch, self.frames, self.cell);
        let (w, h) = if self.resize { self.size((w, h), video.then_some(pictures.len()))? } else { (w, h) };
        let (rows, columns) = (h / patch, w / patch);
        if rows == 0 || columns == 0 || h % (patch * cell) != 0 || w % (patch * cell) != 0 {
            let side = patch * cell;
            return Err(ImageError::Shape(format!("{w} x {h} pixels do not make cells of {side} x {side}")));
        }
        let groups = pictures.len().div_ceil(frames);
        if groups.checked_mul(frames * w * h).is_none_or(|n| n > 8 * self.limits.pixels) {
            let what = format!("{} frames of {w} x {h} pixels", pictures.len());
            return Err(ImageError::TooLarge { name: "the video".into(), what });
        }
        let resized = pictures.iter().map(|p| p.resize((w, h), self.filter, None, &self.limits));
        let resized = resized.collect::<Result<Vec<_>, _>>()?;
        let tables = tables(self.rescale, self.normalise);
        let (n, width) = (groups * rows * columns, 3 * frames * patch * patch);
        let mut values = vec![0f32; n * width];
        chunks(&mut values, width, n > 16, |i, values| {
            // Cell after cell, and in a cell row after row.
            let (group, place) = (i / (rows * columns), i % (rows * columns));
            let (within, at) = (place % (cell * cell), place / (cell * cell));
            let row = at / (columns / cell) * cell + within / cell;
            let column = at % (columns / cell) * cell + within % cell;
            for (j, line) in values.chunks_exact_mut(patch).enumerate() {
                let (y, plane) = (j % patch, j / patch);
                let (frame, colour) = (plane % frames, plane / frames);
                // The last frame stands in for those that a group lacks.
                let picture = &resized[(group * frames + frame).min(resized.len() - 1)];
                let start = 3 * ((row * patch + y) * w + column * patch);
                for (value, pixel) in line.iter_mut().zip(picture.rgb[start..].chunks_exact(3)) {
                    *value = tables[colour][usize::from(pixel[colour])];
                }
            }
        });
        Ok((Tensor::from_vec(values, (n, width), &Device::Cpu)?, (groups, rows, columns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN3_VL: &str = r#"{"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
        "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast"}"#;

    #[test]
    fn extremes_of_size() {
        let processor = PatchProcessor::from_json(QWEN3_VL).unwrap();
        let Patches { values, grids } =
            processor.process(&[Picture::filled(1, 1, [255; 3]), Picture::filled(2000, 10, [0; 3])]).unwrap();
        assert_eq!(grids, [(1, 16, 16), (1, 2, 228)]);
        assert_eq!(values.dims(), [256 + 2 * 228, 3 * 2 * 256]);
        let error = processor.process(&[Picture::filled(30_000, 1, [0; 3])]).unwrap_err().to_string();
        assert!(error.contains("200 times"), "{error}");
        assert!(processor.process(&[]).is_err());
        assert!(processor.process_videos(&[Vec::new()]).is_err());
        let mixed = vec![Picture::filled(64, 64, [0; 3]), Picture::filled(64, 32, [0; 3])];
        assert!(processor.process_videos(&[mixed]).is_err());
        let kept = PatchProcessor { resize: false, ..processor };
        assert!(kept.process(&[Picture::filled(33, 32, [0; 3])]).is_err());
    }

    #[test]
    fn mistakes_of_a_config_are_named() {
        for (from, to, words) in [
            ("\"longest_edge\": 16777216, ", "", "longest_edge"),
            ("\"patch_size\": 16", "\"patch_size\": 0", "patch_size is 0"),
            ("65536", "65536000", "do not go together"),
        ] {
            let error = PatchProcessor::from_json(&QWEN3_VL.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
