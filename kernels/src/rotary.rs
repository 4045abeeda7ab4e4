//! Rotary position embedding (RoFormer, arXiv 2104.09864), with gradients.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{SendPtr, parallel};
use crate::host::{as_f32, storage_of};

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// Dimension `j` with `j + d/2` (Llama, Time-MoE).
    Half,
    /// Dimension `2j` with `2j + 1` (DeepSeek, Moirai-MoE).
    Interleaved,
}

/// Angles of rotary embedding: `position * inverse_frequency`.
#[derive(Clone, Debug)]
pub struct Rotary {
    inverse_frequencies: Vec<f64>,
    /// Multiplies cosines and sines; 1 but for some ways to stretch the context.
    factor: f64,
    style: RotaryStyle,
    /// The stream of positions that each frequency turns with; empty for one stream.
    streams: Vec<usize>,
}

impl Rotary {
    /// The usual frequencies `theta^(-2j/d)` over the first `dims` dimensions of a head.
    pub fn new(dims: usize, theta: f64, style: RotaryStyle) -> Result<Self> {
        if dims == 0 || !dims.is_multiple_of(2) {
            bail!("rotary embedding over {dims} dimensions; the number must be even and at least 2");
        }
        let inverse_frequencies = (0..dims / 2).map(|j| theta.powf(-2.0 * j as f64 / dims as f64)).collect();
        Ok(Self { inverse_frequencies, factor: 1.0, style, streams: Vec::new() })
    }

    /// Given inverse frequencies, one for every two dimensions; `factor` multiplies cosines and sines.
    pub fn from_frequencies(inverse_frequencies: Vec<f64>, factor: f64, style: RotaryStyle) -> Result<Self> {
        if inverse_frequencies.is_empty() || !inverse_frequencies.iter().chain([&factor]).all(|f| f.is_finite()) {
            bail!("rotary embedding needs at least one frequency, and finite ones: {inverse_frequencies:?} x {factor}");
        }
        Ok(Self { inverse_frequencies, factor, style, streams: Vec::new() })
    }

    /// The same with several streams of positions (Wang et al., arXiv 2409.12191, section 2.1): one number for each frequency,
    /// from 0 on, says which stream it turns with.
    pub fn with_streams(self, streams: Vec<usize>) -> Result<Self> {
        if streams.len() != self.inverse_frequencies.len() {
            bail!("rotary: streams for {} frequencies of {}", streams.len(), self.inverse_frequencies.len());
        }
        Ok(Self { streams, ..self })
    }

    /// Cosines and sines, `[b, t, d/2]` each in f32, of positions `[b, t]`, or of `[s, b, t]`: one for each of `s` streams.
    /// Angles are products of f32 values, as the references compute them.
    pub fn tables(&self, positions: &[u32], b: usize, t: usize) -> Result<RotaryTables> {
        RotaryTables::make(positions, b, t, |_| self)
    }
}

/// Cosines and sines of one batch, shared by its layers.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    cos: Tensor,
    sin: Tensor,
    style: RotaryStyle,
}

impl RotaryTables {
    /// The tables of a batch whose rows have frequencies of their own, as where these depend on a row's length.
    pub fn by_row(rotaries: &[Rotary], positions: &[u32], b: usize, t: usize) -> Result<Self> {
        let Some(first) = rotaries.first() else { bail!("rotary: a batch without rows") };
        let like = |r: &Rotary| (r.inverse_frequencies.len(), r.style, r.streams.clone());
        if rotaries.len() != b || rotaries.iter().any(|r| like(r) != like(first)) {
            bail!("rotary: {} rows of frequencies for {b} rows of tokens, or unlike ones", rotaries.len());
        }
        Self::make(positions, b, t, |row| &rotaries[row])
    }

    fn make<'a>(positions: &[u32], b: usize, t: usize, of: impl Fn(usize) -> &'a Rotary) -> Result<Self> {
        if positions.is_empty() || b * t == 0 || !positions.len().is_multiple_of(b * t) {
            bail!("rotary: {} positions for {b} rows of {t} tokens", positions.len());
        }
        let Rotary { inverse_frequencies, style, streams, .. } = of(0);
        let (half, style) = (inverse_frequencies.len(), *style);
        let given = positions.len() / (b * t);
        if given > 1 && streams.iter().max().is_none_or(|&s| s >= given) {
            bail!(
                "rotary: {given} streams of positions for a model with {}",
                streams.iter().max().map_or(1, |s| s + 1)
            );
        }
        let (mut cos, mut sin) = (Vec::with_capacity(b * t * half), Vec::with_capacity(b * t * half));
        let mut push = |angle: f32, factor: f32| {
            cos.push(angle.cos() * factor);
            sin.push(angle.sin() * factor);
        };
        for (row, first) in positions[..b * t].chunks_exact(t).enumerate() {
            let rotary = of(row);
            let factor = rotary.factor as f32;
            for (i, &p) in first.iter().enumerate() {
                if given == 1 {
                    rotary.inverse_frequencies.iter().for_each(|&f| push(p as f32 * f as f32, factor));
                    continue;
                }
                for (&f, &stream) in rotary.inverse_frequencies.iter().zip(&rotary.streams) {
                    push(positions[(stream * b + row) * t + i] as f32 * f as f32, factor);
                }
            }
        }
        let shape = (b, t, half);
        let (cos, sin) = (Tensor::from_vec(cos, shape, &Device::Cpu)?, Tensor::from_vec(sin, shape, &Device::Cpu)?);
        Ok(Self { cos, sin, style })
    }

    /// `[b, t, d/2]`
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// `[b, t, d/2]`
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// Turns the first dimensions of every head.
    ///
    /// # Shapes
    /// `x [b, t, heads, d]` to the same
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, heads, d) = x.dims4()?;
        let rotate = Rotate { style: self.style, sign: 1.0, heads, turned: heads, d };
        if self.cos.dims()[..2] != [b, t] {
            bail!("rotary: tables for {:?} tokens, input {:?}", &self.cos.dims()[..2], x.dims());
        }
        if composed::wanted(x) {
            return composed::rotary(x, &self.cos, &self.sin, self.style, heads);
        }
        x.contiguous()?.apply_op3(&self.cos, &self.sin, rotate)
    }

    /// Turns the first `turned` of `heads` heads of a joint projection, whose last heads are values.
    ///
    /// # Shapes
    /// `x [b * t, heads * d]` to the same
    pub fn apply_joint(&self, x: &Tensor, heads: usize, turned: usize) -> Result<Tensor> {
        let (_, width) = x.dims2()?;
        if heads == 0 || turned > heads || !width.is_multiple_of(heads) {
            bail!("rotary: {:?} does not hold {heads} heads of which {turned} turn", x.dims());
        }
        if composed::wanted(x) {
            let (b, t, _) = self.cos.dims3()?;
            let apart = x.reshape((b, t, heads, width / heads))?;
            return composed::rotary(&apart, &self.cos, &self.sin, self.style, turned)?.reshape(x.shape());
        }
        let rotate = Rotate { style: self.style, sign: 1.0, heads, turned, d: width / heads };
        x.contiguous()?.apply_op3(&self.cos, &self.sin, rotate)
    }
}

#[derive(Clone, Copy)]
struct Rotate {
    style: RotaryStyle,
    /// -1 turns back: the gradient.
    sign: f32,
    heads: usize,
    turned: usize,
    d: usize,
}

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "moesaic-rotary"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (heads, d) = (self.heads, self.d);
        let token = heads * d;
        let (tokens, half) = match *l2.dims() {
            [b, t, half] if l1.shape().elem_count() == b * t * token && 2 * half <= d && l3.dims() == l2.dims() => {
                (b * t, half)
            }
            ref dims => bail!("rotary: tables of shape {dims:?} for input {:?} with heads of {d}", l1.dims()),
        };
        let mut y = as_f32(s1, l1, self.name())?.into_owned();
        let (cos, sin) = (as_f32(s2, l2, self.name())?, as_f32(s3, l3, self.name())?);
        let out = SendPtr::new(&mut y);
        parallel(tokens.div_ceil(32), tokens * token > 1 << 14, |block| {
            for i in block * 32..(block * 32 + 32).min(tokens) {
                let (cos, sin) = (&cos[i * half..][..half], &sin[i * half..][..half]);
                // SAFETY: each token's heads belong to one task.
                for head in unsafe { out.slice(i * token, token) }.chunks_exact_mut(d).take(self.turned) {
                    match self.style {
                        RotaryStyle::Half => {
                            let (first, second) = head[..2 * half].split_at_mut(half);
                            for j in 0..half {
                                let (a, b, s) = (first[j], second[j], self.sign * sin[j]);
                                first[j] = a * cos[j] - b * s;
                                second[j] = b * cos[j] + a * s;
                            }
                        }
                        RotaryStyle::Interleaved => {
                            for (j, pair) in head[..2 * half].chunks_exact_mut(2).enumerate() {
                                let (a, b, s) = (pair[0], pair[1], self.sign * sin[j]);
                                pair[0] = a * cos[j] - b * s;
                                pair[1] = b * cos[j] + a * s;
                            }
                        }
                    }
                }
            }
        });
        Ok((storage_of(y, s1.dtype(), self.name())?, l1.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rotate { sign: -self.sign, ..*self };
        Ok((Some(dy.contiguous()?.apply_op3_no_bwd(cos, sin, &back)?), None, None))
    }
}

/// Positions 0, 1, 2, ... of real tokens in a left-padded `mask [b, t]`: `cumsum(mask) - 1`, and 1 at padding, as
/// `transformers` derives them for generation.
pub fn positions_from_mask(mask: &Tensor) -> Result<Vec<u32>> {
    let rows = mask.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let mut positions = Vec::with_capacity(mask.elem_count());
    for row in rows {
        let mut next = 0;
        for m in row {
            if m == 0.0 {
                positions.push(1);
            } else {
                positions.push(next);
                next += 1;
            }
        }
    }
    Ok(positions)
}
