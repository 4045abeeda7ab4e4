//! The video front end: a convolution over frames, and a ResNet-18 (He et al., arXiv 1512.03385) on each frame, as Stafylakis and
//! Tzimiropoulos combined them for lip reading (arXiv 1703.04105).
//!
//! ```text
//! [b, t, 88, 88] ─ conv 5x7x7 / 2, BN, PReLU ─ max 3x3 / 2 ─▶ [b, t, 22, 22, 64] ─ 4 stages of 2 blocks ─ mean ─▶ [b, t, 512]
//! ```

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::conv::{ClipConv, Windows, max_pool, unfold_clips};
use moesaic_kernels::{Init, Params, linear};

use super::config::{AvHubertConfig, ResNetRelu};

/// BatchNorm's, which no config names.
const EPS: f64 = 1e-5;
/// PReLU's slope before training.
const SLOPE: f64 = 0.25;
/// Frames whose pixels are worked on at once: some of them fit the cache, and the memory of a long clip stays small.
const FRAMES: usize = 16;

/// The convolution over frames.
const STEM: Windows = Windows { size: [5, 7, 7], stride: [1, 2, 2], pad: [(2, 2), (3, 3), (3, 3)] };
const POOL: Windows = Windows::square(3, 2, 1);

#[derive(Debug)]
enum Map {
    /// In tiles, with its norm folded in.
    Packed(ClipConv),
    /// Variables: `weight [out, in, size..]` as it is stored, since a copy of it would not learn; the norm's weight, bias, mean and
    /// variance `[out]`; slopes `[out]`.
    Plain { weight: Tensor, norm: [Tensor; 4], slope: Option<Tensor> },
}

/// A convolution without bias, its norm (by the statistics of training), and slopes for negative values.
#[derive(Debug)]
struct Unit(Map);

/// Names of a unit's parts.
struct Names<'a> {
    conv: &'a str,
    norm: &'a str,
    relu: Option<&'a str>,
}

impl Unit {
    /// `{conv}.weight [out, in, size..]`, `{norm}.{weight, bias, running_mean, running_var} [out]`, `{relu}.weight [out]`.
    fn load(
        p: &Params,
        cfg: &AvHubertConfig,
        names: Names<'_>,
        (out, inputs): (usize, usize),
        windows: &Windows,
        over_time: bool,
    ) -> Result<Self> {
        let [kt, kh, kw] = windows.size;
        let init = Init::Normal((2.0 / (kt * kh * kw * out) as f64).sqrt()); // He et al., as the paper of ResNet
        let shape = if over_time { vec![out, inputs, kt, kh, kw] } else { vec![out, inputs, kh, kw] };
        let weight = p.pp(names.conv).tensor("weight", shape, init)?;
        let norm = p.pp(names.norm);
        let of = |name: &str, init| norm.tensor(name, [out], init)?.to_dtype(DType::F32);
        // Statistics are not trained by gradients.
        let (mean, variance) = (of("running_mean", Init::Zeros)?.detach(), of("running_var", Init::Ones)?.detach());
        let norm = [of("weight", Init::Ones)?, of("bias", Init::Zeros)?, mean, variance];
        let slope = match (names.relu, cfg.resnet_relu_type) {
            (None, _) => None,
            (Some(name), ResNetRelu::Prelu) => {
                Some(p.pp(name).tensor("weight", [out], Init::Constant(SLOPE))?.to_dtype(DType::F32)?)
            }
            (Some(_), ResNetRelu::Relu) => Some(Tensor::zeros(out, DType::F32, p.device())?),
        };
        let unit = Self(Map::Plain { weight, norm, slope });
        if p.packs() { unit.pack() } else { Ok(unit) }
    }

    fn pack(self) -> Result<Self> {
        match &self.0 {
            Map::Packed(_) => Ok(self),
            Map::Plain { weight, norm, slope } => {
                let (weight, bias) = fold(&filters(weight)?, norm)?;
                Ok(Self(Map::Packed(ClipConv::new(&weight, &bias, slope.as_ref())?)))
            }
        }
    }

    /// `x [n, t, h, w, in]`, and what is added before slopes, to `[n, t', h', w', out]`
    fn forward(&self, x: &Tensor, windows: &Windows, residual: Option<&Tensor>) -> Result<Tensor> {
        let (weight, norm, slope) = match &self.0 {
            Map::Packed(conv) => return conv.forward(x, windows, residual),
            Map::Plain { weight, norm, slope } => (weight, norm, slope),
        };
        let (n, t, h, w, _) = x.dims5()?;
        let (weight, bias) = fold(&filters(weight)?, norm)?;
        let y = linear(&unfold_clips(x, windows)?, &weight, Some(&bias))?;
        // Windows that unfold_clips found are there.
        let [t, h, w] = windows.count([t, h, w]).unwrap_or_default();
        let y = y.reshape((n, t, h, w, ()))?;
        let y = if let Some(residual) = residual { (y + residual)? } else { y };
        match slope {
            None => Ok(y),
            Some(slope) => y.relu()? - y.neg()?.relu()?.broadcast_mul(slope)?,
        }
    }
}

/// `[out, in, size..]` to `[out, window]`, channels last, as the values of a window.
fn filters(weight: &Tensor) -> Result<Tensor> {
    let weight = weight.to_dtype(DType::F32)?;
    let weight = match weight.rank() {
        5 => weight.permute((0, 2, 3, 4, 1))?,
        _ => weight.permute((0, 2, 3, 1))?,
    };
    weight.contiguous()?.flatten_from(1)
}

/// Weight and bias of a convolution with its norm in them.
fn fold(weight: &Tensor, [scale, bias, mean, variance]: &[Tensor; 4]) -> Result<(Tensor, Tensor)> {
    let scale = (scale / (variance + EPS)?.sqrt()?)?;
    Ok((weight.broadcast_mul(&scale.unsqueeze(1)?)?, (bias - (mean * scale)?)?))
}

/// Two convolutions beside a shortcut.
#[derive(Debug)]
struct Block {
    first: Unit,
    second: Unit,
    /// Where the shapes of both sides differ.
    shortcut: Option<Unit>,
    stride: usize,
}

impl Block {
    fn load(p: &Params, cfg: &AvHubertConfig, (out, inputs): (usize, usize), stride: usize) -> Result<Self> {
        let unit = |conv, norm, relu, inputs, windows: Windows| {
            Unit::load(p, cfg, Names { conv, norm, relu }, (out, inputs), &windows, false)
        };
        let shortcut = match stride != 1 || inputs != out {
            true => Some(unit("downsample.0", "downsample.1", None, inputs, Windows::square(1, stride, 0))?),
            false => None,
        };
        Ok(Self {
            first: unit("conv1", "bn1", Some("relu1"), inputs, Windows::square(3, stride, 1))?,
            second: unit("conv2", "bn2", Some("relu2"), out, Windows::square(3, 1, 1))?,
            shortcut,
            stride,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.first.forward(x, &Windows::square(3, self.stride, 1), None)?;
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, &Windows::square(1, self.stride, 0), None)?,
            None => x.clone(),
        };
        self.second.forward(&y, &Windows::square(3, 1, 1), Some(&residual))
    }
}

/// Frames of grey pixels to features, one for each frame.
#[derive(Debug)]
pub(super) struct VideoFront {
    stem: Unit,
    blocks: Vec<Block>,
    /// Pixels of a side that become one first.
    pool: usize,
}

impl VideoFront {
    /// The tensors of `resnet`.
    pub(super) fn load(p: &Params, cfg: &AvHubertConfig) -> Result<Self> {
        let names = Names { conv: "frontend3D.0", norm: "frontend3D.1", relu: Some("frontend3D.2") };
        let stem = Unit::load(p, cfg, names, (cfg.resnet_frontend_channels, 1), &STEM, true)?;
        let (mut blocks, mut inputs) = (Vec::new(), cfg.resnet_frontend_channels);
        for (stage, &out) in cfg.resnet_planes.iter().enumerate() {
            for block in 0..2 {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let p = p.pp(format!("trunk.layer{}.{block}", stage + 1));
                blocks.push(Block::load(&p, cfg, (out, inputs), stride)?);
                inputs = out;
            }
        }
        Ok(Self { stem, blocks, pool: cfg.resnet_input_pool })
    }

    /// `video [b, t, h, w]` to features `[b, t, c]` and, if `keep`, what leaves the stem, `[b, t, h / 4, w / 4, c0]`.
    pub(super) fn forward(&self, video: &Tensor, keep: bool) -> Result<(Tensor, Option<Tensor>)> {
        let (b, t, h, w) = video.dims4()?;
        let pooled = match self.pool {
            1 => None,
            pool if pool <= h.min(w) => Some(video.avg_pool2d(pool)?), // (b, t, h / pool, w / pool)
            pool => bail!("frames of {h}x{w} pixels, of which {pool}x{pool} become one (resnet_input_pool)"),
        };
        let video = pooled.as_ref().unwrap_or(video);
        let (mut features, mut stems) = (Vec::new(), Vec::new());
        for row in 0..b {
            let video = video.narrow(0, row, 1)?;
            for first in (0..t).step_by(FRAMES) {
                let end = t.min(first + FRAMES);
                // The frames that windows reach beyond those of the block; beyond the clip they are zeros.
                let (before, after) = (first.min(STEM.pad[0].0), (t - end).min(STEM.pad[0].1));
                let x = video.narrow(1, first - before, end + after - first + before)?.unsqueeze(4)?;
                let mut windows = STEM;
                windows.pad[0] = (STEM.pad[0].0 - before, STEM.pad[0].1 - after);
                let x = max_pool(&self.stem.forward(&x, &windows, None)?, &POOL)?; // (1, frames, 22, 22, c0)
                if keep {
                    stems.push(x.clone());
                }
                let mut x = x.squeeze(0)?.unsqueeze(1)?; // (frames, 1, 22, 22, c0)
                for block in &self.blocks {
                    x = block.forward(&x)?;
                }
                features.push(x.flatten(1, 3)?.mean(1)?); // (frames, c)
            }
        }
        let features = Tensor::cat(&features, 0)?.reshape((b, t, ()))?;
        let stems = match keep {
            true => {
                let stems = Tensor::cat(&stems, 1)?;
                let (_, _, h, w, c) = stems.dims5()?;
                Some(stems.reshape((b, t, h, w, c))?)
            }
            false => None,
        };
        Ok((features, stems))
    }
}
