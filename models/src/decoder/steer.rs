//! What training moves after each step beside what gradients move: biases that follow the load of experts, and the coefficient of a
//! loss that follows how many of them a token takes.

use candle_core::{DType, Result, Tensor, Var, bail};
use moesaic_kernels::Params;
use moesaic_kernels::losses::{AdaptiveL1, sparsity};
use moesaic_kernels::routers::balance_bias;

use super::config::{AuxLoss, DecoderConfig, RouterConfig};
use super::{Decoder, Output};

/// Name of the coefficient of [`AuxLoss::AdaptiveL1`], `[1]`, which is kept beside the weights so that a run can be resumed.
pub(super) const L1: &str = "router_l1_coefficient";

/// What the experts of a step were used for; sums over its batches do not depend on their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of each sparse layer, the routes to each expert.
    loads: Vec<Vec<f64>>,
    /// Of each batch, the share of the experts that a token leaves out.
    left_out: Vec<f64>,
}

impl Usage {
    /// Adds a batch.
    ///
    /// # Errors
    /// Another number of layers or experts.
    pub fn add(&mut self, output: &Output) -> Result<()> {
        let loads = output.routes.iter().map(|routes| routes.load()).collect::<Result<Vec<_>>>()?;
        self.left_out.push(sparsity(&output.routes)?);
        if self.loads.is_empty() {
            self.loads = loads;
            return Ok(());
        }
        if !self.loads.iter().map(Vec::len).eq(loads.iter().map(Vec::len)) {
            bail!("batches of one step were routed to different experts");
        }
        let sums = self.loads.iter_mut().flatten();
        sums.zip(loads.iter().flatten()).for_each(|(sum, load)| *sum += load);
        Ok(())
    }
}

impl Output {
    /// The mean number of routed experts with a network that a token goes to in a sparse layer; 0 without such layers.
    pub fn networks_per_token(&self, config: &DecoderConfig) -> Result<f64> {
        let networks = config.sparse.map_or(0, |sparse| sparse.experts);
        let (mut sum, mut tokens) = (0.0, 0.0);
        for routes in &self.routes {
            sum += routes.load()?.iter().take(networks).sum::<f64>();
            tokens += match routes.mask() {
                Some(mask) => f64::from(mask.sum_all()?.to_scalar::<f32>()?),
                None => routes.tokens() as f64,
            };
        }
        Ok(if tokens > 0.0 { sum / tokens } else { 0.0 })
    }
}

impl Decoder {
    /// Whether training is to call [`steer`](Self::steer) after each step.
    pub fn is_steered(&self) -> bool {
        matches!(self.config().aux_loss, AuxLoss::LoadBias(_) | AuxLoss::AdaptiveL1 { .. })
            && self.config().sparse_layers().next().is_some()
    }

    /// Refuses a model whose router is trained otherwise than by gradients alone, where that is all there is.
    pub(crate) fn by_gradients(&self) -> Result<()> {
        let dense = self.config().sparse.is_some_and(|sparse| sparse.router == RouterConfig::DenseTraining);
        if self.is_steered() || dense {
            bail!("this router of the language model is trained by `train language` alone; take another one");
        }
        Ok(())
    }

    /// The coefficient that [`AuxLoss::AdaptiveL1`] has now.
    pub(super) fn l1_coefficient(&self) -> Result<Option<f64>> {
        let Some(coefficient) = &self.l1 else { return Ok(None) };
        let value = coefficient.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(value.first().map(|v| f64::from(*v)))
    }

    /// Moves what is steered after a step that used experts so: in `params`, where this model's variables are.
    ///
    /// # Errors
    /// A variable is not there, or the usage is that of another model.
    pub fn steer(&self, params: &Params, usage: &Usage) -> Result<()> {
        let variables = params.variables();
        let find = |name: &str| -> Result<&Var> {
            match variables.iter().find(|(known, _)| known == name) {
                Some((_, var)) => Ok(var),
                None => bail!("{name} is not among the variables"),
            }
        };
        let config = self.config();
        match config.aux_loss {
            AuxLoss::LoadBias(rate) => {
                let names = config.names;
                for (i, load) in config.sparse_layers().zip(&usage.loads) {
                    let name = format!("{}.{i}.{}.{}", names.layers, names.sparse, names.router_bias);
                    balance_bias(find(&name)?, load, rate)?;
                }
            }
            AuxLoss::AdaptiveL1 { growth } => {
                let (Some(sparse), false) = (config.sparse, usage.left_out.is_empty()) else { return Ok(()) };
                // In one order, whichever thread came first.
                let mut left_out = usage.left_out.clone();
                left_out.sort_by(f64::total_cmp);
                let mut l1 = AdaptiveL1 { growth, ..AdaptiveL1::new(sparse.k as f64, sparse.experts) };
                l1.coefficient = self.l1_coefficient()?.unwrap_or(l1.coefficient);
                l1.update(left_out.iter().sum::<f64>() / left_out.len() as f64);
                let var = find(L1)?;
                var.set(&Tensor::new(&[l1.coefficient], var.device())?.to_dtype(var.dtype())?)?;
            }
            _ => {}
        }
        Ok(())
    }
}
