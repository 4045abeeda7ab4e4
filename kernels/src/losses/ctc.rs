//! Connectionist temporal classification: texts against longer sequences, without knowing what stands where.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{SendPtr, parallel};
use crate::host::{as_f32, tensor, with_f32};

/// Logarithm of 0.
const NEVER: f64 = f64::NEG_INFINITY;

struct Ctc {
    labels: Arc<Vec<Vec<u32>>>,
    blank: u32,
    /// Labels of rows that can be said at all.
    count: f64,
}

/// `ln(e^a + e^b)`
fn plus(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if high == NEVER { NEVER } else { high + (low - high).exp().ln_1p() }
}

/// What a row says in so many steps: blanks around and between its labels.
struct Row<'a> {
    labels: &'a [u32],
    blank: u32,
    /// Logarithm of the sum of exponentials of each step.
    sums: Vec<f64>,
    logits: &'a [f32],
    classes: usize,
}

impl<'a> Row<'a> {
    fn new(logits: &'a [f32], classes: usize, labels: &'a [u32], blank: u32) -> Self {
        let sum = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            f64::from(max) + row.iter().map(|v| f64::from((v - max).exp())).sum::<f64>().ln()
        };
        Self { labels, blank, sums: logits.chunks_exact(classes).map(sum).collect(), logits, classes }
    }

    fn states(&self) -> usize {
        2 * self.labels.len() + 1
    }

    fn class(&self, state: usize) -> u32 {
        if state.is_multiple_of(2) { self.blank } else { self.labels[state / 2] }
    }

    /// Log probability of the class of a state at a step.
    fn said(&self, step: usize, state: usize) -> f64 {
        f64::from(self.logits[step * self.classes + self.class(state) as usize]) - self.sums[step]
    }

    /// Whether a label follows the one before without a blank between: they differ.
    fn skips(&self, state: usize) -> bool {
        state >= 2 && !state.is_multiple_of(2) && self.class(state) != self.class(state - 2)
    }

    /// Log probabilities of the beginnings of paths that are in a state at a step, that step included; `[steps][states]`.
    fn forward(&self) -> Vec<f64> {
        let (steps, states) = (self.sums.len(), self.states());
        let mut alpha = vec![NEVER; steps * states];
        for step in 0..steps {
            for state in 0..states {
                let from = |state: usize| alpha[(step - 1) * states + state];
                let before = match step {
                    0 if state < 2 => 0.0,
                    0 => NEVER,
                    _ => {
                        let mut sum = from(state);
                        if state >= 1 {
                            sum = plus(sum, from(state - 1));
                        }
                        if self.skips(state) {
                            sum = plus(sum, from(state - 2));
                        }
                        sum
                    }
                };
                alpha[step * states + state] = before + self.said(step, state);
            }
        }
        alpha
    }

    /// The same of the ends of paths, that step left out.
    fn backward(&self) -> Vec<f64> {
        let (steps, states) = (self.sums.len(), self.states());
        let mut beta = vec![NEVER; steps * states];
        for step in (0..steps).rev() {
            for state in 0..states {
                beta[step * states + state] = if step + 1 == steps {
                    if state + 2 >= states { 0.0 } else { NEVER }
                } else {
                    let next = |state: usize| beta[(step + 1) * states + state] + self.said(step + 1, state);
                    let mut sum = next(state);
                    if state + 1 < states {
                        sum = plus(sum, next(state + 1));
                    }
                    if state + 2 < states && self.skips(state + 2) {
                        sum = plus(sum, next(state + 2));
                    }
                    sum
                };
            }
        }
        beta
    }

    /// Log probability of the labels.
    fn total(&self, alpha: &[f64]) -> f64 {
        let last = &alpha[alpha.len() - self.states()..];
        last.iter().rev().take(2).copied().fold(NEVER, plus)
    }
}

impl CustomOp1 for Ctc {
    fn name(&self) -> &'static str {
        "moesaic-ctc"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, steps, classes) = layout.shape().dims3()?;
        let logits = as_f32(storage, layout, self.name())?;
        let mut losses = vec![0f64; self.labels.len()];
        let out = SendPtr::new(&mut losses);
        parallel(self.labels.len(), logits.len() > 1 << 14, |i| {
            let row = Row::new(&logits[i * steps * classes..][..steps * classes], classes, &self.labels[i], self.blank);
            let total = row.total(&row.forward());
            // SAFETY: each row's loss belongs to one task.
            let loss = unsafe { out.slice(i, 1) };
            loss[0] = if total == NEVER { 0.0 } else { -total };
        });
        Ok((CpuStorage::F32(vec![(losses.iter().sum::<f64>() / self.count) as f32]), ().into()))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, steps, classes) = logits.dims3()?;
        let scale = f64::from(grad.to_dtype(DType::F32)?.to_scalar::<f32>()?) / self.count;
        let mut grads = vec![0f32; logits.elem_count()];
        let out = SendPtr::new(&mut grads);
        with_f32(logits, self.name(), |logits| {
            parallel(self.labels.len(), logits.len() > 1 << 14, |i| {
                let (at, length) = (i * steps * classes, steps * classes);
                let row = Row::new(&logits[at..][..length], classes, &self.labels[i], self.blank);
                let (alpha, beta, states) = (row.forward(), row.backward(), row.states());
                let total = row.total(&alpha);
                if total == NEVER {
                    return;
                }
                // SAFETY: each row belongs to one task.
                let grads = unsafe { out.slice(at, length) };
                for (step, grads) in grads.chunks_exact_mut(classes).enumerate() {
                    // The softmax less the probability of being there, given the labels.
                    let shares = grads.iter_mut().zip(&row.logits[step * classes..]);
                    shares.for_each(|(g, v)| *g = ((f64::from(*v) - row.sums[step]).exp() * scale) as f32);
                    for state in 0..states {
                        let here = (alpha[step * states + state] + beta[step * states + state] - total).exp();
                        grads[row.class(state) as usize] -= (here * scale) as f32;
                    }
                }
            });
            Ok(())
        })?;
        Ok(Some(tensor(grads, logits.shape(), logits.dtype())?))
    }
}

/// The loss of connectionist temporal classification (Graves et al. 2006, equations 6 to 8 and 15), with gradients:
/// `-ln p(labels)`, where a step says one of its labels or `blank`, and repetitions without a blank between count once. The sum
/// over rows by the number of all their labels. Rows with more labels than steps have room for say nothing.
///
/// # Shapes
/// `logits [b, steps, classes]`, `labels` a list for each row
///
/// # Errors
/// Another number of lists than rows, no step, or a label that is no class or the blank.
pub fn ctc(logits: &Tensor, labels: &[Vec<u32>], blank: u32) -> Result<Tensor> {
    let (rows, steps, classes) = logits.dims3()?;
    if rows != labels.len() || steps == 0 || blank as usize >= classes {
        bail!("ctc: {} texts and the blank {blank} for logits of shape {:?}", labels.len(), logits.dims());
    }
    if let Some(label) = labels.iter().flatten().find(|&&label| label as usize >= classes || label == blank) {
        bail!("ctc: label {label} is not one of {classes} classes, or it is the blank {blank}");
    }
    let fits = |labels: &&Vec<u32>| labels.len() + labels.windows(2).filter(|pair| pair[0] == pair[1]).count() <= steps;
    let count = labels.iter().filter(fits).map(Vec::len).sum::<usize>().max(1) as f64;
    // A recursion over few values: of tensors elsewhere as well, the CPU does it.
    let host = logits.to_device(&Device::Cpu)?.contiguous()?;
    host.apply_op1(Ctc { labels: Arc::new(labels.to_vec()), blank, count })?.to_device(logits.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const STEPS: usize = 5;
    const CLASSES: usize = 4;

    fn logits(rows: usize) -> Result<Var> {
        let values = (0..rows * STEPS * CLASSES).map(|i| ((i * i * 7 + i) % 23) as f32 / 6.0 - 1.5).collect();
        Var::from_tensor(&Tensor::from_vec::<_, f32>(values, (rows, STEPS, CLASSES), &Device::Cpu)?)
    }

    /// The probability of labels as the sum over all that can be said.
    fn by_hand(logits: &[f32], labels: &[u32], blank: u32) -> f64 {
        let mut total = 0.0;
        for mut number in 0..CLASSES.pow(STEPS as u32) {
            let (mut said, mut before, mut p) = (Vec::new(), blank, 1.0);
            for row in logits.chunks_exact(CLASSES) {
                let class = (number % CLASSES) as u32;
                number /= CLASSES;
                let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
                p *= f64::from(row[class as usize]).exp() / sum;
                if class != blank && class != before {
                    said.push(class);
                }
                before = class;
            }
            total += if said == labels { p } else { 0.0 };
        }
        total
    }

    #[test]
    fn the_loss_is_the_sum_over_all_paths() -> Result<()> {
        let x = logits(5)?;
        let rows = x.flatten_all()?.to_vec1::<f32>()?;
        let labels = [vec![1, 2], vec![3, 3, 1], vec![], vec![2, 2, 2], vec![1, 2, 3, 1, 2]];
        for (i, labels) in labels.iter().enumerate() {
            let row = x.narrow(0, i, 1)?;
            let loss = f64::from(ctc(&row, std::slice::from_ref(labels), 0)?.to_scalar::<f32>()?);
            let p = by_hand(&rows[i * STEPS * CLASSES..][..STEPS * CLASSES], labels, 0);
            let expected = -p.ln() / labels.len().max(1) as f64;
            assert!((loss - expected).abs() < 1e-5, "{labels:?}: {loss} {expected}");
        }
        Ok(())
    }

    #[test]
    fn gradients_agree_with_differences() -> Result<()> {
        let x = logits(3)?;
        // The last row has no room for its labels.
        let labels = [vec![1, 3], vec![2, 2], vec![1, 1, 1, 2]];
        let loss = |x: &Tensor| ctc(x, &labels, 0);
        let grads = loss(&x)?.backward()?;
        let grads = grads.get(&x).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        for i in 0..values.len() {
            let moved = |by: f32| -> Result<f64> {
                let mut values = values.clone();
                values[i] += by;
                Ok(f64::from(loss(&Tensor::from_vec(values, x.shape(), &Device::Cpu)?)?.to_scalar::<f32>()?))
            };
            let slope = (moved(1e-2)? - moved(-1e-2)?) / 2e-2;
            assert!((f64::from(grads[i]) - slope).abs() < 1e-3, "{i}: {} {slope}", grads[i]);
        }
        assert!(grads[2 * STEPS * CLASSES..].iter().all(|g| *g == 0.0));
        Ok(())
    }

    #[test]
    fn what_is_no_text_is_refused() -> Result<()> {
        let x = logits(1)?;
        assert!(ctc(&x, &[vec![4]], 0).is_err());
        assert!(ctc(&x, &[vec![0]], 0).is_err());
        assert!(ctc(&x, &[vec![1]], 4).is_err());
        assert!(ctc(&x, &[], 0).is_err());
        assert!(ctc(&x.narrow(1, 0, 0)?, &[vec![]], 0).is_err());
        Ok(())
    }
}
