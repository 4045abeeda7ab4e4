//! Forecasts as a Parquet file: text for ids, dates or time stamps for times, 32-bit floats for values.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::{
    ArrayRef, Date32Array, Float32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;
use moesaic::Stamp;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::tables::Rows;

/// The bytes of the file. `zone` is the IANA name that time stamps with an offset belong to.
pub(super) fn write(rows: &Rows, zone: Option<&str>) -> Result<Vec<u8>> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    if let Some((name, ids)) = &rows.ids {
        columns.push((name.clone(), Arc::new(StringArray::from_iter_values(ids))));
    }
    columns.push((rows.time.clone(), times(&rows.stamps, zone)));
    for (name, values) in &rows.values {
        columns.push((name.clone(), Arc::new(Float32Array::from(values.clone()))));
    }
    // Missing values may come in later rows of a file that is added to this one.
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// Row numbers as integers, whole days as dates, other moments as time stamps; text where the rows are not of one kind.
fn times(stamps: &[Stamp], zone: Option<&str>) -> ArrayRef {
    let numbers = stamps.iter().map(|stamp| if let Stamp::Step(step) = stamp { Some(*step) } else { None });
    if let Some(numbers) = numbers.collect::<Option<Vec<i64>>>() {
        return Arc::new(Int64Array::from(numbers));
    }
    if let Some(days) = stamps.iter().map(day).collect::<Option<Vec<i32>>>() {
        return Arc::new(Date32Array::from(days));
    }
    let moments: Option<Vec<(DateTime, Option<Offset>)>> = stamps
        .iter()
        .map(|stamp| if let Stamp::Moment(moment) = stamp { Some((moment.datetime(), moment.offset())) } else { None })
        .collect();
    moments.and_then(|moments| instants(&moments, zone)).unwrap_or_else(|| {
        let text: Vec<String> = stamps.iter().map(ToString::to_string).collect();
        Arc::new(StringArray::from(text))
    })
}

/// Days since 1970, of a stamp that shows no time of day.
fn day(stamp: &Stamp) -> Option<i32> {
    let Stamp::Moment(moment) = stamp else { return None };
    let days = Date::constant(1970, 1, 1).duration_until(moment.datetime().date()).as_hours() / 24;
    if moment.shows_time() { None } else { i32::try_from(days).ok() }
}

/// Time stamps in microseconds: instants, where all moments have an offset from UTC, or what the wall shows, where none has.
fn instants(moments: &[(DateTime, Option<Offset>)], zone: Option<&str>) -> Option<ArrayRef> {
    let first = moments.first()?.1;
    let epoch = Date::constant(1970, 1, 1).to_datetime(Time::midnight());
    let microseconds = |&(moment, offset): &(DateTime, Option<Offset>)| {
        let since =
            epoch.duration_until(moment).as_nanos() - i128::from(offset.map_or(0, Offset::seconds)) * 1_000_000_000;
        let whole = since % 1000 == 0 && offset.is_some() == first.is_some();
        whole.then(|| i64::try_from(since / 1000).ok()).flatten()
    };
    let array = TimestampMicrosecondArray::from(moments.iter().map(microseconds).collect::<Option<Vec<i64>>>()?);
    let one_offset = moments.iter().all(|(_, offset)| *offset == first);
    Some(Arc::new(match (first, zone) {
        (None, _) => array,
        (Some(_), Some(zone)) => array.with_timezone(zone),
        (Some(offset), None) if one_offset && !offset.is_zero() && offset.seconds() % 60 == 0 => {
            let minutes = offset.seconds() / 60;
            let sign = if minutes < 0 { '-' } else { '+' };
            array.with_timezone(format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60))
        }
        (Some(_), None) => array.with_timezone("UTC"),
    }))
}
