//! What the speech encoders are made of.

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::checkpoint::Checkpoint;
use moesaic_kernels::conv::unfold;
use moesaic_kernels::ops::{gelu, layer_norm, softmax};
use moesaic_kernels::{Activation, CausalAttention, ExpertBank, Init, Linear, Params, linear};

/// Widest vector that a config may ask for: above it, it is a mistake.
pub(super) const WIDEST: usize = 1 << 20;
/// Most layers, heads and the like.
pub(super) const MOST: usize = 1 << 12;

/// Checks that `1 <= value <= most`.
pub(super) fn size(name: &str, value: usize, most: usize) -> Result<()> {
    if value == 0 || value > most {
        bail!("{name} is {value}, expected 1 to {most}; check config.json");
    }
    Ok(())
}

/// A LayerNorm, in f32.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    /// `{name}.weight [h]` and `{name}.bias [h]`.
    pub(super) fn load(p: &Params, name: &str, h: usize, eps: f64) -> Result<Self> {
        let p = p.pp(name);
        let weight = p.tensor("weight", [h], Init::Ones)?.to_dtype(DType::F32)?;
        Ok(Self { weight, bias: p.tensor("bias", [h], Init::Zeros)?.to_dtype(DType::F32)?, eps })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, Some(&self.bias), self.eps)
    }
}

/// The activation, with gradients.
pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu => gelu(x),
        other => other.apply(x),
    }
}

/// Shape of a convolution over time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) size: usize,
    pub(super) stride: usize,
    /// Zero frames before and after.
    pub(super) pad: (usize, usize),
}

#[derive(Debug)]
enum Map {
    /// `[out, size * in]` in tiles.
    Packed(Linear),
    /// `[out, in, size]` as published: a variable.
    Plain { weight: Tensor, bias: Option<Tensor> },
}

/// A convolution over time, as a linear map of windows.
#[derive(Debug)]
pub(super) struct Convolution {
    kernel: Kernel,
    map: Map,
}

/// `[out, in, size]` as rows for windows, `[out, size * in]`.
fn rows(weight: &Tensor) -> Result<Tensor> {
    weight.permute((0, 2, 1))?.contiguous()?.flatten_from(1)
}

/// Output frames that are computed at once where no gradient is wanted: windows overlap, so that all of them together take
/// several times the memory of the frames.
const FRAMES: usize = 4096;

impl Convolution {
    /// `{name}.weight [out, in, size]` and, if `bias`, `{name}.bias [out]`.
    pub(super) fn load(p: &Params, name: &str, kernel: Kernel, bias: bool) -> Result<Self> {
        let (p, Kernel { inputs, outputs, size, .. }) = (p.pp(name), kernel);
        let init = Init::Normal((2.0 / (inputs * size) as f64).sqrt()); // He et al., arXiv 1502.01852
        let weight = p.tensor("weight", [outputs, inputs, size], init)?;
        let bias = if bias { Some(p.tensor("bias", [outputs], Init::Zeros)?) } else { None };
        Self::new(p.packs(), weight, bias, kernel)
    }

    /// Of tensors that are there, in tiles or as they are.
    pub(super) fn new(packed: bool, weight: Tensor, bias: Option<Tensor>, kernel: Kernel) -> Result<Self> {
        let map = match packed {
            false => Map::Plain { weight, bias },
            true => Map::Packed(Linear::new(rows(&weight)?, bias)?.pack()?.narrow()),
        };
        Ok(Self { kernel, map })
    }

    /// Frames that come of `t` frames.
    pub(super) fn frames(&self, t: usize) -> usize {
        let Kernel { size, stride, pad, .. } = self.kernel;
        (t + pad.0 + pad.1).checked_sub(size).map_or(0, |t| t / stride + 1)
    }

    /// `x [b, t, in]` to `[b, frames(t), out]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Kernel { size, stride, pad, .. } = self.kernel;
        let frames = self.frames(x.dim(1)?);
        let x = if pad == (0, 0) { x.clone() } else { x.pad_with_zeros(1, pad.0, pad.1)? };
        match &self.map {
            Map::Plain { weight, bias } => linear(&unfold(&x, size, stride)?, &rows(weight)?, bias.as_ref()),
            Map::Packed(map) if frames > FRAMES && !x.track_op() => {
                let block = |first: usize| {
                    let count = FRAMES.min(frames - first);
                    map.forward(&unfold(&x.narrow(1, first * stride, (count - 1) * stride + size)?, size, stride)?)
                };
                Tensor::cat(&(0..frames).step_by(FRAMES).map(block).collect::<Result<Vec<_>>>()?, 1)
            }
            Map::Packed(map) => map.forward(&unfold(&x, size, stride)?),
        }
    }
}

/// `down(act(up x))` with biases.
pub(super) fn mlp(
    p: &Params,
    [up, down]: [&str; 2],
    (h, i): (usize, usize),
    act: Activation,
    init: Init,
) -> Result<ExpertBank> {
    let one = |name: &str, what: &str, part: &[usize], shape: &[usize], init| {
        p.stack(shape, &[(format!("{name}.{what}"), part.to_vec())], init)
    };
    let bank = ExpertBank::mlp(
        one(up, "weight", &[i, h], &[1, i, h], init)?,
        one(down, "weight", &[h, i], &[1, h, i], init)?,
        act,
    )?;
    let bank = bank.with_biases(
        Some(one(up, "bias", &[i], &[1, i], Init::Zeros)?),
        Some(one(down, "bias", &[h], &[1, h], Init::Zeros)?),
    )?;
    if p.packs() { Ok(bank.pack()?.narrow()) } else { Ok(bank) }
}

/// `x [b, t, h]` through a dense network.
pub(super) fn dense(bank: &ExpertBank, x: &Tensor) -> Result<Tensor> {
    let (b, t, h) = x.dims3()?;
    bank.forward_dense(&x.reshape((b * t, h))?)?.reshape((b, t, ()))
}

/// What is added to the scores of attention: `gate * position`.
pub(super) struct Bias<'a> {
    /// `[b, heads, t]`
    pub(super) gate: &'a Tensor,
    /// By offset from query to key, from `1 - t` to `t - 1`: `[2 t - 1, heads]`.
    pub(super) position: &'a Tensor,
}

/// Queries whose scores are held at once, where they have a bias.
const QUERIES: usize = 256;

/// `softmax(q k^T / sqrt(d) + bias) v`, each row of the batch over its own `lengths` only. Outputs at padding are zeros. A row
/// has the same bits alone and in a batch.
///
/// # Shapes
/// `q`, `k`, `v` `[b, t, heads * d]` to the same
pub(super) fn attend(
    qkv: [&Tensor; 3],
    heads: usize,
    lengths: Option<&[usize]>,
    bias: Option<&Bias<'_>>,
) -> Result<Tensor> {
    let (b, t, width) = qkv[0].dims3()?;
    if lengths.is_none() && bias.is_none() {
        return fused(qkv, heads);
    }
    let row = |i: usize| {
        let n = lengths.and_then(|l| l.get(i)).map_or(t, |&n| n.min(t));
        if n == 0 {
            return Tensor::zeros((1, t, width), qkv[0].dtype(), qkv[0].device());
        }
        let [q, k, v] = qkv.map(|x| x.narrow(0, i, 1)?.narrow(1, 0, n));
        let qkv = [&q?, &k?, &v?];
        let out = match bias {
            None => fused(qkv, heads)?,
            Some(Bias { gate, position }) => biased(qkv, heads, &gate.get(i)?, position)?,
        };
        if n < t { out.pad_with_zeros(1, 0, t - n) } else { Ok(out) }
    };
    Tensor::cat(&(0..b).map(row).collect::<Result<Vec<_>>>()?, 0)
}

/// `q`, `k`, `v` `[b, t, heads * d]` to the same, all of each row real.
fn fused(qkv: [&Tensor; 3], heads: usize) -> Result<Tensor> {
    let (b, t, width) = qkv[0].dims3()?;
    let [q, k, v] = qkv.map(|x| x.contiguous()?.reshape((b, t, heads, width / heads)));
    let attention = CausalAttention::everywhere(1.0 / ((width / heads) as f64).sqrt());
    attention.forward(&q?, &k?, &v?)?.reshape((b, t, width))
}

/// `q`, `k`, `v` `[1, n, heads * d]`, `gate [heads, t]` and `position [2 t - 1, heads]` with `t >= n`, to `[1, n, heads * d]`.
fn biased(qkv: [&Tensor; 3], heads: usize, gate: &Tensor, position: &Tensor) -> Result<Tensor> {
    let (_, n, width) = qkv[0].dims3()?;
    let (t, d) = (gate.dim(1)?, width / heads);
    let [q, k, v] = qkv.map(|x| x.reshape((n, heads, d))?.transpose(0, 1)?.contiguous()); // (heads, n, d)
    let (q, k, v) = ((q? * (1.0 / (d as f64).sqrt()))?, k?.transpose(1, 2)?, v?);
    let block = |first: usize| {
        let count = QUERIES.min(n - first);
        let scores = q.narrow(1, first, count)?.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?; // (heads, count, n)
        let offsets = (first..first + count).flat_map(|i| (0..n).map(move |j| (t - 1 + j - i) as u32));
        let offsets = Tensor::from_iter(offsets, position.device())?;
        let position = position.index_select(&offsets, 0)?.t()?.reshape((heads, count, n))?;
        let gate = gate.narrow(1, first, count)?.unsqueeze(2)?;
        softmax(&(scores + position.broadcast_mul(&gate)?)?)?.to_dtype(v.dtype())?.matmul(&v)
    };
    let blocks = (0..n).step_by(QUERIES).map(block).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&blocks, 1)?.transpose(0, 1)?.reshape((1, n, width))
}

/// 1 for the first `lengths` of `t` frames, 0 after them: `[b, t]` of u32.
pub(super) fn mask(lengths: &[usize], t: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<u32> = lengths.iter().flat_map(|&n| (0..t).map(move |i| u32::from(i < n))).collect();
    Tensor::from_vec(values, (lengths.len(), t), device)
}

/// The first of `prefixes` under which the checkpoint has `name`.
///
/// # Errors
/// There is none: it is of another model.
pub(super) fn prefix<'a>(checkpoint: &Checkpoint, prefixes: &[&'a str], name: &str, model: &str) -> Result<&'a str> {
    match prefixes.iter().find(|prefix| checkpoint.info(&format!("{prefix}{name}")).is_some()) {
        Some(prefix) => Ok(prefix),
        None => bail!(
            "{}: holds no {model} encoder, which has a tensor {name}; give the folder of a {model} model",
            checkpoint.label()
        ),
    }
}

/// Fails where the checkpoint has tensors that `ours` says belong to the model, and that it never asked for.
pub(super) fn all_used(
    checkpoint: &Checkpoint,
    params: &Params,
    model: &str,
    ours: impl Fn(&str) -> bool,
) -> Result<()> {
    let unknown: Vec<String> = params.unused().into_iter().filter(|name| ours(name)).collect();
    match unknown.as_slice() {
        [] => Ok(()),
        [first, ..] => bail!(
            "{}: {} tensors do not belong to a {model} encoder of this config, the first is {first}; check config.json",
            checkpoint.label(),
            unknown.len()
        ),
    }
}

/// `config.json` of a model's folder.
pub(super) fn read_config<T: serde::de::DeserializeOwned>(dir: &std::path::Path) -> Result<T> {
    let path = dir.join("config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) => bail!("{}: cannot be read: {e}; give the folder of a model", path.display()),
    };
    match serde_json::from_str(&text) {
        Ok(config) => Ok(config),
        Err(e) => bail!("{}: {e}; take the file from the model's hub page", path.display()),
    }
}

/// `params` under a prefix that ends in a dot, or is empty.
pub(super) fn under(params: &Params, prefix: &str) -> Params {
    match prefix.strip_suffix('.') {
        Some(prefix) => params.pp(prefix),
        None => params.clone(),
    }
}
