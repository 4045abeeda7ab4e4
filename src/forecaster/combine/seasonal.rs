//! A family of smoothed seasonal forecasts, weighted by how each did on the history.
//!
//! For a lag `p`, smoothed `u` and level `l`:
//! `e[t] = y[t] - u[t-p]`, `u[t] = u[t-p] + gamma e[t]` (from `u[t] = y[t]` for `t < p`), `l[t] = l[t-1] + alpha (e[t] - l[t-1])`,
//! and `k = 0, 1, ..` steps after `n` values `u[n - p + k mod p] + l[n-1] (1 + phi + .. + phi^c)` with `c = k div p`.
//!
//! `gamma` is how fast the season changes, `alpha` how fast what it misses is believed, `phi` whether that is added again each
//! period, as a trend. `gamma = 1, alpha = 0` is seasonal-naive; `p = 1` gives naive, simple exponential smoothing and
//! damped drift. This is exponential smoothing (Holt 1957, Winters 1960; damped trend: Gardner and McKenzie 1985) with level and trend in one term.
//!
//! Instead of the best of the grid its average is taken, each weighted by `loss^-8`, the loss being the absolute error of
//! forecasts over the whole horizon from origins in the history's own past.

/// Smoothing of the season.
const GAMMA: [f64; 4] = [1.0, 0.5, 0.25, 0.1];
/// Smoothing of the level.
const ALPHA: [f64; 6] = [0.0, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Damping of the trend.
const PHI: [f64; 3] = [0.0, 0.7, 1.0];
/// Weights are the loss to this negative power.
const SHARPNESS: i32 = 8;
/// Origins that the family is weighted on, at most.
const ORIGINS: usize = 24;

const CELLS: usize = GAMMA.len() * ALPHA.len() * PHI.len();

/// A lag and the weights of the grid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seasonal {
    lag: usize,
    /// By gamma, alpha and phi, the last fastest; they sum to 1.
    weights: Vec<f64>,
}

/// What the recursions leave at every step of one history.
pub(super) struct Paths {
    lag: usize,
    /// `u` for each gamma.
    smoothed: Vec<Vec<f64>>,
    /// `l` after so many values, for each gamma and alpha.
    levels: Vec<[[f64; ALPHA.len()]; GAMMA.len()]>,
}

impl Paths {
    /// Runs the recursions over a history.
    pub fn of(y: &[f64], lag: usize) -> Self {
        let mut smoothed = vec![y.to_vec(); GAMMA.len()];
        let mut levels = vec![[[0.0; ALPHA.len()]; GAMMA.len()]; y.len() + 1];
        for (t, value) in y.iter().enumerate().skip(lag) {
            levels[t + 1] = levels[t];
            for ((u, gamma), level) in smoothed.iter_mut().zip(GAMMA).zip(&mut levels[t + 1]) {
                let missed = value - u[t - lag];
                u[t] = u[t - lag] + gamma * missed;
                for (l, alpha) in level.iter_mut().zip(ALPHA) {
                    *l += alpha * (missed - *l);
                }
            }
        }
        Paths { lag, smoothed, levels }
    }
}

/// `1 + phi + .. + phi^c` for each step of the horizon.
fn repeats(phi: f64, lag: usize, horizon: usize) -> Vec<f64> {
    let (mut sum, mut power) = (1.0, 1.0);
    (0..horizon)
        .map(|k| {
            if k > 0 && k % lag == 0 {
                power *= phi;
                sum += power;
            }
            sum
        })
        .collect()
}

impl Seasonal {
    /// The family at `lag`, weighted on the history behind `paths`; `None` where that is too short.
    pub fn fit(y: &[f64], paths: &Paths, horizon: usize) -> Option<Self> {
        let (n, lag) = (y.len(), paths.lag);
        let newest = n.checked_sub((horizon / 2).max(1))?;
        let oldest = (lag + 1).max(n / 3);
        if lag == 0 || newest < oldest {
            return None;
        }
        let repeats = PHI.map(|phi| repeats(phi, lag, horizon));
        let mut losses = vec![0.0; CELLS];
        let mut size = 0.0;
        for origin in (oldest..=newest).rev().step_by((horizon / 8).max(1)).take(ORIGINS) {
            let ahead = &y[origin..(origin + horizon).min(n)];
            size += ahead.iter().map(|v| (v - y[origin - 1]).abs()).sum::<f64>();
            let mut cell = losses.iter_mut();
            for (u, level) in paths.smoothed.iter().zip(&paths.levels[origin]) {
                let missing: Vec<f64> =
                    ahead.iter().zip(u[origin - lag..origin].iter().cycle()).map(|(y, u)| y - u).collect();
                for l in level {
                    for (repeats, loss) in repeats.iter().zip(cell.by_ref()) {
                        *loss += missing.iter().zip(repeats).map(|(m, r)| (m - l * r).abs()).sum::<f64>();
                    }
                }
            }
        }
        // What is below rounding is no difference.
        let least = 1e-9 * size + f64::MIN_POSITIVE;
        let best = losses.iter().copied().fold(f64::INFINITY, f64::min) + least;
        let mut weights: Vec<f64> = losses.iter().map(|loss| (best / (loss + least)).powi(SHARPNESS)).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        (sum.is_finite() && sum > 0.0).then_some(Seasonal { lag, weights })
    }

    /// The lag.
    pub fn lag(&self) -> usize {
        self.lag
    }

    /// Continues the first `origin` values of the history behind `paths`; `None` where they are fewer than the lag.
    pub fn forecast(&self, paths: &Paths, origin: usize, horizon: usize) -> Option<Vec<f64>> {
        let start = origin.checked_sub(self.lag)?;
        let levels = paths.levels.get(origin)?;
        let mut values = vec![0.0; horizon];
        let mut slopes = [0.0; PHI.len()];
        for ((u, level), weights) in
            paths.smoothed.iter().zip(levels).zip(self.weights.chunks_exact(ALPHA.len() * PHI.len()))
        {
            let all: f64 = weights.iter().sum();
            for (value, u) in values.iter_mut().zip(u[start..origin].iter().cycle()) {
                *value += all * u;
            }
            for (l, weights) in level.iter().zip(weights.chunks_exact(PHI.len())) {
                for (slope, weight) in slopes.iter_mut().zip(weights) {
                    *slope += weight * l;
                }
            }
        }
        for (slope, phi) in slopes.into_iter().zip(PHI) {
            for (value, repeats) in values.iter_mut().zip(repeats(phi, self.lag, horizon)) {
                *value += slope * repeats;
            }
        }
        Some(values)
    }
}

/// The seasonal differences `y[t] - s` of a smoothed profile `s` at `lag`, from `t = lag` on, and the profile along the way:
/// `path[o - lag + k mod lag]` is what it says `k` steps after `o` values.
pub(super) fn without_season(y: &[f64], lag: usize) -> (Vec<f64>, Vec<f64>) {
    /// How fast the profile follows: slowly, or the long season that is sought in the rest would vanish into it.
    const FOLLOW: f64 = 0.15;
    let mut path = y.to_vec();
    let mut rest = Vec::with_capacity(y.len().saturating_sub(lag));
    for (t, value) in y.iter().enumerate().skip(lag) {
        let missed = value - path[t - lag];
        rest.push(missed);
        path[t] = path[t - lag] + FOLLOW * missed;
    }
    (rest, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moesaic_kernels::rng::Rng;

    fn forecast(y: &[f64], lag: usize, horizon: usize) -> Vec<f64> {
        let paths = Paths::of(y, lag);
        Seasonal::fit(y, &paths, horizon).unwrap().forecast(&paths, y.len(), horizon).unwrap()
    }

    fn close(a: &[f64], b: &[f64], within: f64) {
        for (k, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= within, "step {k}: {a} and {b}");
        }
    }

    #[test]
    fn an_exact_period_is_repeated() {
        let y: Vec<f64> = (0..40).map(|t| [3.0, -1.0, 4.0, 1.5, 9.0][t % 5]).collect();
        close(&forecast(&y, 5, 12), &(40..52).map(|t| y[t % 5]).collect::<Vec<_>>(), 1e-9);
    }

    #[test]
    fn a_trend_with_a_season_goes_on() {
        let of = |t: usize| 0.5 * t as f64 + [3.0, -1.0, 4.0, 1.5][t % 4];
        let y: Vec<f64> = (0..80).map(of).collect();
        close(&forecast(&y, 4, 12), &(80..92).map(of).collect::<Vec<_>>(), 0.2);
        // And a line without one.
        let line: Vec<f64> = (0..60).map(|t| 7.0 - 0.25 * f64::from(t)).collect();
        close(&forecast(&line, 1, 8), &(60..68).map(|t| 7.0 - 0.25 * f64::from(t)).collect::<Vec<_>>(), 0.2);
    }

    #[test]
    fn noise_around_a_season_is_averaged_away() {
        let mut rng = Rng::new(4);
        let season = [0.0, 5.0, 2.0, -3.0, 1.0, -4.0];
        let y: Vec<f64> = (0..240).map(|t| season[t % 6] + rng.normal()).collect();
        let error: f64 = forecast(&y, 6, 6).iter().zip(season).map(|(f, s)| (f - s).abs()).sum::<f64>() / 6.0;
        // Seasonal-naive is 0.8 off.
        assert!(error < 0.4, "{error}");
    }

    #[test]
    fn a_new_level_is_believed_when_levels_last() {
        let mut rng = Rng::new(5);
        let mut level = 0.0;
        let y: Vec<f64> = (0..240)
            .map(|t| {
                if t % 40 == 20 {
                    level += 10.0;
                }
                level + [0.0, 2.0, -1.0][t % 3] + 0.1 * rng.normal()
            })
            .collect();
        close(&forecast(&y, 3, 3), &[level, level + 2.0, level - 1.0], 3.0);
    }

    #[test]
    fn the_weights_are_of_the_past_alone() {
        let mut rng = Rng::new(6);
        let y: Vec<f64> = (0..100).map(|t| [1.0, 2.0][t % 2] + 0.1 * rng.normal()).collect();
        let paths = Paths::of(&y, 2);
        let fit = Seasonal::fit(&y, &paths, 10).unwrap();
        let early = fit.forecast(&Paths::of(&y[..60], 2), 60, 10).unwrap();
        assert_eq!(fit.forecast(&paths, 60, 10).unwrap(), early);
        assert!(Seasonal::fit(&y[..3], &Paths::of(&y[..3], 2), 4).is_none());
        assert!(fit.forecast(&paths, 1, 4).is_none());
    }

    #[test]
    fn a_season_is_taken_out_causally() {
        let y: Vec<f64> = (0..30).map(|t| [1.0, 5.0, 3.0][t % 3]).collect();
        let (rest, path) = without_season(&y, 3);
        assert!(rest.iter().all(|v| v.abs() < 1e-12) && rest.len() == 27);
        assert_eq!(path[27..], [1.0, 5.0, 3.0]);
        assert!(without_season(&y[..2], 3).0.is_empty());
    }
}
