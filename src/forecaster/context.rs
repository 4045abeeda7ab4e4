//! From a series as given to the values that the model sees.

use super::Missing;
use crate::error::{Error, Place, Result};
use crate::series::Series;

/// The values that a forecast rests on: observed or filled, finite, at least one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Context {
    pub values: Vec<f32>,
    /// The row of the series at which the forecast starts.
    pub end: usize,
    /// Which of the values were observed rather than filled.
    pub observed: Vec<bool>,
}

impl Context {
    /// The last `limit` values up to the last observed one, gaps treated as `missing` says.
    pub fn of(series: &Series, limit: usize, missing: Missing) -> Result<Self> {
        let all = &series.values;
        let refuse = |problem: String| Err(Error::input(Place::series(&series.name), problem));
        if let Some(row) = all.iter().position(|value| value.is_infinite()) {
            return refuse(format!("value {} is infinite: correct it or mark it missing (NaN)", row + 1));
        }
        let observed = |value: &f32| !value.is_nan();
        let (Some(first), Some(last)) = (all.iter().position(observed), all.iter().rposition(observed)) else {
            let problem = if all.is_empty() { "has no values" } else { "has only missing values" };
            return refuse(format!("{problem}: give at least one"));
        };
        let start = first.max((last + 1).saturating_sub(limit));
        let gap = all[start..=last].iter().position(|value| value.is_nan());
        if let (Missing::Refuse, Some(gap)) = (missing, gap) {
            return refuse(format!("value {} is missing: fill it, or let gaps be interpolated", start + gap + 1));
        }
        // A gap that begins before the window is filled from the value before it.
        let anchor = all[..=start].iter().rposition(observed).unwrap_or(start);
        let mut values = all[anchor..=last].to_vec();
        interpolate(&mut values);
        values.drain(..start - anchor);
        Ok(Context { values, end: last + 1, observed: all[start..=last].iter().map(observed).collect() })
    }

    /// The newest values, at most `limit`: what the model sees.
    pub fn newest(&self, limit: usize) -> &[f32] {
        &self.values[self.values.len().saturating_sub(limit)..]
    }

    /// How many of the newest values, at most `limit`, were missing and filled.
    pub fn filled(&self, limit: usize) -> usize {
        self.observed.iter().rev().take(limit).filter(|&&seen| !seen).count()
    }
}

/// The value, if all are the same.
pub(super) fn constant(values: &[f32]) -> Option<f32> {
    let first = *values.first()?;
    values.iter().all(|value| *value == first).then_some(first)
}

/// Fills NaN between two numbers by a straight line; the first and the last value must be numbers.
fn interpolate(values: &mut [f32]) {
    let mut known = 0;
    for at in 1..values.len() {
        if values[at].is_nan() {
            continue;
        }
        // In f64, so that huge neighbours of opposite sign do not overflow.
        let (from, to) = (f64::from(values[known]), f64::from(values[at]));
        let width = (at - known) as f64;
        for step in 1..at - known {
            values[known + step] = (from + (to - from) * (step as f64 / width)) as f32;
        }
        known = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    fn context(values: &[f32], limit: usize) -> Context {
        Context::of(&Series::new("y", values), limit, Missing::Interpolate).unwrap()
    }

    #[test]
    fn gaps_are_filled_and_ends_are_cut() {
        let filled = context(&[NAN, NAN, 1.0, NAN, NAN, 4.0, NAN, 2.0, NAN], 100);
        assert_eq!(filled.values, [1.0, 2.0, 3.0, 4.0, 3.0, 2.0]);
        assert_eq!((filled.end, filled.filled(100), filled.filled(2)), (8, 3, 1));
        assert_eq!((filled.newest(2), filled.newest(100).len()), (&[3.0, 2.0][..], 6));
    }

    #[test]
    fn a_gap_across_the_windows_edge_uses_the_value_before_it() {
        let filled = context(&[0.0, NAN, NAN, 3.0, 4.0], 3);
        assert_eq!(filled.values, [2.0, 3.0, 4.0]);
        assert_eq!((filled.end, filled.filled(3)), (5, 1));
    }

    #[test]
    fn constants_are_known() {
        assert_eq!(constant(&context(&[7.0], 10).values), Some(7.0));
        assert_eq!(constant(&context(&[7.0, NAN, 7.0], 10).values), Some(7.0));
        assert_eq!(constant(&context(&[1.0, 7.0, 7.0], 2).values), Some(7.0));
        assert_eq!(constant(&context(&[1.0, 7.0], 2).values), None);
    }

    #[test]
    fn huge_neighbours_of_opposite_sign_do_not_overflow() {
        assert_eq!(context(&[-3e38, NAN, 3e38], 10).values[1], 0.0);
    }

    #[test]
    fn unusable_series_are_named() {
        let message =
            |values: &[f32], missing| Context::of(&Series::new("y", values), 10, missing).unwrap_err().to_string();
        assert_eq!(message(&[], Missing::Interpolate), "series 'y': has no values: give at least one");
        assert_eq!(message(&[NAN], Missing::Interpolate), "series 'y': has only missing values: give at least one");
        assert!(message(&[1.0, f32::INFINITY], Missing::Interpolate).contains("value 2 is infinite"));
        assert!(message(&[1.0, NAN, 2.0], Missing::Refuse).contains("value 2 is missing"));
    }
}
