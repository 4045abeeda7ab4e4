//! Where the marks of an axis stand and what they say.

use jiff::civil::DateTime;
use jiff::{Span, ToSpan, Unit};

use crate::calendar::Calendar;
use crate::series::{Index, Series};

/// A mark of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub at: f64,
    pub label: String,
}

/// At most `most` round numbers in a range, all written with as many decimals as they need.
pub(super) fn values(range: (f64, f64), most: usize) -> Vec<Tick> {
    let span = range.1 - range.0;
    if !(span > 0.0 && span.is_finite()) {
        return Vec::new();
    }
    let rough = span / most.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|&step| step >= rough).unwrap_or(10.0 * power);
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize;
    let first = (range.0 / step).ceil();
    let marks = (0..=most).map(|n| (first + n as f64) * step).take_while(|&at| at <= range.1);
    marks.map(|at| Tick { at, label: number(at, decimals) }).collect()
}

/// A number with this many decimals; very large and very small ones with an exponent.
fn number(value: f64, decimals: usize) -> String {
    let value = if value == 0.0 { 0.0 } else { value }; // no "-0"
    if value.abs() >= 1e7 || decimals > 6 {
        return format!("{value:.3e}").replace(".000e", "e");
    }
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    if digits.len() < 5 {
        return plain;
    }
    // A thin space between thousands, as in print, would not align in a terminal; a plain comma does.
    let groups: Vec<String> = digits.as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into()).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

/// At most `most` marks on the rows of a series: round moments of its calendar, or round row numbers.
pub(super) fn rows(series: &Series, range: (f64, f64), most: usize) -> Vec<Tick> {
    match &series.index {
        Index::Calendar(calendar) => moments(calendar, range, most).unwrap_or_default(),
        Index::Steps { first, step } => {
            let (first, step) = (*first as f64, *step as f64);
            let numbers = values((first + range.0 * step, first + range.1 * step), most);
            let whole = numbers.into_iter().filter(|tick| tick.at.fract() == 0.0);
            whole.map(|tick| Tick { at: (tick.at - first) / step, ..tick }).collect()
        }
    }
}

/// Distances between marks, fine to coarse.
const STEPS: [(Unit, i64); 27] = [
    (Unit::Second, 1),
    (Unit::Second, 5),
    (Unit::Second, 15),
    (Unit::Second, 30),
    (Unit::Minute, 1),
    (Unit::Minute, 5),
    (Unit::Minute, 15),
    (Unit::Minute, 30),
    (Unit::Hour, 1),
    (Unit::Hour, 3),
    (Unit::Hour, 6),
    (Unit::Hour, 12),
    (Unit::Day, 1),
    (Unit::Day, 2),
    (Unit::Day, 7),
    (Unit::Day, 14),
    (Unit::Month, 1),
    (Unit::Month, 2),
    (Unit::Month, 3),
    (Unit::Month, 6),
    (Unit::Year, 1),
    (Unit::Year, 2),
    (Unit::Year, 5),
    (Unit::Year, 10),
    (Unit::Year, 20),
    (Unit::Year, 50),
    (Unit::Year, 100),
];

fn moments(calendar: &Calendar, range: (f64, f64), most: usize) -> Option<Vec<Tick>> {
    let (first, last) = (range.0.floor() as i64, range.1.ceil() as i64);
    let (from, to) = (calendar.at(first)?, calendar.at(last)?);
    let seconds = from.duration_until(to).as_secs_f64();
    let length = |(unit, n): (Unit, i64)| {
        n as f64
            * match unit {
                Unit::Second => 1.0,
                Unit::Minute => 60.0,
                Unit::Hour => 3600.0,
                Unit::Day => 86_400.0,
                Unit::Month => 30.44 * 86_400.0,
                _ => 365.25 * 86_400.0,
            }
    };
    let (unit, n) = STEPS.into_iter().find(|&step| seconds / length(step) <= most as f64).unwrap_or((Unit::Year, 500));
    let mut mark = floor(from, unit, n)?;
    let mut ticks = Vec::new();
    while mark <= to && ticks.len() <= most + 1 {
        if mark >= from {
            let at = position(calendar, first, last, mark)?;
            ticks.push(Tick { at, label: label(mark, unit) });
        }
        mark = mark.checked_add(step(unit, n)).ok()?;
        if (unit, n) == (Unit::Day, 2) {
            // Every other day starts anew with each month, so that marks read 27, 29, 1, 3.
            mark = match mark.day() {
                31 => mark.tomorrow().ok()?,
                day if day % 2 == 0 => mark.yesterday().ok()?,
                _ => mark,
            };
        }
    }
    Some(ticks)
}

fn step(unit: Unit, n: i64) -> Span {
    match unit {
        Unit::Second => n.seconds(),
        Unit::Minute => n.minutes(),
        Unit::Hour => n.hours(),
        Unit::Day => n.days(),
        Unit::Month => n.months(),
        _ => n.years(),
    }
}

/// The last round moment at or before `moment`.
fn floor(moment: DateTime, unit: Unit, n: i64) -> Option<DateTime> {
    let down = |value: i8| value - (i64::from(value) % n) as i8;
    let date = moment.date();
    Some(match unit {
        Unit::Second => date.at(moment.hour(), moment.minute(), down(moment.second()), 0),
        Unit::Minute => date.at(moment.hour(), down(moment.minute()), 0, 0),
        Unit::Hour => date.at(down(moment.hour()), 0, 0, 0),
        Unit::Day if n % 7 == 0 => {
            let since_monday = i64::from(date.weekday().to_monday_zero_offset());
            date.checked_sub(since_monday.days()).ok()?.at(0, 0, 0, 0)
        }
        Unit::Day => date.first_of_month().at(0, 0, 0, 0),
        Unit::Month => jiff::civil::Date::new(date.year(), down(date.month() - 1) + 1, 1).ok()?.at(0, 0, 0, 0),
        _ => {
            let year = i64::from(date.year());
            jiff::civil::Date::new(i16::try_from(year - year.rem_euclid(n)).ok()?, 1, 1).ok()?.at(0, 0, 0, 0)
        }
    })
}

/// The row of a moment, between rows where it falls between them.
fn position(calendar: &Calendar, first: i64, last: i64, moment: DateTime) -> Option<f64> {
    let (mut low, mut high) = (first, last);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if calendar.at(middle)? <= moment {
            low = middle;
        } else {
            high = middle;
        }
    }
    let (before, after) = (calendar.at(low)?, calendar.at(high)?);
    let width = before.duration_until(after).as_secs_f64();
    let part = if width > 0.0 { before.duration_until(moment).as_secs_f64() / width } else { 0.0 };
    Some(low as f64 + part * (high - low) as f64)
}

fn label(moment: DateTime, unit: Unit) -> String {
    let midnight = moment.hour() == 0 && moment.minute() == 0 && moment.second() == 0;
    let format = match unit {
        Unit::Second => "%H:%M:%S",
        Unit::Minute | Unit::Hour if !midnight => "%H:%M",
        Unit::Minute | Unit::Hour | Unit::Day => "%-d %b",
        Unit::Month => "%b %Y",
        _ => "%Y",
    };
    moment.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::Frequency;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    fn on(start: &str, frequency: Frequency, rows_shown: f64) -> Vec<String> {
        let calendar = Calendar::new(start.parse().unwrap(), frequency);
        labels(rows(&Series::new("y", []).with_calendar(calendar), (0.0, rows_shown), 6))
    }

    #[test]
    fn numbers_are_round() {
        assert_eq!(labels(values((312.0, 371.0), 4)), ["320", "340", "360"]);
        assert_eq!(labels(values((-0.13, 0.34), 5)), ["-0.1", "0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(values((0.0, 250_000.0), 5)), ["0", "50,000", "100,000", "150,000", "200,000", "250,000"]);
        assert_eq!(labels(values((1e9, 5e9), 4)), ["1e9", "2e9", "3e9", "4e9", "5e9"]);
        assert!(values((1.0, 1.0), 4).is_empty());
        assert!(values((f64::NAN, 1.0), 4).is_empty());
    }

    #[test]
    fn moments_are_round() {
        assert_eq!(
            on("1995-03-11", Frequency::WEEKLY, 150.0),
            ["Jul 1995", "Jan 1996", "Jul 1996", "Jan 1997", "Jul 1997", "Jan 1998"]
        );
        assert_eq!(on("1700-01-01", Frequency::YEARLY, 100.0), ["1700", "1720", "1740", "1760", "1780", "1800"]);
        assert_eq!(on("2024-02-26T05:00", Frequency::HOURLY, 48.0), ["12:00", "27 Feb", "12:00", "28 Feb"]);
        assert_eq!(on("2024-02-26", Frequency::DAILY, 8.0), ["27 Feb", "29 Feb", "1 Mar", "3 Mar", "5 Mar"]);
        assert_eq!(on("2024-01-27", Frequency::DAILY, 9.0), ["27 Jan", "29 Jan", "1 Feb", "3 Feb", "5 Feb"]);
        assert_eq!(labels(rows(&Series::new("y", []), (0.0, 20.0), 5)), ["5", "10", "15", "20"]);
    }
}
