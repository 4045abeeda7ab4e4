//! Finds the step of an ordered list of moments, and each moment's row on the axis with that step.

use std::fmt;
use std::time::Duration;

use jiff::civil::{DateTime, Weekday};

use super::{Calendar, Frequency, MonthDay, Precision, day_of_month, length, month_index};

/// Where each of a list of moments falls on a regular axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// The axis; its row 0 is the first moment.
    pub calendar: Calendar,
    /// The row of each moment, ascending. Rows not listed are missing.
    pub rows: Vec<usize>,
}

/// The moments have no common step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Irregular {
    shortest: Duration,
    longest: Duration,
}

impl fmt::Display for Irregular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shortest, longest) = (length(self.shortest), length(self.longest));
        write!(f, "the rows are not evenly spaced (neighbours lie {shortest} to {longest} apart)")
    }
}

/// A step that most neighbours have explains the axis even when most rows are missing (a shop open eight hours a day);
/// one that only divides all distances (1 second between 10:00:00, 10:07:13 and 10:15:41) needs a filled axis.
const SPARSEST_COMMON: usize = 100;
const SPARSEST_DIVISOR: usize = 3;
/// Axes longer than this must be filled like one of a divisor, so that a large file cannot ask for a hundred times more.
const LONGEST_SPARSE: i128 = 10_000_000;

impl Grid {
    /// The axis of `moments`, which must ascend strictly. Rows that are missing in between are allowed. `Ok(None)` when
    /// there are fewer than two moments, which no step can be read from.
    ///
    /// # Errors
    /// [`Irregular`] when no step explains them. The number of rows is at most 100 times the number of moments, and above
    /// ten million at most 3 times.
    pub fn infer(moments: &[DateTime]) -> Result<Option<Grid>, Irregular> {
        let (Some(&first), Some(&last)) = (moments.first(), moments.last()) else { return Ok(None) };
        if moments.len() < 2 {
            return Ok(None);
        }
        let mut steps: Vec<i128> = moments.windows(2).map(|pair| pair[0].duration_until(pair[1]).as_nanos()).collect();
        steps.sort_unstable();
        let (shortest, longest) = (steps[0], steps[steps.len() - 1]);
        let irregular = Irregular { shortest: duration(shortest), longest: duration(longest) };
        if shortest <= 0 {
            return Err(irregular);
        }
        let frequency = months(moments)
            .or_else(|| business_days(moments, most_common(&steps)))
            .or_else(|| fixed(&steps, first.duration_until(last).as_nanos()))
            .ok_or(irregular)?;
        let calendar = Calendar::new(first, frequency).with_precision(Precision::of(moments.iter().copied()));
        let rows =
            moments.iter().map(|&moment| usize::try_from(calendar.row(moment)?).ok()).collect::<Option<Vec<_>>>();
        let rows = rows.ok_or(irregular)?;
        Ok(Some(Grid { calendar, rows }))
    }

    /// Rows from the first moment to the last, the missing ones included.
    pub fn len(&self) -> usize {
        self.rows.last().map_or(0, |last| last + 1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// The first number, the step and the row of each of ascending row numbers; `None` when they have no common step.
pub(crate) fn infer_steps(numbers: &[i64]) -> Option<(i64, i64, Vec<usize>)> {
    let (&first, &last) = (numbers.first()?, numbers.last()?);
    let mut steps: Vec<i128> = numbers.windows(2).map(|pair| i128::from(pair[1]) - i128::from(pair[0])).collect();
    steps.sort_unstable();
    let step = match steps.first() {
        None => 1,
        Some(..1) => return None,
        Some(_) => explain(&steps, i128::from(last) - i128::from(first))?,
    };
    let row = |number: i64| usize::try_from((i128::from(number) - i128::from(first)) / step).ok();
    let rows = numbers.iter().map(|&number| row(number)).collect::<Option<Vec<_>>>()?;
    Some((first, i64::try_from(step).ok()?, rows))
}

/// The step that explains ascending distances (in any unit) whose sum is `span`: the most common one if it divides all,
/// or else their greatest common divisor if the axis is then filled enough.
fn explain(sorted: &[i128], span: i128) -> Option<i128> {
    let moments = i128::try_from(sorted.len() + 1).ok()?;
    let common = most_common(sorted);
    if sorted.iter().all(|step| step % common == 0) {
        return (span / common < most_rows(moments)).then_some(common);
    }
    let divisor = sorted.iter().fold(0, |a, &b| gcd(a, b));
    (span / divisor < moments * SPARSEST_DIVISOR as i128).then_some(divisor)
}

/// The most rows of an axis whose step is the common one of so many moments.
fn most_rows(moments: i128) -> i128 {
    (moments * SPARSEST_COMMON as i128).min(LONGEST_SPARSE).max(moments * SPARSEST_DIVISOR as i128)
}

/// Monthly steps: the same time of day, months that all differ, and one rule for the day of the month.
fn months(moments: &[DateTime]) -> Option<Frequency> {
    let time = moments.first()?.time();
    let index: Vec<i64> = moments.iter().map(|moment| month_index(moment.date())).collect();
    let mut steps: Vec<i128> = index.windows(2).map(|pair| i128::from(pair[1] - pair[0])).collect();
    if steps.contains(&0) || moments.iter().any(|moment| moment.time() != time) {
        return None;
    }
    // The latest day seen is the rule's day: shorter months show less of it. A month end is taken as meant when all
    // are, even if no month had 31 days.
    let latest = moments.iter().map(|moment| moment.day()).max()?;
    let follows = |day: MonthDay| moments.iter().all(|m| day_of_month(m.date(), day) == Some(m.date()));
    let rules = [MonthDay::Day(31), MonthDay::Day(latest), MonthDay::LastWeekday];
    let day = rules.into_iter().find(|&day| follows(day))?;
    steps.sort_unstable();
    let count = explain(&steps, i128::from(index.last()? - index.first()?))?;
    Some(Frequency::Months { count: u32::try_from(count).ok()?, day })
}

/// Daily steps that pass over at least one weekend and never fall on one.
fn business_days(moments: &[DateTime], common: i128) -> Option<Frequency> {
    let (first, last) = (moments.first()?, moments.last()?);
    let weekend = |moment: &DateTime| matches!(moment.weekday(), Weekday::Saturday | Weekday::Sunday);
    let daily = common == i128::from(super::DAY) * NANOS && moments.iter().all(|moment| moment.time() == first.time());
    let weeks = (super::weekday_index(first.date()) + super::days_between(first.date(), last.date())) / 7;
    // A mistyped year must not make an axis of decades.
    let filled = i128::from(weeks) * 5 < most_rows(moments.len() as i128);
    (daily && weeks > 0 && filled && !moments.iter().any(weekend)).then_some(Frequency::BusinessDays)
}

fn fixed(sorted: &[i128], span: i128) -> Option<Frequency> {
    explain(sorted, span).map(|step| Frequency::Every(duration(step)))
}

const NANOS: i128 = 1_000_000_000;

fn duration(nanos: i128) -> Duration {
    let nanos = nanos.max(0);
    // Two civil moments are at most 20,000 years apart, which fits.
    Duration::new(u64::try_from(nanos / NANOS).unwrap_or(u64::MAX), (nanos % NANOS) as u32)
}

/// The most frequent value of a sorted, non-empty list; the smallest such on a tie.
fn most_common(sorted: &[i128]) -> i128 {
    let runs = sorted.chunk_by(|a, b| a == b);
    let longest = runs.fold(&sorted[..0], |best, run| if run.len() > best.len() { run } else { best });
    longest.first().copied().unwrap_or(1)
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infer(moments: &[&str]) -> Result<Option<(String, Vec<usize>)>, Irregular> {
        let moments: Vec<DateTime> = moments.iter().map(|m| m.parse().unwrap()).collect();
        Ok(Grid::infer(&moments)?.map(|grid| (grid.calendar.frequency().to_string(), grid.rows)))
    }

    fn step(moments: &[&str]) -> String {
        infer(moments).unwrap().unwrap().0
    }

    #[test]
    fn common_steps_are_found() {
        assert_eq!(step(&["2024-01-01T00:00", "2024-01-01T00:15", "2024-01-01T00:30"]), "every 15 minutes");
        assert_eq!(step(&["2024-01-01T00:00", "2024-01-01T01:00", "2024-01-01T02:00"]), "hourly");
        assert_eq!(step(&["2024-02-27", "2024-02-28", "2024-02-29", "2024-03-01"]), "daily");
        assert_eq!(step(&["2024-08-01", "2024-08-02", "2024-08-05", "2024-08-06"]), "business days");
        assert_eq!(step(&["2024-08-05", "2024-08-06", "2024-08-07"]), "daily");
        assert_eq!(step(&["2024-01-06", "2024-01-13", "2024-01-20"]), "weekly");
        assert_eq!(step(&["2024-01-01", "2024-02-01", "2024-03-01"]), "monthly");
        assert_eq!(step(&["2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29"]), "monthly (month end)");
        assert_eq!(step(&["2023-02-28", "2023-04-30"]), "every 2 months (month end)");
        assert_eq!(step(&["2024-01-31", "2024-02-29", "2024-03-29", "2024-04-30"]), {
            "monthly (last weekday of the month)"
        });
        assert_eq!(step(&["2023-03-31", "2023-06-30", "2023-09-30"]), "quarterly (month end)");
        assert_eq!(step(&["2019-12-31", "2020-12-31", "2021-12-31"]), "yearly");
        assert_eq!(step(&["2024-01-01T00:00:00.25", "2024-01-01T00:00:00.5"]), "every 0.25 seconds");
    }

    #[test]
    fn missing_rows_are_gaps() {
        let hours = infer(&["2024-01-01T00:00", "2024-01-01T01:00", "2024-01-01T04:00", "2024-01-01T05:00"]);
        assert_eq!(hours, Ok(Some(("hourly".into(), vec![0, 1, 4, 5]))));
        let months = infer(&["2024-01-31", "2024-02-29", "2024-06-30", "2024-07-31"]);
        assert_eq!(months, Ok(Some(("monthly (month end)".into(), vec![0, 1, 5, 6]))));
        // A market holiday.
        let market = infer(&["2024-08-29", "2024-08-30", "2024-09-03", "2024-09-04"]);
        assert_eq!(market, Ok(Some(("business days".into(), vec![0, 1, 3, 4]))));
        let odd = infer(&["2024-01-01", "2024-01-03", "2024-01-06", "2024-01-08"]);
        assert_eq!(odd, Ok(Some(("daily".into(), vec![0, 2, 5, 7]))));
    }

    #[test]
    fn row_numbers_have_steps_too() {
        assert_eq!(infer_steps(&[0, 1, 2]), Some((0, 1, vec![0, 1, 2])));
        assert_eq!(infer_steps(&[10, 20, 40, 50]), Some((10, 10, vec![0, 1, 3, 4])));
        assert_eq!(infer_steps(&[7]), Some((7, 1, vec![0])));
        assert_eq!(infer_steps(&[1, 2, 1_000_000_000]), None);
        assert_eq!(infer_steps(&[i64::MIN, i64::MAX]), None);
    }

    #[test]
    fn irregular_and_short_lists_have_no_step() {
        assert_eq!(infer(&[]), Ok(None));
        assert_eq!(infer(&["2024-01-01"]), Ok(None));
        let error = infer(&["2024-01-01T00:00:00", "2024-01-01T00:00:07", "2024-01-01T00:31:00"]).unwrap_err();
        assert!(error.to_string().contains("7 seconds"), "{error}");
        // Two clusters of seconds, fifty years apart: must not ask for a billion rows.
        let far = ["1970-01-01T00:00:00", "1970-01-01T00:00:01", "2020-01-01T00:00:00", "2020-01-01T00:00:01"];
        assert!(infer(&far).is_err());
        let thousands: Vec<i64> = (0..300_000).map(|n| n + 20_000_000 * i64::from(n >= 150_000)).collect();
        assert_eq!(infer_steps(&thousands), None);
        assert!(infer(&["2024-01-02", "2024-01-01"]).is_err());
        assert!(infer(&["2024-01-01", "2024-01-01"]).is_err());
    }
}
