//! The vision tower of Qwen3-VL (as `transformers` 4.57 computes it): patches of pairs of frames, positions interpolated and
//! rotary in two dimensions, cells of 2 x 2 patches merged into tokens, features of earlier layers for the first layers of
//! the backbone (deep-stack, arXiv 2406.04334).
//!
//! ```text
//! x = patches W + b + positions of the grid
//! for each layer: x = x + attention(norm1(x));  x = x + mlp(norm2(x));  tap = merge(x) after some
//! token = W2 gelu(W1 [norm(x) of four patches])
//! ```

use candle_core::{DType, Device, Result, Tensor, bail};
use moesaic_kernels::ops::layer_norm;
use moesaic_kernels::{Activation, CausalAttention, Init, Linear, Modality, Params, Tokens};

use crate::blocks::{Mlp, Norm, linear};
use crate::config;

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq)]
pub struct Qwen3VlConfig {
    /// Width of a patch.
    pub hidden_size: usize,
    /// Width inside the networks.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a token of the backbone.
    pub out_hidden_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Patches of a token's side.
    pub merge: usize,
    /// Stored positions along a side.
    pub positions: usize,
    /// Between the two maps of a network.
    pub activation: Activation,
    /// Layers whose output is tapped, in the order of the backbone's layers.
    pub taps: Vec<usize>,
}

impl Qwen3VlConfig {
    /// Translates the `vision_config` of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let map = config::parse(text)?;
        let object = config::vision(&map);
        let (hidden_size, layers) = (object.size("hidden_size", Some(1152))?, object.size("depth", Some(27))?);
        let positions = object.size("num_position_embeddings", Some(2304))?;
        let heads = config::heads(object.size("num_heads", Some(16))?, hidden_size)?;
        if positions.isqrt().pow(2) != positions || !(hidden_size / heads).is_multiple_of(4) {
            bail!(
                "config.json: {positions} positions are no square, or heads of {} have no two axes",
                hidden_size / heads
            );
        }
        let taps = match object.0.get("deepstack_visual_indexes").and_then(|v| v.as_array()) {
            None => vec![8, 16, 24],
            Some(all) => match all.iter().map(|v| v.as_u64().map(|i| i as usize)).collect::<Option<Vec<_>>>() {
                Some(all) => all,
                None => bail!("config.json: deepstack_visual_indexes are not numbers of layers"),
            },
        };
        if let Some(tap) = taps.iter().find(|t| **t >= layers) {
            bail!("config.json: deepstack_visual_indexes name layer {tap} of {layers}");
        }
        Ok(Self {
            hidden_size,
            intermediate_size: object.size("intermediate_size", Some(4304))?,
            layers,
            heads,
            out_hidden_size: object.size("out_hidden_size", Some(3584))?,
            patch_size: object.size("patch_size", Some(16))?,
            temporal_patch_size: object.size("temporal_patch_size", Some(2))?,
            merge: object.size("spatial_merge_size", Some(2))?,
            positions: positions.isqrt(),
            activation: Activation::from_name(&object.name("hidden_act", "gelu_pytorch_tanh")?)?,
            taps,
        })
    }
}

/// A layer.
#[derive(Debug)]
struct Layer {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    mlp: Mlp,
}

/// Merges cells of patches into tokens.
#[derive(Debug)]
struct Merger {
    weight: Tensor,
    bias: Tensor,
    /// The norm is over all patches of a cell.
    whole: bool,
    maps: [Linear; 2],
}

const EPS: f64 = 1e-6;

impl Merger {
    fn load(cfg: &Qwen3VlConfig, p: &Params, whole: bool) -> Result<Self> {
        let (wide, init) = (cfg.hidden_size * cfg.merge * cfg.merge, Init::Normal(0.02));
        let n = if whole { wide } else { cfg.hidden_size };
        Ok(Self {
            weight: p.tensor("norm.weight", [n], Init::Ones)?.to_dtype(DType::F32)?,
            bias: p.tensor("norm.bias", [n], Init::Zeros)?.to_dtype(DType::F32)?,
            whole,
            maps: [
                Linear::load(p, "linear_fc1", (wide, wide), true, init)?,
                Linear::load(p, "linear_fc2", (cfg.out_hidden_size, wide), true, init)?,
            ],
        })
    }

    /// `x [cells * patches, h]` to `[cells, out]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, h) = x.dims2()?;
        let wide = self.maps[0].input_width();
        let cells = (n * h / wide, wide);
        let norm = |x: &Tensor| layer_norm(x, &self.weight, Some(&self.bias), EPS);
        let x = if self.whole { norm(&x.reshape(cells)?)? } else { norm(x)?.reshape(cells)? };
        self.maps[1].forward(&Activation::Gelu.apply(&self.maps[0].forward(&x)?)?)
    }
}

/// The vision tower of Qwen3-VL.
#[derive(Debug)]
pub struct Qwen3VlVision {
    config: Qwen3VlConfig,
    patches: Linear,
    positions: Tensor,
    layers: Vec<Layer>,
    merger: Merger,
    tap_mergers: Vec<Merger>,
}

impl Qwen3VlVision {
    /// A tower of tensors `patch_embed`, `pos_embed`, `blocks`, `merger`, `deepstack_merger_list` of `p` (`model.visual`).
    pub fn new(config: Qwen3VlConfig, p: &Params) -> Result<Self> {
        let (h, init) = (config.hidden_size, Init::Normal(0.02));
        let (t, side) = (config.temporal_patch_size, config.patch_size);
        let parts = [("patch_embed.proj.weight".to_string(), vec![h, 3, t, side, side])];
        let weight = p.stack(&[h, 3 * t * side * side], &parts, init)?;
        let bias = p.tensor("patch_embed.proj.bias", [h], Init::Zeros)?;
        let layer = |i: usize| -> Result<Layer> {
            let p = p.pp("blocks").pp(i);
            let maps = ["linear_fc1", "linear_fc2"];
            Ok(Layer {
                norm1: Norm::load(&p, "norm1", h, EPS)?,
                qkv: Linear::load(&p, "attn.qkv", (3 * h, h), true, init)?,
                proj: Linear::load(&p, "attn.proj", (h, h), true, init)?,
                norm2: Norm::load(&p, "norm2", h, EPS)?,
                mlp: Mlp::load(&p.pp("mlp"), maps, (h, config.intermediate_size), config.activation)?,
            })
        };
        let tap = |i: usize| Merger::load(&config, &p.pp("deepstack_merger_list").pp(i), true);
        Ok(Self {
            patches: linear(p, weight, Some(bias))?,
            positions: p.tensor("pos_embed.weight", [config.positions.pow(2), h], init)?.to_dtype(DType::F32)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            merger: Merger::load(&config, &p.pp("merger"), false)?,
            tap_mergers: (0..config.taps.len()).map(tap).collect::<Result<_>>()?,
            config,
        })
    }

    /// Tokens of each picture or video, with positions in time, row and column, and a tap for each of the first layers of the
    /// backbone.
    ///
    /// # Shapes
    /// `patches [n, 3 * frames * side * side]`, cell after cell, those of each of `grids` `(t, rows, columns)` behind each
    /// other, to `[1, t * rows * columns / merge^2, out]` each
    pub fn forward(&self, patches: &Tensor, grids: &[(usize, usize, usize)]) -> Result<Vec<Tokens>> {
        let n = patches.dim(0)?;
        let mut start = 0;
        let mut all = Vec::new();
        for &(t, rows, columns) in grids {
            let m = self.config.merge;
            let count = t.checked_mul(rows).and_then(|n| n.checked_mul(columns)).unwrap_or(usize::MAX);
            if count == 0 || rows % m != 0 || columns % m != 0 || count > n - start {
                bail!("a grid of {t} x {rows} x {columns} does not fit {n} patches in cells of {m} x {m}");
            }
            all.push(self.one(&patches.narrow(0, start, count)?, (t, rows, columns))?);
            start += count;
        }
        if start != n {
            bail!("{n} patches, but the grids have {start}");
        }
        Ok(all)
    }

    fn one(&self, patches: &Tensor, (t, rows, columns): (usize, usize, usize)) -> Result<Tokens> {
        let Qwen3VlConfig { hidden_size: h, heads, merge, .. } = self.config;
        let (d, frame) = (h / heads, rows * columns);
        let order = cells(rows, columns, merge);
        // The processor leaves patches on the CPU.
        let x = self.patches.forward(&patches.to_device(self.positions.device())?.to_dtype(DType::F32)?)?;
        let positions = self.interpolated(&order, rows, columns)?; // (rows * columns, h)
        let mut x = x.reshape((t, frame, h))?.broadcast_add(&positions.unsqueeze(0)?)?.reshape((t * frame, h))?;
        // Angles of a head's pairs: rows for the first half of them, columns for the second.
        let angles: Vec<f32> = order
            .iter()
            .flat_map(|&(r, c)| {
                let frequency = move |j: usize| 10_000f64.powf(-((j % (d / 4)) as f64) / (d / 4) as f64);
                (0..d).map(move |i| {
                    let j = i % (d / 2);
                    let at = if j < d / 4 { r } else { c };
                    (at as f64 * frequency(j)) as f32
                })
            })
            .collect();
        let angles = Tensor::from_vec(angles, (1, frame, 1, d), x.device())?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let turn = |q: Tensor| -> Result<Tensor> {
            let half = Tensor::cat(&[q.narrow(3, d / 2, d / 2)?.neg()?, q.narrow(3, 0, d / 2)?], 3)?;
            q.broadcast_mul(&cos)? + half.broadcast_mul(&sin)?
        };
        let attention = CausalAttention::everywhere(1.0 / (d as f64).sqrt());
        let mut taps = vec![None; self.config.taps.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            // A frame sees itself alone.
            let qkv = layer.qkv.forward(&layer.norm1.forward(&x)?)?.reshape((t, frame, 3 * heads, d))?;
            let part = |i: usize| qkv.narrow(2, i * heads, heads)?.contiguous();
            let y = attention.forward(&turn(part(0)?)?, &turn(part(1)?)?, &part(2)?)?.reshape((t * frame, h))?;
            x = (x + layer.proj.forward(&y)?)?;
            x = (&x + layer.mlp.forward(&layer.norm2.forward(&x)?)?)?;
            for ((tap, merger), _) in
                taps.iter_mut().zip(&self.tap_mergers).zip(&self.config.taps).filter(|(_, at)| **at == i)
            {
                *tap = Some(merger.forward(&x)?.unsqueeze(0)?);
            }
        }
        let tokens = Tokens::new(self.merger.forward(&x)?.unsqueeze(0)?, Modality::Image);
        let positions = grid_positions(t, rows / merge, columns / merge, x.device())?;
        Ok(Tokens { taps: taps.into_iter().flatten().collect(), positions, ..tokens })
    }

    /// The stored positions at the places of a grid, bilinear with the corners on the corners.
    fn interpolated(&self, order: &[(usize, usize)], rows: usize, columns: usize) -> Result<Tensor> {
        let side = self.config.positions;
        let along = |i: usize, n: usize| {
            let at = if n > 1 { i as f32 * ((side - 1) as f32 / (n - 1) as f32) } else { 0.0 };
            let low = (at as usize).min(side - 1);
            (low, (low + 1).min(side - 1), at - low as f32)
        };
        let mut weights = vec![0f32; order.len() * side * side];
        for (row, &(r, c)) in weights.chunks_exact_mut(side * side).zip(order) {
            let ((r0, r1, dr), (c0, c1, dc)) = (along(r, rows), along(c, columns));
            for (at, w) in [(r0, 1.0 - dr), (r1, dr)] {
                row[at * side + c0] += w * (1.0 - dc);
                row[at * side + c1] += w * dc;
            }
        }
        Tensor::from_vec(weights, (order.len(), side * side), self.positions.device())?.matmul(&self.positions)
    }
}

/// Time, row and column of each token, `[1, t * rows * columns]` each: three streams of positions (arXiv 2409.12191, section
/// 2.1).
fn grid_positions(t: usize, rows: usize, columns: usize, device: &Device) -> Result<Vec<Tensor>> {
    let n = t * rows * columns;
    let stream = |of: &dyn Fn(usize) -> usize| Tensor::from_iter((0..n).map(|i| of(i) as u32), device)?.reshape((1, n));
    Ok(vec![stream(&|i| i / (rows * columns))?, stream(&|i| i / columns % rows)?, stream(&|i| i % columns)?])
}

/// Rows and columns of a frame's patches, cell after cell.
fn cells(rows: usize, columns: usize, merge: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::with_capacity(rows * columns);
    for r in (0..rows).step_by(merge) {
        for c in (0..columns).step_by(merge) {
            all.extend((0..merge * merge).map(|i| (r + i / merge, c + i % merge)));
        }
    }
    all
}
