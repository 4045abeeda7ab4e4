//! Lags at which a history repeats itself, found by trying them.
//!
//! Every lag `p` forecasts the history's own past as seasonal-naive does (`y[o - p + k mod p]` for step `k` from origin `o`);
//! its loss is its absolute error over that of two forecasts without a season, the last value and the recent median. A lag
//! that nearly spans the history is tried on few values and wins by chance among hundreds, so losses are drawn towards 1,
//! which says nothing, by one horizon's worth of doubt: `(loss m + 1) / (m + 1)` with `m = (n - p) / horizon`.

/// The lags worth a forecast.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Lags {
    /// The best ones, at most [`MOST`].
    pub single: Vec<usize>,
    /// A short lag inside a long one (a day in a week), if both say something.
    pub nested: Option<(usize, usize)>,
}

/// Lags that are tried as forecasts.
const MOST: usize = 3;

/// A shorter lag that gains this share of what the best one gains is the fundamental one; the best is often a multiple of it.
const FUNDAMENTAL: f64 = 0.8;

/// Shorter histories show no lag.
const SHORTEST: usize = 12;

impl Lags {
    /// The lags of a history that is to be continued by `horizon` values.
    pub fn of(y: &[f64], horizon: usize) -> Self {
        let losses = losses(y, horizon);
        let mut found: Vec<usize> = (2..losses.len())
            .filter(|&p| {
                let reach = (p / 12).max(1);
                let around = &losses[p - reach..(p + reach + 1).min(losses.len())];
                losses[p] < 1.0 && around.iter().all(|&other| losses[p] <= other)
            })
            .collect();
        found.sort_by(|&a, &b| losses[a].total_cmp(&losses[b]));
        let Some(&best) = found.first() else { return Lags::default() };
        let enough = FUNDAMENTAL * (1.0 - losses[best]);
        let fundamental = found.iter().copied().filter(|&p| 1.0 - losses[p] >= enough).min().unwrap_or(best);
        let mut single = vec![best];
        for lag in std::iter::once(fundamental).chain(found.iter().copied()) {
            if single.len() < MOST && !single.contains(&lag) {
                single.push(lag);
            }
        }
        // Without a fundamental below the best, a day may stand in a week all the same.
        let short = single.iter().copied().filter(|&p| 2 * p <= best).min_by(|&a, &b| losses[a].total_cmp(&losses[b]));
        Lags { single, nested: short.map(|short| (short, best)) }
    }
}

/// The loss of every lag from 0 on, infinite where it cannot be tried.
fn losses(y: &[f64], horizon: usize) -> Vec<f64> {
    let n = y.len();
    if n < SHORTEST {
        return Vec::new();
    }
    let h = horizon.min(n / 4).max(1);
    let longest = (n * 5 / 6).min(n - (h / 2).max(8));
    let (mut loss, mut unit) = (vec![0.0; longest + 1], vec![0.0; longest + 1]);
    // The last origins see only a part of the horizon: the newest values count too.
    let newest = n - (h / 2).max(1);
    for origin in (n / 4 + 1..=newest).rev().step_by((h / 8).max(1)) {
        let ahead = &y[origin..(origin + h).min(n)];
        let recent = median(&y[origin.saturating_sub((2 * h).max(32))..origin]);
        let without: f64 = ahead.iter().map(|v| 0.5 * ((v - y[origin - 1]).abs() + (v - recent).abs())).sum();
        let tried = loss.iter_mut().zip(&mut unit).enumerate().take(longest.min(origin) + 1).skip(1);
        for (lag, (loss, unit)) in tried {
            let season = y[origin - lag..origin].iter().cycle();
            *loss += ahead.iter().zip(season).map(|(a, b)| (a - b).abs()).sum::<f64>();
            *unit += without;
        }
    }
    let doubt = |lag: usize| {
        let trials = ((n - lag) as f64 / h as f64).min(0.75 * n as f64 / h as f64);
        if unit[lag] > 0.0 { (loss[lag] / unit[lag] * trials + 1.0) / (trials + 1.0) } else { f64::INFINITY }
    };
    (0..=longest).map(|lag| if lag == 0 { f64::INFINITY } else { doubt(lag) }).collect()
}

/// The middle of some values; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => 0.5 * (sorted[half - 1] + sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moesaic_kernels::rng::Rng;

    #[test]
    fn periods_are_found() {
        let mut rng = Rng::new(1);
        for period in [4, 7, 12, 24, 52, 100] {
            let season: Vec<f64> = (0..period).map(|_| rng.normal()).collect();
            let y: Vec<f64> = (0..500).map(|t| season[t % period] + 0.2 * rng.normal() + 0.002 * t as f64).collect();
            let lags = Lags::of(&y, 48);
            assert_eq!(lags.single.iter().min(), Some(&period), "{lags:?}");
        }
    }

    #[test]
    fn one_and_a_half_long_periods_are_enough_and_the_day_in_the_week_is_seen() {
        let mut rng = Rng::new(2);
        let week: Vec<f64> = (0..7).map(|_| rng.normal()).collect();
        let y: Vec<f64> = (0..512)
            .map(|t| (t as f64 * std::f64::consts::TAU / 48.0).sin() * (2.0 + week[t / 48 % 7]) + 0.05 * rng.normal())
            .collect();
        let lags = Lags::of(&y, 96);
        // Days differ, so that two or more of them may repeat better than one.
        let Some((short, long)) = lags.nested else { panic!("{lags:?}") };
        assert_eq!((lags.single[0], long, short % 48), (336, 336, 0), "{lags:?}");
    }

    #[test]
    fn noise_and_lines_have_none_to_speak_of() {
        let line: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!(Lags::of(&line, 20), Lags::default());
        assert_eq!(Lags::of(&[5.0; 100], 20), Lags::default());
        assert_eq!(Lags::of(&[1.0, 2.0, 1.0, 2.0], 4), Lags::default());
        assert_eq!(Lags::of(&[], 4), Lags::default());
    }

    #[test]
    fn every_length_and_horizon_is_safe() {
        let mut rng = Rng::new(3);
        let y: Vec<f64> = (0..90).map(|_| rng.normal()).collect();
        for n in 0..90 {
            for horizon in [1, 2, 7, 50, 1000] {
                assert!(Lags::of(&y[..n], horizon).single.iter().all(|&p| p >= 2 && p < n));
            }
        }
    }
}
