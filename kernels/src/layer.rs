//! The sparse layer that every model uses.

use candle_core::{DType, Error, Result, Tensor};

use crate::experts::{ExpertBank, linear};
use crate::ops::softmax;
use crate::routers::Router;
use crate::routes::{RouteInput, Routes};
use crate::{Linear, Probe};

/// Experts that see every token, with or without a sigmoid gate (Qwen2-MoE, Time-MoE; DeepSeek has none).
#[derive(Clone, Debug)]
pub struct SharedExpert {
    /// One expert as wide as the checkpoint says.
    pub bank: ExpertBank,
    /// `[1, H]`: the output is multiplied by `sigmoid(gate · x)`.
    pub gate: Option<Tensor>,
    /// To two numbers: routed experts and this one are weighted by the softmax of them instead of added (the residual mixture
    /// of DeepSpeed-MoE, arXiv 2201.05596, section 4.1.2).
    pub blend: Option<Linear>,
}

impl SharedExpert {
    /// `x [T, H]` to `[T, O]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.bank.forward_dense(x)?;
        let Some(gate) = &self.gate else { return Ok(y) };
        let gate = (linear(x, gate, None)?.to_dtype(DType::F32)?.neg()?.exp()? + 1.0)?.recip()?; // (T, 1)
        y.broadcast_mul(&gate.to_dtype(y.dtype())?)
    }
}

/// Router, experts and optional shared experts: `sum_k w_k E_k(x) + shared(x)`.
#[derive(Debug)]
pub struct MoeLayer {
    /// Chooses experts.
    pub router: Box<dyn Router>,
    /// The routed experts.
    pub experts: ExpertBank,
    /// Experts for every token.
    pub shared: Option<SharedExpert>,
}

impl MoeLayer {
    /// The layer's output and the routes taken, for losses. With a probe, records `{name}.router_logits` (where the router
    /// has logits), `{name}.topk_experts`, `{name}.topk_weights` and the routes.
    ///
    /// # Errors
    /// What the router refuses, with `name` before it.
    ///
    /// # Shapes
    /// `input.x [T, H]` to `[T, O]`
    pub fn forward(&self, input: &RouteInput<'_>, name: &str, probe: Option<&Probe>) -> Result<(Tensor, Routes)> {
        let routes = self.router.route(input).map_err(|e| Error::msg(format!("{name}: {e}")))?;
        if let Some(probe) = probe {
            let (experts, weights) = routes.top_k()?;
            if let Some(logits) = routes.logits() {
                probe.tensor(format!("{name}.router_logits"), logits);
            }
            probe.tensor(format!("{name}.topk_experts"), &experts);
            probe.tensor(format!("{name}.topk_weights"), &weights);
            probe.routes(name, &routes);
        }
        let mut y = self.experts.forward(input.x, &routes)?;
        if let Some(shared) = &self.shared {
            let other = shared.forward(input.x)?;
            y = match &shared.blend {
                None => (y + other)?,
                Some(blend) => {
                    let weights = softmax(&blend.forward(input.x)?.to_dtype(DType::F32)?)?.to_dtype(y.dtype())?; // (T, 2)
                    (y.broadcast_mul(&weights.narrow(1, 0, 1)?)? + other.broadcast_mul(&weights.narrow(1, 1, 1)?)?)?
                }
            };
        }
        Ok((y, routes))
    }
}
