//! Balance without a loss: the selection bias of [`SigmoidTopK`](super::SigmoidTopK) is moved after each step.

use candle_core::{DType, Result, Tensor, Var, bail};

/// Moves the selection biases of experts towards a balanced load: `b_i += rate * sign(mean(c) - c_i)` (Wang et al., arXiv
/// 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2, with a rate of 0.001).
///
/// `load [E]` is [`Routes::load`](crate::Routes::load), summed over the micro-batches of a step. To be called by the trainer
/// after each step of the optimiser, which leaves this variable alone: it has no gradient.
///
/// # Errors
/// The bias has another number of experts than the load.
pub fn balance_bias(bias: &Var, load: &[f64], rate: f64) -> Result<()> {
    if bias.dims() != [load.len()] || load.is_empty() {
        bail!("a bias of shape {:?} for the load of {} experts", bias.dims(), load.len());
    }
    let mean = load.iter().sum::<f64>() / load.len() as f64;
    let old = bias.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let sign = |c: f64| f64::from(i8::from(c < mean) - i8::from(c > mean));
    let new: Vec<f64> = old.iter().zip(load).map(|(b, &c)| b + rate * sign(c)).collect();
    bias.set(&Tensor::from_vec(new, load.len(), bias.device())?.to_dtype(bias.dtype())?)
}

/// `(max(c) - mean(c)) / mean(c)` of a load `[E]`: how far the busiest expert is from balance (MaxVio of arXiv 2408.15664).
/// 0 without any load.
pub fn max_violation(load: &[f64]) -> f64 {
    let mean = load.iter().sum::<f64>() / load.len().max(1) as f64;
    if mean > 0.0 { load.iter().copied().fold(0.0, f64::max) / mean - 1.0 } else { 0.0 }
}
