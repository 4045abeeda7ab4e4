//! AdamW with a state that is saved, gradient clipping, and the learning rate schedule.

use candle_core::backprop::GradStore;
use candle_core::{DType, Error, Result, Tensor, Var, bail};
use moesaic_kernels::Params;
use moesaic_kernels::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

/// Settings of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine.
    pub final_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices; vectors (norms, biases) do not decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradients.
    pub clip: f64,
}

impl Default for AdamWConfig {
    /// The settings of the Time-MoE paper (section 4), with a learning rate for small models.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            final_learning_rate: 1e-5,
            warmup: 100,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

impl AdamWConfig {
    /// Checks that every number is in its range.
    pub fn validate(&self) -> Result<()> {
        let unit = |v: f64| (0.0..1.0).contains(&v);
        for (name, value, ok) in [
            ("learning_rate", self.learning_rate, self.learning_rate > 0.0 && self.learning_rate < 1.0),
            (
                "final_learning_rate",
                self.final_learning_rate,
                (0.0..=self.learning_rate).contains(&self.final_learning_rate),
            ),
            ("beta1", self.beta1, unit(self.beta1)),
            ("beta2", self.beta2, unit(self.beta2)),
            ("epsilon", self.epsilon, self.epsilon > 0.0 && self.epsilon.is_finite()),
            ("weight_decay", self.weight_decay, (0.0..1e3).contains(&self.weight_decay)),
            ("clip", self.clip, self.clip > 0.0),
        ] {
            if !ok {
                bail!("optimiser: {name} = {value} is out of range");
            }
        }
        Ok(())
    }

    /// The learning rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine down to the final rate.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let span = steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine
    }
}

struct Slot {
    name: String,
    var: Var,
    gradient: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the variables of a [`Params`]. Weights and moments are f32.
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    /// Backward passes since the last step.
    accumulated: usize,
    /// Updates made: the power of the bias corrections.
    updates: u64,
}

impl AdamW {
    /// An optimiser with zero moments.
    pub fn new(config: AdamWConfig, params: &Params) -> Result<Self> {
        config.validate()?;
        let slots = params
            .variables()
            .into_iter()
            .map(|(name, var)| {
                let n = var.elem_count();
                Slot { name, var, gradient: vec![0.0; n], mean: vec![0.0; n], square: vec![0.0; n] }
            })
            .collect();
        Ok(Self { config, slots, accumulated: 0, updates: 0 })
    }

    /// Adds the gradients of one backward pass. A variable that took no part (an expert without tokens) adds nothing.
    pub fn accumulate(&mut self, gradients: &GradStore) -> Result<()> {
        for slot in &mut self.slots {
            if let Some(gradient) = gradients.get(&slot.var) {
                let values = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                slot.gradient.iter_mut().zip(&values).for_each(|(sum, v)| *sum += v);
            }
        }
        self.accumulated += 1;
        Ok(())
    }

    /// One update with the mean of the accumulated gradients, clipped. Returns their norm before clipping. Gradients that
    /// are not finite are dropped, without an update: the norm says so.
    pub fn step(&mut self, rate: f64) -> Result<f64> {
        if self.accumulated == 0 {
            bail!("an optimiser step without gradients");
        }
        let share = 1.0 / self.accumulated as f64;
        let sum: f64 = self.slots.iter().flat_map(|s| &s.gradient).map(|&g| f64::from(g).powi(2)).sum();
        let norm = sum.sqrt() * share;
        if norm.is_finite() {
            self.updates += 1;
            let c = self.config;
            let scale = (share * (c.clip / norm.max(1e-12)).min(1.0)) as f32;
            let (beta1, beta2) = (c.beta1 as f32, c.beta2 as f32);
            let power = self.updates.min(1 << 30) as i32;
            let step_size = (rate / (1.0 - c.beta1.powi(power))) as f32;
            let correction = (1.0 / (1.0 - c.beta2.powi(power)).sqrt()) as f32;
            for slot in &mut self.slots {
                let matrix = slot.var.rank() > 1;
                let keep = if matrix { (1.0 - rate * c.weight_decay) as f32 } else { 1.0 };
                let mut weights = slot.var.flatten_all()?.to_vec1::<f32>()?;
                let moments = slot.mean.iter_mut().zip(&mut slot.square);
                for ((w, g), (m, s)) in weights.iter_mut().zip(&slot.gradient).zip(moments) {
                    let g = g * scale;
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *s = beta2 * *s + (1.0 - beta2) * g * g;
                    *w = *w * keep - step_size * *m / (s.sqrt() * correction + c.epsilon as f32);
                }
                slot.var.set(&Tensor::from_vec(weights, slot.var.shape(), slot.var.device())?)?;
            }
        }
        self.slots.iter_mut().for_each(|s| s.gradient.fill(0.0));
        self.accumulated = 0;
        Ok(norm)
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The moments as tensors, `mean.{name}` and `square.{name}` for each variable's name.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::with_capacity(2 * self.slots.len());
        for slot in &self.slots {
            for (kind, values) in [("mean", &slot.mean), ("square", &slot.square)] {
                let tensor = Tensor::from_slice(values, slot.var.shape(), &candle_core::Device::Cpu)?;
                state.push((format!("{kind}.{}", slot.name), tensor));
            }
        }
        Ok(state)
    }

    /// Takes up the moments that [`state`](Self::state) gave, after `updates` updates.
    pub fn restore(&mut self, state: &Checkpoint, updates: u64) -> Result<()> {
        for slot in &mut self.slots {
            for (kind, values) in [("mean", &mut slot.mean), ("square", &mut slot.square)] {
                state
                    .read_f32_into(&format!("{kind}.{}", slot.name), slot.var.dims(), values)
                    .map_err(|e| Error::Msg(format!("the optimiser's state does not fit this model: {e}")))?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use moesaic_kernels::Init;

    #[test]
    fn one_step_by_hand() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let w = params.tensor("w", [1, 2], Init::Ones)?;
        let config = AdamWConfig { clip: 1.0, weight_decay: 0.1, ..AdamWConfig::default() };
        let mut adam = AdamW::new(config, &params)?;
        // Gradients (3, 4) have norm 5, so they are clipped to (0.6, 0.8); the first update has size `rate` each.
        let loss = (w * Tensor::new(&[[3f32, 4.]], &Device::Cpu)?)?.sum_all()?;
        adam.accumulate(&loss.backward()?)?;
        let norm = adam.step(0.01)?;
        assert!((norm - 5.0).abs() < 1e-6);
        let got = params.variables()[0].1.flatten_all()?.to_vec1::<f32>()?;
        assert!(got.iter().all(|v| (v - (1.0 - 0.001 - 0.01)).abs() < 1e-5), "{got:?}");
        Ok(())
    }

    #[test]
    fn gradients_that_are_not_finite_change_nothing() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let w = params.tensor("w", [2], Init::Ones)?;
        let mut adam = AdamW::new(AdamWConfig::default(), &params)?;
        adam.accumulate(&(w * f64::INFINITY)?.sum_all()?.backward()?)?;
        assert!(!adam.step(0.01)?.is_finite());
        assert_eq!(params.variables()[0].1.to_vec1::<f32>()?, [1.0, 1.0]);
        assert_eq!(adam.updates(), 0);
        Ok(())
    }

    #[test]
    fn the_rate_warms_up_and_falls() {
        let c = AdamWConfig { warmup: 10, learning_rate: 1e-2, final_learning_rate: 1e-4, ..AdamWConfig::default() };
        assert!((c.rate(0, 110) - 1e-3).abs() < 1e-12);
        assert!((c.rate(10, 110) - 1e-2).abs() < 1e-12);
        assert!((c.rate(60, 110) - 0.5 * (1e-2 + 1e-4)).abs() < 1e-9);
        assert!((c.rate(110, 110) - 1e-4).abs() < 1e-12);
    }
}
