//! Tables of series, and their times.

use jiff::civil::{DateTime, date};
use moesaic::{Calendar, Grid, Index, Series, Table, TableOptions};
use moesaic_models::train::data::csv::parse_csv;

use super::{Bound, Layout, Parser};

/// The 100 missing rows that one row may stand for, of 4 bytes in each value column, where a row takes at least 2 bytes of
/// text a column; and what is known of each of at most 65,536 columns.
const TABLE: Bound = Bound { base: 128 << 10, per_byte: 600 };

/// A table as a user gives it, read with and without options.
pub fn table() -> Parser {
    Parser {
        name: "table",
        seeds: || {
            let small = [
                "date;wert\n31.01.2024;1.234,5\n29.02.2024;NA\n31.03.2024;3,25\n",
                "time,a,b\n2024-01-01T00:00:00+01:00,1,\"2,000\"\n2024-01-01T01:00:00+01:00,,3\n\
                 2024-01-01T03:00:00+01:00,5,-\n",
                "year,y\n2001,1\n2002,2\n2004,3\n",
                "when,y\nQ1 2024,1\nQ2 2024,2\n",
                "day,shop,sold\n2024-01-01,a,1\n2024-01-01,b,2\n2024-01-02,a,3\n2024-01-02,b,4\n",
                "step\tshop\ty\tz\n10\tb\t1\t0\n20\tb\t2\t1\n10\ta\t3\t-1\n40\ta\t4\tnan\n",
                "\u{feff}time|y\r\n2024-03-30 23:30:00.5Z|1e3\r\n2024-03-30 23:30:01Z|\r\n",
            ];
            let examples =
                [include_str!("../../examples/data/co2.csv"), include_str!("../../examples/data/elnino.csv")];
            let head = |text: &str| text.lines().take(30).map(|line| format!("{line}\n")).collect::<String>();
            small.iter().map(|text| text.to_string()).chain(examples.map(head)).map(String::into_bytes).collect()
        },
        parse: |input| {
            let plain = read(input, &TableOptions::default());
            let long = read(input, &TableOptions::default().id("shop"));
            let numbered = read(input, &{
                let mut options = TableOptions::default();
                options.number_rows = true;
                options
            });
            plain.or(long).or(numbered)
        },
        bound: TABLE,
        layout: Layout::Plain,
    }
}

/// The time column of a table: each line of the input is a cell.
pub fn times() -> Parser {
    Parser {
        name: "times",
        seeds: || {
            let columns = [
                "2024-07-01\n2024-07-02\n2024-07-03",
                "2024-07-01T06:30:15.5\n2024-07-01T06:30:16.5",
                "2024-07-01 06:30 UTC\n2024-07-01 07:30 GMT\n2024-07-01 08:30 +00:00",
                "2024-03-31T01:00+01:00\n2024-03-31T03:00+02:00\n2024-03-31T04:00+02:00",
                "2010/01/01 00:00\n2010/01/01 00:10",
                "2024Q3\n2024-Q4\nQ1 2025",
                "12/31/2023\n1/31/2024\n2/29/2024",
                "31/7/2024 18:05\n1/8/2024 18:05",
                "7/31/2024 6:05 PM\n7/31/2024 7:05 PM\n7/31/2024 9:05 PM",
                "31-Jul-2024\n31-Aug-2024\n30-Sep-2024",
                "July 4, 2024\nJuly 5, 2024\nJuly 8, 2024",
                "2019\n2020\n2021",
                "202311\n202312\n202401",
                "20240228\n20240229\n20240301",
                "1720000000\n1720003600\n1720007200",
                "1720000000250\n1720000000500",
                "-3\n0\n3\n9",
                "Jan 2024\nFeb 2024\nMay 2024",
            ];
            columns.iter().map(|text| text.as_bytes().to_vec()).collect()
        },
        parse: |input| {
            let mut table = b"time\ty\n".to_vec();
            for (row, cell) in input.split(|&byte| byte == b'\n').enumerate() {
                table.extend_from_slice(cell);
                table.extend_from_slice(if row % 2 == 0 { b"\t1\n" } else { b"\t2\n" });
            }
            read(&table, &TableOptions::default().time("time"))
        },
        // A cell of no bytes is a row of three, beside the table itself.
        bound: Bound { base: TABLE.base, per_byte: 4 * TABLE.per_byte },
        layout: Layout::Plain,
    }
}

fn read(input: &[u8], options: &TableOptions) -> Result<(), String> {
    let table = Table::parse_csv("t.csv", input, options).map_err(|error| error.to_string())?;
    assert!(!table.series.is_empty());
    for note in &table.notes {
        assert!(!note.chars().any(char::is_control) && note.len() <= 500, "{note:?}");
    }
    for series in &table.series {
        let rows = i64::try_from(series.values.len()).unwrap();
        assert!(rows as usize <= 100 * input.len(), "{rows} rows of {} bytes", input.len());
        assert!(!series.values.iter().any(|value| value.is_infinite()));
        for row in [0, rows - 1, rows, i64::MAX] {
            let _ = series.stamp(row).map(|stamp| (stamp.to_string(), serde_json::to_string(&stamp).unwrap()));
        }
        if let Index::Calendar(calendar) = &series.index {
            used(calendar);
        }
    }
    Ok(())
}

/// Asks a calendar for all that forecasting asks it.
fn used(calendar: &Calendar) {
    let step = calendar.frequency();
    assert!(!step.to_string().is_empty() && step.season() >= 1);
    let _ = step.usual_horizon();
    for row in [0, 1, -1, 7, 1000, i64::MIN, i64::MAX] {
        if let Some(moment) = calendar.at(row) {
            assert_eq!(calendar.row(moment), Some(row), "{calendar:?}");
        }
    }
}

/// Moments that a program gives: eight bytes each.
pub fn moments() -> Parser {
    Parser {
        name: "moments",
        seeds: || {
            let rows = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
            const DAY: u64 = 86_400 << 16;
            vec![
                rows(&[0, DAY, 2 * DAY, 5 * DAY]),
                rows(&[30 * DAY, 59 * DAY, 90 * DAY, 120 * DAY]),
                rows(&[0, 3600 << 16, 7200 << 16, 86_400 << 16]),
                rows(&[1, 2, 4, 5, 9]),
                rows(&[0, 366 * DAY, 731 * DAY, 1096 * DAY]),
            ]
        },
        parse: |input| {
            let moments: Vec<DateTime> = input.as_chunks::<8>().0.iter().map(|&bytes| moment(bytes)).collect();
            match Grid::infer(&moments) {
                Ok(Some(grid)) => {
                    assert_eq!(grid.rows.len(), moments.len());
                    assert!(grid.len() <= 100 * moments.len(), "{} rows of {}", grid.len(), moments.len());
                    for (&row, &moment) in grid.rows.iter().zip(&moments) {
                        assert_eq!(grid.calendar.at(row as i64), Some(moment), "{moments:?}");
                    }
                    used(&grid.calendar);
                }
                Ok(None) => assert!(moments.len() < 2),
                Err(irregular) => assert!(irregular.to_string().contains("evenly"), "{irregular}"),
            }
            let values = vec![1.0; moments.len()];
            Series::from_moments("y", &moments, &values).map(drop).map_err(|error| error.to_string())
        },
        bound: Bound { base: 16 << 10, per_byte: 100 },
        layout: Layout::Plain,
    }
}

/// Any of the moments from the year -9999 to 9999; small numbers are fractions of a second after 2024 began.
fn moment(bytes: [u8; 8]) -> DateTime {
    let number = u64::from_le_bytes(bytes);
    let (first, last) = (DateTime::MIN, DateTime::MAX);
    let start = date(2024, 1, 1).at(0, 0, 0, 0);
    let (seconds, part) = ((number >> 16) as i64, (number & 0xffff) as i32);
    let span = jiff::SignedDuration::new(seconds, part * 15_000);
    // Beyond the last year it goes on from the first.
    start.checked_add(span).unwrap_or_else(|_| {
        let days = (last.duration_until(first).as_hours() / 24).unsigned_abs();
        first.saturating_add(jiff::SignedDuration::from_hours(24 * (number % days.max(1)) as i64))
    })
}

/// A file of training series.
pub fn train_csv() -> Parser {
    Parser {
        name: "train_csv",
        seeds: || {
            let small =
                ["time,y\n2020,1\n2021,2.5\n2022,\n", "when,a,b\nmonday,1,NA\ntuesday,-3e2,4\n", "\u{feff}y\n1\n2\n"];
            small.iter().map(|text| text.as_bytes().to_vec()).collect()
        },
        parse: |input| {
            let series = parse_csv("t.csv", input).map_err(|error| moesaic::candle_message(&error))?;
            assert!(series.iter().all(|series| !series.values.iter().any(|value| value.is_infinite())));
            Ok(())
        },
        bound: Bound { base: 128 << 10, per_byte: 100 },
        layout: Layout::Plain,
    }
}
