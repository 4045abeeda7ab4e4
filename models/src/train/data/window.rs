//! From a raw series to one row of a batch: standardisation by a prefix, left padding, missing values.

use moesaic_kernels::rng::Rng;

/// How raw series become standardised rows.
///
/// At inference a series is standardised by the mean and standard deviation of its context, and the future may leave that
/// range. So a row is standardised here by the observed values of a random prefix: in half of the rows the whole context
/// part (all but the last `future` values), else a prefix of log-uniform length between 32 values (or a quarter of the
/// context, where that is shorter) and the context. A row whose prefix is constant, or that leaves ±10 standard deviations in
/// more than 2 % of its values, is refused so that the source draws again; what is left is clamped to ±[`Windowing::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windowing {
    /// Values at the end of a row that no standardisation may look at: the longest horizon head.
    pub future: usize,
    /// Share of rows that hold a series shorter than the row, padded on the left.
    pub short: f64,
}

impl Default for Windowing {
    fn default() -> Self {
        Self { future: 64, short: 0.15 }
    }
}

impl Windowing {
    /// Standardised values are clamped to ± this many standard deviations.
    pub const LIMIT: f64 = 20.0;

    /// The number of values the series of one row has: usually `length`, sometimes less.
    pub(super) fn draw_length(&self, rng: &mut Rng, length: usize) -> usize {
        let shortest = (self.future + 32).min(length);
        if shortest < length && rng.chance(self.short) {
            rng.log_range(shortest as f64, length as f64) as usize
        } else {
            length
        }
    }

    /// Where the part that may be looked at ends, for a series of `n` values.
    fn context(&self, n: usize) -> usize {
        n - self.future.min(n / 2)
    }

    /// Writes `raw` (NaN = missing, at most as long as the row) standardised to the right end of a row. Returns false where
    /// the series should be drawn again; the row is valid all the same.
    pub(super) fn finish(&self, rng: &mut Rng, raw: &[f64], values: &mut [f32], mask: &mut [f32]) -> bool {
        let raw = &raw[raw.len().saturating_sub(values.len())..];
        let context = self.context(raw.len());
        let shortest = (context / 4).clamp(1, 32);
        let prefix = if rng.chance(0.5) || shortest >= context {
            context
        } else {
            rng.log_range(shortest as f64, context as f64) as usize
        };
        // A prefix that misjudges the scale of what follows is widened before the series is given up.
        self.write(raw, prefix, values, mask) || (prefix < context && self.write(raw, context, values, mask))
    }

    fn write(&self, raw: &[f64], prefix: usize, values: &mut [f32], mask: &mut [f32]) -> bool {
        let pad = values.len() - raw.len();
        values[..pad].fill(0.0);
        mask[..pad].fill(0.0);
        let (mean, deviation, fit) = match moments(&raw[..prefix]) {
            Some((mean, deviation)) => (mean, deviation, true),
            None => (raw.iter().copied().find(|v| v.is_finite()).unwrap_or(0.0), 1.0, false),
        };
        let (mut far, mut seen, mut last) = (0, 0, 0.0);
        for ((&x, value), mask) in raw.iter().zip(&mut values[pad..]).zip(&mut mask[pad..]) {
            if x.is_finite() {
                let z = (x - mean) / deviation;
                seen += 1;
                far += usize::from(z.abs() > 10.0);
                last = z.clamp(-Self::LIMIT, Self::LIMIT) as f32;
                (*value, *mask) = (last, 1.0);
            } else {
                (*value, *mask) = (last, 0.0);
            }
        }
        fit && seen * 2 >= raw.len() && far * 50 <= seen
    }
}

/// Mean and sample standard deviation (n - 1) of the finite values; None where there are fewer than 4 or they are constant
/// to the precision of f32.
pub(in crate::train) fn moments(values: &[f64]) -> Option<(f64, f64)> {
    let observed = || values.iter().copied().filter(|v| v.is_finite());
    let n = observed().count();
    if n < 4 {
        return None;
    }
    let mean = observed().sum::<f64>() / n as f64;
    let variance = observed().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1) as f64;
    let deviation = variance.sqrt();
    let largest = observed().fold(0.0, |m: f64, v| m.max(v.abs()));
    (deviation.is_finite() && deviation > largest * 1e-6 && deviation > f64::MIN_POSITIVE).then_some((mean, deviation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(windowing: Windowing, raw: &[f64], length: usize, seed: u64) -> (bool, Vec<f32>, Vec<f32>) {
        let (mut values, mut mask) = (vec![9.0; length], vec![9.0; length]);
        let ok = windowing.finish(&mut Rng::new(seed), raw, &mut values, &mut mask);
        (ok, values, mask)
    }

    #[test]
    fn the_future_never_enters_the_statistics() {
        let windowing = Windowing { future: 8, short: 0.0 };
        let base: Vec<f64> = (0..32).map(|t| f64::from(t % 5)).collect();
        let mut shifted = base.clone();
        for v in &mut shifted[24..] {
            *v += 6.0;
        }
        for seed in 0..20 {
            let (_, a, _) = row(windowing, &base, 32, seed);
            let (_, b, _) = row(windowing, &shifted, 32, seed);
            assert_eq!(a[..24], b[..24]);
            assert_ne!(a[24..], b[24..]);
        }
    }

    #[test]
    fn a_whole_context_prefix_has_mean_0_and_deviation_1() {
        let windowing = Windowing { future: 8, short: 0.0 };
        let raw: Vec<f64> = (0..32).map(|t| 1e6 + f64::from(t * t % 17)).collect();
        // One seed of two takes the whole context; both kinds must occur.
        let whole = (0..20).filter(|&seed| {
            let (ok, values, _) = row(windowing, &raw, 32, seed);
            assert!(ok);
            let mean = values[..24].iter().sum::<f32>() / 24.0;
            let var = values[..24].iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 23.0;
            mean.abs() < 1e-4 && (var - 1.0).abs() < 1e-3
        });
        assert!((3..18).contains(&whole.count()));
    }

    #[test]
    fn short_series_are_padded_on_the_left_and_gaps_are_masked() {
        let mut raw: Vec<f64> = (0..20).map(f64::from).collect();
        raw[3] = f64::NAN;
        let (ok, values, mask) = row(Windowing { future: 4, short: 0.0 }, &raw, 32, 1);
        assert!(ok);
        assert!(mask[..12].iter().all(|m| *m == 0.0) && values[..12].iter().all(|v| *v == 0.0));
        assert_eq!((mask[14], mask[15], mask[16]), (1.0, 0.0, 1.0));
        assert_eq!(values[15], values[14]);
        assert_eq!(mask.iter().sum::<f32>(), 19.0);
    }

    #[test]
    fn constant_and_exploding_rows_are_refused_but_finite() {
        let windowing = Windowing { future: 8, short: 0.0 };
        let mut jump = vec![5.0; 32];
        jump[30] = 1e12;
        let (ok, values, _) = row(windowing, &jump, 32, 3);
        assert!(!ok && values.iter().all(|v| v.is_finite() && v.abs() <= 20.0));
        let exploding: Vec<f64> = (0..32).map(|t| f64::from(t).exp()).collect();
        let (ok, values, _) = row(windowing, &exploding, 32, 3);
        assert!(!ok && values.iter().all(|v| v.abs() <= 20.0));
        assert!(!row(windowing, &[f64::NAN; 32], 32, 3).0);
    }
}
