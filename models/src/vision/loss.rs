//! The training loss: the decoder's, plus those of a sparse projector and of a sparse tower.

use candle_core::{Result, Tensor};
use moesaic_kernels::Routes;
use moesaic_projectors::SparseMlp;

use super::{Encoded, Spliced, VisionModel};
use crate::decoder::{Input, Output};

/// The parts of a loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct VisionLosses {
    /// What is minimised: all parts, weighted ([`LossWeights`](super::LossWeights)).
    pub total: Tensor,
    /// Mean cross entropy of the predicted tokens.
    pub cross_entropy: Tensor,
    /// The decoder's auxiliary loss, unweighted; absent where it has none.
    pub decoder: Option<Tensor>,
    /// Load balance and z-loss of a sparse projector, unweighted.
    pub projector: Option<(Tensor, Tensor)>,
    /// The same of a sparse tower, where they were asked for.
    pub tower: Option<(Tensor, Tensor)>,
}

impl VisionModel {
    /// Forward pass over spliced rows and their loss. `pictures` are those of the batch; absent for a batch of text.
    ///
    /// # Errors
    /// No label counts.
    pub fn loss(&self, rows: &Spliced, pictures: Option<&Encoded>) -> Result<(VisionLosses, Output)> {
        let (losses, output) = self.decoder().loss(Input::Embeds(&rows.embeds), &rows.context, &rows.labels)?;
        let (mut projector, mut tower) = (None, None);
        if let Some(encoded) = pictures {
            let n = encoded.tokens.embeds.dim(0)?;
            projector = projector_losses(&encoded.routes, n)?;
            tower = encoded.tower_losses.clone().map(|losses| (losses.balance, losses.z));
        }
        let weights = self.config().losses;
        let mut total = losses.total;
        for (balance, z) in projector.iter().chain(&tower) {
            total = ((total + (balance * weights.balance)?)? + (z * weights.z)?)?;
        }
        let (cross_entropy, decoder) = (losses.cross_entropy, losses.aux);
        Ok((VisionLosses { total, cross_entropy, decoder, projector, tower }, output))
    }
}

/// The mean over routers, each over `n` pictures.
fn projector_losses(routes: &[Routes], n: usize) -> Result<Option<(Tensor, Tensor)>> {
    if routes.is_empty() {
        return Ok(None);
    }
    let (balance, z): (Vec<_>, Vec<_>) =
        routes.iter().map(|r| SparseMlp::losses(r, n)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let mean = |all: Vec<Tensor>| Tensor::stack(&all, 0)?.mean_all();
    Ok(Some((mean(balance)?, mean(z)?)))
}
