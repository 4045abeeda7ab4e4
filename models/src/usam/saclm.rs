//! The semantic-aware contrastive loss of U-SAM (arXiv 2505.13880, section 2.4), which is the patch slimming of LAPS (Fu et al.,
//! CVPR 2024) with sound in the place of pictures: the steps of sound that matter are to be near their own text, and far from
//! another clip's.
//!
//! ```text
//! a, t [b, n, h]   sound and text, the shorter of the two interpolated to the length of the other
//! s = (1 - beta) sigmoid(W2 relu(W1 a)) + beta / 2 (minmax(cos(a, mean t)) + minmax(cos(a, mean a)))
//! P = softmax_slots(W4 gelu(W3 LN(a')))^T a',   a' = a where s > threshold, else 0
//! A(P, t) = 1/2 (mean over slots of max over text + mean over text of max over slots) of P t^T
//! loss = mean relu(margin + A(P, t of another clip) - A(P, t)) + mean (mean_n s - ratio)^2
//! ```
//!
//! The minimum and the maximum are those of the whole batch: **this loss couples the rows of a batch** by definition. The choice
//! of steps carries no gradient; the score learns from the second term alone.

use candle_core::{D, DType, Result, Tensor, bail};
use moesaic_encoders::linear_in_time;
use moesaic_kernels::ops::{gelu, layer_norm, softmax};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::{Init, Linear, Params, Probe};

/// LayerNorm's, torch's default.
const EPS: f64 = 1e-5;
/// Added to ranges and products of norms, so that equal steps and silence divide by something.
const TINY: f64 = 1e-8;

/// Sizes and numbers of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct SaclmConfig {
    /// Width of sound and text.
    pub hidden: usize,
    /// Width inside the network that scores steps, `score_hidden`.
    pub score_hidden: usize,
    /// Slots that steps are gathered in, `num_aggregated`.
    pub slots: usize,
    /// By how much the own text must be nearer.
    pub margin: f64,
    /// Mean score that is wanted, `desired_ratio`.
    pub ratio: f64,
    /// Share of the two cosines in a score.
    pub beta: f64,
    /// Steps with a score above it count.
    pub threshold: f64,
}

impl SaclmConfig {
    /// Checks that sizes and numbers make sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn validate(&self) -> Result<()> {
        const MOST: usize = 1 << 20;
        let sizes = [("hidden_size", self.hidden), ("score_hidden", self.score_hidden), ("num_aggregated", self.slots)];
        if let Some((name, value)) = sizes.into_iter().find(|(_, value)| !(1..=MOST).contains(value)) {
            bail!("{name} of the contrastive loss is {value}, expected 1 to {MOST}");
        }
        let numbers = [("margin", self.margin), ("desired_ratio", self.ratio), ("threshold", self.threshold)];
        if let Some((name, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            bail!("{name} of the contrastive loss is {value}, expected a number");
        }
        if !(0.0..=1.0).contains(&self.beta) {
            bail!("beta of the contrastive loss is {}, expected 0 to 1", self.beta);
        }
        Ok(())
    }
}

/// What the loss gives; all but the decision carries gradients.
#[derive(Clone, Debug)]
pub struct SaclmLosses {
    /// The sum of both.
    pub total: Tensor,
    /// The own text against another's.
    pub triplet: Tensor,
    /// The mean score against the one that is wanted.
    pub ratio: Tensor,
    /// `[b, n]`: what each step counts, before the threshold.
    pub significance: Tensor,
    /// `[b, n]` of 0 and 1: the steps that count.
    pub decision: Tensor,
}

/// The loss with its two networks.
#[derive(Debug)]
pub struct Saclm {
    config: SaclmConfig,
    score: [Linear; 2],
    norm: [Tensor; 2],
    gather: [Linear; 2],
}

impl Saclm {
    /// `lps_module.score_network.mlp.{0,2}` and `spc_module.aggregation_network.{0,1,3}` of `p`.
    ///
    /// # Errors
    /// The config makes no sense, or a tensor is missing or has another shape.
    pub fn load(config: SaclmConfig, p: &Params) -> Result<Self> {
        config.validate()?;
        let (h, score, gather) =
            (config.hidden, p.pp("lps_module.score_network.mlp"), p.pp("spc_module.aggregation_network"));
        let map = |p: &Params, name: &str, (out, inputs): (usize, usize)| {
            Linear::load(p, name, (out, inputs), true, Init::Uniform(1.0 / (inputs as f64).sqrt()))
        };
        let norm = |name: &str, init| gather.pp("0").tensor(name, [h], init)?.to_dtype(DType::F32);
        Ok(Self {
            score: [map(&score, "0", (config.score_hidden, h))?, map(&score, "2", (1, config.score_hidden))?],
            norm: [norm("weight", Init::Ones)?, norm("bias", Init::Zeros)?],
            gather: [map(&gather, "1", (h, h))?, map(&gather, "3", (config.slots, h))?],
            config,
        })
    }

    /// The sizes and numbers.
    pub fn config(&self) -> &SaclmConfig {
        &self.config
    }

    /// For each of `rows` clips the one whose text it is held against: a random order, in which, as in the released code, a clip
    /// may meet itself; then its margin is all that it adds.
    pub fn negatives(rows: usize, rng: &mut Rng) -> Vec<u32> {
        let mut order: Vec<u32> = (0u32..).take(rows).collect();
        for i in (1..rows).rev() {
            order.swap(i, rng.below(i + 1));
        }
        order
    }

    /// The loss of a batch; `negatives` says whose text each clip is held against. A probe gets `audio_aligned`, `text_aligned`,
    /// `predictive_scores`, `text_relevance`, `audio_saliency`, `significance_scores`, `decision_matrix`, `calibrated_patches`,
    /// `alignment_score` and `negative_score`.
    ///
    /// # Shapes
    /// `audio [b, n, h]`, `text [b, m, h]`, `negatives [b]`
    ///
    /// # Errors
    /// Shapes that do not fit, or a negative that is no row.
    pub fn forward(
        &self,
        audio: &Tensor,
        text: &Tensor,
        negatives: &[u32],
        probe: Option<&Probe>,
    ) -> Result<SaclmLosses> {
        let ((b, n, h), (rows, m, width)) = (audio.dims3()?, text.dims3()?);
        if b == 0 || rows != b || [h, width] != [self.config.hidden; 2] {
            bail!(
                "a contrastive loss of sound {:?} and text {:?}: expected as many rows of both, {} wide",
                audio.dims(),
                text.dims(),
                self.config.hidden
            );
        }
        if negatives.len() != b || negatives.iter().any(|&i| i as usize >= b) {
            bail!("negatives {negatives:?} of {b} clips: give each the number of a clip, from 0");
        }
        let record = |name: &str, x: &Tensor| {
            if let Some(probe) = probe {
                probe.tensor(name, x);
            }
        };
        let n = n.max(m);
        let audio = linear_in_time(&audio.to_dtype(DType::F32)?, n)?;
        let text = linear_in_time(&text.to_dtype(DType::F32)?, n)?;
        record("audio_aligned", &audio);
        record("text_aligned", &text);

        let significance = self.significance(&audio, &text, &record)?;
        let decision = significance.detach().gt(self.config.threshold)?.to_dtype(DType::F32)?; // (b, n)
        record("significance_scores", &significance);
        record("decision_matrix", &decision);

        let chosen = audio.broadcast_mul(&decision.unsqueeze(2)?)?;
        let patches = self.gathered(&chosen)?; // (b, slots, h)
        record("calibrated_patches", &patches);
        let own = alignment(&patches, &text)?; // (b)
        let others = Tensor::from_slice(negatives, b, text.device())?;
        let negative = alignment(&patches, &text.index_select(&others, 0)?)?;
        record("alignment_score", &own);
        record("negative_score", &negative);

        let triplet = ((&negative - &own)? + self.config.margin)?.relu()?.mean_all()?;
        let ratio = (significance.mean(1)? - self.config.ratio)?.sqr()?.mean_all()?;
        Ok(SaclmLosses { total: (&triplet + &ratio)?, triplet, ratio, significance, decision })
    }

    /// What each step counts, `[b, n]`.
    fn significance(&self, audio: &Tensor, text: &Tensor, record: &dyn Fn(&str, &Tensor)) -> Result<Tensor> {
        let inner = self.score[0].forward(audio)?.relu()?;
        let predicted = self.score[1].forward(&inner)?.squeeze(2)?; // (b, n)
        let predicted = (predicted.neg()?.exp()? + 1.0)?.recip()?;
        let relevance = cosine(audio, &text.mean_keepdim(1)?)?;
        let saliency = cosine(audio, &audio.mean_keepdim(1)?)?;
        record("predictive_scores", &predicted);
        record("text_relevance", &relevance);
        record("audio_saliency", &saliency);
        let beta = self.config.beta;
        (predicted * (1.0 - beta))? + ((spread(&relevance)? + spread(&saliency)?)? * (beta / 2.0))?
    }

    /// `x [b, n, h]` gathered in slots, `[b, slots, h]`.
    fn gathered(&self, x: &Tensor) -> Result<Tensor> {
        let [weight, bias] = &self.norm;
        let inner = gelu(&self.gather[0].forward(&layer_norm(x, weight, Some(bias), EPS)?)?)?;
        let weights = softmax(&self.gather[1].forward(&inner)?)?; // (b, n, slots)
        weights.transpose(1, 2)?.contiguous()?.matmul(&x.contiguous()?)
    }
}

/// Cosines of `x [b, n, h]` to `y [b, 1, h]`, `[b, n]`.
fn cosine(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    // The root of zero has no slope, so what is tiny is added under it.
    let norm = |x: &Tensor| (x.sqr()?.sum_keepdim(2)? + TINY * TINY)?.sqrt();
    let product = x.broadcast_mul(y)?.sum_keepdim(2)?; // (b, n, 1)
    product.broadcast_div(&(norm(x)?.broadcast_mul(&norm(y)?)? + TINY)?)?.squeeze(2)
}

/// Values spread from 0 to 1 over the whole tensor.
fn spread(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_all()?;
    let (low, high) = (flat.neg().and_then(|x| largest(&x, 0))?.neg()?, largest(&flat, 0)?); // (1) each
    let shape = x.shape();
    let range = ((&high - &low)? + TINY)?;
    flat.broadcast_sub(&low)?.broadcast_div(&range)?.reshape(shape)
}

/// The largest value along a dimension, which stays as one; of equal ones the first alone gets the gradient.
fn largest(x: &Tensor, dim: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    x.gather(&x.detach().argmax_keepdim(dim)?, dim)
}

/// How near steps and text are, `[b]`; the products are not normed.
fn alignment(patches: &Tensor, text: &Tensor) -> Result<Tensor> {
    let products = patches.matmul(&text.transpose(1, 2)?.contiguous()?)?; // (b, slots, n)
    let by_slot = largest(&products, 2)?.flatten_from(1)?.mean(D::Minus1)?;
    let by_text = largest(&products, 1)?.flatten_from(1)?.mean(D::Minus1)?;
    (by_slot + by_text)? * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn config() -> SaclmConfig {
        SaclmConfig { hidden: 6, score_hidden: 5, slots: 4, margin: 0.2, ratio: 0.5, beta: 0.5, threshold: 0.5 }
    }

    fn normal(rng: &mut Rng, shape: &[usize], std: f64) -> Result<Tensor> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (std * rng.normal()) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// Gradients of everything that has one, against central differences; steps that would change a decision or the larger of two
    /// values are so rare at this seed that none is met.
    #[test]
    fn gradients_are_those_of_finite_differences() -> Result<()> {
        for (n, m) in [(7, 4), (4, 7)] {
            let params = Params::init(11, &Device::Cpu);
            let loss = Saclm::load(config(), &params)?;
            let mut rng = Rng::new(3 + n as u64);
            let audio = Var::from_tensor(&normal(&mut rng, &[3, n, 6], 0.6)?)?;
            let text = Var::from_tensor(&normal(&mut rng, &[3, m, 6], 0.6)?)?;
            let total = || loss.forward(audio.as_tensor(), text.as_tensor(), &[2, 0, 1], None).map(|l| l.total);
            let grads = total()?.backward()?;
            let mut vars = params.variables();
            assert_eq!(vars.len(), 10);
            vars.extend([("audio".to_string(), audio.clone()), ("text".to_string(), text.clone())]);
            for (name, var) in vars {
                let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} gets no gradient"));
                let (grad, values) = (grad.flatten_all()?.to_vec1::<f32>()?, var.flatten_all()?.to_vec1::<f32>()?);
                let scale = grad.iter().fold(0f32, |most, g| most.max(g.abs()));
                assert!(scale > 0.0, "{name} gets a gradient of zero");
                for _ in 0..12 {
                    let (i, step) = (rng.below(values.len()), 4e-3f32);
                    let at = |delta: f32| -> Result<f32> {
                        let mut moved = values.clone();
                        moved[i] += delta;
                        var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
                        total()?.to_scalar::<f32>()
                    };
                    let difference = (at(step)? - at(-step)?) / (2.0 * step);
                    at(0.0)?;
                    let error = (difference - grad[i]).abs();
                    assert!(error < 0.03 * scale + 2e-4, "{name}[{i}] of {n}, {m}: {difference} {}", grad[i]);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn one_clip_has_no_other_and_silence_no_direction() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let loss = Saclm::load(config(), &params)?;
        let mut rng = Rng::new(2);
        let (audio, text) = (normal(&mut rng, &[1, 1, 6], 1.0)?, normal(&mut rng, &[1, 3, 6], 1.0)?);
        let losses = loss.forward(&audio, &text, &[0], None)?;
        assert!((losses.triplet.to_scalar::<f32>()? - 0.2).abs() < 1e-6);
        let silence = Var::from_tensor(&Tensor::zeros((2, 3, 6), DType::F32, &Device::Cpu)?)?;
        let text = normal(&mut rng, &[2, 3, 6], 1.0)?;
        let losses = loss.forward(silence.as_tensor(), &text, &[1, 0], None)?;
        assert!(losses.total.to_scalar::<f32>()?.is_finite());
        let grads = losses.total.backward()?;
        let grad = grads.get(silence.as_tensor()).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let params = Params::init(1, &Device::Cpu);
        let loss = Saclm::load(config(), &params)?;
        let x = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
        let refused = |audio: &[usize], text: &[usize], negatives: &[u32]| -> Result<bool> {
            Ok(loss.forward(&x(audio)?, &x(text)?, negatives, None).is_err())
        };
        assert!(!refused(&[2, 3, 6], &[2, 5, 6], &[1, 0])?);
        assert!(refused(&[2, 3, 6], &[3, 5, 6], &[1, 0])? && refused(&[2, 3, 5], &[2, 5, 5], &[1, 0])?);
        assert!(refused(&[2, 3, 6], &[2, 5, 6], &[1, 2])? && refused(&[2, 3, 6], &[2, 5, 6], &[1])?);
        assert!(refused(&[2, 0, 6], &[2, 5, 6], &[1, 0])?);
        let fresh = Params::init(2, &Device::Cpu);
        for wrong in [
            SaclmConfig { slots: 0, ..config() },
            SaclmConfig { score_hidden: usize::MAX, ..config() },
            SaclmConfig { margin: f64::NAN, ..config() },
            SaclmConfig { beta: 1.5, ..config() },
        ] {
            assert!(Saclm::load(wrong, &fresh).is_err());
        }
        assert!(fresh.variables().is_empty());
        Ok(())
    }

    #[test]
    fn negatives_are_an_order_of_all_clips() {
        let mut rng = Rng::new(1);
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let order = Saclm::negatives(4, &mut rng);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            orders.insert(order);
        }
        assert!(orders.len() > 10 && Saclm::negatives(0, &mut rng).is_empty());
    }
}
