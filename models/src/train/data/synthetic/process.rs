//! Random processes: noise, autoregressions, stochastic cycles, random walks and Gaussian processes.
//!
//! Every function costs O(n) per component: Gaussian processes are drawn by random Fourier features (Rahimi and Recht,
//! 2007) whose cosines come from a rotation instead of a call each.

use moesaic_kernels::rng::Rng;
use std::f64::consts::TAU;

/// Adds `amplitude * cos(frequency * t + phase)`, t = 0.., with `frequency` in radians a step.
pub(super) fn add_cosine(out: &mut [f64], amplitude: f64, frequency: f64, phase: f64) {
    let (turn_s, turn_c) = frequency.sin_cos();
    let (sin, cos) = phase.sin_cos();
    let (mut s, mut c) = (amplitude * sin, amplitude * cos);
    for value in out {
        *value += c;
        (c, s) = (c * turn_c - s * turn_s, s * turn_c + c * turn_s);
    }
}

/// Gamma with the given shape and mean 1 (Marsaglia and Tsang, 2000; shapes below 1 by their boost).
pub(super) fn gamma_of_mean_one(rng: &mut Rng, shape: f64) -> f64 {
    let boost = if shape < 1.0 { (1.0 - rng.uniform()).powf(1.0 / shape) } else { 1.0 };
    let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return boost * d * v / shape;
        }
    }
}

/// A Poisson count; by the normal law above a mean of 60, where the difference cannot be seen.
pub(super) fn poisson(rng: &mut Rng, mean: f64) -> f64 {
    if mean > 60.0 {
        return (mean + mean.sqrt() * rng.normal()).round().max(0.0);
    }
    let (limit, mut product, mut count) = ((-mean.max(0.0)).exp(), 1.0 - rng.uniform(), 0.0);
    while product > limit {
        product *= 1.0 - rng.uniform();
        count += 1.0;
    }
    count
}

/// One draw of a law of mean 0 and deviation about 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Law {
    Normal,
    /// Student's t, scaled to deviation 1; 3 to 8 degrees of freedom.
    HeavyTail(f64),
    Laplace,
    /// Bounded support.
    Uniform,
    /// Two points and little between them.
    Arcsine,
    /// Skewed: a centred exponential, of either sign.
    Skewed(f64),
}

impl Law {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0..=11 => Self::Normal,
            12..=13 => Self::HeavyTail(rng.range(3.0, 8.0)),
            14 => Self::Laplace,
            15..=16 => Self::Uniform,
            17 => Self::Arcsine,
            _ => Self::Skewed(if rng.chance(0.7) { 1.0 } else { -1.0 }),
        }
    }

    pub(super) fn sample(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Normal => rng.normal(),
            Self::HeavyTail(df) => {
                let t = rng.normal() / gamma_of_mean_one(rng, df / 2.0).max(1e-9).sqrt();
                t * ((df - 2.0) / df).sqrt()
            }
            Self::Laplace => {
                let u = rng.uniform() - 0.5;
                -u.signum() * (1.0 - 2.0 * u.abs()).max(1e-300).ln() / 2f64.sqrt()
            }
            Self::Uniform => rng.range(-1.0, 1.0) * 3f64.sqrt(),
            Self::Arcsine => (TAU * rng.uniform()).cos() * 2f64.sqrt(),
            Self::Skewed(sign) => sign * (-(1.0 - rng.uniform()).ln() - 1.0),
        }
    }
}

/// Noise of deviation about 1: white, or a short autoregression, sometimes with a variance that drifts or clusters.
pub(super) fn noise(rng: &mut Rng, n: usize) -> Vec<f64> {
    let law = Law::draw(rng);
    let mut out: Vec<f64> = if rng.chance(0.5) {
        (0..n).map(|_| law.sample(rng)).collect()
    } else {
        let memory = if rng.chance(0.8) { rng.range(0.1, 0.95) } else { -rng.range(0.1, 0.8) };
        autoregression(rng, n, memory, law)
    };
    if rng.chance(0.2) {
        let mut spread = slow(rng, n);
        let depth = rng.range(0.2, 1.0);
        spread.iter_mut().for_each(|s| *s = (depth * *s).exp());
        out.iter_mut().zip(&spread).for_each(|(v, s)| *v *= s);
    }
    out
}

/// A first-order autoregression of deviation 1, started in its stationary law.
pub(super) fn autoregression(rng: &mut Rng, n: usize, memory: f64, law: Law) -> Vec<f64> {
    let step = (1.0 - memory * memory).max(0.0).sqrt();
    let mut state = rng.normal();
    (0..n)
        .map(|_| {
            state = memory * state + step * law.sample(rng);
            state
        })
        .collect()
}

/// A slowly varying curve of deviation about 1: what drifts in amplitudes, levels and spreads.
pub(super) fn slow(rng: &mut Rng, n: usize) -> Vec<f64> {
    let scale = rng.log_range(0.1, 1.0) * n as f64;
    features(rng, n, 12, |rng| rng.normal() / scale)
}

/// A stationary Gaussian process by `count` random cosines whose frequencies (radians a step) `frequency` draws from the
/// kernel's spectral law; variance 1.
fn features(rng: &mut Rng, n: usize, count: usize, mut frequency: impl FnMut(&mut Rng) -> f64) -> Vec<f64> {
    let mut out = vec![0.0; n];
    let amplitude = (1.0 / count as f64).sqrt();
    for _ in 0..count {
        let omega = frequency(rng);
        // Two normal weights for cosine and sine make a Gaussian law, not only its covariance.
        let (a, b) = (rng.normal(), rng.normal());
        add_cosine(&mut out, amplitude * (a * a + b * b).sqrt(), omega, b.atan2(a));
    }
    out
}

/// A random walk with drift, scaled to span about 1 over the window.
pub(super) fn walk(rng: &mut Rng, n: usize) -> Vec<f64> {
    let law = Law::draw(rng);
    let drift = if rng.chance(0.5) { rng.normal() * 0.7 } else { 0.0 } / n as f64;
    let step = 1.0 / (n as f64).sqrt();
    // A share of the steps may be 0, as prices that rest.
    let still = if rng.chance(0.15) { rng.range(0.3, 0.9) } else { 0.0 };
    let mut level = 0.0;
    (0..n)
        .map(|_| {
            if still == 0.0 || !rng.chance(still) {
                level += drift + step * law.sample(rng);
            }
            level
        })
        .collect()
}

/// A stochastic cycle: a damped rotation driven by noise (Harvey, 1989), with deviation about 1. Its period is `period`
/// steps; a damping near 1 keeps phase and amplitude for long.
pub(super) fn cycle(rng: &mut Rng, n: usize, period: f64) -> Vec<f64> {
    let cycles_kept = rng.log_range(1.5, 40.0);
    let damping = (-1.0 / (cycles_kept * period)).exp();
    let step = (1.0 - damping * damping).sqrt();
    let (sin, cos) = (TAU / period).sin_cos();
    let (mut a, mut b) = (rng.normal(), rng.normal());
    (0..n)
        .map(|_| {
            (a, b) = (
                damping * (cos * a + sin * b) + step * rng.normal(),
                damping * (cos * b - sin * a) + step * rng.normal(),
            );
            a
        })
        .collect()
}

/// An ARMA process with up to 4 random stable roots and 2 moving-average terms, integrated 0, 1 or 2 times; scaled to
/// deviation about 1 over the window.
pub(super) fn arima(rng: &mut Rng, n: usize) -> Vec<f64> {
    let law = Law::draw(rng);
    let warm = 64;
    let mut out: Vec<f64> = (0..n + warm).map(|_| law.sample(rng)).collect();
    for _ in 0..rng.below(3) {
        let theta = rng.range(-0.9, 0.9);
        for t in (1..out.len()).rev() {
            out[t] += theta * out[t - 1];
        }
    }
    for _ in 0..=rng.below(2) {
        // One real root or a pair of complex ones; each pass is one factor of the autoregressive polynomial.
        let radius = 1.0 - rng.log_range(0.005, 0.9);
        let (first, second) = if rng.chance(0.5) {
            (if rng.chance(0.8) { radius } else { -radius }, 0.0)
        } else {
            (2.0 * radius * (TAU / rng.log_range(2.5, 80.0)).cos(), -radius * radius)
        };
        let (mut last, mut before) = (0.0, 0.0);
        for value in &mut out {
            (last, before) = (*value + first * last + second * before, last);
            *value = last;
        }
    }
    out.drain(..warm);
    for _ in 0..[0, 0, 0, 1, 1, 2][rng.below(6)] {
        unit(&mut out);
        let mut sum = 0.0;
        for value in &mut out {
            sum += *value;
            *value = sum;
        }
    }
    unit(&mut out);
    out
}

/// Centres and scales to deviation 1; a constant becomes 0.
pub(super) fn unit(values: &mut [f64]) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
    let scale = if deviation > 1e-12 { 1.0 / deviation } else { 0.0 };
    values.iter_mut().for_each(|v| *v = (*v - mean) * scale);
}

/// One kernel of the bank of [`kernel_mixture`], drawn as a function over the window.
fn kernel_draw(rng: &mut Rng, n: usize, period: f64) -> Vec<f64> {
    match rng.below(12) {
        0 => {
            let (level, slope, centre) = (rng.normal(), rng.normal() * 2.0, rng.uniform());
            (0..n).map(|t| level * 0.5 + slope * (t as f64 / n as f64 - centre)).collect()
        }
        1 => (0..n).map(|_| rng.normal()).collect(),
        2..=4 => {
            let scale = rng.log_range(0.01, 1.0) * n as f64;
            features(rng, n, 24, |rng| rng.normal() / scale)
        }
        5..=6 => {
            // Rational quadratic: a scale mixture of RBF kernels, with gamma weights on the inverse squared scale.
            let (scale, alpha) = (rng.log_range(0.01, 0.5) * n as f64, rng.log_range(0.1, 3.0));
            features(rng, n, 24, |rng| gamma_of_mean_one(rng, alpha).sqrt() * rng.normal() / scale)
        }
        7 => {
            let memory = (-1.0 / (rng.log_range(0.02, 1.0) * n as f64)).exp();
            autoregression(rng, n, memory, Law::Normal)
        }
        _ => {
            let scale = rng.log_range(0.25, 2.0);
            periodic_draw(rng, n, period, scale)
        }
    }
}

/// The exponential sine-squared kernel as a Fourier series: its coefficients are I_k(1/l^2) e^{-1/l^2}, found by Miller's
/// downward recurrence, whose normalisation I_0 + 2 sum I_k = e^x is the kernel's variance 1.
fn periodic_draw(rng: &mut Rng, n: usize, period: f64, scale: f64) -> Vec<f64> {
    const TERMS: usize = 24;
    let x = scale.powi(-2);
    let mut weight = [0.0; TERMS + 2];
    weight[TERMS] = 1e-30;
    for k in (1..=TERMS).rev() {
        weight[k - 1] = weight[k + 1] + 2.0 * k as f64 / x * weight[k];
    }
    let total = weight[0] + 2.0 * weight[1..=TERMS].iter().sum::<f64>();
    let mut out = vec![rng.normal() * (weight[0] / total).sqrt(); n];
    for (k, w) in weight.iter().enumerate().take(TERMS).skip(1) {
        let share = 2.0 * w / total;
        // Harmonics past Nyquist would alias; those that carry nothing cost time.
        if share < 1e-5 || k as f64 * 2.0 > period {
            break;
        }
        let (a, b) = (rng.normal(), rng.normal());
        add_cosine(&mut out, (share * (a * a + b * b)).sqrt(), TAU * k as f64 / period, b.atan2(a));
    }
    out
}

/// A composition of 1 to 5 Gaussian processes by random sums and products, after KernelSynth (Chronos, arXiv 2403.07815,
/// section 4.2). The sum of independent draws has the sum of the kernels; their product has the product of the kernels as
/// covariance (though it is no longer Gaussian), at the cost of a multiplication instead of a matrix factorisation.
pub(super) fn kernel_mixture(rng: &mut Rng, n: usize, mut period: impl FnMut(&mut Rng) -> f64) -> Vec<f64> {
    let p = period(rng);
    let mut out = kernel_draw(rng, n, p);
    for _ in 0..rng.below(5) {
        let p = period(rng);
        let next = kernel_draw(rng, n, p);
        let product = rng.chance(0.4);
        for (value, other) in out.iter_mut().zip(next) {
            *value = if product { *value * other } else { *value + other };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt())
    }

    #[test]
    fn cosines_by_rotation_match_the_library() {
        let mut out = vec![0.5; 3000];
        add_cosine(&mut out, 2.0, 0.37, -1.1);
        for (t, value) in out.iter().enumerate() {
            assert!((value - 0.5 - 2.0 * (0.37 * t as f64 - 1.1).cos()).abs() < 1e-9);
        }
    }

    #[test]
    fn laws_have_mean_0_and_deviation_1() {
        let mut rng = Rng::new(3);
        for law in [Law::Normal, Law::HeavyTail(6.0), Law::Laplace, Law::Uniform, Law::Arcsine, Law::Skewed(1.0)] {
            let (mean, deviation) = moments(&(0..200_000).map(|_| law.sample(&mut rng)).collect::<Vec<_>>());
            assert!(mean.abs() < 0.02 && (deviation - 1.0).abs() < 0.05, "{law:?} {mean} {deviation}");
        }
        for shape in [0.3, 1.0, 4.0] {
            let (mean, deviation) =
                moments(&(0..200_000).map(|_| gamma_of_mean_one(&mut rng, shape)).collect::<Vec<_>>());
            assert!((mean - 1.0).abs() < 0.03 && (deviation - shape.powf(-0.5)).abs() < 0.06, "{mean} {deviation}");
        }
        for rate in [0.2, 5.0, 100.0] {
            let (mean, deviation) = moments(&(0..100_000).map(|_| poisson(&mut rng, rate)).collect::<Vec<_>>());
            assert!((mean / rate - 1.0).abs() < 0.03 && (deviation / rate.sqrt() - 1.0).abs() < 0.03);
        }
    }

    /// Average of x(t) x(t + lag) over many draws.
    fn covariance(draws: usize, lag: usize, mut draw: impl FnMut(&mut Rng) -> Vec<f64>) -> f64 {
        let sums: f64 = (0..draws).map(|i| draw(&mut Rng::keyed(&[77, i as u64]))).map(|v| v[10] * v[10 + lag]).sum();
        sums / draws as f64
    }

    #[test]
    fn processes_have_their_covariances() {
        let rbf = |lag| covariance(20_000, lag, |rng| features(rng, 40, 24, |rng| rng.normal() / 8.0));
        assert!((rbf(0) - 1.0).abs() < 0.05 && (rbf(8) - (-0.5f64).exp()).abs() < 0.05, "{} {}", rbf(0), rbf(8));
        let cyclic = |lag| covariance(20_000, lag, |rng| cycle(rng, 40, 10.0));
        assert!((cyclic(0) - 1.0).abs() < 0.05 && cyclic(5) < -0.6 && cyclic(10) > 0.5);
        let ar = |lag| covariance(20_000, lag, |rng| autoregression(rng, 40, 0.8, Law::Normal));
        assert!((ar(0) - 1.0).abs() < 0.05 && (ar(2) - 0.64).abs() < 0.05);
    }

    #[test]
    fn the_periodic_kernel_repeats() {
        let mut rng = Rng::new(4);
        for _ in 0..20 {
            let values = periodic_draw(&mut rng, 60, 12.0, 0.7);
            assert!(values.iter().zip(&values[12..]).all(|(a, b)| (a - b).abs() < 1e-9));
        }
        // exp(-2 sin^2(pi d / p) / l^2), to the harmonics that a period of 24 steps can hold.
        for lag in [0, 3, 12] {
            let kernel = (-2.0 * (TAU * lag as f64 / 48.0).sin().powi(2) / 0.49).exp();
            let found = covariance(20_000, lag, |rng| periodic_draw(rng, 40, 24.0, 0.7));
            assert!((found - kernel).abs() < 0.05, "lag {lag}: {found} for {kernel}");
        }
    }
}
