//! What all vision towers have in common for the model behind them.

use candle_core::{Error, Result, Tensor, bail};
use moesaic_kernels::{Modality, Probe, Tokens};

use crate::cumo::CumoLosses;

/// Which tokens of a layer go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// All but the first, which is the class token. SigLIP has none, so that a patch is lost there: MoE-LLaVA does that.
    Patch,
    /// All.
    ClsPatch,
}

impl Select {
    /// The selection that `mm_vision_select_feature` or `vision_feature_select_strategy` names.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "patch" | "default" => Ok(Self::Patch),
            "cls_patch" | "full" => Ok(Self::ClsPatch),
            other => {
                let other = moesaic_kernels::shown(other);
                bail!("features {other} are not known; known are patch (default) and cls_patch (full)")
            }
        }
    }
}

/// Which hidden states become features, by `mm_vision_select_layer` or `vision_feature_layer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Hidden states as the references count them: 0 is what enters the first layer, `i` what layer `i - 1` puts out, -1 the
    /// output of the last layer, -2 its input. Several stand side by side in the width.
    pub layers: Vec<i64>,
    /// Which tokens.
    pub select: Select,
}

impl Features {
    /// The features of one layer.
    pub fn new(layer: i64, select: Select) -> Self {
        Self { layers: vec![layer], select }
    }

    /// The hidden states' numbers from 0 on, for a tower of `depth` layers.
    pub(crate) fn states(&self, depth: usize) -> Result<Vec<usize>> {
        if self.layers.is_empty() {
            bail!("features of no layer: name at least one");
        }
        let count = depth as i64 + 1;
        let state = |&layer: &i64| {
            let i = if layer < 0 { layer + count } else { layer };
            usize::try_from(i).ok().filter(|_| i < count).ok_or_else(|| {
                Error::msg(format!("features of layer {layer}, but the tower has hidden states 0 to {depth}")).bt()
            })
        };
        self.layers.iter().map(state).collect()
    }

    /// The features out of the hidden states that [`states`](Self::states) names, in that order.
    pub(crate) fn join(&self, states: &[Tensor]) -> Result<Tokens> {
        let joined = match states {
            [one] => one.clone(),
            several => Tensor::cat(several, 2)?,
        };
        let tokens = joined.dim(1)?;
        let embeds = match self.select {
            Select::ClsPatch => joined,
            Select::Patch if tokens > 1 => joined.narrow(1, 1, tokens - 1)?.contiguous()?,
            Select::Patch => bail!("a picture of one token has no patch behind it"),
        };
        Ok(Tokens::new(embeds, Modality::Image))
    }
}

/// A vision tower: normalised pixels to features.
pub trait Tower: Send + Sync + std::fmt::Debug {
    /// Width of a feature of one layer.
    fn width(&self) -> usize;

    /// `(height, width)` of the pictures it was made for.
    fn image_size(&self) -> (usize, usize);

    /// Runs no further than the features need. A probe gets `hidden.{i}`.
    ///
    /// # Shapes
    /// `pixels [b, 3, h, w]` to tokens `[b, t, width]`
    fn encode(&self, pixels: &Tensor, features: &Features, probe: Option<&Probe>) -> Result<Tokens>;

    /// [`encode`](Self::encode) with the losses of the tower's routers, where it has any; that may run more layers.
    fn encode_with_losses(
        &self,
        pixels: &Tensor,
        features: &Features,
        probe: Option<&Probe>,
    ) -> Result<(Tokens, Option<CumoLosses>)> {
        Ok((self.encode(pixels, features, probe)?, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_count_from_both_ends() -> Result<()> {
        let features = Features { layers: vec![-2, 0, -1, 3], select: Select::Patch };
        assert_eq!(features.states(4)?, [3, 0, 4, 3]);
        assert!(Features::new(5, Select::Patch).states(4).is_err());
        assert!(Features::new(-6, Select::Patch).states(4).is_err());
        assert!(Select::from_name("cls").is_err());
        Ok(())
    }
}
