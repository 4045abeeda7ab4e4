//! Parquet files and record batches, written here and read back.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray, TimestampSecondArray,
};

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn file(columns: Vec<(&str, ArrayRef)>, compression: Compression) -> Vec<u8> {
    let batch = batch(columns);
    // Several row groups and pages.
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(3))
        .set_data_page_row_count_limit(2)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn read(columns: Vec<(&str, ArrayRef)>, options: &TableOptions) -> Result<Table> {
    Table::parse("t.parquet", file(columns, Compression::SNAPPY), options)
}

fn good(columns: Vec<(&str, ArrayRef)>) -> Table {
    read(columns, &TableOptions::default()).unwrap()
}

fn shown(series: &Series) -> Vec<String> {
    let rows = series.values.iter().enumerate();
    rows.map(|(row, value)| format!("{}={value}", series.stamp(row as i64).unwrap())).collect()
}

fn days(from: i32, rows: usize) -> ArrayRef {
    Arc::new(Date32Array::from((from..).take(rows).collect::<Vec<i32>>()))
}

fn numbers(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// A wide table of all kinds of columns: 2024-01-01 is day 19723.
fn wide() -> Vec<(&'static str, ArrayRef)> {
    let decimals =
        Decimal128Array::from(vec![Some(150), None, Some(-250), Some(5)]).with_precision_and_scale(10, 2).unwrap();
    vec![
        ("count", numbers(&[1, 2, 3, 4])),
        ("price", Arc::new(decimals)),
        ("city", text(&["Bonn", "Ulm", "Bonn", "Ulm"])),
        ("day", days(19_723, 4)),
        ("share", Arc::new(Float64Array::from(vec![Some(0.5), Some(f64::NAN), None, Some(2.0)]))),
        ("parts", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)]); 4]))),
        ("written", text(&["1.5", "NA", "", "4"])),
    ]
}

#[test]
fn types_tell_time_and_values() {
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        let table = Table::parse("a file", file(wide(), compression), &TableOptions::default()).unwrap();
        assert_eq!((table.time.as_deref(), table.frequency), (Some("day"), Some(Frequency::DAILY)));
        let names: Vec<&str> = table.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names, ["count", "price", "share", "written"]);
        assert_eq!(shown(&table.series[0])[3], "2024-01-04=4");
        let values = |at: usize| table.series[at].values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!([values(1), values(2), values(3)], ["1.5 NaN -2.5 0.05", "0.5 NaN NaN 2", "1.5 NaN NaN 4"]);
        assert!(
            table.notes.iter().any(|note| note.contains("'city' holds text ('Bonn' on row 1)")),
            "{:?}",
            table.notes
        );
        assert!(table.notes.iter().any(|note| note.contains("'parts' holds List")), "{:?}", table.notes);
    }
    let batches = [batch(wide()).slice(0, 2), batch(wide()).slice(2, 2)];
    let table = Table::from_batches("batches", &batches, &TableOptions::default().columns(["price"])).unwrap();
    assert_eq!(table.series[0].values[2], -2.5);
    let error = Table::from_batches("b", &[], &TableOptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("b: has no rows"), "{error}");
}

#[test]
fn time_stamps_have_zones_or_not() {
    // Hours from 2024-03-31 00:00 in UTC on, an hour before clocks go forward in Berlin.
    let seconds: Vec<i64> = (0..3).map(|hour| 1_711_843_200 + 3600 * hour).collect();
    let stamps = |zone: Option<&str>| -> ArrayRef {
        let array = TimestampMicrosecondArray::from(seconds.iter().map(|s| s * 1_000_000).collect::<Vec<_>>());
        Arc::new(if let Some(zone) = zone { array.with_timezone(zone) } else { array })
    };
    let first_and_next = |time: ArrayRef, options: TableOptions| {
        let series = read(vec![("t", time), ("y", numbers(&[1, 2, 3]))], &options).unwrap().series.remove(0);
        assert_eq!(series.values, [1.0, 2.0, 3.0]);
        [1, 3].map(|row| series.stamp(row).unwrap().to_string())
    };
    let plain = TableOptions::default;
    assert_eq!(first_and_next(stamps(None), plain()), ["2024-03-31 01:00", "2024-03-31 03:00"]);
    assert_eq!(first_and_next(stamps(Some("UTC")), plain()), ["2024-03-31 01:00Z", "2024-03-31 03:00Z"]);
    assert_eq!(first_and_next(stamps(Some("+05:30")), plain()), ["2024-03-31 06:30+05:30", "2024-03-31 08:30+05:30"]);
    let berlin = ["2024-03-31 03:00+02:00", "2024-03-31 05:00+02:00"];
    assert_eq!(first_and_next(stamps(Some("Europe/Berlin")), plain()), berlin);
    assert_eq!(first_and_next(stamps(Some("UTC")), plain().zone("Europe/Berlin")), berlin);
    // Numbers and text tell time as in CSV, by the column's name.
    let table = good(vec![("time", numbers(&seconds)), ("y", numbers(&[1, 2, 3]))]);
    assert_eq!(shown(&table.series[0])[1], "2024-03-31 01:00Z=2");
    let table = good(vec![("when", text(&["01.02.2024", "02.02.2024"])), ("y", numbers(&[1, 2]))]);
    assert!(shown(&table.series[0])[1].ends_with("=2") && table.time.as_deref() == Some("when"));
}

#[test]
fn long_parquet_tables_are_split() {
    let shops: DictionaryArray<Int32Type> = ["b", "a", "a", "b"].into_iter().collect();
    let columns = || -> Vec<(&str, ArrayRef)> {
        let days = Date32Array::from(vec![19_723, 19_723, 19_724, 19_725]);
        vec![("day", Arc::new(days)), ("shop", Arc::new(shops.clone())), ("sold", numbers(&[1, 2, 3, 4]))]
    };
    for options in [TableOptions::default(), TableOptions::default().id("shop")] {
        let table = read(columns(), &options).unwrap();
        assert_eq!(table.id.as_deref(), Some("shop"));
        assert_eq!(shown(&table.series[1]), ["2024-01-01=2", "2024-01-02=3"]);
    }
    let stores = vec![("day", days(19_723, 2)), ("store", numbers(&[7, 8])), ("sold", numbers(&[1, 2]))];
    assert_eq!(read(stores, &TableOptions::default().id("store")).unwrap().series[1].name, "8");
}

#[test]
fn bad_parquet_tables_name_the_place() {
    let twice: ArrayRef = Arc::new(Date32Array::from(vec![19_723, 19_723]));
    let empty: ArrayRef = Arc::new(Date32Array::from(vec![Some(19_723), None]));
    let late: ArrayRef = Arc::new(TimestampSecondArray::from(vec![0, i64::MAX]));
    let huge: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 1e300]));
    let two = || numbers(&[1, 2]);
    let all = TableOptions::default;
    let cases = [
        (vec![("day", twice), ("y", two())], all(), "t.parquet, row 2, column 'day': has the same time as row 1"),
        (vec![("day", empty), ("y", two())], all(), "t.parquet, row 2, column 'day': is empty"),
        (vec![("day", late), ("y", two())], all(), "t.parquet, row 2, column 'day': 'a time beyond the year 9999'"),
        (vec![("y", huge)], all(), "t.parquet, row 2, column 'y': '1"),
        (vec![("y", text(&["Bonn", "Ulm"]))], all(), "t.parquet, row 1, column 'y': 'Bonn' is not a number"),
        (wide(), all().columns(["parts"]), "t.parquet, column 'parts': holds List"),
        (wide(), all().columns(["none"]), "t.parquet: has no column 'none' (--column); it has 'count'"),
        (vec![("y", numbers(&[]))], all(), "t.parquet: has no rows"),
    ];
    for (columns, options, expected) in cases {
        let message = read(columns, &options).expect_err(expected).to_string();
        assert!(message.starts_with(expected) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn damaged_parquet_files_are_errors() {
    let whole = file(wide(), Compression::SNAPPY);
    for cut in (0..whole.len()).step_by(97) {
        let message =
            Table::parse("t.parquet", whole[..cut].to_vec(), &TableOptions::default()).unwrap_err().to_string();
        assert!(message.starts_with("t.parquet: is not a whole Parquet file") && !message.contains('\n'), "{message}");
    }
    for bytes in [&b"a,b\n1,2\n"[..], b"PAR1PAR1", b""] {
        assert!(Table::parse("t.parquet", bytes.to_vec(), &TableOptions::default()).is_err());
    }
}

#[test]
fn mutated_parquet_files_never_panic() {
    let seeds = [file(wide(), Compression::UNCOMPRESSED), file(wide(), Compression::SNAPPY)];
    let mut rng = moesaic_kernels::rng::Rng::new(11);
    let mut pick = |n: usize| rng.below(n);
    let (mut read, mut refused) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=pick(4) {
            let at = pick(bytes.len());
            match pick(3) {
                0 => bytes[at] = pick(256) as u8,
                1 => bytes[at] ^= 1 << pick(8),
                _ => drop(bytes.remove(at)),
            }
        }
        match Table::parse("m.parquet", bytes, &TableOptions::default()) {
            Ok(_) => read += 1,
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("m.parquet") && !message.contains('\n'), "{message:?}");
                refused += 1;
            }
        }
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}
