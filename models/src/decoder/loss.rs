//! The training loss: next-token cross entropy, plus the auxiliary loss of the family.

use candle_core::{Result, Tensor, bail};
use moesaic_kernels::Routes;
use moesaic_kernels::losses::{
    activation_locality, chunk_sparsity, cross_entropy, first_choice_balance, heterogeneous_balance, load_balance,
    mutual_information, null_balance, relu_l1, router_z, sequence_balance,
};

use super::config::AuxLoss;
use super::{Context, Decoder, Input, Output};

/// How sharply activation locality tells used experts from others; BlockFFN's released code has 100.
const STEEPNESS: f64 = 100.0;

/// The parts of a loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Cross entropy plus the weighted auxiliary loss: what is minimised.
    pub total: Tensor,
    /// Mean cross entropy of the predicted tokens.
    pub cross_entropy: Tensor,
    /// The auxiliary loss, unweighted; absent where the family has none or no layer is sparse.
    pub aux: Option<Tensor>,
}

/// Whether each row of `output [b, t, h]` gives its labels, word by word, when it is led along them: greedy generation gives them
/// then, and only then. A row without a label is not right.
pub(crate) fn follows(
    output: &Output,
    labels: &[i64],
    logits: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Vec<bool>> {
    let (b, t, h) = output.hidden.dims3()?;
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    for (row, labels) in labels.chunks(t.max(1)).enumerate() {
        for (i, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label >= 0) {
            places.push((row * t + i - 1) as u32);
            wanted.push((row, label));
        }
    }
    if places.is_empty() {
        return Ok(vec![false; b]);
    }
    let places = Tensor::new(places.as_slice(), output.hidden.device())?;
    let hidden = output.hidden.reshape((b * t, h))?.index_select(&places, 0)?;
    let best = logits(&hidden)?.argmax(1)?.to_vec1::<u32>()?;
    let mut right = vec![None; b];
    for ((row, label), best) in wanted.into_iter().zip(best) {
        if let Some(right) = right.get_mut(row) {
            *right = Some(right.unwrap_or(true) && label == i64::from(best));
        }
    }
    Ok(right.into_iter().map(|right| right.unwrap_or(false)).collect())
}

impl Decoder {
    /// Forward pass and loss.
    ///
    /// `labels [b * t]` are token ids in the places of the tokens themselves: position `i` is to predict label `i + 1`.
    /// Negative labels do not count, as those of padding must be.
    pub fn loss(&self, input: Input<'_>, context: &Context, labels: &[i64]) -> Result<(Losses, Output)> {
        let output = self.forward(input, context, None, None)?;
        let losses = self.loss_of(&output, labels, context.reference_padding)?;
        Ok((losses, output))
    }

    /// The loss of a pass that was made; see [`loss`](Self::loss). `padding` is [`Context::reference_padding`] of the pass.
    pub fn loss_of(&self, output: &Output, labels: &[i64], padding: bool) -> Result<Losses> {
        let (b, t, h) = output.hidden.dims3()?;
        if labels.len() != b * t {
            bail!("{} labels for {b} rows of {t} tokens", labels.len());
        }
        // Only positions that have something to predict go through the head, the largest matrix of all.
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, labels) in labels.chunks_exact(t).enumerate() {
            for (i, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label >= 0) {
                places.push((row * t + i - 1) as u32);
                targets.push(label);
            }
        }
        if targets.is_empty() {
            bail!("no label counts: there is nothing to learn from this batch");
        }
        let places = Tensor::from_vec(places, targets.len(), self.device())?;
        let hidden = output.hidden.reshape((b * t, h))?.index_select(&places, 0)?;
        let cross_entropy = cross_entropy(&self.logits(&hidden)?, &targets)?;
        let aux = self.aux_loss(output, b, padding)?;
        let total = match &aux {
            Some((aux, coefficient)) => (&cross_entropy + (aux * *coefficient)?)?,
            None => cross_entropy.clone(),
        };
        Ok(Losses { total, cross_entropy, aux: aux.map(|(aux, _)| aux) })
    }

    /// The auxiliary loss of the routes taken by `b` rows, and its coefficient. `padding` counts in those that count it in their
    /// reference.
    pub(crate) fn aux_loss(&self, output: &Output, b: usize, padding: bool) -> Result<Option<(Tensor, f64)>> {
        if output.routes.is_empty() {
            return Ok(None);
        }
        let sparse = self.config().sparse;
        let (networks, k) = sparse.map_or((0, 1), |s| (s.experts, s.k));
        let free = sparse.map_or(0, |s| s.router.free());
        Ok(match self.config().aux_loss {
            AuxLoss::None | AuxLoss::LoadBias(_) => None,
            AuxLoss::NullBalance(coefficient) => Some((null_balance(&output.routes, free)?, coefficient)),
            AuxLoss::HeterogeneousBalance(coefficient, tau) => {
                Some((heterogeneous_balance(&output.routes, networks, tau)?, coefficient))
            }
            AuxLoss::AdaptiveL1 { .. } => {
                Some((relu_l1(&output.routes, Some(k as f64))?, self.l1_coefficient()?.unwrap_or(0.0)))
            }
            AuxLoss::Activation { locality, chunk_sparsity: sparsity, chunk } => {
                let each = |routes: &Routes| {
                    let near = (activation_locality(routes, b, STEEPNESS)? * locality)?;
                    near + (chunk_sparsity(routes, b, chunk)? * sparsity)?
                };
                Some(((summed(&output.routes, each)? / output.routes.len() as f64)?, 1.0))
            }
            AuxLoss::MutualInformation(coefficient) => {
                let sum = summed(&output.routes, mutual_information)?;
                Some(((sum / output.routes.len() as f64)?, coefficient))
            }
            AuxLoss::Balance(coefficient) => {
                let routes = [output.attention_routes.as_slice(), &output.routes].concat();
                Some((load_balance(&routes)?, coefficient))
            }
            AuxLoss::LayerBalance(coefficient) => {
                let each = |routes: &Routes| load_balance(std::slice::from_ref(routes))? / k as f64;
                Some((summed(&output.routes, each)?, coefficient))
            }
            AuxLoss::SequenceBalance(coefficient) => {
                Some((summed(&output.routes, |routes| sequence_balance(routes, b))?, coefficient))
            }
            AuxLoss::FirstChoice(coefficient) => {
                let each = |routes: &Routes| first_choice_balance(&counted(routes, padding), 1);
                Some((summed(&output.routes, each)?, coefficient))
            }
            AuxLoss::BalanceAndZ(balance, z) => {
                let each = |routes: &Routes| {
                    let routes = counted(routes, padding);
                    (first_choice_balance(&routes, b)? * balance)? + (router_z(&routes)? * z)?
                };
                Some(((summed(&output.routes, each)? / output.routes.len() as f64)?, 1.0))
            }
        })
    }
}

/// The routes, with or without their padding.
fn counted(routes: &Routes, padding: bool) -> Routes {
    if padding { routes.clone().with_mask(None) } else { routes.clone() }
}

fn summed(layers: &[Routes], loss: impl Fn(&Routes) -> Result<Tensor>) -> Result<Tensor> {
    let losses = layers.iter().map(loss).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&losses, 0)?.sum_all()
}
