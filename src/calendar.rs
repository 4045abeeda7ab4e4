//! Regular time axes: what the step between rows is, and which moments come after the last row.
//!
//! Times are civil: what a clock and a calendar on the wall show, as tables hold them. Month steps keep the day of the
//! month and fall back to the month's last day where it is shorter, so 31 January is followed by 29 (or 28) February and
//! then by 31 March.
//!
//! A calendar may stand in a time zone. Its moments are then what clocks there show: steps of days, weeks and months keep the
//! time of day, shorter steps are exact, so hours go on through the change to daylight saving time and back.

mod infer;
mod moment;
mod parse;
#[cfg(test)]
mod properties;
mod zone;

pub(crate) use infer::infer_steps;
pub use infer::{Grid, Irregular};
pub use moment::{Moment, Precision};
pub(crate) use parse::{Format, Read, TimeColumn, looks_like_date, zone_of};
pub(crate) use zone::{Clock, Unclear, instants, local, one_time_of_day, utc, zone};

use std::fmt;
use std::time::Duration;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, ToSpan};

/// The step between neighbouring rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frequency {
    /// A fixed length of time, up to days and weeks (a civil day is 24 hours). Never zero when inferred.
    Every(Duration),
    /// Monday to Friday.
    BusinessDays,
    /// Whole months; quarters are three, years twelve.
    Months {
        /// Months per step, at least 1.
        count: u32,
        /// Which day of the month the rows stand on.
        day: MonthDay,
    },
}

/// Which day of its month a monthly row stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MonthDay {
    /// A day from 1 to 31, or the last day of a shorter month. 31 is the month's end.
    Day(i8),
    /// The last Monday-to-Friday day, as markets report.
    LastWeekday,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl Frequency {
    /// Rows an hour apart.
    pub const HOURLY: Self = Frequency::Every(Duration::from_secs(HOUR));
    /// Rows a day apart.
    pub const DAILY: Self = Frequency::Every(Duration::from_secs(DAY));
    /// Rows seven days apart.
    pub const WEEKLY: Self = Frequency::Every(Duration::from_secs(7 * DAY));
    /// Rows on the first of each month.
    pub const MONTHLY: Self = Frequency::Months { count: 1, day: MonthDay::Day(1) };
    /// Rows on the last day of each month.
    pub const MONTH_END: Self = Frequency::Months { count: 1, day: MonthDay::Day(31) };
    /// Rows on the first of January, April, July and October (or any month and each third after it).
    pub const QUARTERLY: Self = Frequency::Months { count: 3, day: MonthDay::Day(1) };
    /// Rows a year apart.
    pub const YEARLY: Self = Frequency::Months { count: 12, day: MonthDay::Day(1) };

    /// Rows in the shortest cycle that people expect of this step: 24 for hours, 7 for days, 12 for months; 1 where
    /// there is none.
    pub fn season(&self) -> usize {
        match *self {
            Frequency::BusinessDays => 5,
            Frequency::Months { count, .. } => (12 / count.max(1)).max(1) as usize,
            Frequency::Every(step) => {
                let cycle = match step.as_secs() {
                    0 => return 1,
                    s if s < MINUTE => MINUTE,
                    s if s < 10 * MINUTE => HOUR,
                    s if s < DAY => DAY,
                    s if s < 7 * DAY => 7 * DAY,
                    _ => 364 * DAY,
                };
                (cycle / step.as_secs()).max(1) as usize
            }
        }
    }

    /// How far ahead a person usually wants to see at this step: two days of hours, a month of days, half a year of
    /// weeks, two years of months or quarters, ten years.
    pub fn usual_horizon(&self) -> usize {
        match *self {
            Frequency::BusinessDays => 20,
            Frequency::Months { count, .. } if count >= 12 => 10,
            Frequency::Months { count, .. } => (24 / count.max(1)) as usize,
            Frequency::Every(step) => match step.as_secs() {
                s if s < HOUR => (2 * self.season()).clamp(24, 96),
                s if s < DAY => (2 * DAY / s) as usize,
                s if s < 7 * DAY => (28 * DAY / s) as usize,
                s => (182 * DAY / s).max(4) as usize,
            },
        }
    }
}

impl fmt::Display for Frequency {
    /// `hourly`, `every 15 minutes`, `business days`, `monthly (month end)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Frequency::BusinessDays => f.write_str("business days"),
            Frequency::Months { count, day } => {
                match count {
                    1 => f.write_str("monthly")?,
                    3 => f.write_str("quarterly")?,
                    12 => f.write_str("yearly")?,
                    n if n % 12 == 0 => write!(f, "every {} years", n / 12)?,
                    n => write!(f, "every {n} months")?,
                }
                match day {
                    MonthDay::LastWeekday => f.write_str(" (last weekday of the month)"),
                    MonthDay::Day(31) if count < 12 => f.write_str(" (month end)"),
                    MonthDay::Day(_) => Ok(()),
                }
            }
            Frequency::Every(step) => match (step.as_secs(), step.subsec_nanos()) {
                (HOUR, 0) => f.write_str("hourly"),
                (DAY, 0) => f.write_str("daily"),
                (s, 0) if s == 7 * DAY => f.write_str("weekly"),
                _ => write!(f, "every {}", length(step)),
            },
        }
    }
}

/// A length of time in the largest unit that divides it: `90 seconds`, `2 weeks`.
pub(crate) fn length(step: Duration) -> String {
    if step.subsec_nanos() != 0 {
        return format!("{} seconds", step.as_secs_f64());
    }
    let secs = step.as_secs();
    let units = [(7 * DAY, "week"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (1, "second")];
    let (unit, name) =
        units.into_iter().find(|(unit, _)| secs > 0 && secs.is_multiple_of(*unit)).unwrap_or((1, "second"));
    match secs / unit {
        1 => format!("1 {name}"),
        n => format!("{n} {name}s"),
    }
}

/// A regular time axis: the moment of row 0 and the step, and how its moments are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    /// Row 0, as `clock` counts: on the wall, or in UTC for an exact one.
    start: DateTime,
    frequency: Frequency,
    precision: Precision,
    clock: Clock,
}

impl Calendar {
    /// The axis whose row 0 is `start`. A start that does not lie on the frequency (a Sunday for business days, the 5th
    /// for month ends) is moved to the next moment that does.
    pub fn new(start: DateTime, frequency: Frequency) -> Self {
        let precision = Precision::of(std::iter::once(start)).max(Precision::needed(&frequency));
        Calendar { start: first_on(start, &frequency), frequency, precision, clock: Clock::Wall(None) }
    }

    /// The same axis, its moments written to this precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The same axis, its moments written with this offset from UTC.
    pub fn with_offset(mut self, offset: Option<Offset>) -> Self {
        self.clock = Clock::Wall(offset);
        self
    }

    /// The same axis on the clocks of `zone`: it starts when they show its start (the first time, if they do twice), or, where
    /// it has an offset from UTC, at the same instant. Days, weeks and months keep the time of day from then on, shorter
    /// steps are exact. Moments are written with the offset that they have in the zone.
    ///
    /// ```
    /// use moesaic::{Calendar, Frequency};
    ///
    /// let berlin = jiff::tz::TimeZone::get("Europe/Berlin")?;
    /// let hours = Calendar::new("2024-03-31T01:00".parse()?, Frequency::HOURLY).with_zone(berlin);
    /// assert_eq!(hours.moment(1).unwrap().to_string(), "2024-03-31 03:00+02:00");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_zone(mut self, zone: TimeZone) -> Self {
        let (wall, offset) = self.clock.show(self.start).unwrap_or((self.start, None));
        let whole_days = match self.frequency {
            Frequency::Every(step) => step.subsec_nanos() == 0 && step.as_secs().is_multiple_of(DAY),
            _ => true,
        };
        let clock = if whole_days { Clock::Local(zone) } else { Clock::Exact(zone) };
        self.start = clock.place(wall, offset).unwrap_or(wall);
        self.on(clock)
    }

    /// The time zone, if the calendar stands in one.
    pub fn zone(&self) -> Option<&TimeZone> {
        self.clock.zone()
    }

    /// The same steps on another clock.
    pub(crate) fn on(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The same step, written alike, from another moment on.
    pub(crate) fn starting(&self, moment: DateTime, offset: Option<Offset>) -> Self {
        let start = self.clock.place(moment, offset).unwrap_or(moment);
        Calendar { start: first_on(start, &self.frequency), ..self.clone() }
    }

    /// The step between rows.
    pub fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// The moment of row `row` (negative rows lie before row 0), or `None` beyond the years -9999 to 9999.
    pub fn at(&self, row: i64) -> Option<DateTime> {
        Some(self.clock.show(self.step(row)?)?.0)
    }

    /// The start of row `row` as the clock counts.
    fn step(&self, row: i64) -> Option<DateTime> {
        match self.frequency {
            Frequency::Every(step) => {
                let nanos = i128::try_from(step.as_nanos()).ok()?.checked_mul(i128::from(row))?;
                let secs = i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
                let rest = i32::try_from(nanos.rem_euclid(1_000_000_000)).ok()?;
                self.start.checked_add(SignedDuration::new(secs, rest)).ok()
            }
            Frequency::BusinessDays => {
                let from = weekday_index(self.start.date());
                let day = from.checked_add(row)?;
                let days = day.div_euclid(5).checked_mul(7)?.checked_add(day.rem_euclid(5) - from)?;
                self.start.checked_add(SignedDuration::from_secs(days.checked_mul(DAY as i64)?)).ok()
            }
            Frequency::Months { count, day } => {
                let month = month_index(self.start.date()).checked_add(row.checked_mul(i64::from(count))?)?;
                let year = i16::try_from(month.div_euclid(12)).ok()?;
                let first = Date::new(year, i8::try_from(month.rem_euclid(12) + 1).ok()?, 1).ok()?;
                Some(day_of_month(first, day)?.to_datetime(self.start.time()))
            }
        }
    }

    /// The row whose moment is exactly `moment`, if there is one; the first of two where clocks go back.
    pub fn row(&self, moment: DateTime) -> Option<i64> {
        let on_axis = self.clock.step(moment)?;
        let guess = match self.frequency {
            Frequency::Every(step) => {
                let since = self.start.duration_until(on_axis).as_nanos();
                i64::try_from(since.checked_div_euclid(i128::try_from(step.as_nanos()).ok()?)?).ok()?
            }
            Frequency::BusinessDays => {
                let days = days_between(self.start.date(), on_axis.date());
                let from = weekday_index(self.start.date());
                (days + from).div_euclid(7) * 5 + (days + from).rem_euclid(7) - from
            }
            Frequency::Months { count, .. } => {
                let months = month_index(on_axis.date()) - month_index(self.start.date());
                months.checked_div_euclid(i64::from(count))?
            }
        };
        (self.at(guess)? == moment).then_some(guess)
    }

    /// The moment of row `row`, ready to be shown.
    pub fn moment(&self, row: i64) -> Option<Moment> {
        let (wall, offset) = self.clock.show(self.step(row)?)?;
        Some(Moment::new(wall, self.precision, offset))
    }
}

fn first_on(start: DateTime, frequency: &Frequency) -> DateTime {
    let moved = match *frequency {
        Frequency::Every(_) => None,
        Frequency::BusinessDays => match start.weekday() {
            Weekday::Saturday => start.checked_add(2.days()).ok(),
            Weekday::Sunday => start.checked_add(1.days()).ok(),
            _ => None,
        },
        Frequency::Months { day, .. } => match day_of_month(start.date(), day) {
            Some(date) if date < start.date() => {
                let next = start.date().first_of_month().checked_add(1.months()).ok();
                next.and_then(|date| day_of_month(date, day)).map(|date| date.to_datetime(start.time()))
            }
            on => on.map(|date| date.to_datetime(start.time())),
        },
    };
    moved.unwrap_or(start)
}

/// The date in the month of `date` that `day` stands for.
fn day_of_month(date: Date, day: MonthDay) -> Option<Date> {
    let last = date.last_of_month();
    match day {
        MonthDay::Day(day) => Date::new(date.year(), date.month(), day.clamp(1, last.day())).ok(),
        MonthDay::LastWeekday => match last.weekday() {
            Weekday::Saturday => last.yesterday().ok(),
            Weekday::Sunday => last.checked_sub(2.days()).ok(),
            _ => Some(last),
        },
    }
}

/// Days since Monday.
fn weekday_index(date: Date) -> i64 {
    i64::from(date.weekday().to_monday_zero_offset())
}

/// Months since January of year 0.
fn month_index(date: Date) -> i64 {
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

fn days_between(from: Date, to: Date) -> i64 {
    from.duration_until(to).as_hours() / 24
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    fn dates(calendar: &Calendar, rows: std::ops::Range<i64>) -> Vec<String> {
        rows.map(|row| calendar.moment(row).unwrap().to_string()).collect()
    }

    #[test]
    fn month_ends_cross_leap_years() {
        let calendar = Calendar::new(date(2023, 12, 31).at(0, 0, 0, 0), Frequency::MONTH_END);
        assert_eq!(dates(&calendar, 0..4), ["2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31"]);
        let on_30 = Frequency::Months { count: 1, day: MonthDay::Day(30) };
        let calendar = Calendar::new(date(2025, 1, 30).at(0, 0, 0, 0), on_30);
        assert_eq!(dates(&calendar, 0..3), ["2025-01-30", "2025-02-28", "2025-03-30"]);
        let leap = Frequency::Months { count: 12, day: MonthDay::Day(29) };
        let calendar = Calendar::new(date(2024, 2, 29).at(0, 0, 0, 0), leap);
        assert_eq!(dates(&calendar, 0..5), ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]);
        let last_weekday = Frequency::Months { count: 1, day: MonthDay::LastWeekday };
        let calendar = Calendar::new(date(2024, 3, 29).at(0, 0, 0, 0), last_weekday);
        assert_eq!(dates(&calendar, 0..3), ["2024-03-29", "2024-04-30", "2024-05-31"]);
    }

    #[test]
    fn business_days_step_over_weekends() {
        let calendar = Calendar::new(date(2024, 8, 1).at(0, 0, 0, 0), Frequency::BusinessDays);
        assert_eq!(dates(&calendar, -1..4), ["2024-07-31", "2024-08-01", "2024-08-02", "2024-08-05", "2024-08-06"]);
        assert_eq!(calendar.row(date(2024, 8, 3).at(0, 0, 0, 0)), None);
    }

    #[test]
    fn a_row_and_its_moment_are_inverse() {
        let starts = [date(2024, 1, 31).at(6, 30, 0, 0), date(1999, 12, 29).at(0, 0, 0, 500)];
        let steps = [
            Frequency::HOURLY,
            Frequency::DAILY,
            Frequency::WEEKLY,
            Frequency::MONTHLY,
            Frequency::MONTH_END,
            Frequency::QUARTERLY,
            Frequency::YEARLY,
            Frequency::BusinessDays,
            Frequency::Every(Duration::from_millis(125)),
            Frequency::Months { count: 1, day: MonthDay::LastWeekday },
        ];
        for (start, step) in starts.into_iter().flat_map(|start| steps.map(|step| (start, step))) {
            let calendar = Calendar::new(start, step);
            for row in [-1000, -7, -1, 0, 1, 2, 5, 6, 11, 12, 400, 7_000] {
                assert_eq!(calendar.row(calendar.at(row).unwrap()), Some(row), "{step} from {start}, row {row}");
            }
        }
    }

    #[test]
    fn the_end_of_time_is_not_a_panic() {
        let calendar = Calendar::new(date(9999, 12, 1).at(0, 0, 0, 0), Frequency::MONTHLY);
        assert_eq!(calendar.at(1), None);
        for step in [Frequency::HOURLY, Frequency::BusinessDays, Frequency::YEARLY] {
            let calendar = Calendar::new(date(2024, 1, 1).at(0, 0, 0, 0), step);
            assert_eq!(calendar.at(i64::MAX), None);
            assert_eq!(calendar.at(i64::MIN), None);
        }
    }

    #[test]
    fn steps_have_names() {
        let minutes = Frequency::Every(Duration::from_secs(900));
        assert_eq!(minutes.to_string(), "every 15 minutes");
        assert_eq!(Frequency::Every(Duration::from_secs(14 * DAY)).to_string(), "every 2 weeks");
        assert_eq!(Frequency::MONTH_END.to_string(), "monthly (month end)");
        assert_eq!((minutes.season(), Frequency::WEEKLY.season(), Frequency::MONTHLY.season()), (96, 52, 12));
        assert_eq!((Frequency::HOURLY.usual_horizon(), Frequency::YEARLY.usual_horizon()), (48, 10));
    }
}
