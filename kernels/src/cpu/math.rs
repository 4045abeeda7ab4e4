//! Row-wise functions: exponentials that vectorise, and the loops of softmax, norms and gated activations.
//!
//! Each loop is written once, generic over "fused multiply-add or not", and compiled for every instruction set by
//! [`for_isa`]. Reductions use sixteen partial sums in a fixed order, so a row has the same bits wherever it stands.

/// Defines `fn name(isa, args)` that runs `body::<FMA>(args)` compiled for the instruction set at hand.
macro_rules! for_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match isa {
                    // SAFETY: `Isa` is never above what the CPU was found to have.
                    $crate::cpu::Isa::Avx512 | $crate::cpu::Isa::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::Isa::Portable => {}
                }
            }
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}

pub(crate) use for_isa;

mod narrow;
mod rows;

pub(crate) use narrow::{bf16_bits, round_bf16, to_bf16, widen_pairs};
pub(crate) use rows::{dots, weighted_sum, widen_bf16, widen_f16};

/// `a * b + c`, fused where the instruction set has it (a library call where it does not, hence the switch).
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` with an error of about 2 units in the last place: range reduction by ln 2 in two parts and a polynomial of
/// degree 6. Below -87.3 the result is 0, above 88.7 infinity; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_145_75;
    const LN2_LO: f32 = 1.428_606_8e-6;
    // Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.4);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LO, fma::<FMA>(n, -LN2_HI, clamped));
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<FMA>(p, r, c);
    }
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    let y = p * scale;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.4 { f32::INFINITY } else { y }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The error function with an absolute error of about 3e-7: formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let t = 1.0 / fma::<FMA>(0.327_591_1, x.abs(), 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = fma::<FMA>(p, t, c);
    }
    (1.0 - p * t * exp::<FMA>(-x * x)).copysign(x)
}

/// Sum of `f(i)` over a row in sixteen partial sums.
#[inline(always)]
fn lanes(n: usize, mut f: impl FnMut(usize, f32) -> f32) -> f32 {
    let mut acc = [0f32; 16];
    let whole = n / 16 * 16;
    let mut i = 0;
    while i < whole {
        for (l, a) in acc.iter_mut().enumerate() {
            *a = f(i + l, *a);
        }
        i += 16;
    }
    for (l, a) in acc.iter_mut().enumerate().take(n - whole) {
        *a = f(whole + l, *a);
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            acc[l] += acc[l + half];
        }
    }
    acc[0]
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    lanes(n, |i, acc| fma::<FMA>(a[i], b[i], acc))
}

for_isa! {
    /// `sum a * b`
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}

#[inline(always)]
fn squared_distance_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    lanes(n, |i, acc| fma::<FMA>(a[i] - b[i], a[i] - b[i], acc))
}

for_isa! {
    /// `sum (a - b)^2`
    pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 = squared_distance_body
}

#[inline(always)]
fn add_difference_body<const FMA: bool>(w: f32, a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = fma::<FMA>(w, a - b, *y);
    }
}

for_isa! {
    /// `y += w * (a - b)`
    pub(crate) fn add_difference(w: f32, a: &[f32], b: &[f32], y: &mut [f32]) = add_difference_body
}

/// The largest value.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut max = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (m, v) in max.iter_mut().zip(chunk) {
            *m = m.max(*v);
        }
    }
    for (m, v) in max.iter_mut().zip(rest) {
        *m = m.max(*v);
    }
    max.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
}

#[inline(always)]
fn softmax_body<const FMA: bool>(row: &mut [f32], scale: f32) -> f32 {
    let (_, sum) = exponentials_body::<FMA>(row, scale);
    let inverse = 1.0 / sum;
    for v in row.iter_mut() {
        *v *= inverse;
    }
    sum
}

for_isa! {
    /// Softmax of `row * scale` in place (`scale` > 0).
    pub(crate) fn softmax(row: &mut [f32], scale: f32) -> f32 = softmax_body
}

#[inline(always)]
fn exponentials_body<const FMA: bool>(row: &mut [f32], scale: f32) -> (f32, f32) {
    let max = largest(row) * scale;
    for v in row.iter_mut() {
        *v = exp::<FMA>(fma::<FMA>(*v, scale, -max));
    }
    (max, lanes(row.len(), |i, acc| acc + row[i]))
}

for_isa! {
    /// `exp(row * scale - max)` in place (`scale` > 0), with that largest value and the sum.
    pub(crate) fn exponentials(row: &mut [f32], scale: f32) -> (f32, f32) = exponentials_body
}

#[inline(always)]
fn softmax_grad_body<const FMA: bool>(p: &[f32], dp: &mut [f32], inner: f32, scale: f32) {
    for (d, p) in dp.iter_mut().zip(p) {
        *d = p * (*d - inner) * scale;
    }
}

for_isa! {
    /// `dS = P * (dP - sum(P dP)) * scale` in place of `dp`; `inner` is that sum.
    pub(crate) fn softmax_grad(p: &[f32], dp: &mut [f32], inner: f32, scale: f32) = softmax_grad_body
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len();
    let (w, y) = (&w[..n], &mut y[..n]);
    let mean = lanes(n, |i, acc| fma::<FMA>(x[i], x[i], acc)) / n as f32;
    let r = 1.0 / (mean + eps).sqrt();
    for i in 0..n {
        y[i] = x[i] * r * w[i];
    }
}

for_isa! {
    /// `y = x / sqrt(mean(x^2) + eps) * w`
    pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_grad_body<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let n = x.len();
    let (w, dy, dx, dw) = (&w[..n], &dy[..n], &mut dx[..n], &mut dw[..n]);
    let mean = lanes(n, |i, acc| fma::<FMA>(x[i], x[i], acc)) / n as f32;
    let r = 1.0 / (mean + eps).sqrt();
    let inner = lanes(n, |i, acc| fma::<FMA>(dy[i] * w[i], x[i], acc));
    let c = inner * r * r * r / n as f32;
    for i in 0..n {
        dx[i] = fma::<FMA>(dy[i] * w[i], r, -x[i] * c);
        dw[i] = fma::<FMA>(dy[i] * r, x[i], dw[i]);
    }
}

for_isa! {
    /// Gradients of [`rms_norm`]: `dx` is written, `dw` is added to.
    pub(crate) fn rms_norm_grad(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) = rms_norm_grad_body
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len();
    let (w, b, y) = (&w[..n], &b[..n], &mut y[..n]);
    let mean = lanes(n, |i, acc| acc + x[i]) / n as f32;
    let variance = lanes(n, |i, acc| fma::<FMA>(x[i] - mean, x[i] - mean, acc)) / n as f32;
    let r = 1.0 / (variance + eps).sqrt();
    for i in 0..n {
        y[i] = fma::<FMA>((x[i] - mean) * r, w[i], b[i]);
    }
}

for_isa! {
    /// `y = (x - mean) / sqrt(variance + eps) * w + b`
    pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) = layer_norm_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn layer_norm_grad_body<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let n = x.len();
    let (w, dy, dx, dw, db) = (&w[..n], &dy[..n], &mut dx[..n], &mut dw[..n], &mut db[..n]);
    let mean = lanes(n, |i, acc| acc + x[i]) / n as f32;
    let variance = lanes(n, |i, acc| fma::<FMA>(x[i] - mean, x[i] - mean, acc)) / n as f32;
    let r = 1.0 / (variance + eps).sqrt();
    let sum = lanes(n, |i, acc| fma::<FMA>(dy[i], w[i], acc)) / n as f32;
    let inner = lanes(n, |i, acc| fma::<FMA>(dy[i] * w[i], (x[i] - mean) * r, acc)) / n as f32;
    for i in 0..n {
        let normed = (x[i] - mean) * r;
        dx[i] = (fma::<FMA>(dy[i], w[i], -sum) - normed * inner) * r;
        dw[i] = fma::<FMA>(dy[i], normed, dw[i]);
        db[i] += dy[i];
    }
}

for_isa! {
    /// Gradients of [`layer_norm`]: `dx` is written, `dw` and `db` are added to.
    pub(crate) fn layer_norm_grad(
        x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32],
    ) = layer_norm_grad_body
}

#[inline(always)]
fn silu_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid::<FMA>(*x);
    }
}

#[inline(always)]
fn gelu_tanh_body<const FMA: bool>(x: &mut [f32]) {
    // sqrt(2 / pi)
    const SCALE: f32 = 0.797_884_6;
    for x in x {
        let u = SCALE * fma::<FMA>(0.044_715 * *x * *x, *x, *x);
        // tanh u = 1 - 2 / (e^2u + 1)
        *x *= 1.0 - 1.0 / (exp::<FMA>(2.0 * u) + 1.0);
    }
}

#[inline(always)]
fn gelu_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        *x *= 0.5 * (1.0 + erf::<FMA>(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[inline(always)]
fn quick_gelu_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        *x *= sigmoid::<FMA>(1.702 * *x);
    }
}

#[inline(always)]
fn relu_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        // Not `max`, which would turn NaN into 0.
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

for_isa! {
    /// `x * sigmoid(x)` in place.
    pub(crate) fn silu(x: &mut [f32]) = silu_body
}

for_isa! {
    /// GELU by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415), in place.
    pub(crate) fn gelu_tanh(x: &mut [f32]) = gelu_tanh_body
}

for_isa! {
    /// GELU in place.
    pub(crate) fn gelu(x: &mut [f32]) = gelu_body
}

for_isa! {
    /// `x * sigmoid(1.702 x)` in place.
    pub(crate) fn quick_gelu(x: &mut [f32]) = quick_gelu_body
}

for_isa! {
    /// `max(x, 0)` in place.
    pub(crate) fn relu(x: &mut [f32]) = relu_body
}

#[inline(always)]
fn multiply_body<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

for_isa! {
    /// `x *= y`
    pub(crate) fn multiply(x: &mut [f32], y: &[f32]) = multiply_body
}

#[inline(always)]
fn silu_glu_body<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g * sigmoid::<FMA>(*g) * u;
    }
}

for_isa! {
    /// `y = silu(gate) * up`
    pub(crate) fn silu_glu(gate: &[f32], up: &[f32], y: &mut [f32]) = silu_glu_body
}

#[inline(always)]
fn silu_glu_grad_body<const FMA: bool>(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let n = gate.len();
    let (up, dy, dgate, dup) = (&up[..n], &dy[..n], &mut dgate[..n], &mut dup[..n]);
    for i in 0..n {
        let s = sigmoid::<FMA>(gate[i]);
        // d silu(g) = s + g s (1 - s)
        dgate[i] = dy[i] * up[i] * fma::<FMA>(gate[i] * s, 1.0 - s, s);
        dup[i] = dy[i] * gate[i] * s;
    }
}

for_isa! {
    /// Gradients of [`silu_glu`].
    pub(crate) fn silu_glu_grad(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) = silu_glu_grad_body
}

#[inline(always)]
fn axpy_body<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(a, *x, *y);
    }
}

for_isa! {
    /// `y += a * x`
    pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) = axpy_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_close_to_f64() {
        for i in -6000..=6000 {
            let x = i as f32 * 1e-3;
            let want = candle_core::cpu::erf::erf_f64(f64::from(x));
            for got in [erf::<true>(x), erf::<false>(x)] {
                assert!((f64::from(got) - want).abs() < 5e-7, "erf({x}) = {got}, expected {want}");
            }
        }
        assert!(erf::<true>(f32::NAN).is_nan());
        assert_eq!(erf::<true>(f32::INFINITY), 1.0);
    }

    #[test]
    fn exp_is_close_to_f64_everywhere() {
        for fused in [true, false] {
            let mut x = -87.2f32;
            while x < 88.3 {
                let got = f64::from(if fused { exp::<true>(x) } else { exp::<false>(x) });
                let want = f64::from(x).exp();
                assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, expected {want}");
                x += 0.0137;
            }
        }
        assert_eq!(exp::<true>(-100.0), 0.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(100.0), f32::INFINITY);
        assert!(exp::<true>(f32::NAN).is_nan());
        assert_eq!(exp::<true>(0.0), 1.0);
    }
}
