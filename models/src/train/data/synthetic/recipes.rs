//! The kinds of series the generator knows, and the proportions in which it draws them.

use super::process::{self, Law};
use super::season::{self, Days};
use super::trend;
use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

/// How often each recipe is drawn, in the order of the enum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares([f64; TABLE.len()]);

impl Default for Shares {
    fn default() -> Self {
        Self(TABLE.map(|(_, _, share)| share))
    }
}

impl Shares {
    /// The usual shares, times the factor given for a recipe's name.
    pub fn scaled<'a>(factors: impl IntoIterator<Item = (&'a str, f64)>) -> Result<Self> {
        let mut shares = Self::default();
        for (name, factor) in factors {
            let Some(at) = Recipe::NAMES.iter().position(|known| *known == name) else {
                bail!("unknown series recipe {name:?}; known are {}", Recipe::NAMES.join(", "));
            };
            if !(0.0..=1e6).contains(&factor) {
                bail!("the factor {factor} for recipe {name:?} must be between 0 and 1e6");
            }
            shares.0[at] *= factor;
        }
        if shares.0.iter().sum::<f64>() <= 0.0 {
            bail!("no series recipe is left: every factor is 0");
        }
        Ok(shares)
    }
}

/// One kind of series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recipe {
    /// Trend, seasons and noise added up, some with level shifts: the classical decomposition.
    Structural,
    /// Trend times season times noise: amplitudes grow with the level (airline passengers).
    Multiplicative,
    /// Sub-daily profiles of working days and weekends (electricity demand, calls, traffic).
    Daily,
    /// A solar plant: zero at night, cut at capacity.
    Solar,
    /// A wind plant, or another process pressed between a floor and a ceiling.
    Bounded,
    /// Quasi-periodic: stochastic cycles, also skewed and with a floor (sunspots, predator and prey).
    Cycle,
    /// Sums and products of Gaussian processes.
    Kernel,
    /// ARMA processes, integrated up to twice.
    Arima,
    /// Random walks, also of the logarithm (prices).
    Walk,
    /// Noise about a level that may jump once (river flows).
    Level,
    /// Counts with a seasonal rate.
    Counts,
    /// Intermittent demand: sizes at random intervals (Croston, 1972).
    Intermittent,
    /// Seasonal patterns and trends with next to no noise.
    Clean,
    /// A stretch of any texture, short or long, over and over again.
    Motif,
}

/// Every recipe with its name and share, in the order of the enum.
const TABLE: [(Recipe, &str, f64); 14] = [
    (Recipe::Structural, "structural", 20.0),
    (Recipe::Multiplicative, "multiplicative", 11.0),
    (Recipe::Daily, "daily", 16.0),
    (Recipe::Solar, "solar", 4.0),
    (Recipe::Bounded, "bounded", 5.0),
    (Recipe::Cycle, "cycle", 8.0),
    (Recipe::Kernel, "kernel", 9.0),
    (Recipe::Arima, "arima", 6.0),
    (Recipe::Walk, "walk", 4.0),
    (Recipe::Level, "level", 3.0),
    (Recipe::Counts, "counts", 4.0),
    (Recipe::Intermittent, "intermittent", 2.0),
    (Recipe::Clean, "clean", 8.0),
    (Recipe::Motif, "motif", 8.0),
];

impl Recipe {
    /// The names that [`super::example`] and [`Shares::scaled`] take.
    pub const NAMES: [&'static str; TABLE.len()] = {
        let mut names = [""; TABLE.len()];
        let mut i = 0;
        while i < TABLE.len() {
            names[i] = TABLE[i].1;
            i += 1;
        }
        names
    };

    /// The recipe of a name.
    pub fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(recipe, _, _)| *recipe)
    }

    /// A recipe at random.
    pub(super) fn draw(rng: &mut Rng, shares: &Shares) -> Self {
        let total: f64 = shares.0.iter().sum();
        let mut left = rng.uniform() * total;
        for ((recipe, ..), share) in TABLE.iter().zip(shares.0) {
            left -= share;
            if left < 0.0 && share > 0.0 {
                return *recipe;
            }
        }
        // Rounding may leave a sliver past the last recipe.
        TABLE
            .iter()
            .zip(shares.0)
            .rfind(|(_, share)| *share > 0.0)
            .map_or(Self::Structural, |((recipe, ..), _)| *recipe)
    }

    /// A raw series of `n` (at least 16) finite values.
    pub(super) fn series(self, rng: &mut Rng, n: usize) -> Vec<f64> {
        match self {
            Self::Structural => structural(rng, n),
            Self::Multiplicative => multiplicative(rng, n),
            Self::Daily => daily(rng, n),
            Self::Solar => {
                let day = Days::draw(rng, n).day;
                season::solar(rng, n, day)
            }
            Self::Bounded => bounded(rng, n),
            Self::Cycle => cycle(rng, n),
            Self::Kernel => {
                let own = season::periods(rng, n);
                process::kernel_mixture(rng, n, |rng| own[rng.below(own.len())])
            }
            Self::Arima => process::arima(rng, n),
            Self::Walk => {
                let mut values = process::walk(rng, n);
                if rng.chance(0.5) {
                    let depth = rng.log_range(0.1, 1.5);
                    values.iter_mut().for_each(|v| *v = (depth * *v).clamp(-20.0, 20.0).exp());
                }
                values
            }
            Self::Level => level(rng, n),
            Self::Counts => counts(rng, n),
            Self::Intermittent => intermittent(rng, n),
            Self::Clean => clean(rng, n),
            Self::Motif => motif(rng, n),
        }
    }
}

fn add(values: &mut [f64], factor: f64, part: &[f64]) {
    values.iter_mut().zip(part).for_each(|(v, p)| *v += factor * p);
}

fn structural(rng: &mut Rng, n: usize) -> Vec<f64> {
    let steady = rng.chance(0.6);
    let mut values = season::seasonal(rng, n, steady);
    // In units of the season's deviation: the trend's span, the noise, the jumps.
    if rng.chance(0.75) {
        let span = rng.log_range(0.2, 12.0);
        add(&mut values, span, &trend::trend(rng, n));
    }
    let loud = rng.log_range(0.03, 2.0);
    add(&mut values, loud, &process::noise(rng, n));
    if rng.chance(0.25) {
        let wander = rng.log_range(0.1, 3.0);
        add(&mut values, wander, &process::slow(rng, n));
    }
    if rng.chance(0.2) {
        let memory = rng.range(0.8, 0.995);
        let size = rng.log_range(0.1, 1.5);
        add(&mut values, size, &process::autoregression(rng, n, memory, Law::Normal));
    }
    if rng.chance(0.1) {
        trend::level_shifts(rng, &mut values, 1.0);
    }
    values
}

/// exp(trend) * (1 + season) * (1 + noise), after ForecastPFN; the season may have several periods.
fn multiplicative(rng: &mut Rng, n: usize) -> Vec<f64> {
    let growth = rng.log_range(0.1, 3.0);
    let path = trend::trend(rng, n);
    let steady = rng.chance(0.6);
    let season = season::seasonal(rng, n, steady);
    let depth = rng.log_range(0.02, 0.6);
    let noise = process::noise(rng, n);
    let loud = depth * rng.log_range(0.02, 1.0);
    let logarithmic = rng.chance(0.5);
    let floor = rng.chance(0.3);
    (0..n)
        .map(|t| {
            let level = (growth * path[t]).clamp(-8.0, 8.0).exp();
            let factor = if logarithmic {
                (depth * season[t] + loud * noise[t]).clamp(-5.0, 5.0).exp()
            } else {
                (1.0 + depth * season[t]) * (1.0 + loud * noise[t])
            };
            let value = level * factor;
            if floor { value.max(0.0) } else { value }
        })
        .collect()
}

fn daily(rng: &mut Rng, n: usize) -> Vec<f64> {
    let days = Days::draw(rng, n);
    let mut values = season::daily(rng, n, days);
    // Weather and season: a level that drifts over days, added or multiplied.
    if rng.chance(0.6) {
        let size = rng.log_range(0.02, 0.6);
        let drift = if rng.chance(0.5) { trend::trend(rng, n) } else { process::slow(rng, n) };
        let times = rng.chance(0.5);
        values.iter_mut().zip(drift).for_each(|(v, d)| *v = if times { *v * (1.0 + size * d) } else { *v + size * d });
    }
    let loud = rng.log_range(0.003, 0.3);
    if rng.chance(0.5) {
        let memory = rng.range(0.5, 0.99);
        add(&mut values, loud, &process::autoregression(rng, n, memory, Law::Normal));
    }
    let quiet = loud * rng.log_range(0.1, 1.0);
    add(&mut values, quiet, &process::noise(rng, n));
    if rng.chance(0.3) {
        values.iter_mut().for_each(|v| *v = v.max(0.0));
    }
    if rng.chance(0.15) {
        let scale = rng.log_range(3.0, 200.0);
        values.iter_mut().for_each(|v| *v = process::poisson(rng, (*v * scale).clamp(0.0, 1e6)));
    }
    values
}

/// A smooth process through a logistic curve, as a turbine's power curve makes of the wind; 0 and capacity are reached.
fn bounded(rng: &mut Rng, n: usize) -> Vec<f64> {
    let memory = 1.0 - rng.log_range(0.005, 0.3);
    let mut values = process::autoregression(rng, n, memory, Law::Normal);
    if rng.chance(0.5) {
        // A second, smoother pass: winds have inertia.
        let keep = rng.range(0.3, 0.95);
        let mut state = values[0];
        for value in &mut values {
            state = keep * state + (1.0 - keep) * *value;
            *value = state;
        }
        process::unit(&mut values);
    }
    if rng.chance(0.5) {
        let size = rng.log_range(0.05, 1.0);
        let day = Days::draw(rng, n).day as f64;
        add(&mut values, size, &season::component(rng, n, day, true));
    }
    let (steep, middle, over) = (rng.log_range(0.5, 4.0), rng.range(-1.0, 1.5), rng.range(0.0, 0.25));
    values.iter().map(|v| ((1.0 + 2.0 * over) / (1.0 + (-steep * (v - middle)).exp()) - over).clamp(0.0, 1.0)).collect()
}

fn cycle(rng: &mut Rng, n: usize) -> Vec<f64> {
    let period = rng.log_range(4.0, (n as f64 / 2.5).max(6.0));
    let mut values = process::cycle(rng, n, period);
    if rng.chance(0.4) {
        let (ratio, size) = (rng.range(0.2, 0.9), rng.log_range(0.1, 1.0));
        add(&mut values, size, &process::cycle(rng, n, (period * ratio).max(2.5)));
    }
    match rng.below(6) {
        // Skewed upwards: long lows, sharp peaks.
        0 => {
            let sharp = rng.range(0.4, 1.2);
            values.iter_mut().for_each(|v| *v = (sharp * *v).clamp(-8.0, 5.0).exp());
        }
        // With a floor, squared like the intensity of an oscillation.
        1..=2 => {
            let lift = rng.range(0.5, 2.0);
            values.iter_mut().for_each(|v| *v = (*v + lift).max(0.0).powf(1.5));
        }
        _ => {}
    }
    if rng.chance(0.4) {
        let span = rng.log_range(0.2, 4.0);
        add(&mut values, span, &trend::trend(rng, n));
    }
    let loud = rng.log_range(0.01, 0.6);
    add(&mut values, loud, &process::noise(rng, n));
    if rng.chance(0.15) {
        let size = rng.log_range(0.3, 1.5);
        add(&mut values, size, &season::seasonal(rng, n, true));
    }
    values
}

fn level(rng: &mut Rng, n: usize) -> Vec<f64> {
    let mut values = process::noise(rng, n);
    if rng.chance(0.5) {
        trend::level_shifts(rng, &mut values, 1.2);
    }
    if rng.chance(0.4) {
        let (memory, size) = (rng.range(0.7, 0.99), rng.log_range(0.2, 1.5));
        add(&mut values, size, &process::autoregression(rng, n, memory, Law::Normal));
    }
    if rng.chance(0.3) {
        let depth = rng.range(0.1, 0.7);
        values.iter_mut().for_each(|v| *v = (depth * *v).clamp(-8.0, 8.0).exp());
    }
    values
}

/// Poisson or over-dispersed counts about a seasonal rate.
fn counts(rng: &mut Rng, n: usize) -> Vec<f64> {
    let season = season::seasonal(rng, n, true);
    let path = trend::trend(rng, n);
    let (depth, growth) = (rng.log_range(0.1, 1.0), rng.log_range(0.1, 1.5));
    let rate = rng.log_range(0.3, 300.0);
    let extra = if rng.chance(0.4) { rng.log_range(1.0, 30.0) } else { 0.0 };
    (0..n)
        .map(|t| {
            let mean = rate * (depth * season[t] + growth * path[t]).clamp(-6.0, 4.0).exp();
            let mean = if extra > 0.0 { mean * process::gamma_of_mean_one(rng, extra) } else { mean };
            process::poisson(rng, mean)
        })
        .collect()
}

fn intermittent(rng: &mut Rng, n: usize) -> Vec<f64> {
    let interval = rng.log_range(1.3, (n as f64 / 8.0).clamp(2.0, 20.0));
    let (size, spread) = (rng.log_range(1.0, 100.0), rng.log_range(0.1, 1.0));
    // The chance of a demand may follow a season, or slowly change.
    let season = if rng.chance(0.4) { season::seasonal(rng, n, true) } else { process::slow(rng, n) };
    let depth = rng.range(0.0, 0.8);
    let regular = rng.chance(0.2);
    let mut wait = rng.below(interval.ceil() as usize);
    (0..n)
        .map(|t| {
            let due = if regular {
                wait = if wait == 0 { interval.round() as usize } else { wait };
                wait -= 1;
                wait == 0
            } else {
                rng.chance((depth * season[t]).exp() / interval)
            };
            if due { (size * (spread * rng.normal()).exp()).round().max(1.0) } else { 0.0 }
        })
        .collect()
}

/// Patterns with a noise of at most 3 % of the season: what a model must continue exactly.
fn clean(rng: &mut Rng, n: usize) -> Vec<f64> {
    let mut values = if rng.chance(0.3) {
        let days = Days::draw(rng, n);
        season::daily(rng, n, days)
    } else {
        season::seasonal(rng, n, true)
    };
    if rng.chance(0.5) {
        let span = rng.log_range(0.3, 10.0);
        let path = trend::trend(rng, n);
        if rng.chance(0.3) {
            let growth = span.min(2.0);
            values.iter_mut().zip(&path).for_each(|(v, p)| *v = (3.0 + *v) * (growth * p).clamp(-6.0, 6.0).exp());
        } else {
            add(&mut values, span, &path);
        }
    }
    let loud = rng.log_range(0.0005, 0.03);
    let law = Law::draw(rng);
    values.iter_mut().for_each(|v| *v += loud * law.sample(rng));
    values
}

/// What no smooth profile teaches: to find the place in the past that looks like now, whatever it looks like, and to go on
/// from there. The stretch may come back louder or fainter, and slightly changed.
fn motif(rng: &mut Rng, n: usize) -> Vec<f64> {
    let period = rng.log_range(4.0, 0.7 * n as f64) as usize;
    let stretch = match rng.below(4) {
        0 => process::noise(rng, period),
        1 => {
            let memory = rng.range(0.3, 0.98);
            process::autoregression(rng, period, memory, Law::Normal)
        }
        2 => {
            // Steps: a level for a while, then another.
            let (stay, mut level) = (rng.range(0.5, 0.97), rng.normal());
            (0..period)
                .map(|_| {
                    level = if rng.chance(stay) { level } else { rng.normal() };
                    level
                })
                .collect()
        }
        _ => {
            // Spikes on the ground.
            let (rate, ground) = (rng.range(0.03, 0.4), rng.log_range(0.01, 0.3));
            (0..period).map(|_| if rng.chance(rate) { rng.normal().abs() } else { ground * rng.normal() }).collect()
        }
    };
    let start = rng.below(period);
    let swell = if rng.chance(0.4) { rng.log_range(0.02, 0.4) } else { 0.0 };
    let heights: Vec<f64> = (0..n / period + 2).map(|_| (swell * rng.normal()).exp()).collect();
    let mut values: Vec<f64> = (start..start + n).map(|t| heights[t / period] * stretch[t % period]).collect();
    process::unit(&mut values);
    if rng.chance(0.4) {
        let span = rng.log_range(0.1, 4.0);
        add(&mut values, span, &trend::trend(rng, n));
    }
    let loud = rng.log_range(0.002, 0.3);
    values.iter_mut().for_each(|v| *v += loud * rng.normal());
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_every_recipe_stays_finite() {
        for (index, (recipe, name, _)) in TABLE.iter().enumerate() {
            assert_eq!(*recipe as usize, index);
            assert_eq!(Recipe::named(name), Some(*recipe));
            for seed in 0..300 {
                for n in [16, 40, 576] {
                    let values = recipe.series(&mut Rng::keyed(&[seed, n as u64]), n);
                    assert!(values.len() == n && values.iter().all(|v| v.is_finite()), "{name} {seed} {n}");
                }
            }
        }
    }

    #[test]
    fn recipes_have_their_marks() {
        let zeros = |values: &[f64]| values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        let share = |recipe: Recipe, f: &dyn Fn(&[f64]) -> f64| {
            (0..200).map(|seed| f(&recipe.series(&mut Rng::new(seed), 576))).sum::<f64>() / 200.0
        };
        assert!(share(Recipe::Intermittent, &zeros) > 0.4);
        assert!(share(Recipe::Solar, &zeros) > 0.3);
        let whole = |values: &[f64]| f64::from(u8::from(values.iter().all(|v| v.fract() == 0.0 && *v >= 0.0)));
        assert_eq!((share(Recipe::Counts, &whole), share(Recipe::Intermittent, &whole)), (1.0, 1.0));
        let inside = |values: &[f64]| f64::from(u8::from(values.iter().all(|v| (0.0..=1.0).contains(v))));
        assert_eq!(share(Recipe::Bounded, &inside), 1.0);
    }
}
