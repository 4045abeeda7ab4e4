//! Special functions of the predicted distributions, in f64.

/// `ln(1 + e^x)`
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// `ln Γ(x)` for positive x.
pub(super) fn ln_gamma(x: f64) -> f64 {
    libm::lgamma(x)
}

/// The derivative of [`ln_gamma`]: upwards by recurrence, then the asymptotic series (Abramowitz and Stegun, 6.3.18).
pub(super) fn digamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < 10.0 {
        sum -= 1.0 / x;
        x += 1.0;
    }
    let w = 1.0 / (x * x);
    let series = w * (1.0 / 12.0 - w * (1.0 / 120.0 - w * (1.0 / 252.0 - w * (1.0 / 240.0 - w * (1.0 / 132.0)))));
    sum + x.ln() - 0.5 / x - series
}

/// The standard normal distribution function.
pub(super) fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The regularised incomplete beta function `I_x(a, b)`, by its continued fraction (Abramowitz and Stegun, 26.5.8, evaluated by
/// Lentz' method). `y` is `1 - x`, given apart so that it keeps its digits where x is near 1.
pub(super) fn beta(a: f64, b: f64, x: f64, y: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if y <= 0.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * y.ln()).exp();
    // The fraction converges quickly on the side of x that is below the mean.
    let side = |a: f64, b: f64, x: f64| match front {
        0.0 => 0.0,
        front => (front / a * fraction(a, b, x)).clamp(0.0, 1.0),
    };
    if x * (a + b + 2.0) < a + 1.0 { side(a, b, x) } else { 1.0 - side(b, a, y) }
}

/// Terms after which the fraction is as good as it gets: it takes about the square root of the larger parameter.
const TERMS: usize = 20_000;

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    let away = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut h = d;
    for m in 1..TERMS {
        let m = m as f64;
        for term in [
            m / (a + 2.0 * m - 1.0) * ((b - m) / (a + 2.0 * m)) * x,
            -(a + m) / (a + 2.0 * m) * ((a + b + m) / (a + 2.0 * m + 1.0)) * x,
        ] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            h *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "{got}, expected {want}");
    }

    #[test]
    fn values_by_hand() {
        near(softplus(0.0), 2f64.ln());
        near(softplus(800.0), 800.0);
        assert!(softplus(-800.0) >= 0.0 && softplus(-40.0) > 0.0);
        near(sigmoid(-1.5) + sigmoid(1.5), 1.0);
        // ψ(1) = -γ, ψ(1/2) = -γ - 2 ln 2, ψ(x + 1) = ψ(x) + 1 / x.
        let euler = 0.577_215_664_901_532_9;
        near(digamma(1.0), -euler);
        near(digamma(0.5), -euler - 2.0 * 2f64.ln());
        near(digamma(1e-6), digamma(1.0 + 1e-6) - 1e6);
        near(normal_cdf(0.0), 0.5);
        near(normal_cdf(1.0), 0.841_344_746_068_542_9);
    }

    #[test]
    fn digamma_is_the_derivative_of_ln_gamma() {
        for x in [0.02, 0.3, 1.0, 2.7, 9.99, 10.01, 55.0, 4e4] {
            let step = 1e-4 * x;
            let (up, down) = (ln_gamma(x + step), ln_gamma(x - step));
            let (up2, down2) = (ln_gamma(x + 2.0 * step), ln_gamma(x - 2.0 * step));
            let numeric = (8.0 * (up - down) - (up2 - down2)) / (12.0 * step);
            assert!((numeric - digamma(x)).abs() < 1e-7 * (1.0 + digamma(x).abs()), "{x}: {numeric} {}", digamma(x));
        }
    }

    #[test]
    fn the_incomplete_beta_function_has_its_known_values() {
        let at = |a, b, x: f64| beta(a, b, x, 1.0 - x);
        near(at(1.0, 1.0, 0.3), 0.3);
        // I_x(a, 1) = x^a, I_x(1, b) = 1 - (1 - x)^b
        near(at(3.5, 1.0, 0.6), 0.6f64.powf(3.5));
        near(at(1.0, 40.0, 0.02), 1.0 - 0.98f64.powf(40.0));
        // The binomial tail: I_x(2, 3) = sum over k >= 2 of C(4, k) x^k (1 - x)^(4 - k).
        let x: f64 = 0.35;
        let tail = 6.0 * x.powi(2) * (1.0 - x).powi(2) + 4.0 * x.powi(3) * (1.0 - x) + x.powi(4);
        near(at(2.0, 3.0, x), tail);
        for (a, b) in [(0.1, 0.5), (2.0, 0.5), (500.0, 0.5), (3e4, 2e4)] {
            for x in [1e-9, 0.1, 0.5, 0.6, 0.99] {
                let sum = at(a, b, x) + beta(b, a, 1.0 - x, x);
                assert!((sum - 1.0).abs() < 1e-10, "{a} {b} {x}: {sum}");
            }
        }
        assert_eq!((at(2.0, 2.0, 0.0), at(2.0, 2.0, 1.0)), (0.0, 1.0));
    }
}
