//! Random axes against calendar arithmetic done another way, and back from their moments.

use std::time::Duration;

use jiff::ToSpan;
use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "Europe/Dublin",
    "America/New_York",
    "America/St_Johns",
    "America/Santiago",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Australia/Lord_Howe", // half an hour of daylight saving
];

fn every() -> impl Strategy<Value = Duration> {
    let units = prop::sample::select(vec![1_u64, 250, 1000, 60_000, 3_600_000, 86_400_000]);
    let milliseconds =
        (units, prop::sample::select(vec![1_u64, 2, 5, 6, 7, 10, 15, 30])).prop_map(|(unit, n)| unit * n);
    milliseconds.prop_map(Duration::from_millis)
}

fn months() -> impl Strategy<Value = Frequency> {
    let day = prop_oneof![(1_i8..=31).prop_map(MonthDay::Day), Just(MonthDay::Day(31)), Just(MonthDay::LastWeekday)];
    let count = prop::sample::select(vec![1_u32, 2, 3, 4, 6, 12, 24, 60]);
    (count, day).prop_map(|(count, day)| Frequency::Months { count, day })
}

fn frequency() -> impl Strategy<Value = Frequency> {
    prop_oneof![every().prop_map(Frequency::Every), months(), Just(Frequency::BusinessDays), Just(Frequency::WEEKLY)]
}

fn start() -> impl Strategy<Value = DateTime> {
    let date = (1950_i16..2060, 1_i8..=12, 1_i8..=28).prop_map(|(year, month, day)| Date::constant(year, month, day));
    (date, 0_i8..24, prop::sample::select(vec![0_i8, 15, 59]))
        .prop_map(|(date, hour, minute)| date.at(hour, minute, 0, 0))
}

/// The row `row` of an axis, counted by hand from its start.
fn by_hand(start: DateTime, frequency: Frequency, row: i64) -> DateTime {
    match frequency {
        Frequency::Every(step) => {
            let step = jiff::SignedDuration::try_from(step).unwrap();
            start.checked_add(step.checked_mul(row as i32).unwrap()).unwrap()
        }
        Frequency::BusinessDays => {
            let mut at = start;
            for _ in 0..row.abs() {
                at = at.checked_add(row.signum().days()).unwrap();
                while matches!(at.weekday(), Weekday::Saturday | Weekday::Sunday) {
                    at = at.checked_add(row.signum().days()).unwrap();
                }
            }
            at
        }
        Frequency::Months { count, day } => {
            let first = start.date().first_of_month().checked_add((row * i64::from(count)).months()).unwrap();
            let mut date = first.last_of_month();
            let keeps = |date: Date| match day {
                MonthDay::Day(day) => date.day() <= day,
                MonthDay::LastWeekday => !matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday),
            };
            while !keeps(date) {
                date = date.yesterday().unwrap();
            }
            date.to_datetime(start.time())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn rows_are_where_counting_by_hand_puts_them(start in start(), frequency in frequency(), row in -300_i64..300) {
        let calendar = Calendar::new(start, frequency);
        let first = calendar.at(0).unwrap();
        prop_assert!(first >= start);
        let moment = by_hand(first, frequency, row);
        prop_assert_eq!(calendar.at(row), Some(moment));
        prop_assert_eq!(calendar.row(moment), Some(row));
    }

    #[test]
    fn a_history_tells_its_future(
        start in start(), frequency in frequency(), rows in 30_i64..80, gap in 5_i64..9, odd in 0_i64..5,
    ) {
        let calendar = Calendar::new(start, frequency);
        // Some rows are missing, but not the ends.
        let kept: Vec<i64> = (0..rows).filter(|row| *row < 2 || *row >= rows - 2 || row % gap != odd).collect();
        let moments: Vec<DateTime> = kept.iter().map(|&row| calendar.at(row).unwrap()).collect();
        let grid = Grid::infer(&moments).unwrap().unwrap();
        prop_assert_eq!(&grid.rows, &kept.iter().map(|&row| row as usize).collect::<Vec<_>>());
        for row in rows..rows + 60 {
            prop_assert_eq!(grid.calendar.at(row), calendar.at(row), "{} as {}", frequency, grid.calendar.frequency());
        }
    }

    #[test]
    fn clocks_of_zones_are_followed(
        start in start(), step in every(), zone in prop::sample::select(&ZONES[..]), row in -3000_i64..3000,
    ) {
        let zone = TimeZone::get(zone).unwrap();
        let calendar = Calendar::new(start, Frequency::Every(step)).with_zone(zone.clone());
        let first = zone.to_zoned_datetime(start).unwrap();
        let moment = if step.as_secs().is_multiple_of(DAY) && step.subsec_nanos() == 0 {
            first.checked_add((row * (step.as_secs() / DAY) as i64).days()).unwrap()
        } else {
            first.checked_add(jiff::SignedDuration::try_from(step).unwrap().checked_mul(row as i32).unwrap()).unwrap()
        };
        let got = calendar.moment(row).unwrap();
        // A first row that clocks skip moves the rest of the exact axis with it, but not that of days.
        prop_assert_eq!((got.datetime(), got.offset()), (moment.datetime(), Some(moment.offset())));
        let back = calendar.row(got.datetime()).unwrap();
        prop_assert_eq!(calendar.at(back), Some(got.datetime()));
    }
}

#[test]
fn the_same_instants_in_another_zone() {
    let zone = |name| TimeZone::get(name).unwrap();
    let noon: DateTime = "2024-10-26T12:00".parse().unwrap();
    let berlin = Calendar::new(noon, Frequency::HOURLY).with_zone(zone("Europe/Berlin"));
    let shown = |calendar: &Calendar, row| calendar.moment(row).unwrap().to_string();
    assert_eq!(
        [14, 15, 16].map(|row| shown(&berlin, row)),
        ["2024-10-27 02:00+02:00", "2024-10-27 02:00+01:00", "2024-10-27 03:00+01:00"]
    );
    let york = berlin.clone().with_zone(zone("America/New_York"));
    assert_eq!(shown(&york, 15), "2024-10-26 21:00-04:00");
    let utc = Calendar::new(noon, Frequency::DAILY).with_offset(Some(Offset::UTC)).with_zone(zone("Asia/Kolkata"));
    assert_eq!(shown(&utc, 1), "2024-10-27 17:30+05:30");
    // Months keep the time of day, whatever the offset.
    let months = Calendar::new(noon, Frequency::MONTH_END).with_zone(zone("Europe/Berlin"));
    let months = [0, 1].map(|row| months.clone().with_precision(Precision::Minute).moment(row).unwrap().to_string());
    assert_eq!(months, ["2024-10-31 12:00+01:00", "2024-11-30 12:00+01:00"]);
}
