//! The norm of a layer, one of two kinds.

use candle_core::{DType, Result, Tensor};
use moesaic_kernels::ops::{layer_norm, rms_norm};
use moesaic_kernels::{Init, Params};

use super::config::{NormConfig, NormKind};

/// A norm over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    config: NormConfig,
}

impl Norm {
    /// `{name}.weight [h]` and, for LayerNorm, `{name}.bias [h]`.
    pub(super) fn load(p: &Params, name: &str, h: usize, config: NormConfig) -> Result<Self> {
        let p = p.pp(name);
        let weight = p.tensor("weight", [h], Init::Ones)?.to_dtype(DType::F32)?;
        let bias = match config.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(p.tensor("bias", [h], Init::Zeros)?.to_dtype(DType::F32)?),
        };
        Ok(Self { weight, bias, config })
    }

    /// `x [.., h]` to the same
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.config.kind {
            NormKind::Rms => rms_norm(x, &self.weight, self.config.eps),
            NormKind::Layer => layer_norm(x, &self.weight, self.bias.as_ref(), self.config.eps),
        }
    }
}
