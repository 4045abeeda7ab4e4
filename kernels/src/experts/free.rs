//! Experts without a network: they cost nothing, or next to it.

use candle_core::{DType, Result, Tensor, bail};

use super::bank::ExpertBank;
use super::stages::linear;
use crate::ops::softmax;
use crate::routes::Routes;

/// An expert without a network (MoE++, arXiv 2410.07348). A bank has them behind its networks, see
/// [`ExpertBank::with_free`]; routers do not know the difference.
#[derive(Clone, Debug)]
pub enum FreeExpert {
    /// `E(x) = 0`: discards; the null expert of AdaMoE (arXiv 2406.13233).
    Zero,
    /// `E(x) = x`: skips.
    Copy,
    /// `E(x) = a_1 x + a_2 v` with `[a_1, a_2] = softmax(W_c x)`: replaces.
    Constant {
        /// `[O]`, v.
        vector: Tensor,
        /// `[2, H]`, `W_c`.
        gate: Tensor,
    },
}

impl FreeExpert {
    /// `x [n, H]` to `[n, H]` in f32; nothing for what is zero.
    fn forward(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let wide = |t: &Tensor| t.to_dtype(DType::F32);
        Ok(match self {
            Self::Zero => None,
            Self::Copy => Some(wide(x)?),
            Self::Constant { vector, gate } => {
                let x = wide(x)?;
                let a = softmax(&linear(&x, &wide(gate)?, None)?)?; // (n, 2)
                let kept = x.broadcast_mul(&a.narrow(1, 0, 1)?)?;
                let replaced = a.narrow(1, 1, 1)?.broadcast_mul(&wide(vector)?.unsqueeze(0)?)?; // (n, O)
                Some((kept + replaced)?)
            }
        })
    }
}

impl ExpertBank {
    /// Adds experts without a network: with N networks, expert `N + i` of the routes is `free[i]`.
    ///
    /// # Errors
    /// A copy or a constant expert where the output is not as wide as the input, or a constant one of another width.
    pub fn with_free(mut self, free: Vec<FreeExpert>) -> Result<Self> {
        let ((_, _, h), o) = (self.up.dims()?, self.output_width());
        for expert in &free {
            match expert {
                FreeExpert::Zero => {}
                _ if h != o => bail!("experts of {h} inputs and {o} outputs have none that copies its input"),
                FreeExpert::Copy => {}
                FreeExpert::Constant { vector, gate } if vector.dims() != [o] || gate.dims() != [2, h] => {
                    bail!(
                        "a constant expert with a vector {:?} and a gate {:?}, expected [{o}] and [2, {h}]",
                        vector.dims(),
                        gate.dims()
                    );
                }
                FreeExpert::Constant { .. } => {}
            }
        }
        self.extras.free = free;
        Ok(self)
    }

    /// The experts without a network, behind the others.
    pub fn free(&self) -> &[FreeExpert] {
        &self.extras.free
    }

    /// What `run` makes of the routes to the networks, plus what the experts without one give, in their order.
    pub(super) fn and_free(
        &self,
        x: &Tensor,
        routes: &Routes,
        run: impl FnOnce(&Routes) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.extras.free.is_empty() {
            return run(routes);
        }
        let networks = self.networks();
        let own = routes.to_first(networks)?;
        let mut y = match own.is_empty() {
            true => Tensor::zeros((routes.tokens(), self.output_width()), x.dtype(), x.device())?,
            false => run(&own)?,
        };
        let lists = routes.lists()?;
        for (expert, range) in self.extras.free.iter().zip(lists.offsets[networks..].windows(2)) {
            let (first, n) = (range[0], range[1] - range[0]);
            if n == 0 {
                continue;
            }
            let token = Tensor::from_slice(&lists.token[first..range[1]], n, x.device())?;
            if let Some(out) = expert.forward(&x.index_select(&token, 0)?)? {
                let out = out.broadcast_mul(&routes.weight().narrow(0, first, n)?.unsqueeze(1)?)?; // (n, O)
                y = y.index_add(&token, &out.to_dtype(y.dtype())?, 0)?;
            }
        }
        Ok(y)
    }
}
