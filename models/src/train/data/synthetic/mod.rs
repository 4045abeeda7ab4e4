//! A seeded generator of time series for pretraining.
//!
//! Every series is drawn from one of the [`Recipe`]s, which compose trends, seasonal patterns, processes and the accidents of
//! real tables. Sources of ideas: KernelSynth and TSMixup (Chronos, arXiv 2403.07815), the multiplicative trend-season-noise
//! prior of ForecastPFN (arXiv 2311.01933), Harvey's structural components. What is drawn is described at each recipe.

mod alter;
mod process;
mod recipes;
mod season;
mod trend;

pub use recipes::{Recipe, Shares};

use super::{Batch, Series, Source, Windowing};
use alter::Aggregate;
use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

/// Longest example that [`example`] gives.
const LONGEST: usize = 1 << 20;

/// The synthetic source. Every row is a function of (seed, step, row, length) and of this configuration alone.
///
/// About 0.1 ms a row of 576 values on one core, so that a batch costs far less than a training step; it stays on one
/// thread, which leaves the cores to the model.
#[derive(Clone, Debug, Default)]
pub struct Synthetic {
    /// How raw series become rows.
    pub windowing: Windowing,
    /// How often each recipe is drawn.
    pub shares: Shares,
}

impl Source for Synthetic {
    fn batch(&self, seed: u64, step: u64, rows: usize, length: usize) -> Result<Batch> {
        Batch::by_row((seed, step), rows, length, |rng, values, mask| {
            // A draw may come out constant or explode; a few more from the same stream keep the row a pure function.
            for _ in 0..8 {
                let n = self.windowing.draw_length(rng, length);
                let raw = series(rng, &self.shares, n);
                if self.windowing.finish(rng, &raw, values, mask) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// A raw series of `n` values of a random recipe, with the accidents of real tables; NaN marks missing values.
fn series(rng: &mut Rng, shares: &Shares, n: usize) -> Vec<f64> {
    let mut values = if rng.chance(0.15) { mixup(rng, shares, n) } else { drawn(rng, shares, n) };
    if rng.chance(0.06) {
        let size = deviation(&values);
        alter::outliers(rng, &mut values, size);
    }
    if rng.chance(0.04) {
        alter::caps(rng, &mut values);
    }
    if rng.chance(0.08) {
        alter::round(rng, &mut values);
    }
    // Upside down, any pattern is another pattern.
    if rng.chance(0.1) {
        values.iter_mut().for_each(|v| *v = -*v);
    }
    if rng.chance(0.06) {
        alter::gaps(rng, &mut values);
    }
    values
}

/// One series of a random recipe, sometimes seen through another sampling.
fn drawn(rng: &mut Rng, shares: &Shares, n: usize) -> Vec<f64> {
    let recipe = Recipe::draw(rng, shares);
    if rng.chance(0.08) {
        let factor = 2 + rng.below(5);
        let how = [Aggregate::Mean, Aggregate::Mean, Aggregate::Mean, Aggregate::Last, Aggregate::Max][rng.below(5)];
        return alter::aggregate(&recipe.series(rng, n * factor), factor, how);
    }
    if rng.chance(0.05) {
        // Another rate makes periods that are no whole number of steps.
        let rate = rng.log_range(0.4, 2.0);
        let source = recipe.series(rng, (n as f64 * rate) as usize + 2);
        return alter::resample(&source, n, rng.uniform(), rate);
    }
    recipe.series(rng, n)
}

/// A convex mixture of 2 or 3 standardised series with weights of a flat Dirichlet law (TSMixup, arXiv 2403.07815 sec. 4.1).
fn mixup(rng: &mut Rng, shares: &Shares, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n];
    for _ in 0..2 + rng.below(2) {
        let weight = -(1.0 - rng.uniform()).ln();
        let mut part = drawn(rng, shares, n);
        process::unit(&mut part);
        out.iter_mut().zip(part).for_each(|(v, p)| *v += weight * p);
    }
    out
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// One raw series of a named recipe (see [`Recipe::NAMES`]), for tests and pictures. Errors name the known recipes.
pub fn example(recipe: &str, seed: u64, length: usize) -> Result<Series> {
    let Some(kind) = Recipe::named(recipe) else {
        bail!("unknown series recipe {recipe:?}; known are {}", Recipe::NAMES.join(", "));
    };
    if length == 0 || length > LONGEST {
        bail!("an example series needs between 1 and {LONGEST} values, asked for {length}");
    }
    let mut values = kind.series(&mut Rng::named(seed, recipe), length.max(super::MIN_LENGTH));
    values.truncate(length);
    Ok(Series { name: format!("synthetic:{recipe}"), values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_a_pure_function_of_its_arguments() {
        let source = Synthetic::default();
        let batch = source.batch(11, 3, 32, 192).unwrap();
        assert_eq!(batch, source.batch(11, 3, 32, 192).unwrap());
        // Rows do not depend on how many are asked for.
        let fewer = source.batch(11, 3, 5, 192).unwrap();
        assert_eq!(fewer.values[..], batch.values[..5 * 192]);
        assert_eq!(fewer.mask[..], batch.mask[..5 * 192]);
        for other in [source.batch(12, 3, 32, 192).unwrap(), source.batch(11, 4, 32, 192).unwrap()] {
            assert_ne!(batch.values, other.values);
        }
    }

    #[test]
    fn rows_are_standardised_diverse_and_finite() {
        let source = Synthetic::default();
        let (mut clamped, mut flat, mut padded, mut gaps) = (0usize, 0, 0, 0);
        let mut changes = Vec::new();
        for length in [16, 64, 576] {
            let batch = source.batch(1, 0, 600, length).unwrap();
            for (values, mask) in batch.values.chunks(length).zip(batch.mask.chunks(length)) {
                assert!(values.iter().all(|v| v.is_finite() && v.abs() <= 20.0));
                assert!(mask.iter().all(|m| *m == 0.0 || *m == 1.0));
                clamped += usize::from(values.iter().any(|v| v.abs() == 20.0));
                flat += usize::from(values.iter().all(|v| *v == 0.0));
                let first = mask.iter().position(|m| *m == 1.0).unwrap();
                padded += usize::from(first > 0);
                assert!(values[..first].iter().all(|v| *v == 0.0));
                gaps += usize::from(mask[first..].contains(&0.0));
                if length == 576 {
                    changes.push(values.windows(2).map(|w| (w[1] - w[0]).abs()).sum::<f32>() / 575.0);
                }
            }
        }
        assert!(clamped < 30 && flat < 3, "{clamped} {flat}");
        assert!((60..400).contains(&padded) && gaps > 20, "{padded} {gaps}");
        // From smooth to rough: the mean step must spread over more than an order of magnitude.
        changes.sort_by(f32::total_cmp);
        assert!(changes[540] / changes[60] > 8.0, "{} {}", changes[60], changes[540]);
    }

    #[test]
    fn examples_are_named() {
        for name in Recipe::NAMES {
            let series = example(name, 4, 300).unwrap();
            assert_eq!(series, example(name, 4, 300).unwrap());
            assert_ne!(series.values, example(name, 5, 300).unwrap().values, "{name}");
            assert!(series.values.len() == 300 && series.values.iter().all(|v| v.is_finite()), "{name}");
        }
        assert_eq!(example("walk", 1, 3).unwrap().values.len(), 3);
        let message = example("nonesuch", 1, 10).unwrap_err().to_string();
        assert!(message.contains("nonesuch") && message.contains("solar"), "{message}");
        assert!(example("walk", 1, 0).is_err() && example("walk", 1, usize::MAX).is_err());
    }

    #[test]
    fn shares_choose_the_recipes() {
        let others =
            |kept: &str| Recipe::NAMES.into_iter().filter(|n| *n != kept).map(|n| (n, 0.0)).collect::<Vec<_>>();
        let only = Shares::scaled(others("solar")).unwrap();
        let mut rng = Rng::new(1);
        assert!((0..200).all(|_| Recipe::draw(&mut rng, &only) == Recipe::Solar));
        let usual = Shares::default();
        assert!((0..200).any(|_| Recipe::draw(&mut rng, &usual) != Recipe::Solar));
        for bad in [vec![("lunar", 1.0)], vec![("solar", -1.0)], Recipe::NAMES.map(|n| (n, 0.0)).to_vec()] {
            assert!(Shares::scaled(bad).is_err());
        }
    }
}
