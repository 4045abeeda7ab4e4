//! Dense mixing: every token goes to every expert.

use candle_core::{DType, Result, Tensor, bail};

use super::{Router, SoftmaxTopK, finite, float_mask, logits, pick, real_tokens};
use crate::host::with_f32;
use crate::ops::softmax;
use crate::routes::{RouteInput, Routes};

/// Softmax over all experts, all of which take part: `p = softmax(W [x; c])`, where `c` is what the routing is conditioned
/// on, if anything. U-SAM (arXiv 2505.13880) mixes its projectors so, by the sound and by the prompt.
///
/// Padding gets no routes.
#[derive(Clone, Debug)]
pub struct SoftmaxMixing {
    /// `[E, H + C]`: the columns of the token stand before those of the condition.
    pub weight: Tensor,
}

impl SoftmaxMixing {
    /// `[t, h + c]` in f32
    fn joined(&self, input: &RouteInput<'_>) -> Result<Tensor> {
        let (tokens, h) = input.x.dims2()?;
        let x = input.x.to_dtype(DType::F32)?;
        let Some(condition) = input.condition else {
            return self.checked(h, 0).map(|()| x);
        };
        let (rows, c) = condition.dims2()?;
        self.checked(h, c)?;
        if rows != tokens && rows != 1 {
            bail!("routing of {tokens} tokens conditioned on {rows} rows: give one for each token, or one for all");
        }
        Tensor::cat(&[x, condition.to_dtype(DType::F32)?.broadcast_as((tokens, c))?.contiguous()?], 1)
    }

    fn checked(&self, h: usize, c: usize) -> Result<()> {
        match self.weight.dims2()? {
            (experts, width) if experts > 0 && width == h + c => Ok(()),
            (experts, width) => {
                bail!("a router of weight [{experts}, {width}] for tokens of width {h} and a condition of width {c}")
            }
        }
    }
}

impl Router for SoftmaxMixing {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let x = self.joined(input)?;
        let (tokens, experts) = (x.dim(0)?, self.experts());
        let logits = logits(&x, &self.weight)?;
        let p = softmax(&logits)?;
        with_f32(&p, "router", |p| p.chunks_exact(experts).enumerate().try_for_each(|(t, row)| finite(row, t)))?;
        let mask = float_mask(input)?;
        let routes = match &mask {
            None => Routes::dense(&p, p.clone())?,
            Some(mask) => {
                let mask = mask.to_vec1::<f32>()?;
                if mask.len() != tokens {
                    bail!("a mask of {} for {tokens} tokens", mask.len());
                }
                let real: Vec<u32> = (0u32..).zip(&mask).filter(|(_, m)| **m != 0.0).map(|(t, _)| t).collect();
                let all: Vec<u32> = (0..experts as u32).collect();
                let choices: Vec<_> = mask.iter().map(|&m| if m == 0.0 { Vec::new() } else { all.clone() }).collect();
                let weights = match real.len() {
                    0 => Tensor::zeros(0, DType::F32, p.device())?,
                    n => p.index_select(&Tensor::from_vec(real, n, p.device())?, 0)?.flatten_all()?,
                };
                Routes::new(experts, &choices, &weights, p)?
            }
        };
        Ok(routes.with_logits(logits).with_mask(mask))
    }
}

/// All experts in training, few of them afterwards (DS-MoE, arXiv 2404.05567).
///
/// `S = softmax(W x)`; all experts are weighted by it in training, with
/// [`mutual_information`](crate::losses::mutual_information) as the loss that makes it sharp and balanced. At inference only
/// the best or those above a threshold take part, their weights as they are.
#[derive(Clone, Debug)]
pub struct DenseTraining {
    /// `[E, H]`
    pub weight: Tensor,
    /// Who takes part outside of training ([`RouteInput::training`]).
    pub keep: Keep,
}

/// The experts that take part in what was trained densely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// All, as in training.
    All,
    /// The k best.
    Best(usize),
    /// Those with a score above this: as many per token as it needs, maybe none.
    Above(f64),
}

impl Router for DenseTraining {
    fn experts(&self) -> usize {
        self.weight.dims().first().copied().unwrap_or(0)
    }

    fn route(&self, input: &RouteInput<'_>) -> Result<Routes> {
        let weight = self.weight.clone();
        let keep = if input.training { Keep::All } else { self.keep };
        let threshold = match keep {
            Keep::All => return SoftmaxMixing { weight }.route(&RouteInput { condition: None, ..*input }),
            Keep::Best(k) => {
                return SoftmaxTopK { weight, k, renormalise: false, scale: 1.0, groups: None }.route(input);
            }
            Keep::Above(threshold) => threshold,
        };
        let logits = logits(input.x, &weight)?;
        let (tokens, experts) = logits.dims2()?;
        let p = softmax(&logits)?;
        let mask = real_tokens(input, tokens)?;
        let choices = with_f32(&p, "router", |p| {
            let rows = p.chunks_exact(experts.max(1)).enumerate();
            rows.map(|(t, row)| {
                if mask.as_ref().is_some_and(|mask| mask[t] == 0.0) {
                    return Ok(Vec::new());
                }
                finite(row, t)?;
                Ok(super::top_k(row, experts, |e| f64::from(row[e]) > threshold))
            })
            .collect::<Result<Vec<_>>>()
        })?;
        let weights = pick(&p, &choices)?;
        Ok(Routes::new(experts, &choices, &weights, p)?.with_logits(logits).with_mask(float_mask(input)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn by_hand() -> Result<()> {
        let dev = &Device::Cpu;
        // Two experts: one likes the token, the other the condition.
        let router = SoftmaxMixing { weight: Tensor::new(&[[1f32, 0., 0.], [0., 0., 1.]], dev)? };
        let x = Tensor::new(&[[1f32, 7.], [2., 7.], [3., 7.]], dev)?;
        let condition = Tensor::new(&[[1f32], [2.], [1.]], dev)?;
        let mask = Tensor::new(&[1f32, 0., 1.], dev)?;
        let input = RouteInput { condition: Some(&condition), ..RouteInput::new(&x) };
        let routes = router.route(&input)?;
        assert_eq!(routes.offsets()?, [0, 3, 6]);
        let share = |d: f32| 1.0 / (1.0 + d.exp());
        let (experts, weights) = routes.top_k()?;
        assert_eq!(experts.to_vec2::<u32>()?, [[0, 1]; 3]);
        for (row, d) in weights.to_vec2::<f32>()?.iter().zip([0.0, 0.0, 2.0]) {
            assert!((row[1] - share(d)).abs() < 1e-6 && (row[0] + row[1] - 1.0).abs() < 1e-6, "{row:?}");
        }
        // Padding goes nowhere, and one condition may stand for all.
        let masked = router.route(&input.with_mask(Some(&mask)))?;
        assert_eq!((masked.len(), masked.offsets()?), (4, &[0, 2, 4][..]));
        assert_eq!(masked.token()?.to_vec1::<u32>()?, [0, 2, 0, 2]);
        let one = condition.narrow(0, 0, 1)?;
        let routes = router.route(&RouteInput { condition: Some(&one), ..RouteInput::new(&x) })?;
        assert!((routes.top_k()?.1.to_vec2::<f32>()?[1][1] - share(1.0)).abs() < 1e-6);
        assert!(router.route(&RouteInput::new(&x)).is_err());
        let two = condition.narrow(0, 0, 2)?;
        assert!(router.route(&RouteInput { condition: Some(&two), ..RouteInput::new(&x) }).is_err());
        let broken = (&x * f64::NAN)?;
        assert!(router.route(&RouteInput { condition: Some(&condition), ..RouteInput::new(&broken) }).is_err());
        Ok(())
    }
}
