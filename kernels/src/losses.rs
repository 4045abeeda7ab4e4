//! Auxiliary losses of routing: functions of [`Routes`].

use candle_core::{D, DType, Result, Tensor, bail};

use crate::routes::Routes;

/// `mask [T]` as weights that sum to the number of real tokens, and that number.
fn token_weights(routes: &Routes) -> Result<(Tensor, f64)> {
    match routes.mask() {
        Some(mask) => Ok((mask.clone(), f64::from(mask.sum_all()?.to_scalar::<f32>()?))),
        None => {
            let n = routes.tokens();
            Ok((Tensor::ones(n, DType::F32, routes.scores().device())?, n as f64))
        }
    }
}

/// The load balance loss of Mixtral and Time-MoE (Switch Transformer, arXiv 2101.03961, eqs. 4-6, summed over the k
/// choices): `E * sum_e f_e P_e` over the tokens of all layers together, with `f_e` the number of routes to expert `e` per
/// token and `P_e` its mean probability. About k when balanced (Time-MoE's paper divides `f` by k, its code does not).
/// Padding counts in neither.
pub fn load_balance(layers: &[Routes]) -> Result<Tensor> {
    let Some(first) = layers.first() else { bail!("the load balance loss needs the routes of at least one layer") };
    let experts = first.experts();
    let mut counts = vec![0f64; experts];
    let mut sums: Option<Tensor> = None;
    let mut tokens = 0.0;
    for routes in layers {
        if routes.experts() != experts {
            bail!("layers with {experts} and {} experts have no joint load balance loss", routes.experts());
        }
        let (weights, n) = token_weights(routes)?;
        tokens += n;
        let real = routes.mask().map(Tensor::to_vec1::<f32>).transpose()?;
        for (count, range) in counts.iter_mut().zip(routes.offsets().windows(2)) {
            *count += match &real {
                Some(real) => routes.plan.token[range[0]..range[1]].iter().map(|&t| f64::from(real[t as usize])).sum(),
                None => (range[1] - range[0]) as f64,
            };
        }
        let sum = routes.scores().broadcast_mul(&weights.unsqueeze(1)?)?.sum(0)?; // (E)
        sums = Some(match sums {
            Some(total) => (total + sum)?,
            None => sum,
        });
    }
    let Some(sums) = sums else { bail!("the load balance loss needs the routes of at least one layer") };
    // A batch of nothing but padding has no load to balance.
    let tokens = tokens.max(1.0);
    let scaled: Vec<f32> = counts.iter().map(|c| (c * experts as f64 / (tokens * tokens)) as f32).collect();
    (sums * Tensor::from_vec(scaled, experts, first.scores().device())?)?.sum_all()
}

/// The router z-loss (ST-MoE, arXiv 2202.08906, eq. 5): the mean over tokens of `logsumexp(logits)^2`. Padding does not
/// count.
pub fn router_z(routes: &Routes) -> Result<Tensor> {
    let Some(logits) = routes.logits() else { bail!("this router has no logits, so no z-loss") };
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let lse = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?.squeeze(1)?; // (T)
    let (weights, n) = token_weights(routes)?;
    (lse.sqr()? * weights)?.sum_all()? / n.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn load_balance_and_z_loss_by_hand() -> Result<()> {
        let dev = &Device::Cpu;
        let scores = Tensor::new(&[[0.6f32, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4]], dev)?;
        let weights = Tensor::new(&[0.6f32, 0.3, 0.7, 0.2], dev)?;
        let choices = [vec![0, 1], vec![1, 0], vec![]];
        let mask = Tensor::new(&[1f32, 1., 0.], dev)?;
        let routes = Routes::new(3, &choices, &weights, scores)?.with_mask(Some(mask));
        // f = (2, 2, 0) / 2 tokens; P = (0.4, 0.5, 0.1) over the two real tokens.
        let loss = load_balance(&[routes.clone(), routes.clone()])?.to_scalar::<f32>()?;
        assert!((loss - 3.0 * (0.4 + 0.5)).abs() < 1e-6, "{loss}");
        let logits = Tensor::new(&[[0f32, 0., 0.], [1., 1., 1.], [9., 9., 9.]], dev)?;
        let z = router_z(&routes.with_logits(logits))?.to_scalar::<f32>()?;
        let want = (3f64.ln().powi(2) + (1.0 + 3f64.ln()).powi(2)) / 2.0;
        assert!((f64::from(z) - want).abs() < 1e-5, "{z} {want}");
        Ok(())
    }
}
