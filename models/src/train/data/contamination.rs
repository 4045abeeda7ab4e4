//! Does a training series contain a stretch of an evaluation series?
//!
//! Both are differenced, and every window of [`WINDOW`] differences is standardised (mean 0, population deviation 1), so that
//! a copy is found whatever its unit, offset, sign (optional) or added straight line. Two windows are the same when the root mean
//! square of their difference is at most [`TOLERANCE`]: a correlation above 0.9987, which leaves room for a copy rounded to
//! fewer digits and none for chance.
//!
//! What cannot be told apart is skipped: windows that touch a missing value, windows of constant slope, and windows whose
//! differences hold less than [`MIN_ENTROPY`] bits each (a flat line with one spike is the same in every data set). A
//! series without one comparable window is listed in [`Report::blind`].
//!
//! The search is complete, not a guess: the projections of a window on orthonormal Walsh functions move by no more than
//! the window itself, so windows that are the same lie in the same or in neighbouring cells of a grid over five of those
//! projections, and what lies there is compared exactly.

use super::Series;
use candle_core::{Result, bail};
use std::collections::{HashMap, HashSet};

/// Differences in one compared window.
pub const WINDOW: usize = 32;

/// Largest root mean square difference of two standardised windows that count as the same.
pub const TOLERANCE: f64 = 0.05;

/// Least empirical entropy of a window's differences, in bits a value: 32 such values make 48 bits, against the 33 bits of
/// all pairs among 100,000 windows on either side.
pub const MIN_ENTROPY: f64 = 1.5;

/// Projections kept per window: the first [`GRID`] span the grid, all reject candidates.
const PROJECTIONS: usize = 10;
const GRID: usize = 5;
/// Rows of the 32 x 32 Walsh-Hadamard matrix (row k has sign (-1)^popcount(k & i)), those that change slowest first: smooth
/// series differ there and nowhere else.
const WALSH: [u32; PROJECTIONS] = [16, 24, 8, 12, 28, 20, 4, 6, 22, 30];
/// The distance of two windows at the tolerance: TOLERANCE * sqrt(WINDOW), as f32 a little wider.
const RADIUS: f32 = 0.283;
/// Between few cells to visit and few candidates in each.
const CELL: f32 = 3.0 * RADIUS;

/// A training series that shares a window with an evaluation series; the first such window of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collision {
    /// Name of the training series.
    pub training: String,
    /// Index of the window's first value in it.
    pub training_at: usize,
    /// Name of the evaluation series.
    pub evaluation: String,
    /// Index of the window's first value in it.
    pub evaluation_at: usize,
    /// One is the other upside down.
    pub negated: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry per pair of series that share a window.
    pub collisions: Vec<Collision>,
    /// Windows compared on the training side.
    pub training_windows: usize,
    /// Windows compared on the evaluation side.
    pub evaluation_windows: usize,
    /// Series of either side without a comparable window (too short, too many gaps, too few distinct steps).
    pub blind: Vec<String>,
}

/// One standardised window and where it is.
struct Window {
    key: u64,
    series: u32,
    at: u32,
    walsh: [f32; PROJECTIONS],
}

/// Compares all training series with all evaluation series. Upside-down copies count, because training negates series.
pub fn check(training: &[Series], evaluation: &[Series]) -> Report {
    let mut report = Report::default();
    let steps: Vec<Vec<f64>> = evaluation.iter().map(|s| differences(&s.values)).collect();
    let mut windows = Vec::new();
    for (index, (series, steps)) in evaluation.iter().zip(&steps).enumerate() {
        let before = windows.len();
        each_window(steps, |at, z| {
            let walsh = project(z);
            let key = key(walsh.iter().map(|w| cell(*w)));
            windows.push(Window { key, series: index as u32, at: at as u32, walsh });
        });
        if windows.len() == before {
            report.blind.push(series.name.clone());
        }
    }
    report.evaluation_windows = windows.len();
    windows.sort_unstable_by_key(|w| (w.key, w.series, w.at));
    let mut cells: HashMap<u64, &[Window]> = HashMap::new();
    for group in windows.chunk_by(|a, b| a.key == b.key) {
        cells.insert(group[0].key, group);
    }

    for series in training {
        let mut seen = 0;
        // One report per pair is enough; a copy of a thousand windows is one collision.
        let mut found = HashSet::new();
        each_window(&differences(&series.values), |at, z| {
            seen += 1;
            let walsh = project(z);
            for sign in [1.0f32, -1.0] {
                let walsh = walsh.map(|w| w * sign);
                for key in keys_near(&walsh) {
                    for candidate in cells.get(&key).copied().unwrap_or_default() {
                        let away: f32 = walsh.iter().zip(&candidate.walsh).map(|(a, b)| (a - b) * (a - b)).sum();
                        if away > RADIUS * RADIUS || found.contains(&candidate.series) {
                            continue;
                        }
                        let start = candidate.at as usize;
                        let other = &steps[candidate.series as usize][start..start + WINDOW];
                        let Some(other) = standardise(other) else { continue };
                        if same(z, &other, f64::from(sign)) {
                            found.insert(candidate.series);
                            report.collisions.push(Collision {
                                training: series.name.clone(),
                                training_at: at,
                                evaluation: evaluation[candidate.series as usize].name.clone(),
                                evaluation_at: start,
                                negated: sign < 0.0,
                            });
                        }
                    }
                }
            }
        });
        report.training_windows += seen;
        if seen == 0 {
            report.blind.push(series.name.clone());
        }
    }
    report
}

/// Refuses to train when a training series collides with an evaluation series; the error names up to five pairs.
pub fn refuse(training: &[Series], evaluation: &[Series]) -> Result<Report> {
    let report = check(training, evaluation);
    if report.collisions.is_empty() {
        return Ok(report);
    }
    let mut pairs: Vec<String> = report
        .collisions
        .iter()
        .take(5)
        .map(|c| format!("{} at {} = {} at {}", c.training, c.training_at, c.evaluation, c.evaluation_at))
        .collect();
    if report.collisions.len() > pairs.len() {
        pairs.push(format!("and {} more", report.collisions.len() - pairs.len()));
    }
    bail!("training data holds evaluation data; remove these series from the training folders: {}", pairs.join("; "))
}

fn differences(values: &[f64]) -> Vec<f64> {
    values.windows(2).map(|w| w[1] - w[0]).collect()
}

fn cell(projection: f32) -> i16 {
    (projection / CELL).floor() as i16
}

/// The cells of the first [`GRID`] projections as one number; projections are within ±sqrt(32), cells within ±7.
fn key(cells: impl Iterator<Item = i16>) -> u64 {
    cells.take(GRID).fold(0, |key, cell| key << 8 | (cell + 128) as u64 & 0xff)
}

/// The keys of all cells that the ball of the tolerance around a window reaches: one or two per projection.
fn keys_near(walsh: &[f32; PROJECTIONS]) -> impl Iterator<Item = u64> {
    let low: [i16; GRID] = std::array::from_fn(|k| cell(walsh[k] - RADIUS));
    let high: [i16; GRID] = std::array::from_fn(|k| cell(walsh[k] + RADIUS));
    (0..1u32 << GRID)
        .filter(move |corner| (0..GRID).all(|k| corner >> k & 1 == 0 || high[k] != low[k]))
        .map(move |corner| key((0..GRID).map(|k| if corner >> k & 1 == 0 { low[k] } else { high[k] })))
}

/// Calls `f` with the start and the standardised differences of every comparable window.
fn each_window(steps: &[f64], mut f: impl FnMut(usize, &[f64; WINDOW])) {
    for (at, window) in steps.windows(WINDOW).enumerate() {
        if let Some(z) = standardise(window).filter(|z| entropy(z) >= MIN_ENTROPY) {
            f(at, &z);
        }
    }
}

/// The window with mean 0 and population deviation 1; None where it is missing values or constant.
fn standardise(window: &[f64]) -> Option<[f64; WINDOW]> {
    let z: [f64; WINDOW] = window.try_into().ok()?;
    let mean = z.iter().sum::<f64>() / WINDOW as f64;
    let deviation = (z.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / WINDOW as f64).sqrt();
    let largest = z.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    // NaN fails both comparisons, infinity the first; the second is a constant up to rounding.
    (deviation.is_finite() && deviation > largest * 1e-6).then(|| z.map(|v| (v - mean) / deviation))
}

/// Empirical entropy in bits of the values, told apart at the tolerance.
fn entropy(z: &[f64; WINDOW]) -> f64 {
    let mut sorted = *z;
    sorted.sort_unstable_by(f64::total_cmp);
    let (mut bits, mut start) = (0.0, 0);
    for end in 1..=WINDOW {
        if end == WINDOW || sorted[end] - sorted[end - 1] > TOLERANCE {
            let share = (end - start) as f64 / WINDOW as f64;
            bits -= share * share.log2();
            start = end;
        }
    }
    bits
}

fn project(z: &[f64; WINDOW]) -> [f32; PROJECTIONS] {
    WALSH.map(|row| {
        let signed = |(i, v): (usize, &f64)| if (row & i as u32).count_ones().is_multiple_of(2) { *v } else { -*v };
        (z.iter().enumerate().map(signed).sum::<f64>() / (WINDOW as f64).sqrt()) as f32
    })
}

fn same(a: &[f64; WINDOW], b: &[f64; WINDOW], sign: f64) -> bool {
    let square: f64 = a.iter().zip(b).map(|(a, b)| (sign * a - b) * (sign * a - b)).sum();
    square <= TOLERANCE * TOLERANCE * WINDOW as f64
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::example;
    use super::*;
    use moesaic_kernels::rng::Rng;

    fn series(name: &str, values: Vec<f64>) -> Series {
        Series { name: name.into(), values }
    }

    fn walk(seed: u64, n: usize) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        let mut level = 0.0;
        let mut next = || {
            level += rng.normal();
            level
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn finds_copies_however_they_are_written() {
        let source = walk(1, 400);
        let evaluation = [series("other", walk(2, 400)), series("eval", source.clone())];
        let part = &source[100..180];
        let forms: [(&str, Vec<f64>, bool); 6] = [
            ("plain", part.to_vec(), false),
            ("rescaled and offset", part.iter().map(|v| 1.8 * v + 32.0).collect(), false),
            ("large offset in f32", part.iter().map(|v| f64::from((v * 10.0 + 4000.0) as f32)).collect(), false),
            ("one decimal", part.iter().map(|v| (v * 10.0).round() / 10.0).collect(), false),
            ("with a line added", part.iter().enumerate().map(|(t, v)| v + 0.3 * t as f64).collect(), false),
            ("upside down", part.iter().map(|v| -0.01 * v).collect(), true),
        ];
        for (name, copy, negated) in forms {
            // The copy stands inside an unrelated series.
            let mut training = walk(3, 50);
            training.extend(copy);
            training.extend(walk(4, 50));
            let report = check(&[series("clean", walk(9, 300)), series(name, training)], &evaluation);
            assert_eq!(report.collisions.len(), 1, "{name}");
            let hit = &report.collisions[0];
            assert_eq!((hit.training.as_str(), hit.evaluation.as_str(), hit.negated), (name, "eval", negated));
            assert_eq!((hit.training_at, hit.evaluation_at), (50, 100), "{name}");
        }
    }

    #[test]
    fn a_window_of_32_differences_is_found_and_one_less_is_not() {
        let source = walk(1, 200);
        let evaluation = [series("eval", source.clone())];
        for (length, collisions) in [(33, 1), (32, 0)] {
            let report = check(&[series("t", source[40..40 + length].to_vec())], &evaluation);
            assert_eq!(report.collisions.len(), collisions);
            assert_eq!(report.blind.len(), 1 - collisions);
        }
        // A missing value hides the windows that touch it, and no others.
        let mut gap = source[40..120].to_vec();
        gap[20] = f64::NAN;
        let report = check(&[series("t", gap)], &evaluation);
        assert_eq!((report.collisions[0].training_at, report.collisions[0].evaluation_at), (21, 61));
    }

    #[test]
    fn unrelated_and_featureless_series_pass() {
        let mut spike = vec![3.0; 200];
        spike[90] = 8.0;
        // Its differences are constant but for what single precision would round away.
        let line: Vec<f64> = (0..200).map(|t| (f64::from(t) * 0.01).sin() * 1e-9 + 0.1 * f64::from(t)).collect();
        let training = [series("walk", walk(5, 2000)), series("spike", spike.clone()), series("line", line.clone())];
        let evaluation = [series("eval", walk(6, 2000)), series("spike", spike), series("line", line)];
        let report = check(&training, &evaluation);
        assert_eq!(report.collisions, []);
        assert_eq!(report.blind, ["spike", "line", "spike", "line"]);
        assert_eq!((report.training_windows, report.evaluation_windows), (1968, 1968));
    }

    #[test]
    fn agrees_with_comparing_all_pairs() {
        // Real-looking series that resemble each other, with noise around the tolerance.
        let base = example("daily", 3, 300).unwrap().values;
        let mut hits = 0;
        for seed in 0..30 {
            let mut rng = Rng::new(seed);
            let spread = rng.log_range(1e-3, 0.2) * standard(&differences(&base));
            let copy: Vec<f64> = base.iter().map(|v| v + spread * rng.normal()).collect();
            let slow = {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                each_window(&differences(&base), |_, z| a.push(*z));
                each_window(&differences(&copy), |_, z| b.push(*z));
                b.iter().any(|b| a.iter().any(|a| same(b, a, 1.0) || same(b, a, -1.0)))
            };
            let fast = !check(&[series("t", copy)], &[series("e", base.clone())]).collisions.is_empty();
            assert_eq!(fast, slow, "seed {seed}");
            hits += usize::from(fast);
        }
        assert!((5..26).contains(&hits), "{hits}");
    }

    fn standard(values: &[f64]) -> f64 {
        (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn refusal_names_the_pair() {
        let source = walk(1, 100);
        let evaluation = [series("bench.csv:y", source.clone())];
        assert!(refuse(&[series("ok", walk(2, 100))], &evaluation).is_ok());
        let message = refuse(&[series("mine.csv:v", source)], &evaluation).unwrap_err().to_string();
        assert!(message.contains("mine.csv:v at 0 = bench.csv:y at 0"), "{message}");
    }
}
