//! Puts rows on a regular axis: their order, the step between them, and what is missing.

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::rows::{Rows, in_utc, wall_clock};
use crate::calendar::{
    Calendar, Clock, Grid, Irregular, Precision, Read, Unclear, infer_steps, instants, local, one_time_of_day,
};
use crate::error::{Error, Place, Result, quoted};
use crate::series::{Index, spread};

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

/// A step that was found, or was not, for rows in this order.
struct Found {
    grid: std::result::Result<Option<Grid>, Irregular>,
    order: Option<Vec<usize>>,
    clock: Clock,
}

impl Rows {
    /// Whether two rows have the same time.
    pub fn repeats(&self) -> bool {
        let place = Place::default;
        let moments = match (&self.facts.zone, self.offsets_alike(&place)) {
            (Some(_), Ok(_)) => self.instants(&place).ok(),
            _ => None,
        };
        let mut moments = moments.unwrap_or_else(|| self.times.iter().filter_map(wall_clock).collect());
        let mut steps: Vec<i64> =
            self.times.iter().filter_map(|time| if let Read::Step(step) = time { Some(*step) } else { None }).collect();
        moments.sort_unstable();
        steps.sort_unstable();
        moments.windows(2).any(|pair| pair[0] == pair[1]) || steps.windows(2).any(|pair| pair[0] == pair[1])
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
        let Found { grid, order, clock } = match &self.facts.zone {
            Some(zone) => self.in_zone(zone, &place, notes)?,
            None => self.on_the_wall(&place, notes)?,
        };
        let grid = grid.map_err(|irregular| {
            let problem = format!("{irregular}: resample them, or number the rows with --steps");
            Error::input(place(), problem)
        })?;
        let Some(Grid { calendar, rows }) = grid else {
            notes.push("one row does not tell the step of time; rows are numbered from 1".into());
            return Ok((plain, Layout { order, positions: None }));
        };
        if let Some(taken) = self.facts.ambiguous {
            notes.push(format!("dates could be day/month or month/day; read as {taken}"));
        }
        let calendar: Calendar = match self.facts.precision {
            Some(precision) => calendar.with_precision(precision),
            None => calendar,
        };
        let positions = gaps(rows, notes);
        Ok((Index::Calendar(calendar.on(clock)), Layout { order, positions }))
    }

    /// The axis of times as they are written, or in UTC where their offsets differ.
    fn on_the_wall(&self, place: &dyn Fn() -> Place, notes: &mut Vec<String>) -> Result<Found> {
        let wall = || self.times.iter().filter_map(wall_clock).collect::<Vec<DateTime>>();
        let (moments, offset) = match self.offsets_alike(place)? {
            Ok(offset) => (wall(), offset),
            Err(odd) => {
                let (word, number) = (self.facts.count.word(), self.number(odd));
                notes.push(format!("offsets from UTC differ (from {word} {number} on); times are put in UTC"));
                (self.instants(place)?, Some(Offset::UTC))
            }
        };
        let order = self.order(&moments, place, notes)?;
        let grid = Grid::infer(&arranged(&moments, order.as_deref()));
        if grid.is_err() && offset == Some(Offset::UTC) {
            // Local midnights across a daylight saving change are even on the wall, not in UTC.
            let wall = wall();
            let order = sort(&wall);
            if let Ok(Some(even)) = Grid::infer(&arranged(&wall, order.as_deref())) {
                notes.push("offsets from UTC change; times are taken as local time".into());
                return Ok(Found { grid: Ok(Some(even)), order, clock: Clock::Wall(None) });
            }
        }
        Ok(Found { grid, order, clock: Clock::Wall(offset) })
    }

    /// The axis of times in a zone: of days and longer steps by its clocks, of shorter ones in UTC, unless only the clocks
    /// show an even step.
    fn in_zone(&self, zone: &TimeZone, place: &dyn Fn() -> Place, notes: &mut Vec<String>) -> Result<Found> {
        let local_already =
            self.offsets_alike(place)?.is_ok_and(|offset| offset.is_none()) && self.facts.own_zone == self.facts.zone;
        let written = || self.times.iter().filter_map(wall_clock).collect::<Vec<DateTime>>();
        let distinct = |walls: &Vec<DateTime>| {
            let mut sorted = walls.clone();
            sorted.sort_unstable();
            sorted.windows(2).all(|pair| pair[0] < pair[1])
        };
        let dates = if local_already { one_time_of_day(&written(), zone).filter(distinct) } else { None };
        if let Some(walls) = dates {
            // Dates need no instant: in some zones clocks skip midnight.
            let order = self.order(&walls, place, notes)?;
            let grid = Grid::infer(&arranged(&walls, order.as_deref()));
            return Ok(Found { grid, order, clock: Clock::Local(zone.clone()) });
        }
        let instants = self.instants(place)?;
        let order = self.order(&instants, place, notes)?;
        let walls: Option<Vec<DateTime>> = instants.iter().map(|moment| local(*moment, zone)).collect();
        let walls = walls.ok_or_else(|| Error::input(place(), "leaves the calendar in its time zone: correct it"))?;
        if let Some(walls) = one_time_of_day(&walls, zone) {
            let grid = Grid::infer(&arranged(&walls, order.as_deref()));
            if grid.is_ok() {
                return Ok(Found { grid, order, clock: Clock::Local(zone.clone()) });
            }
        }
        let exact = Grid::infer(&arranged(&instants, order.as_deref()));
        if exact.is_err() {
            let grid = Grid::infer(&arranged(&walls, order.as_deref()));
            if grid.is_ok() {
                return Ok(Found { grid, order, clock: Clock::Local(zone.clone()) });
            }
        }
        let precision = Precision::of(walls);
        let grid =
            exact.map(|grid| grid.map(|grid| Grid { calendar: grid.calendar.with_precision(precision), ..grid }));
        Ok(Found { grid, order, clock: Clock::Exact(zone.clone()) })
    }

    /// The offset that all times have, if any; or the first row that has another.
    ///
    /// # Errors
    /// When only some have one.
    fn offsets_alike(&self, place: &dyn Fn() -> Place) -> Result<std::result::Result<Option<Offset>, usize>> {
        let offset_of = |time: &Read| if let Read::Moment(_, offset) = time { *offset } else { None };
        let first = self.times.first().and_then(offset_of);
        let Some(odd) = self.times.iter().position(|time| offset_of(time) != first) else { return Ok(Ok(first)) };
        if let Some(row) = self.times.iter().position(|time| offset_of(time).is_some() != first.is_some()) {
            let problem = "has an offset from UTC on some rows only: write all rows alike";
            return Err(Error::input(self.facts.count.place(place(), self.number(row)), problem));
        }
        Ok(Err(odd))
    }

    /// The moments of the rows in UTC.
    fn instants(&self, place: &dyn Fn() -> Place) -> Result<Vec<DateTime>> {
        let all: Option<Vec<DateTime>> = self.times.iter().map(in_utc).collect();
        if let Some(all) = all {
            return Ok(all);
        }
        let beyond = || Error::input(place(), "leaves the calendar in UTC: correct it");
        let (Some(zone), false) = (&self.facts.own_zone, self.times.iter().any(|time| in_utc(time).is_some())) else {
            return Err(beyond());
        };
        let walls: Vec<DateTime> = self.times.iter().filter_map(wall_clock).collect();
        instants(&walls, zone).map_err(|(row, why)| {
            let name = zone.iana_name().unwrap_or("its time zone");
            let time =
                walls.get(row).map_or(String::new(), |wall| quoted(&wall.strftime("%Y-%m-%d %H:%M:%S").to_string()));
            let problem = match why {
                Unclear::Beyond => return beyond(),
                Unclear::Skipped => format!(
                    "{time} does not exist in {name}, where clocks go forward over it: correct it, or give times with \
                     offsets from UTC"
                ),
                Unclear::Unordered => format!(
                    "{time} comes twice in {name}, where clocks go back, and rows out of order do not tell which is \
                     which: sort them, or give times with offsets from UTC"
                ),
            };
            Error::input(self.facts.count.place(place(), self.number(row)), problem)
        })
    }

    /// The number of a row in its file.
    fn number(&self, row: usize) -> u64 {
        self.numbers.get(row).copied().unwrap_or_default()
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
                let numbers = [a, b].map(|row| self.number(row));
                let problem = format!(
                    "has the same time as {} {}: keep one row for each time, or name the column that tells series apart \
                     (--id){}",
                    self.facts.count.word(),
                    numbers[0].min(numbers[1]),
                    if self.may_be_local(a) { ", or the time zone if clocks went back there (--zone)" } else { "" }
                );
                let place = self.facts.count.place(place(), numbers[0].max(numbers[1]));
                return Err(Error::input(place, problem));
            }
        }
        if order.is_some() {
            notes.push("the rows are not in order of time; they were sorted".into());
        }
        Ok(order)
    }

    /// Whether a time may be a local one that comes twice: it has a time of day of the night, and neither offset nor zone.
    fn may_be_local(&self, row: usize) -> bool {
        let night = |moment: &DateTime| moment.hour() < 4 && moment.time() != jiff::civil::Time::midnight();
        self.facts.zone.is_none()
            && self.times.get(row).is_some_and(|time| matches!(time, Read::Moment(moment, None) if night(moment)))
    }
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
