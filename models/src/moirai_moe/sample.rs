//! Random numbers of the predicted distributions.

use moesaic_kernels::rng::Rng;

use super::special::ln_gamma;

/// Gamma with this shape and a scale of 1 (Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000).
pub(super) fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        // By a gamma of a larger shape; the logarithm keeps a tiny shape from losing everything at once.
        let boost = (1.0 - rng.uniform()).ln() / shape;
        return gamma(rng, shape + 1.0) * boost.exp();
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

/// Student's t with this many degrees of freedom.
pub(super) fn student_t(rng: &mut Rng, df: f64) -> f64 {
    let chi_squared = 2.0 * gamma(rng, 0.5 * df);
    rng.normal() * (df / chi_squared).sqrt()
}

/// Rates above which a Poisson number is drawn as a rounded normal one: its skewness is below one in a million there.
const LARGE: f64 = 1e12;

/// Poisson with this rate: by multiplication of uniforms, or by transformed rejection (Hörmann, "The Transformed Rejection Method for
/// Generating Poisson Random Variables", 1993, algorithm PTRS).
pub(super) fn poisson(rng: &mut Rng, rate: f64) -> f64 {
    if rate.is_nan() || rate <= 0.0 {
        return 0.0;
    }
    if rate > LARGE {
        return (rate + rate.sqrt() * rng.normal()).round().max(0.0);
    }
    if rate < 10.0 {
        let (limit, mut product, mut k) = ((-rate).exp(), rng.uniform(), 0.0);
        while product > limit {
            product *= rng.uniform();
            k += 1.0;
        }
        return k;
    }
    let b = 0.931 + 2.53 * rate.sqrt();
    let a = -0.059 + 0.02483 * b;
    let inverse_alpha = 1.1239 + 1.1328 / (b - 3.4);
    let v_r = 0.9277 - 3.6224 / (b - 2.0);
    loop {
        let (u, v) = (rng.uniform() - 0.5, 1.0 - rng.uniform());
        let us = 0.5 - u.abs();
        let k = ((2.0 * a / us + b) * u + rate + 0.43).floor();
        if us >= 0.07 && v <= v_r {
            return k;
        }
        if k < 0.0 || (us < 0.013 && v > us) {
            continue;
        }
        if v.ln() + inverse_alpha.ln() - (a / (us * us) + b).ln() <= k * rate.ln() - rate - ln_gamma(k + 1.0) {
            return k;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 100_000;
        let all: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = all.iter().sum::<f64>() / n as f64;
        (mean, all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64)
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut rng = Rng::new(11);
        for shape in [0.05, 0.7, 1.0, 3.5, 200.0] {
            let (mean, variance) = moments(|| gamma(&mut rng, shape));
            assert!(
                (mean / shape - 1.0).abs() < 0.08 && (variance / shape - 1.0).abs() < 0.12,
                "{shape}: {mean} {variance}"
            );
        }
        for rate in [0.3, 4.0, 9.9, 10.1, 60.0, 3e4, 1e13] {
            let (mean, variance) = moments(|| poisson(&mut rng, rate));
            assert!(
                (mean - rate).abs() < 0.03 * rate.sqrt() && (variance / rate - 1.0).abs() < 0.03,
                "{rate}: {mean} {variance}"
            );
        }
        let (mean, variance) = moments(|| student_t(&mut rng, 9.0));
        assert!(mean.abs() < 0.02 && (variance - 9.0 / 7.0).abs() < 0.05, "{mean} {variance}");
        assert_eq!((poisson(&mut rng, 0.0), poisson(&mut rng, f64::NAN)), (0.0, 0.0));
        assert!(gamma(&mut rng, 1e-300) >= 0.0);
    }
}
