//! Tables from Arrow record batches: columns by their types instead of their text.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types as t;
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch, StringArray};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use jiff::civil::{DateTime, date};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::columns::{Choice, Column, Survey, named_like_time};
use super::rows::{Count, Reading, Rows};
use super::values::{Cell, cell};
use super::{Table, TableOptions};
use crate::calendar::{Read, TimeColumn, zone};
use crate::error::{Error, Place, Result, one_line};

/// Batches that can be gone through more than once.
pub(super) trait Batches {
    fn schema(&self) -> SchemaRef;

    /// Visits all batches, reduced to these of the schema's columns (ascending).
    fn each(&self, columns: &[usize], visit: &mut dyn FnMut(&RecordBatch) -> Result<()>) -> Result<()>;
}

/// Batches in memory.
pub(super) struct InMemory<'a> {
    pub name: &'a str,
    pub batches: &'a [RecordBatch],
}

impl Batches for InMemory<'_> {
    fn schema(&self) -> SchemaRef {
        self.batches.first().map_or_else(|| SchemaRef::new(arrow_schema::Schema::empty()), RecordBatch::schema)
    }

    fn each(&self, columns: &[usize], visit: &mut dyn FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
        for batch in self.batches {
            if batch.schema().fields() != self.schema().fields() {
                return Err(Error::input(
                    Place::file(self.name),
                    "has batches of several schemas: give those of one table",
                ));
            }
            let part = batch.project(columns);
            visit(&part.map_err(|error| Error::input(Place::file(self.name), one_line(&error.to_string())))?)?;
        }
        Ok(())
    }
}

/// The series of a table in batches.
pub(super) fn table(name: &str, batches: &dyn Batches, options: &TableOptions) -> Result<Table> {
    let survey = survey(name, batches, options)?;
    if survey.columns.is_empty() || survey.rows == 0 {
        return Err(Error::input(Place::file(name), "has no rows: give a table with at least one"));
    }
    Table::build(name, &survey, options, |choice| rows(name, batches, &survey, choice))
}

fn survey(name: &str, batches: &dyn Batches, options: &TableOptions) -> Result<Survey> {
    let schema = batches.schema();
    let mut survey = Survey { columns: Vec::new(), header: true, comma: false, rows: 0, count: Count::Rows };
    for (at, field) in schema.fields().iter().enumerate() {
        let mut title = one_line(field.name());
        if !title.is_empty() && survey.columns.iter().any(|column| column.name == title) {
            title = format!("{title} (column {})", at + 1);
        }
        let may_be_time = named_like_time(&title)
            || options.time.as_ref().is_some_and(|wanted| wanted.trim().eq_ignore_ascii_case(&title));
        let mut column = Column::new(title);
        match Kind::of(field.data_type()) {
            Kind::Number if !may_be_time => column.time = TimeColumn::none(),
            Kind::Number | Kind::Text => {}
            Kind::Moment => {
                column.time = TimeColumn::native();
                if let DataType::Timestamp(_, Some(name)) = field.data_type() {
                    column.zone = Origin::of(name).zone();
                }
            }
            Kind::Other => {
                column.time = TimeColumn::none();
                column.unreadable = Some(one_line(&field.data_type().to_string()));
            }
        }
        survey.columns.push(column);
    }
    let readable: Vec<usize> =
        (0..survey.columns.len()).filter(|&at| survey.columns[at].unreadable.is_none()).collect();
    batches.each(&readable, &mut |batch| {
        for (array, &at) in batch.columns().iter().zip(&readable) {
            let nulls = array.logical_nulls();
            let missing = |row: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
            let values = Values::of(array).ok_or_else(|| unreadable(name, &survey, at))?;
            for row in 0..array.len() {
                let number = survey.rows + row as u64 + 1;
                survey.columns[at].see_typed(if missing(row) { None } else { Some(&values) }, row, number);
            }
        }
        survey.rows += batch.num_rows() as u64;
        Ok(())
    })?;
    Ok(survey)
}

fn rows(name: &str, batches: &dyn Batches, survey: &Survey, choice: &Choice) -> Result<Rows> {
    let time = choice.time.map(|time| time.column);
    let mut wanted: Vec<usize> = choice.values.iter().copied().chain(choice.id).chain(time).collect();
    wanted.sort_unstable();
    if let Some(&at) = wanted.iter().find(|&&at| survey.columns[at].unreadable.is_some()) {
        return Err(unreadable(name, survey, at));
    }
    let place = |column: usize| wanted.partition_point(|&at| at < column);
    let mut reading = Reading::new(name, survey, choice);
    let mut before = 0;
    batches.each(&wanted, &mut |batch| {
        let columns = batch.columns().iter().zip(&wanted).map(|(array, &at)| {
            let values = Values::of(array).ok_or_else(|| unreadable(name, survey, at))?;
            Ok((values, array.logical_nulls()))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let value = |column: usize, row: usize| {
            let (values, nulls) = &columns[place(column)];
            (!nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))).then_some(values)
        };
        for row in 0..batch.num_rows() {
            let number = before + row as u64 + 1;
            if let Some(id) = choice.id {
                reading.id(&value(id, row).map_or(Cow::Borrowed(""), |values| values.text(row)), number)?;
            }
            if let Some(time) = choice.time {
                match value(time.column, row) {
                    Some(Values::Moment(read)) => match read(row) {
                        Some(moment) => reading.time(moment, number),
                        None => reading.text_time("a time beyond the year 9999", time.format, number)?,
                    },
                    Some(values) => reading.text_time(values.text(row).trim(), time.format, number)?,
                    None => reading.text_time("", time.format, number)?,
                }
            }
            for (slot, &column) in choice.values.iter().enumerate() {
                let values = value(column, row);
                let raw = || values.map_or(String::new(), |values| values.text(row).into_owned());
                reading.value(slot, values.map_or(Cell::Missing, |values| values.cell(row)), raw, number)?;
            }
        }
        before += batch.num_rows() as u64;
        Ok(())
    })?;
    reading.finish()
}

fn unreadable(name: &str, survey: &Survey, at: usize) -> Error {
    let column = &survey.columns[at];
    let kind = column.unreadable.as_deref().unwrap_or("values of an unknown kind");
    let problem = format!("holds {kind}: choose a column of numbers, text or times");
    Error::input(Place::file(name).column(&column.name), problem)
}

/// What the type of a column says.
enum Kind {
    Number,
    Text,
    Moment,
    Other,
}

impl Kind {
    fn of(kind: &DataType) -> Self {
        use DataType as D;
        match kind {
            D::Decimal32(..) | D::Decimal64(..) | D::Decimal128(..) | D::Decimal256(..) => Kind::Number,
            kind if kind.is_numeric() => Kind::Number,
            D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Boolean => Kind::Text,
            D::Dictionary(_, values) if matches!(**values, D::Utf8 | D::LargeUtf8 | D::Utf8View) => Kind::Text,
            D::Date32 | D::Date64 | D::Timestamp(..) => Kind::Moment,
            _ => Kind::Other,
        }
    }
}

/// The values of one column of a batch, by row. The row must lie in the batch and hold a value.
pub(super) enum Values<'a> {
    Whole(Box<dyn Fn(usize) -> i128 + 'a>),
    Real(Box<dyn Fn(usize) -> f64 + 'a>),
    Text(Box<dyn Fn(usize) -> Cow<'a, str> + 'a>),
    /// `None` beyond the calendar.
    Moment(Box<dyn Fn(usize) -> Option<Read> + 'a>),
}

impl<'a> Values<'a> {
    fn of(array: &'a dyn Array) -> Option<Self> {
        use DataType as D;
        Some(match array.data_type() {
            D::Int8 => whole::<t::Int8Type>(array),
            D::Int16 => whole::<t::Int16Type>(array),
            D::Int32 => whole::<t::Int32Type>(array),
            D::Int64 => whole::<t::Int64Type>(array),
            D::UInt8 => whole::<t::UInt8Type>(array),
            D::UInt16 => whole::<t::UInt16Type>(array),
            D::UInt32 => whole::<t::UInt32Type>(array),
            D::UInt64 => whole::<t::UInt64Type>(array),
            D::Float16 => real::<t::Float16Type>(array),
            D::Float32 => real::<t::Float32Type>(array),
            D::Float64 => real::<t::Float64Type>(array),
            D::Decimal32(_, scale) => decimal::<t::Decimal32Type>(array, *scale),
            D::Decimal64(_, scale) => decimal::<t::Decimal64Type>(array, *scale),
            D::Decimal128(_, scale) => decimal::<t::Decimal128Type>(array, *scale),
            D::Decimal256(..) => {
                let values = array.as_primitive::<t::Decimal256Type>();
                Values::Real(Box::new(move |row| values.value_as_string(row).parse().unwrap_or(f64::NAN)))
            }
            D::Boolean => {
                let values = array.as_boolean();
                Values::Text(Box::new(move |row| if values.value(row) { "true".into() } else { "false".into() }))
            }
            D::Utf8 | D::LargeUtf8 | D::Utf8View => Values::Text(text(array)?),
            D::Dictionary(..) => {
                let dictionary = array.as_any_dictionary_opt()?;
                let entries = dictionary.values().as_ref();
                if entries.is_empty() {
                    return Some(Values::Text(Box::new(|_| Cow::Borrowed(""))));
                }
                let (keys, text) = (dictionary.normalized_keys(), text(entries)?);
                Values::Text(Box::new(move |row| text(keys[row])))
            }
            D::Date32 => {
                let (values, first) = (array.as_primitive::<t::Date32Type>(), date(1970, 1, 1).at(0, 0, 0, 0));
                Values::Moment(Box::new(move |row| {
                    let since = SignedDuration::from_hours(24 * i64::from(values.value(row)));
                    Some(Read::Moment(first.checked_add(since).ok()?, None))
                }))
            }
            D::Date64 => moment::<t::Date64Type>(array, 1000, Origin::Nowhere),
            D::Timestamp(unit, name) => {
                let origin = name.as_deref().map_or(Origin::Nowhere, Origin::of);
                match unit {
                    TimeUnit::Second => moment::<t::TimestampSecondType>(array, 1, origin),
                    TimeUnit::Millisecond => moment::<t::TimestampMillisecondType>(array, 1000, origin),
                    TimeUnit::Microsecond => moment::<t::TimestampMicrosecondType>(array, 1_000_000, origin),
                    TimeUnit::Nanosecond => moment::<t::TimestampNanosecondType>(array, 1_000_000_000, origin),
                }
            }
            _ => return None,
        })
    }

    pub(super) fn text(&self, row: usize) -> Cow<'a, str> {
        match self {
            Values::Whole(value) => value(row).to_string().into(),
            Values::Real(value) => value(row).to_string().into(),
            Values::Text(value) => value(row),
            Values::Moment(value) => match value(row) {
                Some(Read::Moment(moment, _)) => moment.to_string().into(),
                _ => "a time".into(),
            },
        }
    }

    pub(super) fn cell(&self, row: usize) -> Cell {
        match self {
            Values::Whole(value) => Cell::Number(value(row) as f64),
            Values::Real(value) => match value(row) {
                value if value.is_nan() => Cell::Missing,
                value if value.is_infinite() => Cell::Infinite,
                value => Cell::Number(value),
            },
            Values::Text(value) => cell(&value(row), false),
            Values::Moment(_) => Cell::Text,
        }
    }
}

fn whole<'a, T: ArrowPrimitiveType<Native: Into<i128>>>(array: &'a dyn Array) -> Values<'a> {
    let values = array.as_primitive::<T>();
    Values::Whole(Box::new(move |row| values.value(row).into()))
}

fn real<'a, T: ArrowPrimitiveType<Native: Into<f64>>>(array: &'a dyn Array) -> Values<'a> {
    let values = array.as_primitive::<T>();
    Values::Real(Box::new(move |row| values.value(row).into()))
}

fn decimal<'a, T: ArrowPrimitiveType<Native: Into<i128>>>(array: &'a dyn Array, scale: i8) -> Values<'a> {
    let (values, unit) = (array.as_primitive::<T>(), 10_f64.powi(i32::from(scale)));
    Values::Real(Box::new(move |row| values.value(row).into() as f64 / unit))
}

fn text<'a>(array: &'a dyn Array) -> Option<Box<dyn Fn(usize) -> Cow<'a, str> + 'a>> {
    if let Some(values) = array.as_any().downcast_ref::<StringArray>() {
        return Some(Box::new(move |row| values.value(row).into()));
    }
    if let Some(values) = array.as_string_opt::<i64>() {
        return Some(Box::new(move |row| values.value(row).into()));
    }
    let values = array.as_string_view_opt()?;
    Some(Box::new(move |row| values.value(row).into()))
}

fn moment<'a, T: ArrowPrimitiveType<Native = i64>>(
    array: &'a dyn Array,
    per_second: i64,
    origin: Origin,
) -> Values<'a> {
    let values = array.as_primitive::<T>();
    Values::Moment(Box::new(move |row| {
        let (value, nanos) = (values.value(row), 1_000_000_000 / per_second);
        let rest = i32::try_from(value.rem_euclid(per_second) * nanos).ok()?;
        let stamp = Timestamp::new(value.div_euclid(per_second), rest).ok()?;
        Some(origin.read(stamp))
    }))
}

/// What the time zone of a column of time stamps makes of them.
enum Origin {
    /// They are what a clock somewhere shows.
    Nowhere,
    /// They are instants, to be shown with this offset from UTC.
    At(Offset),
    /// They are instants, to be shown in this zone.
    In(TimeZone),
}

impl Origin {
    /// A zone that is not known here leaves the instants in UTC.
    fn of(name: &str) -> Self {
        let utc = ["utc", "z", "gmt", "etc/utc", "+00:00"].contains(&name.to_ascii_lowercase().as_str());
        let fixed = || {
            let zoned: DateTime = date(2000, 1, 1).at(0, 0, 0, 0);
            let pieces = jiff::fmt::temporal::Pieces::parse(&format!("{zoned}{name}")).ok()?.to_numeric_offset();
            pieces.map(Origin::At)
        };
        if utc {
            return Origin::At(Offset::UTC);
        }
        zone(name).map(Origin::In).or_else(|| fixed_name(name).then(fixed).flatten()).unwrap_or(Origin::At(Offset::UTC))
    }

    fn zone(self) -> Option<TimeZone> {
        if let Origin::In(zone) = self { Some(zone) } else { None }
    }

    fn read(&self, stamp: Timestamp) -> Read {
        let offset = match self {
            Origin::Nowhere => return Read::Moment(Offset::UTC.to_datetime(stamp), None),
            Origin::At(offset) => *offset,
            Origin::In(_) => Offset::UTC,
        };
        Read::Moment(offset.to_datetime(stamp), Some(offset))
    }
}

/// `+01:00`
fn fixed_name(name: &str) -> bool {
    name.starts_with(['+', '-']) && name.bytes().skip(1).all(|byte| byte.is_ascii_digit() || byte == b':')
}
