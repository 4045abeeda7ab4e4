//! Tables as they come, and answers as files.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use moesaic::{ForecastOptions, Forecaster, Series};
use support::{Run, model, names, run};

/// Runs `forecast` on a file of this content with the test model, in a folder of its own.
fn forecast_in(folder: &Path, file: &str, content: &str, arguments: &[&str]) -> Run {
    fs::write(folder.join(file), content).unwrap();
    let model = model();
    let mut all = vec!["forecast", file, "--model", model.to_str().unwrap()];
    all.extend(arguments);
    run(folder, &all)
}

fn forecast(content: &str, arguments: &[&str]) -> Run {
    forecast_in(tempfile::tempdir().unwrap().path(), "t.csv", content, arguments)
}

fn good(run: &Run) -> &str {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    &run.stdout
}

fn fails(run: &Run, part: &str) {
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (Some(1), "", 1), "{}", run.stderr);
    assert!(run.stderr.contains(part) && run.stderr.len() < 400, "expected {part:?} in {}", run.stderr);
}

const DAYS: &str = "date,y\n2024-01-01,4\n2024-01-02,4\n2024-01-03,4\n";

#[test]
fn an_answer_is_written_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let run = forecast_in(folder.path(), "t.csv", DAYS, &["--horizon", "2", "--output", name]);
        assert_eq!(good(&run), "");
        fs::read(folder.path().join(name)).unwrap()
    };
    assert_eq!(write("o.csv"), b"date,y\n2024-01-04,4\n2024-01-05,4\n");
    assert_eq!(write("o.csv"), b"date,y\n2024-01-04,4\n2024-01-05,4\n");
    let answer: serde_json::Value = serde_json::from_slice(&write("o.JSON")).unwrap();
    assert_eq!(answer["forecasts"][0]["timestamps"][1], "2024-01-05");
    assert_eq!(names(folder.path()), ["o.JSON", "o.csv", "t.csv"]);
}

#[test]
fn places_that_cannot_be_written_to_are_refused_early() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = if cfg!(feature = "table") { "none is not a folder" } else { "--features table" };
    for (name, part) in [
        ("o.txt", "cannot write o.txt: give a name that ends in .csv, .json or .parquet"),
        ("o", "give a name that ends in"),
        ("none/o.csv", "none is not a folder"),
        ("none/o.parquet", parquet),
        ("./t.csv", "it is the table that is read; give another name"),
    ] {
        // The model does not exist, which would be found out later.
        fs::write(folder.path().join("t.csv"), DAYS).unwrap();
        fails(&run(folder.path(), &["forecast", "t.csv", "--model", "none", "--output", name]), part);
        assert_eq!(names(folder.path()), ["t.csv"]);
    }
    // A run that fails later leaves what was there.
    fs::write(folder.path().join("o.csv"), "old").unwrap();
    let bad = forecast_in(folder.path(), "t.csv", "date,y\n2024-01-01,1\n2024-01-01,2\n", &["--output", "o.csv"]);
    fails(&bad, "same time as line 2");
    assert_eq!(
        (names(folder.path()), fs::read(folder.path().join("o.csv")).unwrap()),
        (vec!["o.csv".to_string(), "t.csv".to_string()], b"old".to_vec())
    );
    let both = run(folder.path(), &["forecast", "t.csv", "--output", "o.csv", "--json"]);
    assert_eq!((both.code, both.stderr.lines().count()), (Some(2), 1), "{}", both.stderr);
}

#[test]
fn a_zone_is_followed_from_the_shell() {
    let autumn = "time,y\n2024-10-27 00:00,5\n2024-10-27 01:00,5\n2024-10-27 02:00,5\n2024-10-27 02:00,5\n";
    let run = forecast(autumn, &["--zone", "Europe/Berlin", "--horizon", "2", "--csv"]);
    assert_eq!(good(&run), "time,y\n2024-10-27 03:00+01:00,5\n2024-10-27 04:00+01:00,5\n");
    let run = forecast(autumn, &["--zone", "Europe/Berlin", "--horizon", "1", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(good(&run)).unwrap();
    assert_eq!(answer["forecasts"][0]["timestamps"][0], "2024-10-27T03:00:00+01:00");
    fails(&forecast(autumn, &["--zone", "Mars/Base"]), "'Mars/Base' is not a time zone (--zone): give an IANA name");
    fails(&forecast(autumn, &[]), "(--zone)");
    let skipped = "time,y\n2024-03-31 01:30,5\n2024-03-31 02:30,5\n";
    fails(&forecast(skipped, &["--zone", "Europe/Berlin"]), "'2024-03-31 02:30:00' does not exist in Europe/Berlin");
}

#[test]
fn mixed_time_zones_are_put_in_utc_or_refused() {
    let mixed = "time,y\n2024-01-01T00:00+01:00,5\n2024-01-01T00:00Z,5\n2024-01-01T03:00+02:00,5\n";
    let run = forecast(mixed, &["--horizon", "1", "--csv"]);
    assert_eq!(good(&run), "time,y\n2024-01-01 02:00Z,5\n");
    assert!(
        run.stderr.contains("note: offsets from UTC differ (from line 3 on); times are put in UTC"),
        "{}",
        run.stderr
    );
    let run = forecast(mixed, &["--horizon", "1", "--csv", "--zone", "Asia/Kolkata"]);
    assert_eq!(good(&run), "time,y\n2024-01-01 07:30+05:30,5\n");
    let some = "time,y\n2024-01-01T00:00+01:00,5\n2024-01-01T01:00,5\n";
    fails(
        &forecast(some, &[]),
        "line 3, column 'time': has an offset from UTC on some rows only: write all rows alike",
    );
    let zones = "time,y\n2024-01-01T00:00[Europe/Berlin],5\n2024-01-01T01:00[Asia/Tokyo],5\n";
    fails(&forecast(zones, &[]), "has the time zone 'Asia/Tokyo' where line 2 has 'Europe/Berlin'");
}

#[test]
fn unordered_and_repeated_times_have_clear_outcomes() {
    let run = forecast("date,y\n2024-01-03,5\n2024-01-01,5\n2024-01-02,5\n", &["--horizon", "1", "--csv"]);
    assert_eq!(good(&run), "date,y\n2024-01-04,5\n");
    assert!(run.stderr.contains("note: the rows are not in order of time; they were sorted"), "{}", run.stderr);
    // Equal times far apart, in a table out of order.
    let mut rows: Vec<String> = (1..=28).map(|day| format!("2024-02-{day:02},1\n")).collect();
    rows.reverse();
    rows.push("2024-02-14,9\n".into());
    fails(
        &forecast(&format!("date,y\n{}", rows.concat()), &[]),
        "line 30, column 'date': has the same time as line 16",
    );
    // No step fits.
    let odd = "date,y\n2024-01-01T00:00,1\n2024-01-01T00:07,2\n2024-01-03T13:31,3\n2024-01-19T07:00,3\n";
    fails(&forecast(odd, &[]), "not evenly spaced (neighbours lie 7 minutes to");
    let run = forecast(odd, &["--steps", "--horizon", "1", "--csv"]);
    assert!(good(&run).starts_with("step,y\n5,"), "{}", run.stdout);
}

#[test]
fn a_column_that_is_almost_all_missing_is_forecast_with_a_remark() {
    let rows = |seen: &dyn Fn(i64) -> bool| -> String {
        (0..600).map(|row| format!("{row},{row},{}\n", if seen(row) { "7" } else { "" })).collect()
    };
    // One value: it is continued from the row after it.
    let run = forecast(&format!("step,full,thin\n{}", rows(&|row| row == 500)), &["--horizon", "2", "--csv"]);
    assert!(good(&run).contains("\n501,,7\n502,,7\n600,"), "{}", run.stdout);
    // Two values far apart: what lies between is filled, and said to be.
    let run = forecast(&format!("step,full,thin\n{}", rows(&|row| row % 599 == 0)), &["--horizon", "1", "--csv"]);
    good(&run);
    assert!(run.stderr.contains("'thin' rests on 1 observed values, 254 of 255 are filled"), "{}", run.stderr);
    let run = forecast(&format!("step,full,thin\n{}", rows(&|_| false)), &["--horizon", "1", "--csv"]);
    assert!(run.stderr.contains("column 'thin' holds no values and is left out"), "{}", run.stderr);
    assert!(good(&run).starts_with("step,full\n"));
}

/// Lengths from one value to hundreds.
fn series(count: usize) -> Vec<Series> {
    let length = |at: usize| if at % 200 == 7 { 250 } else { [1, 2, 1, 3, 1, 5, 2, 13][at % 8] };
    let value = |at: usize, row: usize| ((row * 7 + at) % 12) as f32 + at as f32;
    (0..count)
        .map(|at| Series::new(format!("s{at}"), (0..length(at)).map(|row| value(at, row)).collect::<Vec<_>>()))
        .collect()
}

#[test]
fn thousands_of_series_of_different_lengths_are_forecast_in_parts() {
    let model = Forecaster::from_dir(model()).unwrap();
    let (series, options) = (series(2000), ForecastOptions::default());
    let mut told = Vec::new();
    let all = model
        .forecast_with(&series, 1, &options, |done| {
            told.push(done);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(all.iter().zip(&series).all(|(forecast, series)| forecast.name == series.name));
    assert!(told.is_sorted() && told.len() > 2 && told.last() == Some(&2000), "{told:?}");
    for at in [0, 1, 7, 8, 1999] {
        assert_eq!(all[at..=at], model.forecast(&series[at..=at], 1, &options).unwrap()[..], "series {at}");
    }
    // Breaking off keeps what is done.
    let some = model.forecast_with(&series, 1, &options, |_| ControlFlow::Break(())).unwrap();
    assert!(!some.is_empty() && some.len() < 2000 && some[..] == all[..some.len()]);
    assert!(model.forecast_with(&[], 0, &options, |_| ControlFlow::Continue(())).is_err());
    assert_eq!(model.forecast_with(&[], 1, &options, |_| ControlFlow::Continue(())).unwrap(), []);
}

#[test]
fn a_long_table_of_many_series_keeps_its_remarks_short() {
    let mut csv = String::from("shop,day,sold\n");
    for shop in 0..600 {
        // Each shop has other days, with gaps.
        for day in (0..=shop % 25).filter(|day| day % 5 != 3) {
            csv += &format!("shop {shop},2024-01-{:02},{}\n", 1 + day, shop % 9);
        }
        csv += &format!("shop {shop},2024-02-{:02},{}\n", 1 + shop % 28, shop % 9);
    }
    let run = forecast(&csv, &["--horizon", "2", "--csv"]);
    assert_eq!(good(&run).lines().count(), 1 + 600 * 2);
    assert!(run.stderr.lines().count() < 12, "{}", run.stderr);
    assert!(run.stderr.contains("'shop' tells 600 series apart"), "{}", run.stderr);
}

#[cfg(feature = "table")]
#[test]
fn parquet_goes_in_and_out() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = |output: &'static str| ["--horizon", "3", "--output", output];
    good(&forecast_in(folder.path(), "t.csv", DAYS, &arguments("days.parquet")));
    let hours = "time,y\n2024-10-27 00:00,5\n2024-10-27 01:00,5\n";
    let zone = [&arguments("hours.parquet")[..], &["--zone", "Europe/Berlin"]].concat();
    good(&forecast_in(folder.path(), "h.csv", hours, &zone));
    let long = "shop,month,sold\na,2024-01,1\na,2024-02,1\nb,2024-01,2\nb,2024-02,2\n";
    good(&forecast_in(folder.path(), "l.csv", long, &arguments("long.parquet")));
    good(&forecast_in(folder.path(), "s.csv", "y\n1\n1\n", &arguments("steps.parquet")));
    let model = model();
    let csv = |file: &str| {
        let arguments = ["forecast", file, "--horizon", "1", "--csv", "--model", model.to_str().unwrap()];
        good(&run(folder.path(), &arguments)).to_string()
    };
    // What was forecast is history now.
    assert_eq!(csv("days.parquet"), "date,y\n2024-01-07,4\n");
    assert_eq!(csv("hours.parquet"), "time,y\n2024-10-27 04:00+01:00,5\n");
    assert_eq!(csv("long.parquet"), "shop,month,forecast\na,2024-06-01,1\nb,2024-06-01,2\n");
    assert_eq!(csv("steps.parquet"), "step,y\n6,1\n");
    // By its content, whatever its name; cut short, it is an error.
    let bytes = fs::read(folder.path().join("days.parquet")).unwrap();
    fs::write(folder.path().join("days"), &bytes).unwrap();
    assert_eq!(csv("days"), "date,y\n2024-01-07,4\n");
    fs::write(folder.path().join("cut.parquet"), &bytes[..bytes.len() - 9]).unwrap();
    fails(
        &run(folder.path(), &["forecast", "cut.parquet", "--model", "m"]),
        "cut.parquet: is not a whole Parquet file",
    );
}

#[cfg(feature = "table")]
#[test]
fn covariates_in_parquet_count_as_in_csv() {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Date32Array, Float32Array, RecordBatch};
    use parquet::arrow::ArrowWriter;
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/moirai");
    // Sold in 20 days, at a price that is known for four more.
    let sold = |day: i32| (day < 20).then_some((day % 7) as f32);
    let price = |day: i32| (day * 3 % 5) as f32 + 0.5;
    let write = |name: &str, from: i32, to: i32| {
        let rows = (from..to).map(|day| {
            let sold = sold(day).map_or(String::new(), |sold| sold.to_string());
            format!("2024-01-{:02},{sold},{}\n", day + 1, price(day))
        });
        let csv = format!("day,sold,price\n{}", rows.collect::<String>());
        fs::write(folder.path().join(format!("{name}.csv")), csv).unwrap();
        let columns: [(&str, ArrayRef); 3] = [
            // 2024-01-01
            ("day", Arc::new(Date32Array::from_iter_values((from..to).map(|day| 19_723 + day)))),
            ("sold", Arc::new(Float32Array::from_iter((from..to).map(sold)))),
            ("price", Arc::new(Float32Array::from_iter_values((from..to).map(price)))),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap();
        let file = fs::File::create(folder.path().join(format!("{name}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    };
    write("past", 0, 20);
    write("ahead", 18, 24);
    write("whole", 0, 24);
    let forecast = |arguments: &[&str]| {
        let model = ["--model", model.to_str().unwrap()];
        let all = [&["forecast"], arguments, &model, &["--column", "sold", "--horizon", "4", "--csv"]].concat();
        good(&run(folder.path(), &all)).to_string()
    };
    let known = forecast(&["whole.csv", "--covariate", "price"]);
    assert!(known.starts_with("day,sold\n2024-01-21,") && known.lines().count() == 5, "{known}");
    assert_eq!(forecast(&["whole.parquet", "--covariate", "price"]), known);
    assert_eq!(forecast(&["past.parquet", "--covariate", "price", "--future", "ahead.parquet"]), known);
    assert_eq!(forecast(&["past.csv", "--covariate", "price", "--future", "ahead.parquet"]), known);
    let past = forecast(&["past.csv", "--covariate", "price"]);
    assert_eq!(forecast(&["past.parquet", "--covariate", "price"]), past);
    let alone = forecast(&["past.parquet"]);
    assert!(known != past && past != alone && alone != known, "{known}{past}{alone}");
}

#[cfg(feature = "table")]
#[test]
fn damaged_parquet_files_take_one_line() {
    let folder = tempfile::tempdir().unwrap();
    good(&forecast_in(folder.path(), "t.csv", DAYS, &["--horizon", "3", "--output", "t.parquet"]));
    let whole = fs::read(folder.path().join("t.parquet")).unwrap();
    let mut broken = 0;
    // The first page's header, then the footer: some of these make the reader panic.
    for at in (4..40).chain(whole.len() - 60..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] = 0xff;
        fs::write(folder.path().join("bad.parquet"), bytes).unwrap();
        // Ends before the model is read, whether or not the file can be.
        let run = run(folder.path(), &["forecast", "bad.parquet", "--model", "none"]);
        assert!(run.code == Some(1) && run.stderr.lines().count() == 1, "byte {at}: {}", run.stderr);
        broken += usize::from(run.stderr.contains("is not a whole Parquet file"));
    }
    assert!(broken > 20, "{broken}");
}

#[cfg(not(feature = "table"))]
#[test]
fn parquet_names_the_feature_that_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.parquet"), b"PAR1").unwrap();
    fails(
        &run(folder.path(), &["forecast", "t.parquet"]),
        "t.parquet: is a Parquet file: build with `--features table`",
    );
    fs::write(folder.path().join("t"), b"PAR1").unwrap();
    fails(&run(folder.path(), &["forecast", "t"]), "build with `--features table`");
}
