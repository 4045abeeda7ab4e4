//! Local time: what the clocks of a time zone show, and which instant a local time means.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// How the moments of an axis follow from its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clock {
    /// A wall clock that nobody moves; moments are written with this offset from UTC, if any.
    Wall(Option<Offset>),
    /// The wall clock of a zone. Steps keep the time of day, as days and months do; a time that clocks skip becomes the one
    /// that they show instead, of two alike the first is meant.
    Local(TimeZone),
    /// The wall clock of a zone. Steps are exact lengths of time, as hours are: they are counted in UTC.
    Exact(TimeZone),
}

impl Clock {
    /// What the clock shows at a step of the axis, and its offset from UTC. `None` beyond the calendar.
    pub fn show(&self, step: DateTime) -> Option<(DateTime, Option<Offset>)> {
        let (zone, stamp) = match self {
            Clock::Wall(offset) => return Some((step, *offset)),
            Clock::Local(zone) => (zone, zone.to_timestamp(step).ok()?),
            Clock::Exact(zone) => (zone, Offset::UTC.to_timestamp(step).ok()?),
        };
        let offset = zone.to_offset(stamp);
        Some((offset.to_datetime(stamp), Some(offset)))
    }

    /// The step of the axis at which the clock shows `wall`; the first of two.
    pub fn step(&self, wall: DateTime) -> Option<DateTime> {
        match self {
            Clock::Wall(_) | Clock::Local(_) => Some(wall),
            Clock::Exact(zone) => Some(Offset::UTC.to_datetime(zone.to_timestamp(wall).ok()?)),
        }
    }

    /// The step of the axis for a moment written with an offset from UTC, or without one as the clock shows it.
    pub fn place(&self, moment: DateTime, offset: Option<Offset>) -> Option<DateTime> {
        let Some(stamp) = offset.and_then(|offset| offset.to_timestamp(moment).ok()) else { return self.step(moment) };
        Some(match self {
            Clock::Wall(Some(own)) => own.to_datetime(stamp),
            Clock::Wall(None) => moment,
            Clock::Local(zone) => zone.to_datetime(stamp),
            Clock::Exact(_) => Offset::UTC.to_datetime(stamp),
        })
    }

    /// The zone, if the clock stands in one.
    pub fn zone(&self) -> Option<&TimeZone> {
        match self {
            Clock::Wall(_) => None,
            Clock::Local(zone) | Clock::Exact(zone) => Some(zone),
        }
    }
}

/// The time zone of this IANA name, in any case.
pub(crate) fn zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name.trim()).ok().filter(|zone| !zone.is_unknown() && zone.iana_name().is_some())
}

/// A moment in UTC, as a civil time. `None` beyond the calendar.
pub(crate) fn utc(moment: DateTime, offset: Offset) -> Option<DateTime> {
    moment.checked_sub(SignedDuration::from_secs(i64::from(offset.seconds()))).ok()
}

/// What the clocks of `zone` show at a moment in UTC.
pub(crate) fn local(utc: DateTime, zone: &TimeZone) -> Option<DateTime> {
    let stamp: Timestamp = Offset::UTC.to_timestamp(utc).ok()?;
    Some(zone.to_datetime(stamp))
}

/// Why a local time means no instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// Clocks went forward over it.
    Skipped,
    /// Clocks went back over it, it comes twice, and the rows are in no order that tells which is which.
    Unordered,
    /// It leaves the calendar.
    Beyond,
}

/// The moments in UTC of rows of local times. Where clocks go back, the order of the rows (ascending or descending) tells the
/// first pass from the second; a time that comes once is of the first.
///
/// # Errors
/// The row that means no instant, and why.
pub(crate) fn instants(times: &[DateTime], zone: &TimeZone) -> Result<Vec<DateTime>, (usize, Unclear)> {
    let mut all = Vec::with_capacity(times.len());
    let mut twice: Vec<(usize, Offset)> = Vec::new();
    for (row, &time) in times.iter().enumerate() {
        let offset = match zone.to_ambiguous_timestamp(time).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset,
            AmbiguousOffset::Gap { .. } => return Err((row, Unclear::Skipped)),
            AmbiguousOffset::Fold { before, after } => {
                twice.push((row, after));
                before
            }
        };
        all.push(utc(time, offset).ok_or((row, Unclear::Beyond))?);
    }
    if twice.len() < 2 {
        return Ok(all);
    }
    let mut in_fold = vec![false; times.len()];
    twice.iter().for_each(|&(row, _)| in_fold[row] = true);
    // Within a fold the order of local times is not that of time.
    let in_order = |before: fn(&DateTime, &DateTime) -> bool| {
        (1..all.len()).all(|row| in_fold[row - 1] && in_fold[row] || before(&all[row - 1], &all[row]))
    };
    if !in_order(DateTime::le) {
        if !in_order(DateTime::ge) {
            let mut seen: Vec<(DateTime, usize)> = twice.iter().map(|&(row, _)| (times[row], row)).collect();
            seen.sort_unstable();
            return match seen.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                Some(pair) => Err((pair[1].1, Unclear::Unordered)),
                None => Ok(all),
            };
        }
        twice.reverse();
    }
    // Rows of one fold follow each other; the step back within it is where its second pass begins.
    let mut last: Option<(DateTime, bool)> = None;
    for (row, after) in twice {
        let (time, first) = (times[row], all[row]);
        let fold = utc(time, after).map_or(SignedDuration::ZERO, |second| first.duration_until(second));
        let second = match last {
            Some((before, second)) if before.duration_until(time) < fold => second || time <= before,
            _ => false,
        };
        if second {
            all[row] = utc(time, after).ok_or((row, Unclear::Beyond))?;
        }
        last = Some((time, second));
    }
    Ok(all)
}

/// The local times with one time of day, if rows a day or more apart have one: a time that clocks skipped counts as the one
/// that was meant.
pub(crate) fn one_time_of_day(times: &[DateTime], zone: &TimeZone) -> Option<Vec<DateTime>> {
    [times.first()?, times.last()?].into_iter().find_map(|model| {
        let even = |time: &DateTime| {
            let meant = time.date().to_datetime(model.time());
            let same = meant == *time || local_of(meant, zone) == Some(*time);
            same.then_some(meant)
        };
        times.iter().map(even).collect()
    })
}

/// What clocks show at a local time: another one if they skip it.
fn local_of(time: DateTime, zone: &TimeZone) -> Option<DateTime> {
    Some(zone.to_datetime(zone.to_timestamp(time).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        zone("europe/berlin").unwrap()
    }

    fn in_utc(times: &[&str]) -> Result<Vec<String>, (usize, Unclear)> {
        let times: Vec<DateTime> = times.iter().map(|time| time.parse().unwrap()).collect();
        Ok(instants(&times, &berlin())?.iter().map(|time| time.strftime("%dT%H:%M").to_string()).collect())
    }

    #[test]
    fn names_are_known_on_every_machine() {
        assert_eq!(berlin().iana_name(), Some("Europe/Berlin"));
        for name in ["", "Mars/Base", "Europe", "../../etc/passwd", "Etc/Unknown", "\u{0}", "Europe/Berlin\n/x"] {
            assert!(zone(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn hours_that_come_twice_are_told_apart_by_order() {
        let autumn = ["2024-10-27T01:00", "2024-10-27T02:00", "2024-10-27T02:00", "2024-10-27T03:00"];
        assert_eq!(in_utc(&autumn).unwrap(), ["26T23:00", "27T00:00", "27T01:00", "27T02:00"]);
        let mut newest_first = autumn;
        newest_first.reverse();
        assert_eq!(in_utc(&newest_first).unwrap(), ["27T02:00", "27T01:00", "27T00:00", "26T23:00"]);
        // Some rows are missing in either pass.
        let halves = ["2024-10-27T02:00", "2024-10-27T02:30", "2024-10-27T02:15", "2024-10-27T02:45"];
        assert_eq!(in_utc(&halves).unwrap(), ["27T00:00", "27T00:30", "27T01:15", "27T01:45"]);
        // Once is the first pass, and every year anew.
        let yearly = ["2022-10-30T02:30", "2023-10-29T02:30", "2024-10-27T02:30"];
        assert_eq!(in_utc(&yearly).unwrap(), ["30T00:30", "29T00:30", "27T00:30"]);
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        assert_eq!(in_utc(&["2024-03-31T01:00", "2024-03-31T02:30"]), Err((1, Unclear::Skipped)));
        let shuffled =
            ["2024-10-27T02:00", "2024-10-27T05:00", "2024-10-27T01:00", "2024-10-27T02:00", "2024-10-27T04:00"];
        assert_eq!(in_utc(&shuffled), Err((3, Unclear::Unordered)));
        assert_eq!(in_utc(&shuffled[..3]).unwrap(), ["27T00:00", "27T04:00", "26T23:00"]);
        assert_eq!(instants(&[DateTime::MIN], &berlin()), Err((0, Unclear::Beyond)));
    }

    #[test]
    fn midnights_that_clocks_skip_are_midnights() {
        let santiago = zone("America/Santiago").unwrap();
        let times: Vec<DateTime> =
            ["2023-09-02T00:00", "2023-09-03T01:00", "2023-09-04T00:00"].map(|time| time.parse().unwrap()).into();
        let even = one_time_of_day(&times, &santiago).unwrap();
        assert_eq!(even[1].to_string(), "2023-09-03T00:00:00");
        assert_eq!(one_time_of_day(&times, &berlin()), None);
    }
}
