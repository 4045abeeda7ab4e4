//! The training loss: Huber on every head at every position, plus the load balance of the routers.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use moesaic_kernels::losses::load_balance;

use super::{Context, Output, TimeMoe};

/// Threshold between the squared and the absolute part of the Huber loss, in the reference.
const DELTA: f64 = 2.0;

/// What a forward pass should have predicted.
#[derive(Clone, Debug)]
pub struct Targets {
    /// `[b, l]` with `l >= t`: `labels[t]` is the value that follows input `t`. Where a head looks past the end the target
    /// is 0, as in the reference; give `l = t + longest horizon - 1` labels to avoid that.
    labels: Arc<Vec<f32>>,
    /// `[b, l]`, 1 = counts. Without it every position counts, those past the end too.
    mask: Option<Arc<Vec<f32>>>,
    rows: usize,
    length: usize,
    delta: f64,
}

impl Targets {
    /// Targets from `labels` and, where some do not count, `mask`, both row-major with `rows` rows.
    pub fn new(labels: Vec<f32>, mask: Option<Vec<f32>>, rows: usize) -> Result<Self> {
        let length = labels.len() / rows.max(1);
        if rows == 0 || length == 0 || length * rows != labels.len() {
            bail!("{} labels do not make {rows} rows", labels.len());
        }
        if mask.as_ref().is_some_and(|m| m.len() != labels.len()) {
            bail!("the loss mask has another size than the {} labels", labels.len());
        }
        Ok(Self { labels: labels.into(), mask: mask.map(Arc::new), rows, length, delta: DELTA })
    }

    /// The same targets with another threshold of the Huber loss: below 2, the value of the reference, the loss comes
    /// closer to the absolute error and the forecast closer to the median.
    pub fn with_delta(self, delta: f64) -> Result<Self> {
        if !(delta > 0.0 && delta.is_finite()) {
            bail!("the threshold of the Huber loss is {delta}, expected a positive number");
        }
        Ok(Self { delta, ..self })
    }

    /// Calls `f(index of the prediction, label, weight)` for every prediction of `[b, t, horizon]` that counts.
    fn for_each(&self, t: usize, horizon: usize, mut f: impl FnMut(usize, f32, f32)) {
        for row in 0..self.rows {
            let labels = &self.labels[row * self.length..][..self.length];
            let mask = self.mask.as_ref().map(|m| &m[row * self.length..][..self.length]);
            for i in 0..t {
                for j in 0..horizon {
                    let label = labels.get(i + j).copied();
                    let weight = match mask {
                        Some(mask) => mask.get(i + j).copied().unwrap_or(0.0),
                        None => 1.0,
                    };
                    if weight != 0.0 {
                        f((row * t + i) * horizon + j, label.unwrap_or(0.0), weight);
                    }
                }
            }
        }
    }
}

/// Mean Huber loss of one head, `[b, t, horizon]` to a scalar.
struct Huber {
    targets: Targets,
    t: usize,
    horizon: usize,
}

impl Huber {
    /// Sum of weights: the mean's divisor; 1 if nothing counts.
    fn count(&self) -> f64 {
        let mut count = 0.0;
        self.targets.for_each(self.t, self.horizon, |_, _, w| count += f64::from(w));
        if count > 0.0 { count } else { 1.0 }
    }
}

impl CustomOp1 for Huber {
    fn name(&self) -> &'static str {
        "moesaic-huber"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("huber: predictions must be contiguous") };
        let predictions = &storage.as_slice::<f32>()?[start..end];
        let mut sum = 0.0;
        self.targets.for_each(self.t, self.horizon, |i, label, weight| {
            let (e, delta) = (f64::from(predictions[i] - label).abs(), self.targets.delta);
            sum += f64::from(weight) * if e <= delta { 0.5 * e * e } else { delta * (e - 0.5 * delta) };
        });
        Ok((CpuStorage::F32(vec![(sum / self.count()) as f32]), ().into()))
    }

    fn bwd(&self, predictions: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = f64::from(grad.to_scalar::<f32>()?) / self.count();
        let values = predictions.flatten_all()?.to_vec1::<f32>()?;
        let mut grads = vec![0f32; values.len()];
        self.targets.for_each(self.t, self.horizon, |i, label, weight| {
            let e = f64::from(values[i] - label).clamp(-self.targets.delta, self.targets.delta);
            grads[i] = (e * f64::from(weight) * scale) as f32;
        });
        Ok(Some(Tensor::from_vec(grads, predictions.shape(), predictions.device())?))
    }
}

/// The parts of a loss; all carry gradients.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Mean over heads plus the weighted auxiliary loss: what is minimised.
    pub total: Tensor,
    /// Mean Huber loss of each head.
    pub heads: Vec<Tensor>,
    /// Load balance over all layers, unweighted; absent for dense models.
    pub aux: Option<Tensor>,
}

impl TimeMoe {
    /// Forward pass and loss.
    ///
    /// # Shapes
    /// `x [b, t]`; targets with `b` rows
    pub fn loss(&self, x: &Tensor, context: &Context, targets: &Targets) -> Result<(Losses, Output)> {
        let output = self.forward(x, context, None, None)?;
        let (b, t, _) = output.hidden.dims3()?;
        if self.config().input_size != 1 || targets.rows != b || targets.length < t {
            bail!(
                "targets of {} rows and {} labels do not fit an input of shape [{b}, {t}]",
                targets.rows,
                targets.length
            );
        }
        let heads = self
            .config()
            .horizon_lengths
            .iter()
            .enumerate()
            .map(|(j, &horizon)| {
                let predictions = self.head(j, &output.hidden)?.to_dtype(candle_core::DType::F32)?; // (b, t, horizon)
                // Labels are on the host.
                let host = predictions.to_device(&Device::Cpu)?;
                host.apply_op1(Huber { targets: targets.clone(), t, horizon })?.to_device(predictions.device())
            })
            .collect::<Result<Vec<_>>>()?;
        let mut total = (Tensor::stack(&heads, 0)?.sum_all()? / heads.len() as f64)?;
        let mut aux = None;
        if self.config().apply_aux_loss && !output.routes.is_empty() {
            let balance = load_balance(&output.routes)?;
            total = (total + (&balance * self.config().router_aux_loss_factor)?)?;
            aux = Some(balance);
        }
        Ok((Losses { total, heads, aux }, output))
    }
}
