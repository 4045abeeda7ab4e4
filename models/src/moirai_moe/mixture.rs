//! The predicted mixture of one cell, in f64 and in scaled space: density, its gradient, distribution function, quantiles, moments
//! and samples.
//!
//! Reference: `uni2ts.distribution`. Its distribution function does not work (that of torch's Student t is missing), so it only
//! has quantiles of samples; here they are those of the mixture itself.

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

use super::config::Component;
use super::sample;
use super::special::{beta, digamma, ln_gamma, normal_cdf, sigmoid, softplus};

/// The least scale of a component: the reference's, which is the resolution of f32.
const LEAST_SCALE: f64 = f32::EPSILON as f64;
/// Degrees of freedom from which Student's t is the normal distribution, to eight digits.
const NORMAL_ABOVE: f64 = 1e8;
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;

/// A component with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    StudentT {
        df: f64,
        loc: f64,
        scale: f64,
    },
    Normal {
        loc: f64,
        scale: f64,
    },
    /// Mean `count * e^logits`.
    NegativeBinomial {
        count: f64,
        logits: f64,
    },
    LogNormal {
        loc: f64,
        scale: f64,
    },
}

/// A scale from what the projection gave, and its derivative.
fn scale_of(raw: f64) -> (f64, f64) {
    let scale = softplus(raw);
    if scale < LEAST_SCALE { (LEAST_SCALE, 0.0) } else { (scale, sigmoid(raw)) }
}

impl Part {
    /// The component with the parameters that the projection gave, after their domain maps, and the maps' derivatives.
    pub fn new(component: &Component, raw: impl Fn(usize) -> f64) -> (Self, [f64; 3]) {
        match *component {
            Component::StudentT => {
                let (scale, slope) = scale_of(raw(2));
                let df = 2.0 + softplus(raw(0));
                (Self::StudentT { df, loc: raw(1), scale }, [sigmoid(raw(0)), 1.0, slope])
            }
            Component::NormalFixedScale(scale) => (Self::Normal { loc: raw(0), scale }, [1.0, 0.0, 0.0]),
            Component::NegativeBinomial => {
                // Zero would have no logarithm of the gamma function.
                let count = softplus(raw(0)).max(1e-300);
                (Self::NegativeBinomial { count, logits: raw(1) }, [sigmoid(raw(0)), 1.0, 0.0])
            }
            Component::LogNormal => {
                let (scale, slope) = scale_of(raw(1));
                (Self::LogNormal { loc: raw(0), scale }, [1.0, slope, 0.0])
            }
        }
    }

    /// The parameters, in the order of [`Component::parameters`].
    pub fn parameters(&self) -> [f64; 3] {
        match *self {
            Self::StudentT { df, loc, scale } => [df, loc, scale],
            Self::Normal { loc, .. } => [loc, 0.0, 0.0],
            Self::NegativeBinomial { count, logits } => [count, logits, 0.0],
            Self::LogNormal { loc, scale } => [loc, scale, 0.0],
        }
    }

    /// The logarithm of the density; minus infinity outside the support.
    fn ln_density(&self, z: f64) -> f64 {
        match *self {
            Self::StudentT { df, loc, scale } => {
                let y = (z - loc) / scale;
                let normaliser =
                    ln_gamma(0.5 * (df + 1.0)) - ln_gamma(0.5 * df) - 0.5 * (std::f64::consts::PI * df).ln();
                normaliser - scale.ln() - 0.5 * (df + 1.0) * (y * y / df).ln_1p()
            }
            Self::Normal { loc, scale } => -0.5 * ((z - loc) / scale).powi(2) - scale.ln() - HALF_LN_TAU,
            Self::NegativeBinomial { .. } if z < 0.0 => f64::NEG_INFINITY,
            Self::NegativeBinomial { count, logits } => {
                let binomial = ln_gamma(count + z) - ln_gamma(1.0 + z) - ln_gamma(count);
                binomial - count * softplus(logits) - z * softplus(-logits)
            }
            Self::LogNormal { .. } if z <= 0.0 => f64::NEG_INFINITY,
            Self::LogNormal { loc, scale } => {
                let x = z.ln();
                -0.5 * ((x - loc) / scale).powi(2) - x - scale.ln() - HALF_LN_TAU
            }
        }
    }

    /// The derivatives of [`ln_density`](Self::ln_density) by the parameters, inside the support.
    fn slopes(&self, z: f64) -> [f64; 3] {
        match *self {
            Self::StudentT { df, loc, scale } => {
                let y = (z - loc) / scale;
                let (squared, grown) = (y * y, (df + 1.0) / (df + y * y));
                let by_df = digamma(0.5 * (df + 1.0)) - digamma(0.5 * df) - 1.0 / df - (squared / df).ln_1p();
                [0.5 * (by_df + grown * squared / df), grown * y / scale, (grown * squared - 1.0) / scale]
            }
            Self::Normal { loc, scale } => [(z - loc) / (scale * scale), 0.0, 0.0],
            Self::NegativeBinomial { count, logits } => [
                digamma(count + z) - digamma(count) - softplus(logits),
                z * sigmoid(-logits) - count * sigmoid(logits),
                0.0,
            ],
            Self::LogNormal { loc, scale } => {
                let y = (z.ln() - loc) / scale;
                [y / scale, (y * y - 1.0) / scale, 0.0]
            }
        }
    }

    /// The probability of values up to `z`.
    fn cdf(&self, z: f64) -> f64 {
        match *self {
            Self::StudentT { df, loc, scale } => {
                let y = (z - loc) / scale;
                let squared = y * y;
                if df > NORMAL_ABOVE {
                    return normal_cdf(y);
                }
                if squared == f64::INFINITY {
                    return if z < loc { 0.0 } else { 1.0 };
                }
                let tail = 0.5 * beta(0.5 * df, 0.5, df / (df + squared), squared / (df + squared));
                if z < loc { tail } else { 1.0 - tail }
            }
            Self::Normal { loc, scale } => normal_cdf((z - loc) / scale),
            Self::NegativeBinomial { .. } if z < 0.0 => 0.0,
            // Its samples are whole numbers.
            Self::NegativeBinomial { count, logits } => beta(count, z.floor() + 1.0, sigmoid(-logits), sigmoid(logits)),
            Self::LogNormal { .. } if z <= 0.0 => 0.0,
            Self::LogNormal { loc, scale } => normal_cdf((z.ln() - loc) / scale),
        }
    }

    fn mean(&self) -> f64 {
        match *self {
            Self::StudentT { loc, .. } | Self::Normal { loc, .. } => loc,
            Self::NegativeBinomial { count, logits } => count * logits.exp(),
            Self::LogNormal { loc, scale } => (loc + 0.5 * scale * scale).exp(),
        }
    }

    fn variance(&self) -> f64 {
        match *self {
            Self::StudentT { df, scale, .. } => scale * scale * df / (df - 2.0),
            Self::Normal { scale, .. } => scale * scale,
            // mean / sigmoid(-logits)
            Self::NegativeBinomial { count, logits } => count * logits.exp() * (1.0 + logits.exp()),
            Self::LogNormal { loc, scale } => {
                let squared = scale * scale;
                -(-squared).exp_m1() * (2.0 * (loc + squared)).exp()
            }
        }
    }

    fn sample(&self, rng: &mut Rng) -> f64 {
        match *self {
            Self::StudentT { df, loc, scale } => loc + scale * sample::student_t(rng, df),
            Self::Normal { loc, scale } => loc + scale * rng.normal(),
            Self::NegativeBinomial { count, logits } => {
                let rate = sample::gamma(rng, count) * logits.exp();
                sample::poisson(rng, rate)
            }
            Self::LogNormal { loc, scale } => (loc + scale * rng.normal()).exp(),
        }
    }
}

/// The mixture of one cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mixture {
    /// Logarithms of the weights.
    ln_weights: Vec<f64>,
    parts: Vec<Part>,
    /// Derivatives of the domain maps.
    maps: Vec<[f64; 3]>,
}

/// Largest magnitude of a quantile, in scaled space.
const FARTHEST: f64 = 1e300;

impl Mixture {
    /// The mixture of what the projections gave: `raw(j)`, first the logits of the weights, then the parameters of the components.
    ///
    /// # Errors
    /// One of them is not finite.
    pub fn new(components: &[Component], raw: impl Fn(usize) -> f32) -> Result<Self> {
        let raw = |j: usize| f64::from(raw(j));
        let mut next = components.len();
        let (mut parts, mut maps) = (Vec::with_capacity(next), Vec::with_capacity(next));
        for component in components {
            let first = next;
            next += component.parameters().len();
            let (part, map) = Part::new(component, |i| raw(first + i));
            parts.push(part);
            maps.push(map);
        }
        if let Some(j) = (0..next).find(|&j| !raw(j).is_finite()) {
            bail!("parameter {j} of the predicted distribution is {}: weights or input are broken", raw(j));
        }
        let most = (0..components.len()).map(raw).fold(f64::NEG_INFINITY, f64::max);
        let sum = (0..components.len()).map(|k| (raw(k) - most).exp()).sum::<f64>().ln();
        let ln_weights = (0..components.len()).map(|k| raw(k) - most - sum).collect();
        Ok(Self { ln_weights, parts, maps })
    }

    /// The components.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn weighted(&self, of: impl Fn(&Part) -> f64) -> f64 {
        let term = |(ln_weight, part): (&f64, &Part)| match ln_weight.exp() {
            // A component that never occurs has no say, however far away it is.
            0.0 => 0.0,
            weight => weight * of(part),
        };
        self.ln_weights.iter().zip(&self.parts).map(term).sum()
    }

    /// The logarithm of the density.
    pub fn ln_density(&self, z: f64) -> f64 {
        let terms = || self.ln_weights.iter().zip(&self.parts).map(|(w, part)| w + part.ln_density(z));
        let most = terms().fold(f64::NEG_INFINITY, f64::max);
        if most == f64::NEG_INFINITY { most } else { most + terms().map(|t| (t - most).exp()).sum::<f64>().ln() }
    }

    /// Calls `add(j, derivative)` with the derivative of [`ln_density`](Self::ln_density) by each number that the mixture was
    /// made of; those that are not called are 0.
    pub fn slopes(&self, z: f64, mut add: impl FnMut(usize, f64)) {
        let density = self.ln_density(z);
        if density == f64::NEG_INFINITY {
            return;
        }
        let mut next = self.parts.len();
        for (k, ((ln_weight, part), map)) in self.ln_weights.iter().zip(&self.parts).zip(&self.maps).enumerate() {
            let share = (ln_weight + part.ln_density(z) - density).exp();
            add(k, share - ln_weight.exp());
            let count = match part {
                Part::StudentT { .. } => 3,
                Part::Normal { .. } => 1,
                Part::NegativeBinomial { .. } | Part::LogNormal { .. } => 2,
            };
            if share > 0.0 {
                let slopes = part.slopes(z);
                (0..count).for_each(|i| add(next + i, share * slopes[i] * map[i]));
            }
            next += count;
        }
    }

    /// The probability of values up to `z`.
    pub fn cdf(&self, z: f64) -> f64 {
        self.weighted(|part| part.cdf(z))
    }

    /// The mean; infinite where a component's is beyond f64.
    pub fn mean(&self) -> f64 {
        self.weighted(Part::mean)
    }

    /// The variance; infinite where a component's is beyond f64.
    pub fn variance(&self) -> f64 {
        let mean = self.mean();
        if !mean.is_finite() {
            return f64::INFINITY;
        }
        // Around the mean rather than as a difference of squares, which would cancel.
        self.weighted(|part| part.variance() + (part.mean() - mean).powi(2))
    }

    /// `inf { z : F(z) >= q }`, by bisection, to nine digits or better.
    pub fn quantile(&self, q: f64) -> f64 {
        let below = |z: f64| self.cdf(z) < q;
        let (mut low, mut high) = (-1.0, 1.0);
        while below(high) && high < FARTHEST {
            (low, high) = (high, high * 4.0);
        }
        while !below(low) && low > -FARTHEST {
            (low, high) = (low * 4.0, low.min(high));
        }
        for _ in 0..200 {
            if high - low <= 1e-10 * (1.0 + low.abs().min(high.abs())) {
                break;
            }
            let middle = 0.5 * low + 0.5 * high;
            if below(middle) { low = middle } else { high = middle }
        }
        // Whole numbers, where a negative binomial puts its weight, are met exactly.
        let whole = high.round();
        if whole <= high && high - whole <= 1e-9 && !below(whole) { whole } else { high }
    }

    /// A random value.
    pub fn sample(&self, rng: &mut Rng) -> f64 {
        let mut left = rng.uniform();
        let mut chosen = self.parts.len() - 1;
        for (k, ln_weight) in self.ln_weights.iter().enumerate() {
            left -= ln_weight.exp();
            if left < 0.0 {
                chosen = k;
                break;
            }
        }
        self.parts[chosen].sample(rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Component; 4] =
        [Component::StudentT, Component::NormalFixedScale(0.01), Component::NegativeBinomial, Component::LogNormal];

    /// Weights of about 0.3, 0.2, 0.2, 0.3.
    const RAW: [f32; 12] = [0.2, -0.2, -0.3, 0.3, 8.0, -0.4, 0.1, 0.25, 1.5, 0.4, -0.2, -0.5];

    fn mixture(raw: &[f32]) -> Mixture {
        Mixture::new(&ALL, |j| raw[j]).unwrap()
    }

    #[test]
    fn slopes_are_those_of_the_density() {
        // Where only some components have support, at a peak, far out.
        for z in [-3.0, 0.0, 0.25, 0.253, 1.0, 2.5, 40.0, 1e4] {
            let mut got = [0.0; 12];
            mixture(&RAW).slopes(z, |j, slope| got[j] += slope);
            for j in 0..RAW.len() {
                let step = 1e-4f32;
                let at = |by: f32| {
                    let mut raw = RAW;
                    raw[j] += by;
                    (mixture(&raw).ln_density(z), f64::from(raw[j]))
                };
                let ((up, x1), (down, x0)) = (at(step), at(-step));
                let numeric = (up - down) / (x1 - x0);
                let most = got.iter().fold(1.0, |m: f64, g| m.max(g.abs()));
                assert!((numeric - got[j]).abs() < 2e-3 * most, "z {z}, parameter {j}: {} {numeric}", got[j]);
            }
        }
    }

    #[test]
    fn the_distribution_function_is_the_integral_of_the_density() {
        // Without the negative binomial, whose density on real numbers is not what it puts on whole ones.
        let components = [Component::StudentT, Component::NormalFixedScale(0.05), Component::LogNormal];
        let raw = [0.1f32, 0.4, -0.2, 0.5, -0.4, 0.1, 0.25, -0.2, -0.5];
        let mixture = Mixture::new(&components, |j| raw[j]).unwrap();
        let step = 1e-3;
        let mut sum = mixture.cdf(-2.0);
        for i in 0..6000 {
            let z = -2.0 + f64::from(i) * step;
            // Simpson's rule.
            let density = |z: f64| mixture.ln_density(z).exp();
            sum += step / 6.0 * (density(z) + 4.0 * density(z + 0.5 * step) + density(z + step));
            assert!((sum - mixture.cdf(z + step)).abs() < 1e-6, "{z}: {sum} {}", mixture.cdf(z + step));
        }
        assert!(mixture.cdf(-1e9) < 1e-12 && mixture.cdf(1e9) > 1.0 - 1e-12);
    }

    #[test]
    fn quantiles_invert_the_distribution_function() {
        let mixture = mixture(&RAW);
        let mut last = f64::NEG_INFINITY;
        for q in [1e-9, 0.01, 0.1, 0.5, 0.6, 0.9, 0.999, 1.0 - 1e-9] {
            let z = mixture.quantile(q);
            assert!(z >= last && mixture.cdf(z) >= q && mixture.cdf(z - 1e-8 * (1.0 + z.abs())) < q, "{q}: {z}");
            last = z;
        }
        // On a whole number that the negative binomial stands on.
        let count = Mixture::new(&[Component::NegativeBinomial], |j| [0.0, 2.0, 1.0][j]).unwrap();
        let (at, before) = (count.cdf(3.0), count.cdf(2.0));
        assert_eq!((count.quantile(0.5 * (at + before)), count.quantile(at), count.quantile(before)), (3.0, 3.0, 2.0));
    }

    #[test]
    fn samples_follow_mean_variance_and_quantiles() {
        let mixture = mixture(&RAW);
        let mut rng = Rng::new(4);
        let n = 200_000;
        let mut all: Vec<f64> = (0..n).map(|_| mixture.sample(&mut rng)).collect();
        let mean = all.iter().sum::<f64>() / n as f64;
        let variance = all.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - mixture.mean()).abs() < 0.03, "{mean} {}", mixture.mean());
        assert!((variance / mixture.variance() - 1.0).abs() < 0.1, "{variance} {}", mixture.variance());
        all.sort_by(f64::total_cmp);
        for q in [0.05, 0.3, 0.5, 0.8, 0.95] {
            let z = mixture.quantile(q);
            let share = all.partition_point(|v| *v <= z) as f64 / n as f64;
            assert!((share - mixture.cdf(z)).abs() < 5e-3, "{q}: {share} {}", mixture.cdf(z));
        }
    }

    #[test]
    fn extreme_parameters_give_no_nan() {
        for raw in [[-1e4f32; 12], [1e4; 12], [-90.0; 12], [60.0; 12], [f32::MAX; 12], [f32::MIN; 12]] {
            let mixture = mixture(&raw);
            for z in [-1e300, -1.0, 0.0, 1e-30, 1.0, 1e300] {
                assert!(!mixture.ln_density(z).is_nan() && !mixture.cdf(z).is_nan(), "{raw:?} {z}");
            }
            assert!(!mixture.quantile(0.3).is_nan() && !mixture.mean().is_nan(), "{raw:?}");
        }
        assert!(Mixture::new(&ALL, |j| if j == 7 { f32::NAN } else { 0.0 }).is_err());
    }
}
