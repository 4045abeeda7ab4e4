use super::*;
use crate::Index;

fn parse(text: &str) -> Result<Table> {
    Table::parse_csv("t.csv", text.as_bytes(), &TableOptions::default())
}

fn good(text: &str) -> Table {
    parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn shown(series: &Series) -> Vec<String> {
    let rows = series.values.iter().enumerate();
    rows.map(|(row, value)| format!("{}={value}", series.stamp(row as i64).unwrap())).collect()
}

#[test]
fn a_plain_table_is_read() {
    let table = good("date,sales\n2024-01-31,1.5\n2024-02-29,2.5\n");
    assert_eq!(table.time.as_deref(), Some("date"));
    assert_eq!(table.frequency, Some(Frequency::MONTH_END));
    assert_eq!(table.series[0].name, "sales");
    assert_eq!(shown(&table.series[0]), ["2024-01-31=1.5", "2024-02-29=2.5"]);
    assert!(table.notes.is_empty());
}

#[test]
fn dialects_do_not_matter() {
    let expected = ["2024-01-01=1234.5", "2024-01-02=NaN", "2024-01-03=3"];
    for text in [
        "time,y\n2024-01-01,1234.5\n2024-01-02,\n2024-01-03,3\n",
        "\u{feff}time,y\r\n2024-01-01,1234.5\r\n2024-01-02,NA\r\n2024-01-03,3",
        "time;y\n01.01.2024;1.234,5\n02.01.2024;\n03.01.2024;3,0\n",
        "time\ty\n2024/01/01\t1234.5\n2024/01/02\tnan\n2024/01/03\t3\n",
        "\"time\",\"y\"\n\"2024-01-01\",\"1,234.5\"\n\"2024-01-02\",\"-\"\n\"2024-01-03\",\"3\"\n",
        "\n\ny|time\n1234.5|2024-01-01\n?|2024-01-02\n3|2024-01-03\n\n",
        "time,y,,\n2024-01-01,1234.5,,\n2024-01-02,,,\n2024-01-03,3,,\n,,,\n",
        "2024-01-01,1234.5\n2024-01-02,\n2024-01-03,3\n",
    ] {
        let table = good(text);
        assert_eq!(table.series.len(), 1, "{text:?}");
        assert_eq!(shown(&table.series[0]), expected, "{text:?}");
    }
}

#[test]
fn every_column_of_numbers_is_a_series() {
    let table = good("day,city,a,b,c\n2024-01-01,Bonn,1,2,\n2024-01-02,Köln,3,4,\n");
    let names: Vec<_> = table.series.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
    let options = TableOptions::default().columns(["B"]);
    let table = Table::parse_csv("t", b"day,a,b\n2024-01-01,1,2\n2024-01-02,3,4\n", &options).unwrap();
    assert_eq!(table.series[0].values, [2.0, 4.0]);
}

#[test]
fn time_is_found_by_name_then_by_content() {
    assert_eq!(good("a,b\n2020,5\n2021,6\n").time, None);
    assert_eq!(good("year,b\n2020,5\n2021,6\n").time.as_deref(), Some("year"));
    assert_eq!(good("when,b\n2020-01-01,5\n2021-01-01,6\n").time.as_deref(), Some("when"));
    assert_eq!(good("b,Timestamp\n5,1720000000\n6,1720003600\n").frequency, Some(Frequency::HOURLY));
    let index = &good(",b\n0,5\n1,6\n2,7\n").series[0].index;
    assert_eq!(*index, Index::Steps { first: 0, step: 1 });
    let options = TableOptions::default().time("when");
    let table = Table::parse_csv("t", b"date,when,y\n2020-01-01,2024-01,1\n2020-01-02,2024-02,2\n", &options).unwrap();
    assert_eq!(shown(&table.series[0]), ["2024-01=1", "2024-02=2"]);
    // Response times are values: a lone column is what to forecast.
    assert_eq!(good("time\n12\n15\n").series[0].values, [12.0, 15.0]);
}

#[test]
fn rows_are_put_in_order_and_gaps_filled() {
    let table = good("date,y\n2024-01-05,5\n2024-01-03,3\n2024-01-02,2\n2024-01-01,1\n");
    let expected = ["2024-01-01=1", "2024-01-02=2", "2024-01-03=3", "2024-01-04=NaN", "2024-01-05=5"];
    assert_eq!(shown(&table.series[0]), expected);
    assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
}

#[test]
fn offsets_from_utc_are_kept_or_reconciled() {
    let table = good("time,y\n2024-01-01T00:00+01:00,1\n2024-01-01T01:00+01:00,2\n");
    assert_eq!(table.series[0].stamp(2).unwrap().to_string(), "2024-01-01 02:00+01:00");
    // Hourly across the start of daylight saving time.
    let table = good("time,y\n2024-03-31T01:00+01:00,1\n2024-03-31T03:00+02:00,2\n2024-03-31T04:00+02:00,3\n");
    assert_eq!(shown(&table.series[0])[0], "2024-03-31 00:00Z=1");
    assert_eq!(table.series[0].values.len(), 3);
    // Local midnights across it.
    let table = good(
        "time,y\n2024-03-30T00:00+01:00,1\n2024-03-31T00:00+01:00,2\n2024-04-01T00:00+02:00,3\n2024-04-02T00:00+02:00,4\n",
    );
    assert_eq!(shown(&table.series[0])[3], "2024-04-02=4");
}

/// The table in a time zone.
fn in_zone(text: &str, zone: &str) -> Result<Table> {
    Table::parse_csv("t.csv", text.as_bytes(), &TableOptions::default().zone(zone))
}

#[test]
fn local_times_go_through_daylight_saving() {
    // Hourly, local: 02:00 is skipped in spring and comes twice in autumn; no row is missing.
    let spring = "time,y\n2024-03-31 00:00,1\n2024-03-31 01:00,2\n2024-03-31 03:00,3\n2024-03-31 04:00,4\n";
    let table = in_zone(spring, "Europe/Berlin").unwrap();
    assert_eq!(
        shown(&table.series[0]),
        [
            "2024-03-31 00:00+01:00=1",
            "2024-03-31 01:00+01:00=2",
            "2024-03-31 03:00+02:00=3",
            "2024-03-31 04:00+02:00=4"
        ]
    );
    assert!(table.notes.is_empty(), "{:?}", table.notes);
    let autumn = "time,y\n2024-10-27 01:00,1\n2024-10-27 02:00,2\n2024-10-27 02:00,3\n";
    let table = in_zone(autumn, "europe/berlin").unwrap();
    assert_eq!(table.series[0].values, [1.0, 2.0, 3.0]);
    let next: Vec<String> = (2..5).map(|row| table.series[0].stamp(row).unwrap().to_string()).collect();
    assert_eq!(next, ["2024-10-27 02:00+01:00", "2024-10-27 03:00+01:00", "2024-10-27 04:00+01:00"]);
    // Without the zone the second 02:00 is a duplicate, and the message says what would help.
    let message = parse(autumn).unwrap_err().to_string();
    assert!(message.contains("line 4") && message.contains("(--zone)"), "{message}");
    // The future crosses the change although the history does not.
    let table = in_zone("time,y\n2024-03-30 22:00,1\n2024-03-30 23:00,2\n", "Europe/Berlin").unwrap();
    let next: Vec<String> = (3..6).map(|row| table.series[0].stamp(row).unwrap().to_string()).collect();
    assert_eq!(next, ["2024-03-31 01:00+01:00", "2024-03-31 03:00+02:00", "2024-03-31 04:00+02:00"]);
    // Days and shifts of six hours keep the time of day.
    let days = "day,y\n2024-03-29,1\n2024-03-30,2\n2024-03-31,3\n2024-04-01,4\n";
    let table = in_zone(days, "Europe/Berlin").unwrap();
    assert_eq!((shown(&table.series[0])[3].as_str(), table.frequency), ("2024-04-01=4", Some(Frequency::DAILY)));
    let shifts = "t,y\n2024-03-30 18:00,1\n2024-03-31 00:00,2\n2024-03-31 06:00,3\n2024-03-31 12:00,4\n";
    let table = in_zone(shifts, "Europe/Berlin").unwrap();
    assert_eq!((table.series[0].values.len(), shown(&table.series[0])[2].as_str()), (4, "2024-03-31 06:00+02:00=3"));
}

#[test]
fn stamps_with_offsets_are_put_in_the_zone() {
    let rows = ["2024-03-30T23:00Z,1", "2024-03-31T00:00Z,2", "2024-03-31T01:00Z,3"];
    let table = in_zone(&format!("time,y\n{}\n", rows.join("\n")), "Europe/Berlin").unwrap();
    assert_eq!(shown(&table.series[0])[1..], ["2024-03-31 01:00+01:00=2", "2024-03-31 03:00+02:00=3"]);
    // Seconds since 1970 at local midnight are days.
    let table = in_zone("time,y\n1711753200,1\n1711839600,2\n1711922400,3\n", "Europe/Berlin").unwrap();
    assert_eq!((shown(&table.series[0])[2].as_str(), table.frequency), ("2024-04-01=3", Some(Frequency::DAILY)));
    // So they are where clocks skip midnight.
    let chile = "time,y\n2023-09-02T04:00Z,1\n2023-09-03T04:00Z,2\n2023-09-04T03:00Z,3\n2023-09-05T03:00Z,4\n";
    let table = in_zone(chile, "America/Santiago").unwrap();
    assert_eq!((shown(&table.series[0])[3].as_str(), table.frequency), ("2023-09-05=4", Some(Frequency::DAILY)));
    // A zone that the stamps name needs no option.
    let named = "time,y\n2024-03-31T01:00[Europe/Berlin],1\n2024-03-31T03:00[Europe/Berlin],2\n";
    assert_eq!(shown(&good(named).series[0])[1], "2024-03-31 03:00+02:00=2");
    assert_eq!(shown(&in_zone(named, "UTC").unwrap().series[0])[1], "2024-03-31 01:00Z=2");
}

#[test]
fn zones_that_do_not_fit_are_refused() {
    let rows = |times: &[&str]| times.iter().fold("time,y\n".to_string(), |text, time| text + time + ",1\n");
    let cases = [
        (rows(&["2024-01-01"]), Some("Mars/Base"), "'Mars/Base' is not a time zone (--zone): give an IANA name"),
        (
            rows(&["2024-03-31 01:30", "2024-03-31 02:30"]),
            Some("Europe/Berlin"),
            "t.csv, line 3, column 'time': '2024-03-31 02:30:00' does not exist in Europe/Berlin",
        ),
        (
            rows(&["2024-10-27 02:00", "2024-10-27 05:00", "2024-10-27 01:00", "2024-10-27 02:00"]),
            Some("Europe/Berlin"),
            "t.csv, line 5, column 'time': '2024-10-27 02:00:00' comes twice in Europe/Berlin",
        ),
        (
            rows(&["2024-10-27 02:00", "2024-10-27 02:00", "2024-10-27 02:00"]),
            Some("Europe/Berlin"),
            "t.csv, line 4, column 'time': has the same time as line 3",
        ),
        (
            rows(&["2024-01-01T00:00[Europe/Berlin]", "2024-01-01T00:00[Asia/Tokyo]"]),
            None,
            "t.csv, line 3, column 'time': has the time zone 'Asia/Tokyo' where line 2 has 'Europe/Berlin'",
        ),
        (
            rows(&["2024-01-01T00:00[Mars/Base]", "2024-01-01T01:00[Mars/Base]"]),
            None,
            "t.csv, line 2, column 'time': 'Mars/Base' is no time zone that is known here",
        ),
        (
            rows(&["2024-01-01T00:00Z", "2024-01-01T01:00"]),
            Some("Europe/Berlin"),
            "t.csv, line 3, column 'time': has an offset from UTC on some rows only",
        ),
    ];
    for (text, zone, expected) in cases {
        let options = TableOptions { zone: zone.map(String::from), ..TableOptions::default() };
        let message = Table::parse_csv("t.csv", text.as_bytes(), &options).expect_err(&text).to_string();
        assert!(message.starts_with(expected), "{text:?} gives {message:?}");
    }
    // Nothing to place is a remark.
    let table = in_zone("y\n1\n2\n", "Europe/Berlin").unwrap();
    assert!(table.notes[0].contains("no times"), "{:?}", table.notes);
}

#[test]
fn long_tables_have_zones_too() {
    let mut text = String::from("shop,time,y\n");
    for shop in ["a", "b"] {
        for hour in ["01:00", "02:00", "02:00", "03:00"] {
            text += &format!("{shop},2024-10-27 {hour},1\n");
        }
    }
    text += "c,2024-10-27 03:00,5\n";
    let table = in_zone(&text, "Europe/Berlin").unwrap();
    let (lengths, id): (Vec<usize>, _) = (table.series.iter().map(|s| s.values.len()).collect(), table.id.as_deref());
    assert_eq!((lengths, id), (vec![4, 4, 1], Some("shop")));
    assert_eq!(table.series[2].stamp(1).unwrap().to_string(), "2024-10-27 04:00+01:00");
    // A series with a single row, written with another offset than the others.
    let text = "k,time,y\na,2024-01-01T00:00+01:00,1\na,2024-01-01T01:00+01:00,1\nb,2024-01-01T00:00Z,1\n";
    let table = Table::parse_csv("t", text.as_bytes(), &TableOptions::default().id("k")).unwrap();
    assert_eq!(table.series[1].stamp(0).unwrap().to_string(), "2024-01-01 01:00+01:00");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None, ..proptest::prelude::ProptestConfig::with_cases(48)
    })]

    /// Hours and half hours around a change of clocks, written as clocks show them, come back complete.
    #[test]
    fn local_rows_around_a_change_of_clocks_come_back(
        zone in proptest::sample::select(vec![
            "Europe/Berlin", "America/New_York", "America/St_Johns", "America/Santiago", "Australia/Lord_Howe",
        ]),
        since in 0_i64..1_500_000_000, before in 4_i64..40, rows in 50_i64..120, minutes in proptest::sample::select(vec![30_i64, 60]),
        newest_first in proptest::bool::ANY,
    ) {
        let place = jiff::tz::TimeZone::get(zone).unwrap();
        // Half an hour of daylight saving moves hours to the half hour, where one that comes once would be of the second pass.
        let minutes = if zone == "Australia/Lord_Howe" { 30 } else { minutes };
        let change = place.following(jiff::Timestamp::from_second(since).unwrap()).next().unwrap().timestamp();
        let step = jiff::SignedDuration::from_mins(minutes);
        let at = |row: i64| change.checked_add(step.checked_mul((row - before) as i32).unwrap()).unwrap();
        let mut lines: Vec<String> =
            (0..rows).map(|row| format!("{},{row}\n", place.to_datetime(at(row)).strftime("%Y-%m-%d %H:%M"))).collect();
        if newest_first {
            lines.reverse();
        }
        let table = in_zone(&format!("time,y\n{}", lines.concat()), zone).unwrap();
        let series = &table.series[0];
        proptest::prop_assert_eq!(&series.values, &(0..rows).map(|row| row as f32).collect::<Vec<_>>());
        for row in 0..rows + 50 {
            let Some(crate::Stamp::Moment(moment)) = series.stamp(row) else { panic!("no moment") };
            proptest::prop_assert_eq!(moment.datetime(), place.to_datetime(at(row)));
            proptest::prop_assert_eq!(moment.offset(), Some(place.to_offset(at(row))));
        }
    }
}

#[test]
fn day_and_month_order_is_told() {
    let table = good("date,y\n13/01/2024,1\n14/01/2024,2\n");
    assert_eq!((shown(&table.series[0])[0].as_str(), table.notes.len()), ("2024-01-13=1", 0));
    let table = good("date,y\n01/02/2024,1\n01/03/2024,2\n");
    assert_eq!(shown(&table.series[0])[0], "2024-01-02=1");
    assert!(table.notes[0].contains("month/day/year"), "{:?}", table.notes);
}

#[test]
fn bad_tables_name_the_place_and_the_remedy() {
    let table = [
        ("", "t.csv: is empty"),
        ("date,y\n", "t.csv: has a header but no rows"),
        ("date,y\n2024-01-01,1\n2024-01-02,two\n2024-01-03,3\n", "t.csv, line 3, column 'y': 'two' is not a number"),
        ("y\n1\nx\n", "t.csv, line 3, column 'y': 'x' is not a number"),
        ("date,y\n2024-01-01,1\n2024-01-02,inf\n", "t.csv, line 3, column 'y': 'inf' is not a finite number"),
        ("date,y\n2024-01-01,1\n2024-01-02,1e39\n", "t.csv, line 3, column 'y': '1e39' is too large"),
        ("date,y\n2024-01-01,1\n2024-01-01,2\n", "t.csv, line 3, column 'date': has the same time as line 2"),
        ("date,y\n2024-01-01,1\n2024-13-01,2\n", "t.csv, line 3, column 'date': '2024-13-01' is not a date"),
        ("date,y\n2024-01-01,1\n,2\n", "t.csv, line 3, column 'date': is empty"),
        ("date,y\n2024-01-01,1\n2024-01-02\n", "t.csv, line 3: has 1 fields where the header has 2"),
        ("date,y\n2024-01-01,1\n2024-01-02,2,3\n", "t.csv, line 3: has 3 fields"),
        (
            "date,y\n2024-01-01T00:00:00,1\n2024-01-01T00:00:07,2\n2024-01-01T00:31:00,3\n",
            "t.csv, column 'date': the rows",
        ),
        ("date,y\n2024-01-01T00:00Z,1\n2024-01-01T01:00,2\n", "t.csv, line 3, column 'date': has an offset"),
        ("date,city\n2024-01-01,Bonn\n2024-01-02,Köln\n", "t.csv, line 2, column 'city': 'Bonn' is not a number"),
        ("a,b\nx,y\nz,w\n", "t.csv: has no column of numbers"),
        ("date\n2024-01-01\n2024-01-02\n", "t.csv: has no column of numbers"),
        ("date,y\n2024-01-01,\n2024-01-02,\n", "t.csv: has no column of numbers"),
    ];
    for (text, expected) in table {
        let message = parse(text).expect_err(text).to_string();
        assert!(message.starts_with(expected), "{text:?} gives {message:?}");
        assert!(!message.contains('\n'), "{message:?}");
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let text = b"date,y,city\n2024-01-01,1,Bonn\n2024-01-02,2,Ulm\n";
    for (options, expected) in [
        (TableOptions::default().columns(["x"]), "t: has no column 'x' (--column); it has 'date', 'y', 'city'"),
        (TableOptions::default().columns(["date"]), "t, column 'date': is the time column"),
        (TableOptions::default().columns(["city"]), "t, line 2, column 'city': 'Bonn' is not a number"),
        (TableOptions::default().time("city"), "t, column 'city': holds no dates or times"),
    ] {
        let message = Table::parse_csv("t", text, &options).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn long_tables_are_quick_and_complete() {
    let mut text = String::from("time,y\n");
    let start: jiff::civil::DateTime = "2000-01-01T00:00".parse().unwrap();
    for hour in 0..50_000_i64 {
        let at = start.checked_add(jiff::SignedDuration::from_hours(hour)).unwrap();
        text.push_str(&format!("{},{}\n", at.strftime("%Y-%m-%d %H:%M"), hour % 24));
    }
    let table = good(&text);
    assert_eq!(table.frequency, Some(Frequency::HOURLY));
    assert_eq!(table.series[0].values.len(), 50_000);
}

#[test]
fn long_tables_have_a_series_for_each_id() {
    let text = "date,shop,sold\n2024-01-02,b,5\n2024-01-01,a,1\n2024-01-02,a,2\n2024-01-04,a,4\n2024-01-03,b,6\n";
    // Found, because times repeat and one column of text tells rows apart; or named.
    let named = |options: TableOptions| Table::parse_csv("t.csv", text.as_bytes(), &options).unwrap();
    for table in [good(text), named(TableOptions::default().id("shop"))] {
        assert_eq!((table.id.as_deref(), table.time.as_deref()), (Some("shop"), Some("date")));
        let names: Vec<&str> = table.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(shown(&table.series[0]), ["2024-01-02=5", "2024-01-03=6"]);
        assert_eq!(shown(&table.series[1]), ["2024-01-01=1", "2024-01-02=2", "2024-01-03=NaN", "2024-01-04=4"]);
        assert_eq!(table.frequency.unwrap().to_string(), "daily");
        assert!(
            table.notes.iter().any(|note| note.starts_with("series 'a': 1 of 4 row is absent")),
            "{:?}",
            table.notes
        );
    }
    assert!(good(text).notes.iter().any(|note| note.contains("'shop' tells 2 series apart")));
    assert!(good(text).notes.iter().all(|note| !note.contains("left out")));
}

#[test]
fn long_tables_may_have_number_ids_several_values_and_single_rows() {
    let text = "store,month,x,y\n7,2024-01,1,2\n7,2024-02,3,4\n8,2024-01,5,6\n8,2024-02,7,8\n9,2024-02,9,9\n";
    let error = parse(text).unwrap_err().to_string();
    assert!(error.contains("same time as line 2") && error.contains("--id"), "{error}");
    let table = Table::parse_csv("t.csv", text.as_bytes(), &TableOptions::default().id("store")).unwrap();
    let names: Vec<&str> = table.series.iter().map(|series| series.name.as_str()).collect();
    assert_eq!(names, ["7/x", "7/y", "8/x", "8/y", "9/x", "9/y"]);
    assert_eq!(table.series[3].values, [6.0, 8.0]);
    // The last store's only row takes the step of the others.
    assert_eq!(table.series[4].stamp(1).unwrap().to_string(), "2024-03");
    assert!(table.notes.iter().any(|note| note.contains("a series with a single row")), "{:?}", table.notes);
    // Without times every id counts its own rows.
    let table = Table::parse_csv("t", b"k,v\na,1\nb,9\na,2\n", &TableOptions::default().id("k")).unwrap();
    assert_eq!(shown(&table.series[0]), ["1=1", "2=2"]);
}

#[test]
fn ids_that_cannot_be_used_are_errors() {
    let message = |text: &str, options: TableOptions| {
        Table::parse_csv("t.csv", text.as_bytes(), &options).unwrap_err().to_string()
    };
    let text = "date,shop,sold\n2024-01-01,a,1\n2024-01-01,,2\n";
    assert!(message(text, TableOptions::default().id("shop")).contains("line 3, column 'shop': is empty"));
    assert!(message(text, TableOptions::default().id("store")).contains("has no column 'store' (--id)"));
    assert!(message(text, TableOptions::default().id("date").time("date")).contains("is the time column"));
    let twice = "date,shop,sold\n2024-01-01,a,1\n2024-01-02,a,1\n2024-01-02,a,2\n";
    assert!(message(twice, TableOptions::default()).contains("same time as line 3"));
    assert!(message(twice, TableOptions::default().id("shop")).contains("same time as line 3"));
}

#[test]
fn wide_tables_have_an_end() {
    let table = |columns: usize| format!("{}\n{}\n", vec!["a"; columns].join(","), vec!["1"; columns].join(","));
    assert_eq!(good(&table(1000)).series.len(), 1000);
    let message = parse(&table(70_000)).unwrap_err().to_string();
    assert!(message.starts_with("t.csv, line 1: has 70000 fields, more than the 65536 columns"), "{message}");
}

/// An id stands once in the file, and once in the name of each of its series: 90 kB of id and 9000 columns were 800 MB.
#[test]
fn long_names_are_not_multiplied() {
    let options = TableOptions::default().id("shop");
    let read = |text: String| Table::parse_csv("t.csv", text.as_bytes(), &options);
    let long = "x".repeat(600);
    for text in [format!("shop,a,b\n{long},1,2\n"), format!("shop,a,{long}\n7,1,2\n")] {
        let message = read(text).unwrap_err().to_string();
        assert!(message.contains("has 600 bytes, more than the 512"), "{message}");
    }
    // With one value column the id is the name.
    assert_eq!(read(format!("shop,a\n{long},1\n")).unwrap().series[0].name, long);
}
