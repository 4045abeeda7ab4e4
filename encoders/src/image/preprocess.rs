//! What `preprocessor_config.json` says is done to a picture, in the order of the published processors.

use std::path::Path;

use candle_core::{Device, Tensor};
use moesaic_kernels::cpu::chunks;
use serde_json::{Map, Value};

use super::{Filter, ImageError, Limits, Picture, Window, best_grid, tiles};

/// What a picture is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// The shorter side to this many pixels, the longer one in proportion, cut off (CLIP).
    Shortest(usize),
    /// Exactly `(width, height)`, whatever the proportions (SigLIP).
    Exact(usize, usize),
}

/// An image processor: resize, crop, scale, normalise.
///
/// Reads the files of CLIP's, SigLIP's, BLIP's and ViT's processors. `image_aspect_ratio` of LLaVA-like models stands in the
/// model's `config.json`; set [`pad_to_square`](Self::pad_to_square) or call [`tiles`](Self::tiles) as it says.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Absent where pictures keep their size.
    pub size: Option<Sizing>,
    /// How pixels are weighed.
    pub filter: Filter,
    /// `(width, height)` cut out of the middle; zeros where the picture does not reach.
    pub crop: Option<(usize, usize)>,
    /// Multiplies values, usually 1 / 255.
    pub rescale: Option<f64>,
    /// Mean and standard deviation of the three colours.
    pub normalise: Option<([f64; 3], [f64; 3])>,
    /// Puts the picture on a square of the mean colour first, in its middle.
    pub pad_to_square: bool,
    /// Grids of tiles, `(width, height)` in pixels, in the order of `image_grid_pinpoints`, which has the height first
    /// (LLaVA-NeXT); empty for processors without tiles.
    pub grids: Vec<(usize, usize)>,
    /// What pictures may measure.
    pub limits: Limits,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` of a model's folder, or a file of that kind.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        Self::from_map(&read(path, "preprocessor_config.json")?)
    }

    /// Reads the text of a `preprocessor_config.json`.
    pub fn from_json(text: &str) -> Result<Self, ImageError> {
        Self::from_map(&parse(text)?)
    }

    fn from_map(json: &Map<String, Value>) -> Result<Self, ImageError> {
        let on = |key: &str, default: bool| on(json, key, default);
        let clip = ["image_processor_type", "feature_extractor_type"]
            .iter()
            .filter_map(|key| json.get(*key)?.as_str())
            .any(|name| name.contains("CLIP") || name.contains("Llava"));
        let size = match on("do_resize", true) {
            true => Some(sizing(json.get("size"), clip)?),
            false => None,
        };
        let crop = match on("do_center_crop", json.contains_key("crop_size")) {
            true => match sizing(json.get("crop_size"), false)? {
                Sizing::Exact(w, h) => Some((w, h)),
                Sizing::Shortest(_) => return Err(ImageError::Config("crop_size is not height and width".into())),
            },
            false => None,
        };
        let (filter, rescale, normalise) = values(json, None)?;
        let grids = grids(json, "image_grid_pinpoints")?;
        Ok(Self { size, filter, crop, rescale, normalise, pad_to_square: false, grids, limits: Limits::default() })
    }

    /// The same with pictures on a square of the mean colour (`image_aspect_ratio: pad`).
    pub fn with_padding(self, pad_to_square: bool) -> Self {
        Self { pad_to_square, ..self }
    }

    /// The bytes before they become numbers: padded, resized, cut.
    pub fn crop(&self, picture: &Picture) -> Result<Picture, ImageError> {
        let padded = if self.pad_to_square { self.padded(picture)? } else { None };
        let picture = padded.as_ref().unwrap_or(picture);
        let (width, height) = match self.size {
            None => (picture.width, picture.height),
            Some(Sizing::Exact(w, h)) => (w, h),
            Some(Sizing::Shortest(side)) => {
                // As the reference divides: a product of integers, divided as floats, cut off.
                let longer = |long: usize, short: usize| ((side as f64 * long as f64) / short as f64) as usize;
                match picture.width <= picture.height {
                    true => (side, longer(picture.height, picture.width)),
                    false => (longer(picture.width, picture.height), side),
                }
            }
        };
        let Some((w, h)) = self.crop else {
            return picture.resize((width, height), self.filter, None, &self.limits);
        };
        // Rounded down, also below zero: a picture smaller than the crop stands in its middle.
        let offset = |n: usize, crop: usize| (n as i64 - crop as i64).div_euclid(2);
        let (x, y) = (offset(width, w), offset(height, h));
        let range = |at: i64, crop: usize, n: usize| {
            let (first, last) = (at.max(0) as usize, (at + crop as i64).clamp(0, n as i64) as usize);
            first.min(last)..last
        };
        let window = Window { columns: range(x, w, width), rows: range(y, h, height) };
        if w.checked_mul(h).is_none_or(|n| n > self.limits.pixels) {
            let what = format!("a crop of {w} x {h} exceeds {} pixels", self.limits.pixels);
            return Err(ImageError::TooLarge { name: "the picture".into(), what });
        }
        let part = picture.resize((width, height), self.filter, Some(window), &self.limits)?;
        if (part.width, part.height) == (w, h) {
            return Ok(part);
        }
        let mut whole = Picture::filled(w, h, [0; 3]);
        whole.paste(&part, ((-x).max(0) as usize, (-y).max(0) as usize));
        Ok(whole)
    }

    /// The picture in the middle of a square of the mean colour; `None` if it is one already.
    fn padded(&self, picture: &Picture) -> Result<Option<Picture>, ImageError> {
        let (w, h) = (picture.width, picture.height);
        if w == h {
            return Ok(None);
        }
        let side = w.max(h);
        if side.checked_mul(side).is_none_or(|n| n > self.limits.pixels) {
            let what = format!("{w} x {h} padded to a square exceeds {} pixels", self.limits.pixels);
            return Err(ImageError::TooLarge { name: "the picture".into(), what });
        }
        let mean = self.normalise.map_or([0.0; 3], |(mean, _)| mean);
        let mut square = Picture::filled(side, side, mean.map(|m| (255.0 * m) as u8));
        square.paste(picture, ((side - w) / 2, (side - h) / 2));
        Ok(Some(square))
    }

    /// Pixels of several pictures of one size.
    ///
    /// # Shapes
    /// `n` pictures to `[n, 3, h, w]`, f32 on the CPU
    ///
    /// # Errors
    /// There is no picture, or the pictures do not become one size.
    pub fn process(&self, pictures: &[Picture]) -> Result<Tensor, ImageError> {
        let crops = pictures.iter().map(|p| self.crop(p)).collect::<Result<Vec<_>, _>>()?;
        self.normalised(&crops)
    }

    /// Pixels of one picture as tiles ("anyres"): the whole picture small, then the tiles of the best of `grids`, row by row.
    /// Also gives the grid in pixels, `(width, height)`. [`grids`](Self::grids) has those of the file; LLaVA's own code and CuMo's
    /// have theirs in the model's `config.json`, with the width first. Their order decides between grids that fit equally.
    ///
    /// # Shapes
    /// `[1 + tiles, 3, S, S]`
    pub fn tiles(&self, picture: &Picture, grids: &[(usize, usize)]) -> Result<(Tensor, (usize, usize)), ImageError> {
        let square = |crop: Option<(usize, usize)>| crop.filter(|(w, h)| w == h).map(|(w, _)| w);
        let edge = match self.size {
            Some(Sizing::Exact(w, h)) => Some(w.min(h)),
            Some(Sizing::Shortest(side)) => Some(side),
            None => square(self.crop),
        };
        let side = if self.crop.is_some() { square(self.crop) } else { edge };
        let (Some(side), Some(edge)) = (side, edge) else {
            return Err(ImageError::Config("tiles need a square crop_size or size".into()));
        };
        let grid = best_grid((picture.width, picture.height), grids)
            .ok_or_else(|| ImageError::Config("image_grid_pinpoints is empty".into()))?;
        let small = picture.resize((edge, edge), self.filter, None, &self.limits)?;
        let crops = std::iter::once(small)
            .chain(tiles(picture, grid, side, self.filter, &self.limits)?)
            .map(|tile| Self { pad_to_square: false, ..self.clone() }.crop(&tile))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((self.normalised(&crops)?, grid))
    }

    /// Pixels of pictures that [`crop`](Self::crop) made: bytes to numbers, colour by colour.
    ///
    /// # Shapes
    /// `n` pictures to `[n, 3, h, w]`, f32 on the CPU
    ///
    /// # Errors
    /// As [`process`](Self::process).
    pub fn normalised(&self, crops: &[Picture]) -> Result<Tensor, ImageError> {
        let Some(first) = crops.first() else { return Err(ImageError::Shape("there is no picture to process".into())) };
        let (w, h) = (first.width, first.height);
        if let Some(other) = crops.iter().find(|c| (c.width, c.height) != (w, h)) {
            return Err(ImageError::Shape(format!(
                "pictures of {w} x {h} and {} x {} pixels do not make a batch: process them one by one",
                other.width, other.height
            )));
        }
        Ok(planes(crops, &tables(self.rescale, self.normalise))?)
    }
}

/// What each byte becomes, by colour: in f64 times the factor, from there on in f32, as the references do.
pub(super) fn tables(rescale: Option<f64>, normalise: Option<([f64; 3], [f64; 3])>) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|colour: usize| {
        (0..256)
            .map(|byte| {
                let value = rescale.map_or(byte as f32, |factor| (f64::from(byte) * factor) as f32);
                match normalise {
                    Some((mean, std)) => (value - mean[colour] as f32) / std[colour] as f32,
                    None => value,
                }
            })
            .collect()
    })
}

/// Bytes to numbers, colour by colour: pictures of one size to `[n, 3, h, w]`.
pub(super) fn planes(pictures: &[Picture], tables: &[Vec<f32>; 3]) -> candle_core::Result<Tensor> {
    let (w, h) = pictures.first().map_or((0, 0), |p| (p.width, p.height));
    let area = w * h;
    let mut values = vec![0f32; pictures.len() * 3 * area];
    chunks(&mut values, area.max(1), area > 1 << 14, |i, plane| {
        let (table, picture, colour) = (&tables[i % 3], &pictures[i / 3], i % 3);
        for (value, pixel) in plane.iter_mut().zip(picture.rgb.chunks_exact(3)) {
            *value = table[usize::from(pixel[colour])];
        }
    });
    Tensor::from_vec(values, (pictures.len(), 3, h, w), &Device::Cpu)
}

/// A number of a configuration.
pub(super) fn number(json: &Map<String, Value>, key: &str, default: f64) -> Result<f64, ImageError> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_f64()
            .filter(|v| v.is_finite())
            .ok_or_else(|| ImageError::Config(format!("{key} is {value}, expected a number"))),
    }
}

/// A size of a configuration.
pub(super) fn whole(json: &Map<String, Value>, key: &str, default: usize) -> Result<usize, ImageError> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .filter(|v| (1..=1 << 40).contains(v))
            .ok_or_else(|| ImageError::Config(format!("{key} is {value}, expected a positive number"))),
    }
}

/// A switch of a configuration.
pub(super) fn on(json: &Map<String, Value>, key: &str, default: bool) -> bool {
    json.get(key).and_then(Value::as_bool).unwrap_or(default)
}

/// The object that a file of a folder, or a file, holds.
pub(super) fn read(path: &Path, name: &str) -> Result<Map<String, Value>, ImageError> {
    let path = if path.is_dir() { path.join(name) } else { path.to_path_buf() };
    let text = std::fs::read_to_string(&path).map_err(|source| ImageError::Read { path, source })?;
    parse(&text)
}

/// The object in a text.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, ImageError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(json)) => Ok(json),
        Ok(_) => Err(ImageError::Config("is not an object".into())),
        Err(e) => Err(ImageError::Config(e.to_string())),
    }
}

/// The filter, the factor, and the mean and standard deviation, where they are used.
pub(super) type Values = (Filter, Option<f64>, Option<([f64; 3], [f64; 3])>);

/// How pixels are weighed and what becomes of their values. `usual` are mean and standard deviation where the file has none.
pub(super) fn values(json: &Map<String, Value>, usual: Option<([f64; 3], [f64; 3])>) -> Result<Values, ImageError> {
    let rescale = match on(json, "do_rescale", true) {
        true => Some(number(json, "rescale_factor", 1.0 / 255.0)?),
        false => None,
    };
    let given = |key: &str, usual: Option<[f64; 3]>| match (json.get(key), usual) {
        (None | Some(Value::Null), Some(usual)) => Ok(usual),
        _ => colours(json, key),
    };
    let normalise = match on(json, "do_normalize", true) {
        true => {
            let std = given("image_std", usual.map(|u| u.1))?;
            if std.iter().any(|s| *s <= 0.0) {
                return Err(ImageError::Config("image_std has a number that is not positive".into()));
            }
            Some((given("image_mean", usual.map(|u| u.0))?, std))
        }
        false => None,
    };
    let filter = match json.get("resample") {
        None | Some(Value::Null) => Filter::Bicubic,
        Some(value) => Filter::from_number(
            value.as_u64().ok_or_else(|| ImageError::Config(format!("resample is {value}, expected 0 to 5")))?,
        )?,
    };
    Ok((filter, rescale, normalise))
}

/// Grids of tiles as `(width, height)`, from pairs of height and width.
pub(super) fn grids(json: &Map<String, Value>, key: &str) -> Result<Vec<(usize, usize)>, ImageError> {
    let Some(list) = json.get(key).filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
        Some([h, w]) => {
            let side = |v: &Value| v.as_u64().filter(|v| (1..=1 << 20).contains(v)).map(|v| v as usize);
            Some((side(w)?, side(h)?))
        }
        _ => None,
    };
    list.as_array()
        .and_then(|list| list.iter().map(pair).collect())
        .ok_or_else(|| ImageError::Config(format!("{key} is not a list of pairs of height and width")))
}

/// `size` or `crop_size`: a number, `shortest_edge`, or `height` and `width`.
fn sizing(value: Option<&Value>, number_is_shortest: bool) -> Result<Sizing, ImageError> {
    let side = |value: &Value| {
        let side = value.as_u64().and_then(|v| usize::try_from(v).ok());
        side.filter(|v| (1..=1 << 20).contains(v))
            .ok_or_else(|| ImageError::Config(format!("a size is {value}, expected 1 to {}", 1 << 20)))
    };
    match value {
        Some(Value::Object(map)) => match (map.get("shortest_edge"), map.get("height"), map.get("width")) {
            (Some(edge), _, _) => Ok(Sizing::Shortest(side(edge)?)),
            (None, Some(height), Some(width)) => Ok(Sizing::Exact(side(width)?, side(height)?)),
            _ => Err(ImageError::Config("size names neither shortest_edge nor height and width".into())),
        },
        Some(number) if number_is_shortest => Ok(Sizing::Shortest(side(number)?)),
        Some(number) => side(number).map(|n| Sizing::Exact(n, n)),
        None => Err(ImageError::Config("has no size".into())),
    }
}

fn colours(json: &Map<String, Value>, key: &str) -> Result<[f64; 3], ImageError> {
    let numbers: Option<Vec<f64>> =
        json.get(key).and_then(Value::as_array).and_then(|a| a.iter().map(Value::as_f64).collect());
    numbers
        .filter(|n| n.iter().all(|v| v.is_finite()))
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| ImageError::Config(format!("{key} is not three numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: &str = r#"{"crop_size": 4, "do_center_crop": true, "image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 1.0],
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "size": 4}"#;

    #[test]
    fn a_config_is_read_and_its_mistakes_are_named() {
        let clip = ImageProcessor::from_json(CLIP).unwrap();
        assert_eq!((clip.size, clip.crop), (Some(Sizing::Shortest(4)), Some((4, 4))));
        assert_eq!(clip.rescale, Some(1.0 / 255.0));
        for (from, to, words) in [
            ("\"resample\": 3", "\"resample\": 9", "resample is 9"),
            ("\"size\": 4", "\"size\": 0", "a size is 0"),
            ("\"size\": 4", "\"size\": {}", "neither"),
            ("[0.5, 0.5, 1.0]", "[0.5, 0.5, 0.0]", "image_std"),
            ("[0.5, 0.25, 0.0]", "[0.5]", "image_mean is not three"),
            ("{", "", "trailing"),
        ] {
            let error = ImageProcessor::from_json(&CLIP.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn extremes_of_size() {
        let clip = ImageProcessor::from_json(CLIP).unwrap();
        for (w, h) in [(1, 1), (30_000, 1), (1, 30_000), (3, 5)] {
            let picture = Picture::filled(w, h, [255, 0, 51]);
            let pixels = clip.process(&[picture]).unwrap();
            assert_eq!(pixels.dims(), [1, 3, 4, 4]);
            let values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(
                values.iter().zip([1.0, -0.5, 0.2].iter().flat_map(|v| [*v; 16])).all(|(a, b)| (a - b).abs() < 1e-6)
            );
        }
        let wide = Picture::filled(30_000, 1, [0; 3]);
        let error = clip.clone().with_padding(true).process(&[wide]).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        // A picture that is not resized stands in the middle of a larger crop.
        let kept = ImageProcessor { size: None, ..clip };
        let crop = kept.crop(&Picture::filled(1, 2, [7; 3])).unwrap();
        let lit: Vec<usize> = (0..16).filter(|i| crop.rgb()[3 * i] == 7).collect();
        assert_eq!(lit, [6, 10]);
        assert!(kept.process(&[]).is_err());
    }
}
