//! One moment of a time axis and how it is written.

use std::fmt;

use jiff::civil::{DateTime, Time};
use jiff::tz::Offset;
use serde::{Serialize, Serializer};

use super::Frequency;

/// How finely the moments of an axis are written, from coarse to fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// `2024`
    Year,
    /// `2024-Q3`
    Quarter,
    /// `2024-07`
    Month,
    /// `2024-07-01`
    Day,
    /// `2024-07-01 06:30`
    Minute,
    /// `2024-07-01 06:30:15`
    Second,
    /// `2024-07-01 06:30:15.125`
    Fraction,
}

impl Precision {
    /// The coarsest of day, minute, second and fraction that tells `moments` in full.
    pub fn of(moments: impl IntoIterator<Item = DateTime>) -> Self {
        let finest = |time: Time| match (time.subsec_nanosecond(), time.second(), time.minute(), time.hour()) {
            (0, 0, 0, 0) => Precision::Day,
            (0, 0, _, _) => Precision::Minute,
            (0, _, _, _) => Precision::Second,
            _ => Precision::Fraction,
        };
        moments.into_iter().map(|moment| finest(moment.time())).max().unwrap_or(Precision::Day)
    }

    /// What the steps of `frequency` need to be told apart.
    pub(super) fn needed(frequency: &Frequency) -> Self {
        match frequency {
            Frequency::Every(step) if step.subsec_nanos() != 0 => Precision::Fraction,
            Frequency::Every(step) if step.as_secs() % super::MINUTE != 0 => Precision::Second,
            Frequency::Every(step) if step.as_secs() % super::DAY != 0 => Precision::Minute,
            _ => Precision::Day,
        }
    }
}

/// A moment of a time axis. `Display` writes it for people (`2024-07-01 06:30`), serde as ISO 8601
/// (`2024-07-01T06:30:00`); years, quarters and months stay as short as the table had them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    datetime: DateTime,
    precision: Precision,
    offset: Option<Offset>,
}

impl Moment {
    pub(super) fn new(datetime: DateTime, precision: Precision, offset: Option<Offset>) -> Self {
        Moment { datetime, precision, offset }
    }

    /// Date and time as on the wall.
    pub fn datetime(&self) -> DateTime {
        self.datetime
    }

    /// The offset from UTC, when the table gave one.
    pub fn offset(&self) -> Option<Offset> {
        self.offset
    }

    /// Whether the moment is written with a time of day.
    pub fn shows_time(&self) -> bool {
        self.precision > Precision::Day
    }

    fn write(&self, between: char, for_machines: bool) -> String {
        let (date, time) = (self.datetime.date(), self.datetime.time());
        let seconds = || format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second());
        let clock = match self.precision {
            Precision::Year => return format!("{:04}", date.year()),
            Precision::Quarter => return format!("{:04}-Q{}", date.year(), (date.month() + 2) / 3),
            Precision::Month => return format!("{:04}-{:02}", date.year(), date.month()),
            Precision::Day => return date.to_string(),
            Precision::Minute if !for_machines => format!("{:02}:{:02}", time.hour(), time.minute()),
            Precision::Minute | Precision::Second => seconds(),
            Precision::Fraction => {
                let digits = format!("{:09}", time.subsec_nanosecond());
                // At least milliseconds, so that neighbouring rows line up.
                let keep = digits.trim_end_matches('0').len().max(3);
                format!("{}.{}", seconds(), &digits[..keep])
            }
        };
        let zone = match self.offset {
            None => String::new(),
            Some(offset) if offset.is_zero() => "Z".to_string(),
            Some(offset) => {
                let minutes = offset.seconds() / 60;
                let sign = if minutes < 0 { '-' } else { '+' };
                format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
            }
        };
        format!("{date}{between}{clock}{zone}")
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.write(' ', false))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.write('T', true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn moments_are_written_to_their_precision() {
        let moment = |precision| Moment::new(date(2024, 7, 1).at(6, 30, 15, 120_000_000), precision, None);
        let shown: Vec<_> = [
            Precision::Year,
            Precision::Quarter,
            Precision::Month,
            Precision::Day,
            Precision::Minute,
            Precision::Second,
            Precision::Fraction,
        ]
        .map(|precision| moment(precision).to_string())
        .into();
        let expected = [
            "2024",
            "2024-Q3",
            "2024-07",
            "2024-07-01",
            "2024-07-01 06:30",
            "2024-07-01 06:30:15",
            "2024-07-01 06:30:15.120",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn machines_get_iso_with_the_offset() {
        let offset = Offset::from_seconds(-(3 * 3600 + 1800)).unwrap();
        let moment = Moment::new(date(2024, 7, 1).at(6, 30, 0, 0), Precision::Minute, Some(offset));
        assert_eq!(serde_json::to_string(&moment).unwrap(), "\"2024-07-01T06:30:00-03:30\"");
        let utc = Moment::new(date(2024, 7, 1).at(6, 30, 0, 0), Precision::Minute, Some(Offset::UTC));
        assert_eq!(utc.to_string(), "2024-07-01 06:30Z");
    }
}
