//! Training data: sources of standardised windows for the forecaster, and [`text`] for language models.
//!
//! A [`Source`] is a pure function of (seed, step, rows, length), so a resumed run needs no data state: asking for the
//! batch of a step again gives the same bits. [`synthetic::Synthetic`] invents series, [`csv::CsvFolder`] cuts windows from
//! files, [`Mixture`] draws each row from one of several sources. [`contamination`] compares training series with
//! evaluation series before anything is trained.

pub mod contamination;
pub mod csv;
#[cfg(feature = "image")]
pub mod pictures;
pub mod synthetic;
pub mod text;
mod window;

pub use window::Windowing;
pub(super) use window::moments;

use candle_core::{Result, bail};
use moesaic_kernels::rng::Rng;

/// The shortest window a source gives, in values: below it there is nothing to learn from a context and its future.
pub const MIN_LENGTH: usize = 16;

/// One named series of raw values, evenly spaced in time; NaN marks a missing value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Where it comes from, for messages: `file:column`.
    pub name: String,
    /// The values in time order; NaN = missing.
    pub values: Vec<f64>,
}

/// Windows of one training step, row by row.
///
/// # Shapes
/// `values` and `mask` are `[rows, length]`, row-major. Observed values have mask 1. The left padding of a short series is 0
/// with mask 0; a gap repeats the value before it, with mask 0, since a forecaster never reads zeros where something is
/// missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Standardised values, finite, within ±[`Windowing::LIMIT`].
    pub values: Vec<f32>,
    /// 1 = observed, 0 = padding or missing.
    pub mask: Vec<f32>,
    /// Number of series.
    pub rows: usize,
    /// Values per series, context and future together.
    pub length: usize,
}

/// Something that gives training windows. `batch` must be a pure function of its arguments.
pub trait Source: Send + Sync {
    /// The `rows` windows of `length` values for one step of one run.
    fn batch(&self, seed: u64, step: u64, rows: usize, length: usize) -> Result<Batch>;
}

impl Batch {
    /// Builds a batch row by row; row r draws from its own stream, `Rng::keyed(&[seed, step, r])`.
    fn by_row(
        (seed, step): (u64, u64),
        rows: usize,
        length: usize,
        mut fill: impl FnMut(&mut Rng, &mut [f32], &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        if rows == 0 || length < MIN_LENGTH {
            bail!("a batch needs at least 1 row and {MIN_LENGTH} values a row, asked for {rows} x {length}");
        }
        let Some(cells) = rows.checked_mul(length) else { bail!("a batch of {rows} x {length} values is too large") };
        let (mut values, mut mask) = (vec![0f32; cells], vec![0f32; cells]);
        for (row, (values, mask)) in values.chunks_mut(length).zip(mask.chunks_mut(length)).enumerate() {
            fill(&mut Rng::keyed(&[seed, step, row as u64]), values, mask)?;
        }
        Ok(Self { values, mask, rows, length })
    }
}

/// Several sources in fixed proportions; every row is drawn from one of them.
pub struct Mixture {
    parts: Vec<(f64, Box<dyn Source>)>,
    total: f64,
}

impl Mixture {
    /// A mixture of (weight, source) pairs; weights are relative, not negative, and not all zero.
    pub fn new(parts: Vec<(f64, Box<dyn Source>)>) -> Result<Self> {
        if let Some((weight, _)) = parts.iter().find(|(w, _)| !w.is_finite() || *w < 0.0) {
            bail!("a data source has weight {weight}; weights must be finite and not negative");
        }
        let total: f64 = parts.iter().map(|(w, _)| w).sum();
        if total <= 0.0 || !total.is_finite() {
            bail!("a mixture of data sources needs at least one source with a positive weight");
        }
        Ok(Self { parts, total })
    }

    fn pick(&self, rng: &mut Rng) -> usize {
        let mut left = rng.uniform() * self.total;
        for (index, (weight, _)) in self.parts.iter().enumerate() {
            left -= weight;
            if left < 0.0 && *weight > 0.0 {
                return index;
            }
        }
        // Rounding may leave a sliver past the last part.
        self.parts.iter().rposition(|(weight, _)| *weight > 0.0).unwrap_or(0)
    }
}

impl Source for Mixture {
    fn batch(&self, seed: u64, step: u64, rows: usize, length: usize) -> Result<Batch> {
        let mut of_part = vec![Vec::new(); self.parts.len()];
        let mut batch = Batch::by_row((seed, step), rows, length, |_, _, _| Ok(()))?;
        for row in 0..rows {
            // A key longer than a row's own keeps this choice apart from what the sources draw.
            let part = self.pick(&mut Rng::keyed(&[seed, step, row as u64, 0x6d69_7874]));
            of_part[part].push(row);
        }
        for (index, (rows, (_, source))) in of_part.iter().zip(&self.parts).enumerate() {
            if rows.is_empty() {
                continue;
            }
            // Each part has its own seed, else two parts of one kind would draw the same series.
            let part = source.batch(Rng::keyed(&[seed, index as u64]).next_u64(), step, rows.len(), length)?;
            for (from, &to) in rows.iter().enumerate() {
                let (from, to) = (from * length..(from + 1) * length, to * length..(to + 1) * length);
                batch.values[to.clone()].copy_from_slice(&part.values[from.clone()]);
                batch.mask[to].copy_from_slice(&part.mask[from]);
            }
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives rows filled with one value, so that a mixture's origin can be read off.
    struct Flat(f32);

    impl Source for Flat {
        fn batch(&self, seed: u64, step: u64, rows: usize, length: usize) -> Result<Batch> {
            Batch::by_row((seed, step), rows, length, |_, values, mask| {
                values.fill(self.0);
                mask.fill(1.0);
                Ok(())
            })
        }
    }

    #[test]
    fn a_mixture_keeps_its_proportions_and_repeats() {
        let parts: Vec<(f64, Box<dyn Source>)> =
            vec![(1.0, Box::new(Flat(1.0))), (0.0, Box::new(Flat(7.0))), (3.0, Box::new(Flat(2.0)))];
        let mixture = Mixture::new(parts).unwrap();
        let batch = mixture.batch(5, 9, 4000, 16).unwrap();
        assert_eq!(batch, mixture.batch(5, 9, 4000, 16).unwrap());
        assert_ne!(batch, mixture.batch(5, 10, 4000, 16).unwrap());
        let of = |value: f32| batch.values.iter().step_by(16).filter(|v| **v == value).count();
        assert_eq!(of(7.0), 0);
        assert_eq!(of(1.0) + of(2.0), 4000);
        assert!((900..1100).contains(&of(1.0)), "{}", of(1.0));
    }

    #[test]
    fn parts_of_one_kind_draw_different_series() {
        let part = || (1.0, Box::new(synthetic::Synthetic::default()) as Box<dyn Source>);
        let batch = Mixture::new(vec![part(), part()]).unwrap().batch(1, 1, 24, 64).unwrap();
        let rows: Vec<&[f32]> = batch.values.chunks(64).collect();
        assert!((0..24).all(|a| (0..a).all(|b| rows[a] != rows[b])));
    }

    #[test]
    fn refuses_bad_weights_and_sizes() {
        assert!(Mixture::new(vec![]).is_err());
        assert!(Mixture::new(vec![(0.0, Box::new(Flat(1.0)) as Box<dyn Source>)]).is_err());
        assert!(Mixture::new(vec![(f64::NAN, Box::new(Flat(1.0)) as Box<dyn Source>)]).is_err());
        assert!(Flat(1.0).batch(0, 0, 0, 64).is_err());
        assert!(Flat(1.0).batch(0, 0, 1, 15).is_err());
    }
}
