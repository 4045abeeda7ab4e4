//! What the layers of one forward pass share.

use candle_core::{Result, Tensor};
use moesaic_kernels::rotary::RotaryTables;
use moesaic_kernels::{CausalAttention, Probe, Routes};

/// One forward pass over `b` rows of `t` tokens, flat as `[b * t, ..]` between the layers.
pub(super) struct Pass<'a> {
    pub b: usize,
    pub t: usize,
    /// Padding at the left of each row.
    pub padding: &'a [usize],
    /// Where the real tokens of each row end; empty without padding at the right.
    pub end: &'a [usize],
    /// Queries in the padding average the values of all keys.
    pub uniform_padding: bool,
    /// Cosines and sines of the tokens; absent without rotary positions.
    pub rotary: Option<&'a RotaryTables>,
    pub probe: Option<&'a Probe>,
}

impl Pass<'_> {
    /// Attention among the tokens of this pass.
    pub(super) fn attention(&self, scale: f64, window: Option<usize>) -> CausalAttention {
        CausalAttention {
            start: self.padding.to_vec(),
            end: self.end.to_vec(),
            window,
            uniform_padding: self.uniform_padding,
            ..CausalAttention::new(scale)
        }
    }

    /// Records `value [b * t, ..]` as `[b, t, ..]`.
    pub(super) fn record(&self, name: impl FnOnce() -> String, value: &Tensor) -> Result<()> {
        let Some(probe) = self.probe else { return Ok(()) };
        let dims = [&[self.b, self.t], value.dims().get(1..).unwrap_or_default()].concat();
        probe.tensor(name(), &value.reshape(dims)?);
        Ok(())
    }

    /// Records the routes of layer `i`: `{prefix}router_logits.{i}`, and `{prefix}topk_index.{i}` and
    /// `{prefix}topk_weight.{i}`, in descending order of weight if `by_weight`, else as the router chose.
    pub(super) fn record_routes(&self, prefix: &str, i: usize, routes: &Routes, by_weight: bool) -> Result<()> {
        let Some(probe) = self.probe else { return Ok(()) };
        probe.routes(format!("{prefix}layer.{i}"), routes);
        if let Some(logits) = routes.logits() {
            self.record(|| format!("{prefix}router_logits.{i}"), logits)?;
        }
        let (experts, weights) = routes.top_k()?;
        let (mut experts, mut weights) = (experts.to_vec2::<u32>()?, weights.to_vec2::<f32>()?);
        for (experts, weights) in experts.iter_mut().zip(&mut weights).filter(|_| by_weight) {
            let mut pairs: Vec<_> = weights.iter().copied().zip(experts.iter().copied()).collect();
            // Stable: of equal weights the router's first choice stays first.
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
            (*weights, *experts) = pairs.into_iter().unzip();
        }
        let device = routes.weight().device();
        self.record(|| format!("{prefix}topk_index.{i}"), &Tensor::new(experts, device)?)?;
        self.record(|| format!("{prefix}topk_weight.{i}"), &Tensor::new(weights, device)?)
    }
}
