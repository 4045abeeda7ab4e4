//! Seasonal patterns: periods as calendars give them, shapes of one cycle, and their changes over time.

use super::process::{Law, add_cosine, autoregression, slow};
use moesaic_kernels::rng::Rng;
use std::f64::consts::TAU;

/// A day divided into steps, in weeks of some days: what sub-daily series repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Days {
    /// Steps a day: 24 hourly, 48 half-hourly, 96, 144, 288, or a business day of any number, such as 169 of 5 minutes.
    pub day: usize,
    /// Days a week: 7, or 5 or 6 for business days.
    pub week: usize,
}

impl Days {
    pub(super) fn draw(rng: &mut Rng, n: usize) -> Self {
        // A day must fit the window twice, or there is nothing to repeat.
        let fits = |day: usize| day * 2 <= n;
        let day = match rng.below(20) {
            0..=7 => 24,
            8..=11 if fits(48) => 48,
            12 if fits(96) => 96,
            13 if fits(144) => 144,
            14 if fits(288) => 288,
            15..=17 if fits(220) => 60 + rng.below(161),
            _ => 8 + rng.below(53),
        };
        Self { day, week: [7, 7, 7, 7, 7, 7, 7, 5, 5, 6][rng.below(10)] }
    }
}

/// The periods of one series, in steps: those of a sampling frequency, or arbitrary ones.
pub(super) fn periods(rng: &mut Rng, n: usize) -> Vec<f64> {
    let several = |rng: &mut Rng, first: f64, second: f64| match rng.below(5) {
        0..=2 => vec![first, second],
        3 => vec![first],
        _ => vec![second],
    };
    let mut found = match rng.below(40) {
        0..=8 => vec![12.0],
        9..=10 => vec![4.0],
        11..=13 => vec![365.25 / 7.0],
        14..=18 => match rng.below(6) {
            0..=2 => vec![7.0],
            3 => vec![7.0, 30.44],
            4 => vec![7.0, 365.25],
            _ => vec![5.0],
        },
        19..=23 => several(rng, 24.0, 168.0),
        24..=26 => several(rng, 48.0, 336.0),
        27 => several(rng, 96.0, 672.0),
        28 => vec![[60.0, 144.0, 288.0, 365.25][rng.below(4)]],
        29..=30 => {
            let (day, week) = (40 + rng.below(181), if rng.chance(0.5) { 5 } else { 7 });
            several(rng, day as f64, (day * week) as f64)
        }
        31..=33 => vec![(2 + rng.below(59)) as f64],
        _ => vec![rng.log_range(2.5, 0.6 * n as f64)],
    };
    // A cycle much longer than the window is a trend, which others draw.
    found.retain(|p| *p < 1.2 * n as f64);
    if found.is_empty() {
        found.push(rng.log_range(3.0, (n as f64 / 3.0).max(4.0)));
    }
    if rng.chance(0.08) {
        found.push(rng.log_range(2.5, 0.6 * n as f64));
    }
    found
}

/// One cycle of a seasonal pattern as a table over its phase, deviation about 1.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    table: Vec<f64>,
    /// Read between the table's points; off for patterns with a value of their own per phase.
    smooth: bool,
}

impl Profile {
    /// A pattern for a period of `period` steps.
    pub(super) fn draw(rng: &mut Rng, period: f64) -> Self {
        let whole = (period.fract() == 0.0 && period >= 2.0).then_some(period as usize);
        // A few steps cannot show the shapes past the sums of waves: a bump may fall between two of them.
        let kinds = if period < 8.0 { 13 } else { 20 };
        match (rng.below(kinds), whole) {
            (kind, Some(size)) if size <= 60 && (kind < 4 || (size <= 12 && kind < 8)) => {
                // A free value per phase, as calendar months have, more or less smoothed.
                let law = Law::draw(rng);
                let mut table: Vec<f64> = (0..size).map(|_| law.sample(rng)).collect();
                if rng.chance(0.5) {
                    let old = table.clone();
                    for (i, v) in table.iter_mut().enumerate() {
                        *v += 0.5 * (old[(i + 1) % size] + old[(i + size - 1) % size]);
                    }
                }
                Self::from_table(table, false)
            }
            (kind, whole) => {
                let size = whole.filter(|s| *s >= 32 && *s <= 400).unwrap_or(256);
                Self::from_table(Self::curve(rng, size, kind, period), true)
            }
        }
    }

    fn from_table(mut table: Vec<f64>, smooth: bool) -> Self {
        super::process::unit(&mut table);
        Self { table, smooth }
    }

    fn curve(rng: &mut Rng, size: usize, kind: usize, period: f64) -> Vec<f64> {
        let mut table = vec![0.0; size];
        let nyquist = (period / 2.0).max(1.0) as usize;
        let harmonics = match kind {
            4..=6 => 1,
            7..=9 => 2 + rng.below(2),
            _ => 2 + rng.below(11),
        }
        .min(nyquist)
        .max(1);
        let decay = rng.range(0.4, 2.0);
        for k in 1..=harmonics {
            let amplitude = rng.normal() * (k as f64).powf(-decay);
            // The base wave must be there in the smooth kinds.
            let amplitude = if k == 1 && kind < 10 { 1.0 } else { amplitude };
            add_cosine(&mut table, amplitude, TAU * k as f64 / size as f64, TAU * rng.uniform());
        }
        let phase = rng.uniform();
        let at = |i: usize| (i as f64 / size as f64 + phase).fract();
        match kind {
            0..=12 => {}
            // Peaked: the exponential of a smooth pattern.
            13..=14 => {
                let sharp = rng.range(0.5, 2.0) * if rng.chance(0.75) { 1.0 } else { -1.0 };
                table.iter_mut().for_each(|v| *v = (sharp * *v).clamp(-6.0, 6.0).exp());
            }
            // Half-rectified: at rest for a part of the cycle.
            15..=16 => {
                let floor = rng.range(-0.5, 0.8);
                table.iter_mut().for_each(|v| *v = v.max(floor));
            }
            // Saw-tooth, of any lean.
            17 => {
                let lean = rng.range(0.02, 0.98);
                for (i, v) in table.iter_mut().enumerate() {
                    let x = at(i);
                    *v = if x < lean { x / lean } else { (1.0 - x) / (1.0 - lean) };
                }
            }
            // On and off.
            18 => {
                let (duty, edge) = (rng.range(0.1, 0.9), rng.log_range(0.003, 0.1));
                for (i, v) in table.iter_mut().enumerate() {
                    let x = at(i);
                    *v = (x / edge).min((duty - x) / edge).clamp(0.0, 1.0);
                }
            }
            // A few bumps on a flat ground.
            _ => {
                let bumps = 1 + rng.below(4);
                table.fill(0.0);
                for _ in 0..bumps {
                    let (centre, height) = (rng.uniform(), rng.range(0.3, 1.0));
                    let width = rng.log_range((0.5 / period).clamp(0.01, 0.1), 0.2);
                    for (i, v) in table.iter_mut().enumerate() {
                        let away = (at(i) - centre).abs();
                        let away = away.min(1.0 - away) / width;
                        *v += height * (-0.5 * away * away).exp();
                    }
                }
            }
        }
        table
    }

    /// The value at a phase; any real phase, one cycle is 1.
    pub(super) fn at(&self, phase: f64) -> f64 {
        let size = self.table.len();
        let place = phase.rem_euclid(1.0) * size as f64;
        if self.smooth {
            let (below, part) = (place as usize % size, place.fract());
            self.table[below] * (1.0 - part) + self.table[(below + 1) % size] * part
        } else {
            // Integer phases land on rounding's edge; half a step keeps them on their entry.
            self.table[(place + 0.5) as usize % size]
        }
    }
}

/// One seasonal component over the window: deviation about 1, with amplitude and phase that may drift.
pub(super) fn component(rng: &mut Rng, n: usize, period: f64, steady: bool) -> Vec<f64> {
    let profile = Profile::draw(rng, period);
    let start = if period.fract() == 0.0 { rng.below(period as usize) as f64 / period } else { rng.uniform() };
    let mut out: Vec<f64> = if steady || rng.chance(0.7) {
        (0..n).map(|t| profile.at(start + t as f64 / period)).collect()
    } else {
        // Phase and shape drift: the cycle runs ahead and behind, and one pattern turns into another.
        let other = Profile::draw(rng, period);
        let (lag, morph) = (slow(rng, n), slow(rng, n));
        let (ahead, turn) = (rng.range(0.0, 0.08), if rng.chance(0.5) { rng.range(0.0, 0.5) } else { 0.0 });
        (0..n)
            .map(|t| {
                let phase = start + t as f64 / period;
                let share = (turn * (0.5 + 0.5 * morph[t])).clamp(0.0, 1.0);
                let here = profile.at(phase + if profile.smooth { ahead * lag[t] } else { 0.0 });
                if share > 0.0 { here * (1.0 - share) + other.at(phase) * share } else { here }
            })
            .collect()
    };
    if !steady && rng.chance(0.3) {
        let depth = rng.range(0.1, 0.6);
        let drift = slow(rng, n);
        out.iter_mut().zip(drift).for_each(|(v, d)| *v *= (depth * d).exp());
    }
    out
}

/// The sum of the seasonal components of one calendar, deviation about 1.
pub(super) fn seasonal(rng: &mut Rng, n: usize, steady: bool) -> Vec<f64> {
    let mut out = vec![0.0; n];
    let mut weight = 1.0;
    for period in periods(rng, n) {
        let part = component(rng, n, period, steady);
        out.iter_mut().zip(part).for_each(|(v, p)| *v += weight * p);
        weight = rng.log_range(0.15, 1.5);
    }
    super::process::unit(&mut out);
    out
}

/// A sub-daily pattern of working days and weekends: a day profile per kind of day, levels per weekday, and day-to-day
/// changes of height. Values are about 0 to 2 (never below 0 where `positive`).
pub(super) fn daily(rng: &mut Rng, n: usize, days: Days) -> Vec<f64> {
    let (day, week) = (days.day, days.week);
    let workday = Profile::draw(rng, day as f64);
    let weekend = if rng.chance(0.5) { Profile::draw(rng, day as f64) } else { workday.clone() };
    let weekly = rng.chance(0.8);
    // How far the weekend differs, in shape and in level, and how every weekday differs a little.
    let (blend, level) = (rng.range(0.0, 0.7), rng.range(0.2, 1.1));
    let spread = rng.log_range(0.005, 0.3);
    let lift: Vec<f64> = (0..week).map(|_| 1.0 + spread * rng.normal()).collect();
    let rest = if week == 7 { 2 } else { usize::from(rng.chance(0.3)) };
    let memory = rng.range(0.0, 0.95);
    let change = if rng.chance(0.3) { 0.0 } else { rng.log_range(0.01, 0.3) };
    let heights = autoregression(rng, n / day + 2, memory, Law::Normal);
    let (start, base) = (rng.below(day * week), rng.range(0.2, 2.5));
    // Half of the day's change comes as height of its pattern, half as its level.
    let share = rng.uniform();
    (0..n)
        .map(|t| {
            let step = start + t;
            let (weekday, phase) = ((step / day) % week, (step % day) as f64 / day as f64);
            let height = change * heights[(start % day + t) / day];
            let resting = weekly && weekday >= week - rest;
            let shape =
                if resting { workday.at(phase) * (1.0 - blend) + weekend.at(phase) * blend } else { workday.at(phase) };
            let factor = if weekly { lift[weekday] * if resting { level } else { 1.0 } } else { 1.0 };
            (base + 0.5 * shape * (1.0 + 2.0 * share * height)) * factor + (1.0 - share) * height
        })
        .collect()
}

/// The output of a solar plant: nothing at night, a bell by day, days of clear sky and of clouds, cut at its capacity.
pub(super) fn solar(rng: &mut Rng, n: usize, day: usize) -> Vec<f64> {
    let (width, sharp) = (rng.range(0.25, 0.62), rng.range(0.5, 2.0));
    let (memory, gloom) = (rng.range(0.2, 0.8), rng.range(0.2, 1.6));
    let sky = autoregression(rng, n / day + 2, memory, Law::Normal);
    let quick = rng.range(0.5, 0.95);
    let clouds = autoregression(rng, n, quick, Law::Normal);
    let flicker = rng.log_range(0.03, 0.6);
    let cap = if rng.chance(0.4) { rng.range(0.5, 0.9) } else { 2.0 };
    let centre = rng.range(0.4, 0.6);
    let start = rng.below(day);
    let season = slow(rng, n);
    (0..n)
        .map(|t| {
            let step = start + t;
            let away = ((step % day) as f64 / day as f64 - centre) / (width * (1.0 + 0.05 * season[t]));
            let bell = (1.0 - 4.0 * away * away).max(0.0).powf(sharp);
            // A logistic map keeps the clearness of the sky between 0 and 1.
            let clear = 1.0 / (1.0 + (-1.0 - gloom * sky[step / day] - flicker * 3.0 * clouds[t]).exp());
            (bell * clear * 1.3).min(cap)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_components_repeat_at_their_period() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let period = [4.0, 7.0, 12.0, 24.0, 48.0, 169.0][seed as usize % 6];
            let values = component(&mut rng, 400, period, true);
            let lag = period as usize;
            assert!(values.iter().zip(&values[lag..]).all(|(a, b)| (a - b).abs() < 1e-6), "seed {seed}");
            assert!(values.iter().any(|v| (v - values[0]).abs() > 1e-3), "seed {seed} is constant");
        }
    }

    #[test]
    fn profiles_know_any_phase() {
        for kind in 0..40 {
            let profile = Profile::draw(&mut Rng::new(kind), 24.0);
            for k in 0..24 {
                let phase = f64::from(k) / 24.0;
                assert!((profile.at(phase) - profile.at(phase - 1.0)).abs() < 1e-9);
                assert!((profile.at(phase) - profile.at(phase + 3.0)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn solar_is_dark_at_night_and_daily_series_have_a_week() {
        let mut dark = 0;
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let values = solar(&mut rng, 480, 24);
            assert!(values.iter().all(|v| *v >= 0.0 && v.is_finite()));
            dark += values.iter().filter(|v| **v == 0.0).count();
        }
        assert!(dark > 50 * 480 / 4, "{dark}");
        let distance = |values: &[f64], lag: usize| {
            values.iter().zip(&values[lag..]).map(|(a, b)| (a - b).abs()).sum::<f64>() / (values.len() - lag) as f64
        };
        let (mut day, mut week) = (0.0, 0.0);
        for seed in 0..50 {
            let values = daily(&mut Rng::new(seed), 24 * 21, Days { day: 24, week: 7 });
            day += distance(&values, 24);
            week += distance(&values, 168);
        }
        assert!(week < day, "weekly distance {week}, daily {day}");
    }

    #[test]
    fn calendars_fit_the_window() {
        let mut rng = Rng::new(8);
        for _ in 0..5000 {
            let days = Days::draw(&mut rng, 128);
            assert!(days.day >= 8 && (days.day * 2 <= 128 || days.day <= 60), "{days:?}");
            assert!(periods(&mut rng, 128).iter().all(|p| *p >= 2.0 && *p < 154.0));
        }
    }
}
