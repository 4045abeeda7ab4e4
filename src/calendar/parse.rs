//! Recognises how a column of cells writes time: every format is a candidate until a cell contradicts it.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::fmt::temporal::{Pieces, TimeZoneAnnotationKind};
use jiff::tz::Offset;

use super::Precision;

/// A way to write a moment. The order of [`FORMATS`] is the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// ISO 8601, with an offset or a `Z` if the cell has one.
    Iso,
    /// `2024Q3`, `2024-Q3`, `Q3 2024`.
    Quarter,
    /// A date in this pattern, followed by a time of day if the cell has one.
    Pattern(&'static str, Precision),
    /// Numbers: only in a column that says by its name or place that it holds time.
    Number(Digits),
    /// Moments that the file stores as such, not as text.
    #[cfg(feature = "table")]
    Native,
}

/// A moment written as a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digits {
    /// 2024
    Year,
    /// 202407
    YearMonth,
    /// 20240701
    YearMonthDay,
    /// Seconds, milliseconds, microseconds or nanoseconds since 1970, UTC, told apart by their length.
    Epoch,
    /// A whole number that counts rows.
    Step,
}

use Precision::{Day, Month};

const FORMATS: [Format; 32] = [
    Format::Iso,
    Format::Quarter,
    Format::Pattern("%Y-%m-%d", Day),
    Format::Pattern("%Y/%m/%d", Day),
    Format::Pattern("%Y.%m.%d", Day),
    Format::Pattern("%Y-%m", Month),
    Format::Pattern("%Y/%m", Month),
    Format::Pattern("%m/%d/%Y", Day),
    Format::Pattern("%d/%m/%Y", Day),
    Format::Pattern("%d.%m.%Y", Day),
    Format::Pattern("%d-%m-%Y", Day),
    Format::Pattern("%m-%d-%Y", Day),
    Format::Pattern("%m/%d/%y", Day),
    Format::Pattern("%d/%m/%y", Day),
    Format::Pattern("%d.%m.%y", Day),
    Format::Pattern("%m/%Y", Month),
    Format::Pattern("%d %b %Y", Day),
    Format::Pattern("%d-%b-%Y", Day),
    Format::Pattern("%d-%b-%y", Day),
    Format::Pattern("%b %d, %Y", Day),
    Format::Pattern("%d %B %Y", Day),
    Format::Pattern("%B %d, %Y", Day),
    Format::Pattern("%b %Y", Month),
    Format::Pattern("%b-%Y", Month),
    Format::Pattern("%b-%y", Month),
    Format::Pattern("%Y %b", Month),
    Format::Pattern("%B %Y", Month),
    Format::Number(Digits::Year),
    Format::Number(Digits::YearMonthDay),
    Format::Number(Digits::YearMonth),
    Format::Number(Digits::Epoch),
    Format::Number(Digits::Step),
];

/// A bit for each of [`FORMATS`].
const ALL: u64 = (1 << FORMATS.len()) - 1;
/// The bit of [`Format::Native`], which no text can be.
#[cfg(feature = "table")]
const NATIVE: u64 = 1 << 63;
/// The bits of those that are no bare number.
const DATES: u64 = {
    let (mut bits, mut at) = (0, 0);
    while at < FORMATS.len() {
        bits |= (!matches!(FORMATS[at], Format::Number(_)) as u64) << at;
        at += 1;
    }
    bits
};

/// What a cell means: a moment with the offset it was written with, or a row number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Read {
    Moment(DateTime, Option<Offset>),
    Step(i64),
}

impl Format {
    pub(crate) fn is_number(self) -> bool {
        matches!(self, Format::Number(_))
    }

    /// The precision that the format itself fixes, whatever the cells hold.
    pub(crate) fn precision(self) -> Option<Precision> {
        match self {
            Format::Number(Digits::Year) => Some(Precision::Year),
            Format::Number(Digits::YearMonth) => Some(Precision::Month),
            Format::Quarter => Some(Precision::Quarter),
            Format::Pattern(_, Precision::Month) => Some(Precision::Month),
            _ => None,
        }
    }

    /// How to tell a person which day-and-month order was taken.
    pub(crate) fn order(self) -> Option<&'static str> {
        match self {
            Format::Pattern(pattern, _) if pattern.starts_with("%m") => Some("month/day/year"),
            Format::Pattern(pattern, _) if pattern.starts_with("%d") => Some("day/month/year"),
            _ => None,
        }
    }

    pub(crate) fn read(self, cell: &str) -> Option<Read> {
        let moment = match self {
            Format::Iso => return iso(cell),
            Format::Quarter => quarter(cell)?,
            Format::Pattern(pattern, _) => {
                let (date, time) = split_time(cell);
                let time = if time.is_empty() { Time::midnight() } else { clock(time)? };
                calendar_date(pattern, date)?.to_datetime(time)
            }
            Format::Number(digits) => return number(digits, cell),
            #[cfg(feature = "table")]
            Format::Native => return None,
        };
        Some(Read::Moment(moment, None))
    }
}

/// The formats that all cells seen so far agree with, best first.
#[derive(Debug, Clone)]
pub(crate) struct TimeColumn {
    /// Bits of [`ALL`], and no list: tables of tens of thousands of columns have as many of these.
    formats: u64,
    /// Cells that some date format (not a bare number) fitted before the first that none did.
    pub(crate) dates_before_failure: u64,
    /// The line and text of the first cell that no format fits.
    pub(crate) failure: Option<(u64, String)>,
}

impl TimeColumn {
    pub(crate) fn new() -> Self {
        TimeColumn { formats: ALL, dates_before_failure: 0, failure: None }
    }

    /// A column whose type says that it holds moments.
    #[cfg(feature = "table")]
    pub(crate) fn native() -> Self {
        TimeColumn { formats: NATIVE, dates_before_failure: 0, failure: None }
    }

    /// A column that cannot hold time.
    #[cfg(feature = "table")]
    pub(crate) fn none() -> Self {
        TimeColumn { formats: 0, dates_before_failure: 0, failure: None }
    }

    /// Drops the formats that `cell` (not blank) contradicts.
    pub(crate) fn see(&mut self, cell: &str, line: u64) {
        if self.formats == 0 {
            return;
        }
        let dated = self.formats & DATES != 0;
        let mut open = self.formats;
        while open != 0 {
            let bit = open.trailing_zeros();
            open &= open - 1;
            if FORMATS.get(bit as usize).is_none_or(|format| format.read(cell).is_none()) {
                self.formats &= !(1 << bit);
            }
        }
        if self.formats == 0 {
            self.failure = Some((line, cell.to_string()));
        } else if dated && self.formats & DATES != 0 {
            self.dates_before_failure += 1;
        }
    }

    /// The formats left, best first. Bare numbers are left out unless `numbers`.
    pub(crate) fn formats(&self, numbers: bool) -> impl Iterator<Item = Format> + '_ {
        let left = FORMATS.into_iter().enumerate().filter(|(bit, _)| self.formats >> bit & 1 == 1);
        let left = left.map(|(_, format)| format).filter(move |format| numbers || !format.is_number());
        #[cfg(feature = "table")]
        let left = left.chain((self.formats & NATIVE != 0).then_some(Format::Native));
        left
    }
}

/// The best format that fits a single cell.
pub(crate) fn recognise(cell: &str) -> Option<Format> {
    FORMATS.into_iter().find(|format| format.read(cell).is_some())
}

/// Whether a cell can only be a date.
pub(crate) fn looks_like_date(cell: &str) -> bool {
    recognise(cell).is_some_and(|format| !format.is_number())
}

fn iso(cell: &str) -> Option<Read> {
    let bytes = cell.as_bytes();
    // Digits without dashes are numbers here, and signed years are not dates in a table.
    if bytes.len() < 10 || bytes[4] != b'-' {
        return None;
    }
    let tight;
    let mut text = cell;
    if let Some(bare) = cell.strip_suffix(" UTC").or_else(|| cell.strip_suffix(" GMT")) {
        tight = format!("{bare}Z");
        text = &tight;
    } else if let Some(at) = cell.rfind(" +").or_else(|| cell.rfind(" -")) {
        tight = format!("{}{}", &cell[..at], &cell[at + 1..]);
        text = &tight;
    }
    let pieces = Pieces::parse(text).ok()?;
    let time = pieces.time().unwrap_or(Time::midnight());
    Some(Read::Moment(pieces.date().to_datetime(time), pieces.to_numeric_offset()))
}

/// The name of the time zone that a moment is written with: `Europe/Berlin` in `2024-07-01T06:30+02:00[Europe/Berlin]`.
pub(crate) fn zone_of(cell: &str) -> Option<String> {
    if !cell.ends_with(']') {
        return None;
    }
    match Pieces::parse(cell).ok()?.time_zone_annotation()?.kind() {
        TimeZoneAnnotationKind::Named(name) => Some(name.as_str().to_string()),
        _ => None,
    }
}

fn quarter(cell: &str) -> Option<DateTime> {
    let upper = cell.to_ascii_uppercase();
    let (before, after) = upper.split_once('Q')?;
    let trim = |text: &str| text.trim_matches([' ', '-']).to_string();
    let (year, quarter) = match (trim(before), trim(after)) {
        (year, quarter) if quarter.len() == 1 => (year, quarter),
        (empty, rest) if empty.is_empty() => {
            let (quarter, year) = rest.split_at_checked(1)?;
            (trim(year), quarter.to_string())
        }
        _ => return None,
    };
    let quarter: i8 = quarter.parse().ok().filter(|quarter| (1..=4).contains(quarter))?;
    Some(Date::new(full_year(&year)?, 3 * quarter - 2, 1).ok()?.to_datetime(Time::midnight()))
}

/// A four-digit year.
fn full_year(text: &str) -> Option<i16> {
    if text.len() != 4 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|year| *year >= 1000)
}

fn calendar_date(pattern: &str, text: &str) -> Option<Date> {
    if text.starts_with(['+', '-']) {
        return None;
    }
    let parsed = strtime::parse(pattern, text).ok()?;
    // `%Y` also takes short years; those are for `%y`.
    let year = parsed.year().filter(|year| *year >= 1000)?;
    Date::new(year, parsed.month()?, parsed.day().unwrap_or(1)).ok()
}

/// Splits `03/01/2024 6:30 PM` before the time of day.
fn split_time(cell: &str) -> (&str, &str) {
    let Some(colon) = cell.find(':') else { return (cell, "") };
    match cell[..colon].rfind([' ', 'T']) {
        Some(gap) => (cell[..gap].trim_end(), &cell[gap + 1..]),
        None => (cell, ""),
    }
}

fn clock(text: &str) -> Option<Time> {
    let upper = text.to_ascii_uppercase();
    let patterns: &[&str] = if upper.ends_with('M') {
        &["%I:%M:%S %p", "%I:%M %p", "%I:%M:%S%p", "%I:%M%p"]
    } else {
        &["%H:%M:%S%.f", "%H:%M"]
    };
    patterns.iter().find_map(|pattern| strtime::parse(pattern, &upper).ok()?.to_time().ok())
}

fn number(digits: Digits, cell: &str) -> Option<Read> {
    let whole = cell.strip_suffix(".0").unwrap_or(cell);
    let bare = whole.strip_prefix('-').unwrap_or(whole);
    if bare.is_empty() || bare.len() > 19 || !bare.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: i64 = whole.parse().ok()?;
    let part = |from: usize, to: usize| whole.get(from..to)?.parse::<i8>().ok();
    let date = match (digits, whole.len()) {
        (Digits::Step, _) => return Some(Read::Step(value)),
        // Years of measured series; any four digits would make counts into years.
        (Digits::Year, 4) if (1500..=2200).contains(&value) => Date::new(i16::try_from(value).ok()?, 1, 1).ok()?,
        (Digits::YearMonth, 6) => Date::new(full_year(whole.get(..4)?)?, part(4, 6)?, 1).ok()?,
        (Digits::YearMonthDay, 8) => Date::new(full_year(whole.get(..4)?)?, part(4, 6)?, part(6, 8)?).ok()?,
        (Digits::Epoch, length @ (9 | 10 | 12 | 13 | 15 | 16 | 18 | 19)) => {
            let per_second = 10_i64.pow(match length {
                9 | 10 => 0,
                12 | 13 => 3,
                15 | 16 => 6,
                _ => 9,
            });
            let (seconds, rest) = (value.div_euclid(per_second), value.rem_euclid(per_second));
            let nanos = i32::try_from(rest * (1_000_000_000 / per_second)).ok()?;
            let stamp = Timestamp::new(seconds, nanos).ok()?;
            return Some(Read::Moment(Offset::UTC.to_datetime(stamp), Some(Offset::UTC)));
        }
        _ => return None,
    };
    Some(Read::Moment(date.to_datetime(Time::midnight()), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cell: &str) -> String {
        match recognise(cell).and_then(|format| format.read(cell)) {
            Some(Read::Moment(moment, None)) => moment.to_string(),
            Some(Read::Moment(moment, Some(offset))) => format!("{moment} {offset}"),
            Some(Read::Step(step)) => format!("step {step}"),
            None => "none".into(),
        }
    }

    #[test]
    fn the_usual_spellings_are_read() {
        let table = [
            ("2024-07-01", "2024-07-01T00:00:00"),
            ("2024-7-1", "2024-07-01T00:00:00"),
            ("2024-07-01 06:30", "2024-07-01T06:30:00"),
            ("2024-07-01T06:30:15.5", "2024-07-01T06:30:15.5"),
            ("2024-07-01T06:30:00Z", "2024-07-01T06:30:00 +00"),
            ("2024-07-01 06:30 UTC", "2024-07-01T06:30:00 +00"),
            ("2024-07-01 06:30:00 +02:00", "2024-07-01T06:30:00 +02"),
            ("2010/01/01 00:00", "2010-01-01T00:00:00"),
            ("2024-07", "2024-07-01T00:00:00"),
            ("2024Q3", "2024-07-01T00:00:00"),
            ("Q3 2024", "2024-07-01T00:00:00"),
            ("7/31/2024", "2024-07-31T00:00:00"),
            ("31/7/2024 18:05", "2024-07-31T18:05:00"),
            ("7/31/2024 6:05 PM", "2024-07-31T18:05:00"),
            ("31.07.2024", "2024-07-31T00:00:00"),
            ("7/31/24", "2024-07-31T00:00:00"),
            ("31-Jul-2024", "2024-07-31T00:00:00"),
            ("Jul 2024", "2024-07-01T00:00:00"),
            ("July 4, 2024", "2024-07-04T00:00:00"),
            ("2024", "2024-01-01T00:00:00"),
            ("202407", "2024-07-01T00:00:00"),
            ("20240731", "2024-07-31T00:00:00"),
            ("1720000000", "2024-07-03T09:46:40 +00"),
            ("1720000000250", "2024-07-03T09:46:40.25 +00"),
            ("17", "step 17"),
            ("-3", "step -3"),
        ];
        for (cell, expected) in table {
            assert_eq!(read(cell), expected, "{cell}");
        }
    }

    #[test]
    fn other_text_is_not_a_date() {
        for cell in
            ["", "Paris", "12.5", "2024-13-01", "2024-02-30", "1/2", "3.14.15", "--", "T", ":", "Q", "20Q5", "é:é"]
        {
            assert!(!looks_like_date(cell), "{cell}");
        }
        for cell in ["0x10", "1e5", "99999999999999999999", "- 1"] {
            assert_eq!(recognise(cell), None, "{cell}");
        }
    }

    #[test]
    fn a_column_narrows_to_what_fits_all_cells() {
        let mut column = TimeColumn::new();
        column.see("01/02/2024", 2);
        assert_eq!(column.formats(true).filter_map(Format::order).count(), 2);
        column.see("13/02/2024", 3);
        assert_eq!(column.formats(true).next().and_then(Format::order), Some("day/month/year"));
        column.see("soon", 4);
        assert_eq!(column.formats(true).count(), 0);
        assert_eq!((column.dates_before_failure, column.failure), (2, Some((4, "soon".to_string()))));
    }
}
