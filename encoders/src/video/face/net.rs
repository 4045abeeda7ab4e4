//! The two small networks, channels last, on the workspace's convolutions.
//!
//! Both are those of face-api (`@vladmandic/face-api` 1.7.15, MIT; by Vincent Mühler): a detector after YOLO v2 (Redmon and
//! Farhadi, arXiv 1612.08242) and a landmark network of three blocks that add the outputs of their layers, both of depthwise
//! separable convolutions (Howard et al., arXiv 1704.04861). Their weights are stored as bytes, `value = byte * scale + least`;
//! `tools/face_models.py` makes the file.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};
use moesaic_kernels::conv::{ClipConv, Windows, depthwise, max_pool};
use serde::Deserialize;

static WEIGHTS: &[u8] = include_bytes!("weights/faces.safetensors");

/// Landmarks of a face.
pub const POINTS: usize = 68;
/// Rows and columns that the landmark network takes.
pub(crate) const FACE: usize = 112;
/// Numbers that the detector gives for each anchor: x, y, width, height, score.
pub(crate) const FIELDS: usize = 5;
/// Width and height of the detector's anchors in cells.
pub(crate) const ANCHORS: [(f32, f32); 5] =
    [(1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061), (4.266906, 5.178857), (9.041765, 10.66308)];

#[derive(Deserialize)]
struct Entry {
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The tensors of the file by name.
struct Weights(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Weights {
    fn read(bytes: &[u8]) -> Result<Self> {
        let broken = || candle_core::Error::msg("the weights of the face networks inside the program are damaged");
        let (size, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
        let (head, data) = rest.split_at_checked(u64::from_le_bytes(*size) as usize).ok_or_else(broken)?;
        let mut head: HashMap<String, serde_json::Value> = serde_json::from_slice(head).map_err(|_| broken())?;
        let ranges = head.remove("__metadata__").ok_or_else(broken)?;
        let ranges: HashMap<String, String> = serde_json::from_value(ranges).map_err(|_| broken())?;
        let mut tensors = HashMap::new();
        for (name, entry) in head {
            let entry: Entry = serde_json::from_value(entry).map_err(|_| broken())?;
            let bytes = data.get(entry.data_offsets.0..entry.data_offsets.1).ok_or_else(broken)?;
            let (scale, least) = ranges.get(&name).and_then(|r| r.split_once(' ')).ok_or_else(broken)?;
            let number = |s: &str| s.parse::<f64>().map_err(|_| broken());
            let (scale, least) = (number(scale)?, number(least)?);
            let values = bytes.iter().map(|b| (f64::from(*b) * scale + least) as f32).collect();
            tensors.insert(name, (entry.shape, values));
        }
        Ok(Self(tensors))
    }

    fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        match self.0.remove(name) {
            Some((shape, values)) if shape.iter().product::<usize>() == values.len() => Ok((shape, values)),
            _ => bail!("the weights of the face networks inside the program lack {name}"),
        }
    }

    fn bias(&mut self, name: &str) -> Result<Tensor> {
        let (_, bias) = self.take(name)?;
        let n = bias.len();
        Tensor::from_vec(bias, n, &Device::Cpu)
    }

    /// `[.., in, out]`, flattened but for the outputs, as a convolution; `slope` is what negative outputs are scaled by.
    fn conv(&mut self, filters: &str, bias: &str, slope: Option<f32>) -> Result<ClipConv> {
        let (shape, values) = self.take(filters)?;
        let out = shape.last().copied().unwrap_or(1).max(1);
        let weight = Tensor::from_vec(values, (shape.iter().product::<usize>() / out, out), &Device::Cpu)?;
        let slope = slope.map(|s| Tensor::full(s, out, &Device::Cpu)).transpose()?;
        ClipConv::new(&weight.t()?.contiguous()?, &self.bias(bias)?, slope.as_ref())
    }

    fn separable(&mut self, name: &str, stride: usize, slope: Option<f32>) -> Result<Separable> {
        let (_, depth) = self.take(&format!("{name}/depthwise_filter"))?;
        let depth = Tensor::from_vec(depth, (9, ()), &Device::Cpu)?;
        let point = self.conv(&format!("{name}/pointwise_filter"), &format!("{name}/bias"), slope)?;
        Ok(Separable { depth, stride, point })
    }
}

/// Windows of a single pixel.
const PIXEL: Windows = Windows::square(1, 1, 0);

/// A 3x3 filter of each channel, then a linear map of the channels.
struct Separable {
    /// `[9, c]`
    depth: Tensor,
    stride: usize,
    point: ClipConv,
}

impl Separable {
    /// `x [1, 1, h, w, c]`, zeros around as TensorFlow's "same" has them: none above and to the left for a stride of 2 on even
    /// sides, one everywhere for a stride of 1.
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let &[1, 1, h, w, _] = x.dims() else { bail!("a picture of shape {:?}", x.dims()) };
        let pad = |n: usize| {
            let around = ((n.div_ceil(self.stride) - 1) * self.stride + 3).saturating_sub(n);
            (around / 2, around - around / 2)
        };
        let windows = Windows { pad: [(0, 0), pad(h), pad(w)], ..Windows::square(3, self.stride, 0) };
        self.point.forward(&depthwise(x, &self.depth, &windows)?, &PIXEL, residual)
    }
}

/// `[side, side, 3]` of values from 0 to 255 to a picture around 0.
fn picture(mut rgb: Vec<f32>, side: usize, mean: [f32; 3]) -> Result<Tensor> {
    for pixel in rgb.chunks_exact_mut(3) {
        pixel.iter_mut().zip(mean).for_each(|(v, m)| *v = (*v - m) / 255.0);
    }
    Tensor::from_vec(rgb, (1, 1, side, side, 3), &Device::Cpu)
}

struct Block {
    second: Separable,
    third: Separable,
}

/// 68 points of a face.
pub(crate) struct LandmarkNet {
    first: ClipConv,
    /// What shrinks the picture before the second and the third block.
    shrink: [Separable; 2],
    blocks: [Block; 3],
    /// `[out, in]` and `[out]`
    last: (Vec<f32>, Vec<f32>),
}

impl LandmarkNet {
    fn load(w: &mut Weights) -> Result<Self> {
        const RELU: Option<f32> = Some(0.0);
        let first = w.conv("landmarks/dense0/conv0/filters", "landmarks/dense0/conv0/bias", RELU)?;
        let mut shrink = |b: usize| w.separable(&format!("landmarks/dense{b}/conv0"), 2, RELU);
        let shrink = [shrink(1)?, shrink(2)?];
        let mut block = |b: usize| -> Result<Block> {
            let second = w.separable(&format!("landmarks/dense{b}/conv1"), 1, None)?;
            Ok(Block { second, third: w.separable(&format!("landmarks/dense{b}/conv2"), 1, RELU)? })
        };
        let blocks = [block(0)?, block(1)?, block(2)?];
        let last = (w.take("landmarks/fc/weights")?.1, w.take("landmarks/fc/bias")?.1);
        if last.1.len() != 2 * POINTS {
            bail!("the weights of the face networks inside the program give {} numbers", last.1.len());
        }
        Ok(Self { first, shrink, blocks, last })
    }

    /// # Shapes
    /// `rgb [112, 112, 3]` of values from 0 to 255 to 68 points in parts of the side
    pub fn forward(&self, rgb: Vec<f32>) -> Result<[(f32, f32); POINTS]> {
        const SHRINK: Windows = Windows { size: [1, 3, 3], stride: [1, 2, 2], pad: [(0, 0), (0, 1), (0, 1)] };
        let x = picture(rgb, FACE, [122.782, 117.001, 104.298])?;
        let mut x = self.first.forward(&x, &SHRINK, None)?; // (1, 1, 56, 56, 32)
        for (i, block) in self.blocks.iter().enumerate() {
            if let Some(shrink) = i.checked_sub(1).and_then(|i| self.shrink.get(i)) {
                x = shrink.forward(&x, None)?; // (1, 1, 28, 28, 64), (1, 1, 14, 14, 128)
            }
            let sum = block.second.forward(&x, Some(&x))?;
            x = block.third.forward(&sum.relu()?, Some(&sum))?;
        }
        let x = x.flatten(0, 3)?.mean(0)?.to_vec1::<f32>()?; // (128)
        let mut out = self.last.1.clone();
        for (x, row) in x.iter().zip(self.last.0.chunks_exact(out.len())) {
            out.iter_mut().zip(row).for_each(|(o, w)| *o += x * w);
        }
        Ok(std::array::from_fn(|i| (out[2 * i], out[2 * i + 1])))
    }
}

/// Boxes of faces, before they are decoded.
pub(crate) struct DetectorNet {
    first: ClipConv,
    layers: [Separable; 5],
    last: ClipConv,
}

impl DetectorNet {
    fn load(w: &mut Weights) -> Result<Self> {
        const LEAKY: Option<f32> = Some(0.1);
        let first = w.conv("detector/conv0/filters", "detector/conv0/bias", LEAKY)?;
        let mut layer = |i: usize| w.separable(&format!("detector/conv{i}"), 1, LEAKY);
        let layers = [layer(1)?, layer(2)?, layer(3)?, layer(4)?, layer(5)?];
        Ok(Self { first, layers, last: w.conv("detector/conv8/filters", "detector/conv8/bias", None)? })
    }

    /// # Shapes
    /// `rgb [side, side, 3]` of values from 0 to 255, with a side that 32 divides, to `[cells, cells, anchors, fields]` with
    /// `cells = side / 32`, and the cells
    pub fn forward(&self, rgb: Vec<f32>, side: usize) -> Result<(Vec<f32>, usize)> {
        const HALVE: Windows = Windows { size: [1, 2, 2], stride: [1, 2, 2], pad: [(0, 0), (0, 1), (0, 1)] };
        const KEEP: Windows = Windows { stride: [1, 1, 1], ..HALVE };
        let x = picture(rgb, side, [117.001, 114.697, 97.404])?;
        let mut x = max_pool(&self.first.forward(&x, &Windows::square(3, 1, 0), None)?, &HALVE)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = max_pool(&layer.forward(&x, None)?, if i + 1 < self.layers.len() { &HALVE } else { &KEEP })?;
        }
        let x = self.last.forward(&x, &PIXEL, None)?;
        let cells = x.dim(2)?;
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        if x.len() != cells * cells * ANCHORS.len() * FIELDS {
            bail!("the face detector gave {} numbers for {cells} cells a side", x.len());
        }
        Ok((x, cells))
    }
}

/// Both networks.
pub(crate) fn load() -> Result<(DetectorNet, LandmarkNet)> {
    let mut weights = Weights::read(WEIGHTS)?;
    Ok((DetectorNet::load(&mut weights)?, LandmarkNet::load(&mut weights)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_weights_are_an_error() {
        for cut in [0, 7, 8, 100, WEIGHTS.len() / 2, WEIGHTS.len() - 1] {
            let read = Weights::read(&WEIGHTS[..cut]).and_then(|mut w| LandmarkNet::load(&mut w));
            assert!(read.is_err(), "{cut} bytes");
        }
        assert!(load().is_ok());
    }
}
