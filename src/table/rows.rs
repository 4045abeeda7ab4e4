//! The second pass: reads the chosen columns and puts the rows on a regular axis.

use std::collections::HashMap;

use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::columns::{Choice, Survey, each_record, field};
use super::dialect::Dialect;
use super::values::{Cell, cell};
use crate::calendar::{Calendar, Grid, Precision, Read, infer_steps};
use crate::error::{Error, Place, Result, one_line, quoted};
use crate::series::{Index, spread};

/// The chosen columns, row by row.
pub(super) struct Rows {
    times: Vec<Read>,
    lines: Vec<u64>,
    /// One list for each value column, NaN where missing.
    pub values: Vec<Vec<f32>>,
    /// The precision that the time format fixes.
    precision: Option<Precision>,
    /// The order of day and month that was taken, if another fits as well.
    ambiguous: Option<&'static str>,
    /// The ids of a long table in the order in which they appear.
    pub ids: Vec<String>,
    /// The id of each row, as its place in `ids`; empty for a wide table.
    id_of: Vec<u32>,
}

/// Where each row of the file goes on the axis.
pub(super) struct Layout {
    /// The file's row numbers in order of time; `None` when they are in order already.
    order: Option<Vec<usize>>,
    /// The axis position of each row, in order of time; `None` when there are no gaps.
    positions: Option<(Vec<usize>, usize)>,
}

impl Layout {
    pub fn arrange(&self, values: &[f32]) -> Vec<f32> {
        let ordered: Vec<f32> = match &self.order {
            Some(order) => order.iter().filter_map(|&row| values.get(row).copied()).collect(),
            None => values.to_vec(),
        };
        match &self.positions {
            Some((rows, len)) => spread(&ordered, rows, *len),
            None => ordered,
        }
    }
}

impl Rows {
    pub fn read(name: &str, text: &[u8], dialect: &Dialect, survey: &Survey, choice: &Choice) -> Result<Self> {
        let time = choice.time;
        let capacity = usize::try_from(survey.rows).unwrap_or_default();
        let mut rows = Rows {
            times: Vec::with_capacity(if time.is_some() { capacity } else { 0 }),
            lines: Vec::with_capacity(if time.is_some() { capacity } else { 0 }),
            values: choice.values.iter().map(|_| Vec::with_capacity(capacity)).collect(),
            precision: time.and_then(|time| time.format.precision()),
            ambiguous: time.filter(|time| time.ambiguous).and_then(|time| time.format.order()),
            ids: Vec::new(),
            id_of: Vec::with_capacity(if choice.id.is_some() { capacity } else { 0 }),
        };
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut header = survey.header;
        each_record(name, text, dialect, |record, line| {
            if std::mem::take(&mut header) {
                return Ok(());
            }
            let at = |column: usize| Place::file(name).line(line).column(&survey.columns[column].name);
            if let Some(id) = choice.id {
                let raw = field(record, id);
                let text = raw.trim();
                if text.is_empty() {
                    return Err(Error::input(at(id), "is empty: every row needs the id of its series"));
                }
                let next = u32::try_from(rows.ids.len()).unwrap_or(u32::MAX);
                rows.id_of.push(*known.entry(text.to_string()).or_insert_with(|| {
                    rows.ids.push(one_line(text));
                    next
                }));
            }
            if let Some(time) = time {
                let raw = field(record, time.column);
                let Some(moment) = time.format.read(raw.trim()) else {
                    let problem = match raw.trim() {
                        "" => "is empty: every row needs a time".to_string(),
                        text => format!("{} is not a time in the format of the other rows: correct it", quoted(text)),
                    };
                    return Err(Error::input(at(time.column), problem));
                };
                rows.times.push(moment);
                rows.lines.push(line);
            }
            for (&column, values) in choice.values.iter().zip(&mut rows.values) {
                let raw = field(record, column);
                values.push(match cell(&raw, survey.comma) {
                    Cell::Missing => f32::NAN,
                    Cell::Number(number) if (number as f32).is_finite() => number as f32,
                    Cell::Number(_) => {
                        let problem = format!("{} is too large for a 32-bit number: rescale it", quoted(raw.trim()));
                        return Err(Error::input(at(column), problem));
                    }
                    Cell::Infinite => {
                        let problem = format!("{} is not a finite number: correct it or leave it empty", quoted(&raw));
                        return Err(Error::input(at(column), problem));
                    }
                    Cell::Text => {
                        let problem = format!(
                            "{} is not a number: correct it, leave it empty, or choose another column",
                            quoted(raw.trim())
                        );
                        return Err(Error::input(at(column), problem));
                    }
                });
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// The rows of each id, in the order of the file.
    pub fn by_id(&self) -> Vec<Rows> {
        let mut split: Vec<Rows> = self
            .ids
            .iter()
            .map(|_| Rows {
                times: Vec::new(),
                lines: Vec::new(),
                values: vec![Vec::new(); self.values.len()],
                precision: self.precision,
                ambiguous: self.ambiguous,
                ids: Vec::new(),
                id_of: Vec::new(),
            })
            .collect();
        for (row, &id) in self.id_of.iter().enumerate() {
            let Some(own) = split.get_mut(id as usize) else { continue };
            own.times.extend(self.times.get(row).copied());
            own.lines.extend(self.lines.get(row).copied());
            for (own, values) in own.values.iter_mut().zip(&self.values) {
                own.extend(values.get(row).copied());
            }
        }
        split
    }

    /// Whether two rows have the same time.
    pub fn repeats(&self) -> bool {
        let mut moments: Vec<DateTime> = self.times.iter().filter_map(wall_clock).collect();
        let mut steps: Vec<i64> =
            self.times.iter().filter_map(|time| if let Read::Step(step) = time { Some(*step) } else { None }).collect();
        moments.sort_unstable();
        steps.sort_unstable();
        moments.windows(2).any(|pair| pair[0] == pair[1]) || steps.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// The moment of the only row, if there is one row.
    pub fn only_moment(&self) -> Option<DateTime> {
        if let [time] = &self.times[..] { wall_clock(time) } else { None }
    }

    /// The names of the rows and where each goes. Adds to `notes` what was done to the rows.
    pub fn layout(&self, file: &str, time: Option<&str>, notes: &mut Vec<String>) -> Result<(Index, Layout)> {
        let plain = Index::Steps { first: 1, step: 1 };
        let as_is = Layout { order: None, positions: None };
        if self.times.is_empty() {
            return Ok((plain, as_is));
        }
        let place = || Place::file(file).column(time.unwrap_or_default());
        let steps: Option<Vec<i64>> =
            self.times.iter().map(|time| if let Read::Step(step) = time { Some(*step) } else { None }).collect();
        if let Some(steps) = steps {
            let order = self.order(&steps, &place, notes)?;
            let sorted = arranged(&steps, order.as_deref());
            let Some((first, step, rows)) = infer_steps(&sorted) else {
                notes.push("the row numbers are not evenly spaced; rows are numbered from 1".into());
                return Ok((plain, Layout { order, positions: None }));
            };
            let positions = gaps(rows, notes);
            return Ok((Index::Steps { first, step }, Layout { order, positions }));
        }
        let (moments, offset) = self.moments(&place, notes)?;
        let order = self.order(&moments, &place, notes)?;
        let (mut grid, mut order, mut offset) = (Grid::infer(&arranged(&moments, order.as_deref())), order, offset);
        if grid.is_err() && offset == Some(Offset::UTC) {
            // Local midnights across a daylight saving change are even on the wall, not in UTC.
            let wall: Vec<DateTime> = self.times.iter().filter_map(wall_clock).collect();
            let wall_order = sort(&wall);
            if let Ok(Some(even)) = Grid::infer(&arranged(&wall, wall_order.as_deref())) {
                (grid, order, offset) = (Ok(Some(even)), wall_order, None);
                notes.push("offsets from UTC change; times are taken as local time".into());
            }
        }
        let grid = grid.map_err(|irregular| {
            let problem = format!("{irregular}: resample them, or number the rows with --steps");
            Error::input(place(), problem)
        })?;
        let Some(Grid { calendar, rows }) = grid else {
            notes.push("one row does not tell the step of time; rows are numbered from 1".into());
            return Ok((plain, Layout { order, positions: None }));
        };
        if let Some(taken) = self.ambiguous {
            notes.push(format!("dates could be day/month or month/day; read as {taken}"));
        }
        let calendar: Calendar = match self.precision {
            Some(precision) => calendar.with_precision(precision),
            None => calendar,
        };
        let positions = gaps(rows, notes);
        Ok((Index::Calendar(calendar.with_offset(offset)), Layout { order, positions }))
    }

    /// The moments in the file's order, in UTC where their offsets differ.
    fn moments(&self, place: &dyn Fn() -> Place, notes: &mut Vec<String>) -> Result<(Vec<DateTime>, Option<Offset>)> {
        let offset_of = |time: &Read| if let Read::Moment(_, offset) = time { *offset } else { None };
        let first = self.times.first().and_then(offset_of);
        let odd = self.times.iter().position(|time| offset_of(time) != first);
        let Some(odd) = odd else {
            return Ok((self.times.iter().filter_map(wall_clock).collect(), first));
        };
        if let Some(row) = self.times.iter().position(|time| offset_of(time).is_some() != first.is_some()) {
            let problem = "has an offset from UTC on some rows only: write all rows alike";
            return Err(Error::input(place().line(self.lines.get(row).copied().unwrap_or_default()), problem));
        }
        let line = self.lines.get(odd).copied().unwrap_or_default();
        let utc = self.times.iter().map(|time| match time {
            Read::Moment(moment, Some(offset)) => {
                moment.checked_sub(jiff::SignedDuration::from_secs(i64::from(offset.seconds()))).ok()
            }
            _ => None,
        });
        let utc = utc.collect::<Option<Vec<_>>>().ok_or_else(|| Error::input(place(), "leaves the calendar in UTC"))?;
        notes.push(format!("offsets from UTC differ (from line {line} on); times are put in UTC"));
        Ok((utc, Some(Offset::UTC)))
    }

    /// The order of time, `None` when it is the file's order.
    ///
    /// # Errors
    /// When two rows have the same time.
    fn order<T: Ord + Copy>(
        &self,
        times: &[T],
        place: &dyn Fn() -> Place,
        notes: &mut Vec<String>,
    ) -> Result<Option<Vec<usize>>> {
        let order = sort(times);
        let at = |rank: usize| order.as_ref().map_or(rank, |order| order[rank]);
        for rank in 1..times.len() {
            let (a, b) = (at(rank - 1), at(rank));
            if times[a] == times[b] {
                let lines = [a, b].map(|row| self.lines.get(row).copied().unwrap_or_default());
                let problem = format!(
                    "has the same time as line {}: keep one row for each time, or name the column that tells series apart (--id)",
                    lines[0].min(lines[1])
                );
                return Err(Error::input(place().line(lines[0].max(lines[1])), problem));
            }
        }
        if order.is_some() {
            notes.push("the rows are not in order of time; they were sorted".into());
        }
        Ok(order)
    }
}

fn wall_clock(time: &Read) -> Option<DateTime> {
    if let Read::Moment(moment, _) = time { Some(*moment) } else { None }
}

/// The permutation that sorts, `None` when there is nothing to do.
fn sort<T: Ord + Copy>(times: &[T]) -> Option<Vec<usize>> {
    if times.is_sorted() {
        return None;
    }
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|&row| times[row]);
    Some(order)
}

fn arranged<T: Copy>(times: &[T], order: Option<&[usize]>) -> Vec<T> {
    order.map_or_else(|| times.to_vec(), |order| order.iter().map(|&row| times[row]).collect())
}

/// The positions if there are gaps between them, and a note about the gaps.
fn gaps(rows: Vec<usize>, notes: &mut Vec<String>) -> Option<(Vec<usize>, usize)> {
    let len = rows.last().map_or(0, |last| last + 1);
    match len - rows.len() {
        0 => None,
        missing => {
            let be = if missing == 1 { "row is" } else { "rows are" };
            notes.push(format!("{missing} of {len} {be} absent from the file and count as missing values"));
            Some((rows, len))
        }
    }
}
