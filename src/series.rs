//! One variable measured at regular steps.

use std::fmt;

use jiff::civil::DateTime;
use serde::{Serialize, Serializer};

use crate::calendar::{Calendar, Grid, Moment};
use crate::error::{Error, Place, Result};

/// One variable measured at regular steps. A value that is NaN is missing.
///
/// ```
/// use moesaic::{Calendar, Frequency, Series};
///
/// let plain = Series::new("visits", [12.0, 15.0, f32::NAN, 14.0]);
/// assert_eq!(plain.stamp(4).unwrap().to_string(), "5"); // rows are numbered from 1
///
/// let calendar = Calendar::new("2024-01-31".parse()?, Frequency::MONTH_END);
/// let dated = Series::new("sales", [3.0, 4.0]).with_calendar(calendar);
/// assert_eq!(dated.stamp(1).unwrap().to_string(), "2024-02-29");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Series {
    /// What is measured; appears in forecasts and messages.
    pub name: String,
    /// The values in order of time, one per step; NaN is missing, infinities are refused when forecasting.
    pub values: Vec<f32>,
    /// What the rows are called.
    pub index: Index,
}

/// What the rows of a series are called.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Index {
    /// Whole numbers.
    Steps {
        /// The number of row 0.
        first: i64,
        /// The distance between rows.
        step: i64,
    },
    /// Moments of a calendar.
    Calendar(Calendar),
}

/// The name of one row: a number or a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stamp {
    /// A row number.
    Step(i64),
    /// A moment.
    Moment(Moment),
}

impl Series {
    /// A series whose rows are numbered 1, 2, 3, ...
    pub fn new(name: impl Into<String>, values: impl Into<Vec<f32>>) -> Self {
        Series { name: name.into(), values: values.into(), index: Index::Steps { first: 1, step: 1 } }
    }

    /// The same values on a calendar; row 0 is the calendar's start.
    pub fn with_calendar(mut self, calendar: Calendar) -> Self {
        self.index = Index::Calendar(calendar);
        self
    }

    /// The same values with other row names.
    pub fn with_index(mut self, index: Index) -> Self {
        self.index = index;
        self
    }

    /// A series from moments in ascending order and their values. The step is inferred; rows that are missing in
    /// between become missing values.
    ///
    /// # Errors
    /// When there are not as many moments as values, when the moments do not ascend, or when they are not evenly
    /// spaced.
    pub fn from_moments(name: impl Into<String>, moments: &[DateTime], values: &[f32]) -> Result<Self> {
        let name = name.into();
        let refuse = |problem: String| Error::input(Place::series(name.clone()), problem);
        if moments.len() != values.len() {
            return Err(refuse(format!("{} moments for {} values: give one each", moments.len(), values.len())));
        }
        if let Some(row) = moments.windows(2).position(|pair| pair[1] <= pair[0]) {
            return Err(refuse(format!("moment {} is not after the one before it: sort and merge them", row + 1)));
        }
        let grid = Grid::infer(moments).map_err(|irregular| refuse(format!("{irregular}: resample it first")))?;
        Ok(match grid {
            None => Series::new(name, values),
            Some(grid) => {
                Series::new(name, spread(values, &grid.rows, grid.len())).with_calendar(grid.calendar.clone())
            }
        })
    }

    /// The name of row `row`, which may lie after the last value; `None` past the year 9999.
    pub fn stamp(&self, row: i64) -> Option<Stamp> {
        match &self.index {
            Index::Steps { first, step } => Some(Stamp::Step(first.checked_add(row.checked_mul(*step)?)?)),
            Index::Calendar(calendar) => calendar.moment(row).map(Stamp::Moment),
        }
    }

    /// The calendar, if the rows are moments.
    pub fn calendar(&self) -> Option<&Calendar> {
        match &self.index {
            Index::Calendar(calendar) => Some(calendar),
            Index::Steps { .. } => None,
        }
    }
}

/// `values` at `rows` of a list of `len` values, the others missing.
pub(crate) fn spread(values: &[f32], rows: &[usize], len: usize) -> Vec<f32> {
    let mut all = vec![f32::NAN; len];
    for (&row, &value) in rows.iter().zip(values) {
        if let Some(slot) = all.get_mut(row) {
            *slot = value;
        }
    }
    all
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stamp::Step(step) => step.fmt(f),
            Stamp::Moment(moment) => moment.fmt(f),
        }
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Stamp::Step(step) => serializer.serialize_i64(*step),
            Stamp::Moment(moment) => moment.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(text: &[&str]) -> Vec<DateTime> {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn gaps_become_missing_values() {
        let series = Series::from_moments("y", &moments(&["2024-01-01", "2024-01-02", "2024-01-04"]), &[1.0, 2.0, 4.0]);
        let series = series.unwrap();
        assert_eq!(series.values.len(), 4);
        assert!(series.values[2].is_nan());
        assert_eq!(series.stamp(4).unwrap().to_string(), "2024-01-05");
    }

    #[test]
    fn unusable_moments_are_refused() {
        let message =
            |text: &[&str], values: &[f32]| Series::from_moments("y", &moments(text), values).unwrap_err().to_string();
        assert!(message(&["2024-01-01"], &[1.0, 2.0]).contains("1 moments for 2 values"));
        assert!(message(&["2024-01-02", "2024-01-01"], &[1.0, 2.0]).contains("moment 1 is not after"));
        let irregular = ["2024-01-01T00:00:00", "2024-01-01T00:00:07", "2024-01-01T00:31:00"];
        assert!(message(&irregular, &[1.0; 3]).starts_with("series 'y': the rows are not evenly spaced"));
    }

    #[test]
    fn numbered_rows_do_not_overflow() {
        let series = Series::new("y", [1.0]).with_index(Index::Steps { first: i64::MAX, step: 1 });
        assert_eq!(series.stamp(0), Some(Stamp::Step(i64::MAX)));
        assert_eq!(series.stamp(1), None);
    }
}
