//! The second pass: the chosen columns, row by row.

use std::collections::HashMap;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::columns::{Choice, Survey, each_record, field};
use super::dialect::Dialect;
use super::values::{Cell, cell};
use crate::calendar::{Format, Precision, Read, utc, zone, zone_of};
use crate::error::{Error, Place, Result, one_line, quoted};

/// What the rows of a file are counted by, from 1.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    /// Lines of text, the header included.
    Lines,
    #[cfg(feature = "table")]
    Rows,
}

impl Count {
    pub fn word(self) -> &'static str {
        match self {
            Count::Lines => "line",
            #[cfg(feature = "table")]
            Count::Rows => "row",
        }
    }

    pub fn place(self, place: Place, number: u64) -> Place {
        match self {
            Count::Lines => place.line(number),
            #[cfg(feature = "table")]
            Count::Rows => place.row(number),
        }
    }
}

/// What all rows have in common.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub count: Count,
    /// The precision that the time format fixes.
    pub precision: Option<Precision>,
    /// The order of day and month that was taken, if another fits as well.
    pub ambiguous: Option<&'static str>,
    /// The time zone to show times in.
    pub zone: Option<TimeZone>,
    /// The time zone that times without an offset are in.
    pub own_zone: Option<TimeZone>,
}

/// The chosen columns, row by row.
pub(super) struct Rows {
    /// Empty for rows without time.
    pub times: Vec<Read>,
    /// The number of each row in its file; empty for rows without time.
    pub numbers: Vec<u64>,
    /// One list for each value column, NaN where missing.
    pub values: Vec<Vec<f32>>,
    pub facts: Facts,
    /// The ids of a long table in the order in which they appear.
    pub ids: Vec<String>,
    /// The id of each row, as its place in `ids`; empty for a wide table.
    id_of: Vec<u32>,
}

impl Rows {
    /// The rows of a text file.
    pub fn read(name: &str, text: &[u8], dialect: &Dialect, survey: &Survey, choice: &Choice) -> Result<Self> {
        let mut reading = Reading::new(name, survey, choice);
        let mut header = survey.header;
        each_record(name, text, dialect, |record, line| {
            if std::mem::take(&mut header) {
                return Ok(());
            }
            if let Some(id) = choice.id {
                reading.id(&field(record, id), line)?;
            }
            if let Some(time) = choice.time {
                reading.text_time(field(record, time.column).trim(), time.format, line)?;
            }
            for (slot, &column) in choice.values.iter().enumerate() {
                let raw = field(record, column);
                reading.value(slot, cell(&raw, survey.comma), || raw.to_string(), line)?;
            }
            Ok(())
        })?;
        reading.finish()
    }

    /// The rows of each id, in the order of the file.
    pub fn by_id(&self) -> Vec<Rows> {
        let mut sizes = vec![0_usize; self.ids.len()];
        for &id in &self.id_of {
            if let Some(size) = sizes.get_mut(id as usize) {
                *size += 1;
            }
        }
        let timed = |size: usize| if self.times.is_empty() { 0 } else { size };
        let mut split: Vec<Rows> = sizes
            .iter()
            .map(|&size| Rows {
                times: Vec::with_capacity(timed(size)),
                numbers: Vec::with_capacity(timed(size)),
                values: self.values.iter().map(|_| Vec::with_capacity(size)).collect(),
                facts: self.facts.clone(),
                ids: Vec::new(),
                id_of: Vec::new(),
            })
            .collect();
        for (row, &id) in self.id_of.iter().enumerate() {
            let Some(own) = split.get_mut(id as usize) else { continue };
            own.times.extend(self.times.get(row).copied());
            own.numbers.extend(self.numbers.get(row).copied());
            for (own, values) in own.values.iter_mut().zip(&self.values) {
                own.extend(values.get(row).copied());
            }
        }
        split
    }

    /// The moment of the only row and its offset from UTC, if there is one row.
    pub fn only_moment(&self) -> Option<(DateTime, Option<Offset>)> {
        match (&self.times[..], &self.facts.own_zone) {
            ([Read::Moment(moment, None)], Some(own)) if self.facts.own_zone != self.facts.zone => {
                Some((Offset::UTC.to_datetime(own.to_timestamp(*moment).ok()?), Some(Offset::UTC)))
            }
            ([Read::Moment(moment, offset)], _) => Some((*moment, *offset)),
            _ => None,
        }
    }
}

/// The moment of a row as it was written.
pub(super) fn wall_clock(time: &Read) -> Option<DateTime> {
    if let Read::Moment(moment, _) = time { Some(*moment) } else { None }
}

/// The moment of a row in UTC, if it has an offset.
pub(super) fn in_utc(time: &Read) -> Option<DateTime> {
    if let Read::Moment(moment, Some(offset)) = time { utc(*moment, *offset) } else { None }
}

/// Rows under way. Each row gives its id, its time and its values, as far as they are chosen.
pub(super) struct Reading<'a> {
    file: &'a str,
    survey: &'a Survey,
    choice: &'a Choice,
    known: HashMap<String, u32>,
    rows: Rows,
    /// The zone that the first time was written with.
    written_zone: Option<String>,
}

impl<'a> Reading<'a> {
    pub fn new(file: &'a str, survey: &'a Survey, choice: &'a Choice) -> Self {
        let time = choice.time;
        let capacity = usize::try_from(survey.rows).unwrap_or_default();
        let of_time = if time.is_some() { capacity } else { 0 };
        let rows = Rows {
            times: Vec::with_capacity(of_time),
            numbers: Vec::with_capacity(of_time),
            values: choice.values.iter().map(|_| Vec::with_capacity(capacity)).collect(),
            facts: Facts {
                count: survey.count,
                precision: time.and_then(|time| time.format.precision()),
                ambiguous: time.filter(|time| time.ambiguous).and_then(|time| time.format.order()),
                zone: None,
                own_zone: None,
            },
            ids: Vec::new(),
            id_of: Vec::with_capacity(if choice.id.is_some() { capacity } else { 0 }),
        };
        Reading { file, survey, choice, known: HashMap::new(), rows, written_zone: None }
    }

    /// An error in a column of the row of this number.
    fn refuse<T>(&self, number: u64, column: usize, problem: impl Into<String>) -> Result<T> {
        let place = Place::file(self.file).column(&self.survey.columns[column].name);
        Err(Error::input(self.rows.facts.count.place(place, number), problem))
    }

    pub fn id(&mut self, raw: &str, number: u64) -> Result<()> {
        let text = raw.trim();
        if let (true, Some(column)) = (text.is_empty(), self.choice.id) {
            return self.refuse(number, column, "is empty: every row needs the id of its series");
        }
        let id = match self.known.get(text) {
            Some(&id) => id,
            None => {
                let next = u32::try_from(self.rows.ids.len()).unwrap_or(u32::MAX);
                self.known.insert(text.to_string(), next);
                self.rows.ids.push(one_line(text));
                next
            }
        };
        self.rows.id_of.push(id);
        Ok(())
    }

    /// A time written as text.
    pub fn text_time(&mut self, text: &str, format: Format, number: u64) -> Result<()> {
        let Some(column) = self.choice.time.map(|time| time.column) else { return Ok(()) };
        let Some(moment) = format.read(text) else {
            let problem = match text {
                "" => "is empty: every row needs a time".to_string(),
                text => format!("{} is not a time in the format of the other rows: correct it", quoted(text)),
            };
            return self.refuse(number, column, problem);
        };
        let written = zone_of(text);
        if self.rows.times.is_empty() {
            self.written_zone = written;
        } else if self.written_zone != written {
            let named = |zone: &Option<String>| zone.as_deref().map_or("none".to_string(), quoted);
            let (before, word) = (self.rows.numbers.first().copied().unwrap_or_default(), self.rows.facts.count.word());
            let problem = format!(
                "has the time zone {} where {word} {before} has {}: write all rows in one zone, or with offsets from UTC only",
                named(&written),
                named(&self.written_zone)
            );
            return self.refuse(number, column, problem);
        }
        self.time(moment, number);
        Ok(())
    }

    pub fn time(&mut self, moment: Read, number: u64) {
        self.rows.times.push(moment);
        self.rows.numbers.push(number);
    }

    /// A value of the chosen column `slot`; `raw` is what the file has there.
    pub fn value(&mut self, slot: usize, cell: Cell, raw: impl Fn() -> String, number: u64) -> Result<()> {
        let shown = || quoted(raw().trim());
        let problem = match cell {
            Cell::Missing => None,
            Cell::Number(number) if (number as f32).is_finite() => None,
            Cell::Number(_) => Some(format!("{} is too large for a 32-bit number: rescale it", shown())),
            Cell::Infinite => Some(format!("{} is not a finite number: correct it or leave it empty", shown())),
            Cell::Text => {
                Some(format!("{} is not a number: correct it, leave it empty, or choose another column", shown()))
            }
        };
        if let (Some(problem), Some(&column)) = (problem, self.choice.values.get(slot)) {
            return self.refuse(number, column, problem);
        }
        if let Some(values) = self.rows.values.get_mut(slot) {
            values.push(if let Cell::Number(number) = cell { number as f32 } else { f32::NAN });
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Rows> {
        let mut own = self.choice.time.and_then(|time| self.survey.columns[time.column].zone.clone());
        if let (Some(name), Some(time)) = (&self.written_zone, self.choice.time) {
            let Some(zone) = zone(name) else {
                let first = self.rows.numbers.first().copied().unwrap_or_default();
                let problem = format!("{} is no time zone that is known here: correct it", quoted(name));
                return self.refuse(first, time.column, problem);
            };
            own = Some(zone);
        }
        let facts = &mut self.rows.facts;
        facts.zone = self.choice.zone.clone().or_else(|| own.clone());
        facts.own_zone = own.or_else(|| self.choice.zone.clone());
        Ok(self.rows)
    }
}
