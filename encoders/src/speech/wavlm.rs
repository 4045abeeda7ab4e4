//! WavLM (Chen et al., "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing", arXiv 2110.13900): the
//! network of HuBERT with relative positions in the scores of attention, which every query weighs by a gate of its own.
//!
//! ```text
//! scores_ij = q_i k_j / sqrt(d) + g_i B[bucket(j - i)]        g_i = a_i (b_i c - 1) + 2,  (a_i, b_i) = sigmoid(u(x_i))
//! ```
//!
//! The first layer owns the table B for all; each layer has its own u and c. (Section 3.2 of the paper writes the gate as
//! two gates of a gated recurrent unit, which comes to the same.)

use candle_core::{D, DType, Result, Tensor, bail};
use moesaic_kernels::{Init, Params, linear};

use super::wave::{Kind, WaveConfig, wave_model};

const KIND: Kind = Kind { name: "WavLM", prefix: "wavlm.", relative: true };

wave_model! {
    /// The encoder of WavLM. Weights are of the dtype that they are loaded in, activations are f32 on the CPU.
    WavLm, KIND
}

/// A bias for each bucket of offsets and each head.
#[derive(Debug)]
pub(super) struct RelativePositions {
    /// `[buckets, heads]`
    table: Tensor,
    buckets: usize,
    farthest: usize,
}

impl RelativePositions {
    /// `rel_attn_embed.weight [buckets, heads]` of the first layer's attention.
    pub(super) fn load(cfg: &WaveConfig, p: &Params) -> Result<Self> {
        let (buckets, farthest) = (cfg.num_buckets, cfg.max_bucket_distance);
        if buckets < 4
            || !buckets.is_multiple_of(4)
            || buckets > 1 << 16
            || farthest <= buckets / 4
            || farthest > 1 << 24
        {
            bail!(
                "num_buckets is {buckets} and max_bucket_distance {farthest}; expected a multiple of 4, and more than a \
                 quarter of it"
            );
        }
        let init = Init::Normal(cfg.initializer_range);
        let table = p.tensor("rel_attn_embed.weight", [buckets, cfg.num_attention_heads], init)?;
        Ok(Self { table: table.to_dtype(DType::F32)?, buckets, farthest })
    }

    /// Half of the buckets are for keys after the query. Of each half, the first half has one bucket for an offset, the other
    /// wider and wider ones.
    fn bucket(&self, offset: i64) -> u32 {
        let half = self.buckets / 2;
        let exact = half / 2;
        let distance = offset.unsigned_abs() as usize;
        let bucket = if distance < exact {
            distance
        } else {
            // In f32 as the reference, whose rounding decides at the edges.
            let ratio = (distance as f32 / exact as f32).ln() / (self.farthest as f64 / exact as f64).ln() as f32;
            (exact + (ratio * (half - exact) as f32) as usize).min(half - 1)
        };
        (bucket + if offset > 0 { half } else { 0 }) as u32
    }

    /// Biases by offset from query to key, from `1 - t` to `t - 1`: `[2 t - 1, heads]`.
    pub(super) fn forward(&self, t: usize) -> Result<Tensor> {
        let last = t as i64 - 1;
        let buckets = Tensor::from_iter((-last..=last).map(|offset| self.bucket(offset)), self.table.device())?;
        self.table.index_select(&buckets, 0)
    }
}

/// What each query multiplies the biases with.
#[derive(Debug)]
pub(super) struct Gate {
    /// `[d, 2]` and `[2]`: the published map has eight outputs, of which four are always summed.
    weight: Tensor,
    bias: Tensor,
    /// `[1, heads, 1, 1]`
    scale: Tensor,
    heads: usize,
}

impl Gate {
    /// `gru_rel_pos_linear.{weight [8, d], bias [8]}` and `gru_rel_pos_const [1, heads, 1, 1]`.
    pub(super) fn load(cfg: &WaveConfig, p: &Params) -> Result<Self> {
        let (heads, d) = (cfg.num_attention_heads, cfg.hidden_size / cfg.num_attention_heads);
        let map = p.pp("gru_rel_pos_linear");
        let weight = map.tensor("weight", [8, d], Init::Normal(cfg.initializer_range))?.to_dtype(DType::F32)?;
        let bias = map.tensor("bias", [8], Init::Zeros)?.to_dtype(DType::F32)?;
        let scale = p.tensor("gru_rel_pos_const", [1, heads, 1, 1], Init::Ones)?.to_dtype(DType::F32)?;
        Ok(Self { weight, bias, scale, heads })
    }

    /// `x [b, t, h]` to `[b, heads, t]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, h) = x.dims3()?;
        let d = h / self.heads;
        let weight = self.weight.reshape((2, 4, d))?.sum(1)?; // (2, d)
        let bias = self.bias.reshape((2, 4))?.sum(1)?;
        // [b * t * heads, d]
        let x = x.reshape((b * t * self.heads, d))?.to_dtype(DType::F32)?;
        let gates = linear(&x, &weight, Some(&bias))?;
        // sigmoid x = 1 / (1 + exp -x)
        let gates = ((gates.neg()?.exp()? + 1.0)?.recip()?).reshape((b, t, self.heads, 2))?;
        let (a, c) = (gates.narrow(D::Minus1, 0, 1)?.squeeze(3)?, gates.narrow(D::Minus1, 1, 1)?.squeeze(3)?);
        let scale = self.scale.reshape((1, 1, self.heads))?;
        (((a * (c.broadcast_mul(&scale)? - 1.0)?)? + 2.0)?).transpose(1, 2)?.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn buckets_widen_and_end() -> Result<()> {
        let table = Tensor::zeros((320, 1), DType::F32, &Device::Cpu)?;
        let positions = RelativePositions { table, buckets: 320, farthest: 800 };
        let of = |offset| positions.bucket(offset);
        assert_eq!([of(0), of(-1), of(-79), of(1), of(79)], [0, 1, 79, 161, 239]);
        // 80 + ln(d / 80) / ln(10) * 80
        assert_eq!([of(-80), of(-100), of(-799), of(-800), of(-100_000), of(800)], [80, 87, 159, 159, 159, 319]);
        assert!((0..2000).all(|d| of(d) <= of(d + 1) && of(-d) <= of(-d - 1)));
        assert_eq!(positions.forward(5)?.dims(), [9, 1]);
        Ok(())
    }
}
