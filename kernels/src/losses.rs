//! Auxiliary losses of routing, which are functions of [`Routes`], the next-token loss, and that of texts without alignment.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};

use crate::composed;
use crate::cpu::{SendPtr, parallel};
use crate::host::{as_f32, tensor, with_f32};

use crate::routes::Routes;

mod ctc;
mod free;
mod information;
mod relu;

pub use ctc::ctc;
pub use free::{heterogeneous_balance, null_balance};
pub use information::{binary_cross_entropy, mutual_information};
pub use relu::{AdaptiveL1, activation_locality, chunk_sparsity, relu_l1, sparsity};

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

/// What the experts of several layers do together.
struct Usage {
    /// Routes to each expert.
    counts: Vec<f64>,
    /// `[E]`: the sum of its scores over real tokens, with gradients.
    sums: Tensor,
    /// Real tokens, at least 1: a batch of nothing but padding has no load to balance.
    tokens: f64,
}

fn usage(layers: &[Routes]) -> Result<Usage> {
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
        counts.iter_mut().zip(routes.load()?).for_each(|(count, load)| *count += load);
        let sum = routes.scores().broadcast_mul(&weights.unsqueeze(1)?)?.sum(0)?; // (E)
        sums = Some(match sums {
            Some(total) => (total + sum)?,
            None => sum,
        });
    }
    match sums {
        Some(sums) => Ok(Usage { counts, sums, tokens: f64::max(tokens, 1.0) }),
        None => bail!("the load balance loss needs the routes of at least one layer"),
    }
}

/// The load balance loss of Mixtral and Time-MoE (Switch Transformer, arXiv 2101.03961, eqs. 4-6, summed over the k
/// choices): `E * sum_e f_e P_e` over the tokens of all layers together, with `f_e` the number of routes to expert `e` per
/// token and `P_e` its mean probability. About k when balanced (Time-MoE's paper divides `f` by k, its code does not), the
/// mean number of routes of a token where that differs. Padding counts in neither.
pub fn load_balance(layers: &[Routes]) -> Result<Tensor> {
    let Usage { counts, sums, tokens } = usage(layers)?;
    let experts = counts.len();
    let scaled: Vec<f32> = counts.iter().map(|c| (c * experts as f64 / (tokens * tokens)) as f32).collect();
    (&sums * Tensor::from_vec(scaled, experts, sums.device())?)?.sum_all()
}

/// The router z-loss (ST-MoE, arXiv 2202.08906, eq. 5): the mean over tokens of `logsumexp(logits)^2`. Padding does not
/// count.
pub fn router_z(routes: &Routes) -> Result<Tensor> {
    joint_router_z(std::slice::from_ref(routes))
}

/// [`router_z`] over the tokens of several groups together: the mean over all of them.
pub fn joint_router_z(groups: &[Routes]) -> Result<Tensor> {
    let (mut sum, mut count) = (None, 0.0);
    for routes in groups {
        let Some(logits) = routes.logits() else { bail!("this router has no logits, so no z-loss") };
        let max = logits.max_keepdim(D::Minus1)?.detach();
        let lse = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?.squeeze(1)?; // (T)
        let (weights, n) = token_weights(routes)?;
        let part = (lse.sqr()? * weights)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
        count += n;
    }
    match sum {
        Some(sum) => sum / f64::max(count, 1.0),
        None => bail!("the z-loss needs the routes of at least one router"),
    }
}

/// 0 for padding, else 1, of each token.
fn real(routes: &Routes) -> Result<Vec<f32>> {
    let tokens = routes.tokens();
    match routes.mask() {
        Some(mask) if mask.dims() != [tokens] => bail!("a mask of shape {:?} for {tokens} tokens", mask.dims()),
        Some(mask) => mask.to_vec1::<f32>(),
        None => Ok(vec![1.0; tokens]),
    }
}

/// The load balance loss of DeepSeek-V2 (arXiv 2405.04434, eqs. 23-25) of one layer, within each of `rows` sequences of
/// equal length: the mean over sequences of `sum_e f_e P_e`, with `f_e` the share of the sequence's routes that go to expert
/// `e` times `E`, and `P_e` its mean score. 1 when balanced. Padding counts in neither.
pub fn sequence_balance(routes: &Routes, rows: usize) -> Result<Tensor> {
    let (tokens, experts) = (routes.tokens(), routes.experts());
    if rows == 0 || tokens == 0 || experts == 0 || !tokens.is_multiple_of(rows) {
        bail!("{tokens} tokens with {experts} experts do not make {rows} sequences of equal length");
    }
    let length = tokens / rows;
    let mut counts = vec![0f64; rows * experts];
    let lists = routes.lists()?;
    for (e, range) in lists.offsets.windows(2).enumerate() {
        for &t in &lists.token[range[0]..range[1]] {
            counts[t as usize / length * experts + e] += 1.0;
        }
    }
    let real = real(routes)?;
    let mut scale = Vec::with_capacity(counts.len());
    for (counts, real) in counts.chunks_exact(experts).zip(real.chunks_exact(length)) {
        let all: f64 = counts.iter().sum::<f64>().max(1.0);
        let n: f64 = real.iter().map(|&r| f64::from(r)).sum::<f64>().max(1.0);
        scale.extend(counts.iter().map(|c| (c * experts as f64 / all / n) as f32));
    }
    let (weights, _) = token_weights(routes)?;
    let scores = routes.scores().broadcast_mul(&weights.unsqueeze(1)?)?.reshape((rows, length, experts))?;
    let scale = Tensor::from_vec(scale, (rows, experts), routes.scores().device())?;
    (scores.sum(1)? * scale)?.sum_all()? / rows as f64
}

/// The load balance loss over first choices, within each of `rows` groups of tokens of equal length: the mean over groups
/// of `E * sum_e P_e f_e`, with `P_e` the mean score of expert `e` and `f_e` the share of tokens whose best score it is,
/// before any are dropped. 1 when balanced. With one group MoE-LLaVA's (arXiv 2401.15947, eq. 7, as DeepSpeed computes it),
/// with a group for each image CuMo's (arXiv 2405.05949). Padding counts where the routes have no mask.
pub fn first_choice_balance(routes: &Routes, rows: usize) -> Result<Tensor> {
    let (tokens, experts) = (routes.tokens(), routes.experts());
    if rows == 0 || tokens == 0 || !tokens.is_multiple_of(rows) {
        bail!("{tokens} tokens do not make {rows} groups of equal length");
    }
    let length = tokens / rows;
    let real = real(routes)?;
    let mut scale = vec![0f32; rows * experts];
    with_f32(routes.scores(), "first choice balance", |scores| {
        for (t, row) in scores.chunks_exact(experts).enumerate() {
            let best = (1..experts).fold(0, |best, e| if row[e] > row[best] { e } else { best });
            scale[t / length * experts + best] += real[t];
        }
        Ok(())
    })?;
    for (counts, real) in scale.chunks_exact_mut(experts).zip(real.chunks_exact(length)) {
        let n = real.iter().sum::<f32>().max(1.0);
        counts.iter_mut().for_each(|c| *c *= experts as f32 / (n * n));
    }
    let (weights, _) = token_weights(routes)?;
    let scores = routes.scores().broadcast_mul(&weights.unsqueeze(1)?)?.reshape((rows, length, experts))?;
    let scale = Tensor::from_vec(scale, (rows, experts), routes.scores().device())?;
    (scores.sum(1)? * scale)?.sum_all()? / rows as f64
}

/// Mean cross entropy of rows of logits.
struct CrossEntropy {
    /// Negative for rows that do not count.
    targets: Arc<Vec<i64>>,
    count: f64,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "moesaic-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let classes = layout.dims().last().copied().unwrap_or(1);
        let logits = as_f32(storage, layout, self.name())?;
        let mut losses = vec![0f64; self.targets.len()];
        let out = SendPtr::new(&mut losses);
        parallel(self.targets.len(), logits.len() > 1 << 14, |i| {
            if self.targets[i] >= 0 {
                let row = &logits[i * classes..][..classes];
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|v| f64::from((v - max).exp())).sum();
                // SAFETY: each row's loss belongs to one task.
                let loss = unsafe { out.slice(i, 1) };
                loss[0] = sum.ln() + f64::from(max - row[self.targets[i] as usize]);
            }
        });
        let mean = losses.iter().sum::<f64>() / self.count;
        Ok((CpuStorage::F32(vec![mean as f32]), ().into()))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let classes = logits.dim(D::Minus1)?;
        let scale = (f64::from(grad.to_dtype(DType::F32)?.to_scalar::<f32>()?) / self.count) as f32;
        let mut grads = vec![0f32; logits.elem_count()];
        let out = SendPtr::new(&mut grads);
        with_f32(logits, self.name(), |logits| {
            parallel(self.targets.len(), logits.len() > 1 << 14, |i| {
                if self.targets[i] >= 0 {
                    let row = &logits[i * classes..][..classes];
                    // SAFETY: each row belongs to one task.
                    let grads = unsafe { out.slice(i * classes, classes) };
                    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let mut sum = 0f64;
                    for (g, v) in grads.iter_mut().zip(row) {
                        *g = (v - max).exp();
                        sum += f64::from(*g);
                    }
                    let inverse = (f64::from(scale) / sum) as f32;
                    grads.iter_mut().for_each(|g| *g *= inverse);
                    grads[self.targets[i] as usize] -= scale;
                }
            });
            Ok(())
        })?;
        Ok(Some(tensor(grads, logits.shape(), logits.dtype())?))
    }
}

/// Mean cross entropy of `logits [n, classes]` against `targets [n]`, with gradients. Rows with a negative target do not
/// count; 0 if none does. Nothing of the size of the logits is kept for the backward pass.
///
/// # Errors
/// A target that is no class, or another number of targets than rows.
pub fn cross_entropy(logits: &Tensor, targets: &[i64]) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if rows != targets.len() || classes == 0 {
        bail!("cross entropy: {} targets for logits of shape {:?}", targets.len(), logits.dims());
    }
    if let Some(i) = targets.iter().position(|&t| t >= classes as i64) {
        bail!("cross entropy: target {} of row {i} is not one of {classes} classes", targets[i]);
    }
    if composed::wanted(logits) {
        return composed::cross_entropy(logits, targets);
    }
    let count = targets.iter().filter(|&&t| t >= 0).count().max(1) as f64;
    logits.contiguous()?.apply_op1(CrossEntropy { targets: Arc::new(targets.to_vec()), count })
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
        let z = router_z(&routes.clone().with_logits(logits))?.to_scalar::<f32>()?;
        let want = (3f64.ln().powi(2) + (1.0 + 3f64.ln()).powi(2)) / 2.0;
        assert!((f64::from(z) - want).abs() < 1e-5, "{z} {want}");
        // Over two groups every token counts once: three tokens, of which two are alike.
        let one =
            Routes::new(3, &[vec![0]], &Tensor::ones(1, DType::F32, dev)?, Tensor::zeros((1, 3), DType::F32, dev)?)?;
        let groups = [
            routes.with_logits(Tensor::new(&[[0f32, 0., 0.], [1., 1., 1.], [9., 9., 9.]], dev)?),
            one.with_logits(Tensor::new(&[[1f32, 1., 1.]], dev)?),
        ];
        let z = joint_router_z(&groups)?.to_scalar::<f32>()?;
        let want = (3f64.ln().powi(2) + 2.0 * (1.0 + 3f64.ln()).powi(2)) / 3.0;
        assert!((f64::from(z) - want).abs() < 1e-5, "{z} {want}");
        Ok(())
    }
    #[test]
    fn sequence_balance_by_hand() -> Result<()> {
        let dev = &Device::Cpu;
        // Two sequences of two tokens; the second starts with padding.
        let scores = Tensor::new(&[[0.75f32, 0.25], [0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], dev)?;
        let choices = [vec![0], vec![0], vec![], vec![0]];
        let mask = Tensor::new(&[1f32, 1., 0., 1.], dev)?;
        let routes = Routes::new(2, &choices, &Tensor::ones(3, DType::F32, dev)?, scores)?.with_mask(Some(mask));
        // f = (2, 0) in both; P_0 = 0.5 and 1.
        let loss = sequence_balance(&routes, 2)?.to_scalar::<f32>()?;
        assert!((loss - (2.0 * 0.5 + 2.0 * 1.0) / 2.0).abs() < 1e-6, "{loss}");
        assert!(sequence_balance(&routes, 3).is_err());
        let short = Tensor::ones(3, DType::F32, dev)?;
        let routes = routes.with_mask(Some(short));
        for loss in [sequence_balance(&routes, 2), first_choice_balance(&routes, 2)] {
            assert!(loss.is_err_and(|e| e.to_string().contains("a mask of shape [3] for 4 tokens")));
        }
        Ok(())
    }

    #[test]
    fn cross_entropy_by_hand() -> Result<()> {
        let logits = Tensor::new(&[[0f32, 3f32.ln()], [5., 5.], [100., 0.]], &Device::Cpu)?;
        let loss = |targets: &[i64]| cross_entropy(&logits, targets)?.to_scalar::<f32>();
        assert!((loss(&[1, -100, -100])? - (4.0f32 / 3.0).ln()).abs() < 1e-6);
        assert!((loss(&[-1, 0, 1])? - (2f32.ln() + 100.0) / 2.0).abs() < 1e-4);
        assert_eq!(loss(&[-1, -1, -1])?, 0.0);
        assert!(loss(&[0, 2, 0]).is_err());
        assert!(loss(&[0, 1]).is_err());
        Ok(())
    }
}
