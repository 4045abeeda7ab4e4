//! Scales and offsets with the least squared error.
//!
//! The ends of the range are no good choice: one outlier makes all other steps coarse. Ranges somewhat narrower and wider are
//! tried; for the whole numbers that each gives, the best scale and offset are those of a linear regression. The idea is that of ggml's
//! `make_qkx2_quants`.

/// Widths that are tried: the range is cut into this many steps more or fewer than there are.
const TRIES: std::ops::RangeInclusive<i32> = -14..=10;
/// What a try changes in the number of steps.
const STEP: f32 = 0.1;

/// The scale of `scale * q` with `q` in -8..=7: negative where the largest value is positive, as the range has one more there.
pub(super) fn symmetric(x: &[f32]) -> f32 {
    let largest = x.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    if largest == 0.0 {
        return 0.0;
    }
    let error = |scale: f32| {
        let q = |v: f32| (v / scale).round_ties_even().clamp(-8.0, 7.0);
        x.iter().map(|&v| f64::from(scale * q(v) - v).powi(2)).sum::<f64>()
    };
    let start = largest / -8.0;
    let mut best = (error(start), start);
    for t in TRIES {
        let first = largest / -(8.0 + STEP * t as f32);
        let (mut xq, mut qq) = (0f64, 0f64);
        for &v in x {
            let q = f64::from((v / first).round_ties_even().clamp(-8.0, 7.0));
            (xq, qq) = (xq + f64::from(v) * q, qq + q * q);
        }
        if qq > 0.0 {
            let scale = (xq / qq) as f32;
            let found = if scale != 0.0 && scale.is_finite() { error(scale) } else { f64::INFINITY };
            if found < best.0 {
                best = (found, scale);
            }
        }
    }
    best.1
}

/// Scale (not negative) and offset of `scale * q + offset` with `q` in `0..=most`; with `below`, the offset is not positive.
pub(super) fn affine(x: &[f32], most: f32, below: bool) -> (f32, f32) {
    let (mut low, high) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    if below {
        low = low.min(0.0);
    }
    if high <= low {
        return (0.0, low);
    }
    let q = |v: f32, (scale, offset): (f32, f32)| ((v - offset) / scale).round_ties_even().clamp(0.0, most);
    let error = |fit: (f32, f32)| x.iter().map(|&v| f64::from(fit.0 * q(v, fit) + fit.1 - v).powi(2)).sum::<f64>();
    let start = ((high - low) / most, low);
    let mut best = (error(start), start);
    for t in TRIES {
        let first = ((high - low) / (most + STEP * t as f32), low);
        let n = x.len() as f64;
        let (mut sx, mut sq, mut sqq, mut sxq) = (0f64, 0f64, 0f64, 0f64);
        for &v in x {
            let (v, q) = (f64::from(v), f64::from(q(v, first)));
            (sx, sq, sqq, sxq) = (sx + v, sq + q, sqq + q * q, sxq + v * q);
        }
        let spread = n * sqq - sq * sq;
        if spread <= 0.0 {
            continue;
        }
        let (mut scale, mut offset) = ((n * sxq - sx * sq) / spread, (sx * sqq - sq * sxq) / spread);
        if below && offset > 0.0 {
            (scale, offset) = (sxq / sqq.max(1.0), 0.0);
        }
        let fit = (scale as f32, offset as f32);
        let found = if fit.0 > 0.0 && fit.0.is_finite() && fit.1.is_finite() { error(fit) } else { f64::INFINITY };
        if found < best.0 {
            best = (found, fit);
        }
    }
    best.1
}
