//! Long tables: one row for each series and time.

use std::collections::HashMap;

use super::rows::Rows;
use crate::calendar::{Calendar, Frequency};
use crate::error::{Error, Place, Result, quoted};
use crate::series::{Index, Series};

/// Remarks on single series that are worth showing; a table of thousands has as many.
const SHOWN: usize = 3;

/// Ids and column names are written once in the file and once for each series: long ones would make much of little.
const LONGEST_NAME: usize = 512;

/// The series of a long table, in the order in which their ids appear.
pub(super) fn series(
    file: &str,
    rows: &Rows,
    titles: &[&str],
    time: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Vec<Series>> {
    let names = rows.ids.iter().map(String::as_str).chain(titles.iter().copied());
    if let Some(long) = names.filter(|_| titles.len() > 1).find(|name| name.len() > LONGEST_NAME) {
        let problem = format!(
            "the name {} has {} bytes, more than the {LONGEST_NAME} that an id or a column of a long table may have: \
             shorten it, or check the quotes",
            quoted(long),
            long.len()
        );
        return Err(Error::input(Place::file(file), problem));
    }
    let mut all = Vec::with_capacity(rows.ids.len() * titles.len());
    let mut single = Vec::new();
    let mut remarks = Vec::new();
    for (id, own) in rows.ids.iter().zip(rows.by_id()) {
        let mut notes = Vec::new();
        let (index, layout) = own.layout(file, time, &mut notes)?;
        if let (Index::Steps { .. }, Some(moment)) = (&index, own.only_moment()) {
            single.push((all.len()..all.len() + titles.len(), moment));
            notes.clear();
        }
        remarks.extend(notes.into_iter().map(|note| format!("series {}: {note}", quoted(id))));
        for (title, values) in titles.iter().zip(&own.values) {
            let name = if titles.len() == 1 { id.clone() } else { format!("{id}/{title}") };
            all.push(Series::new(name, layout.arrange(values)).with_index(index.clone()));
        }
    }
    // One row tells no step; the other series do.
    let like = usual(&all).and_then(|frequency| {
        all.iter().filter_map(Series::calendar).find(|calendar| calendar.frequency() == frequency).cloned()
    });
    if let (Some(like), false) = (like, single.is_empty()) {
        let frequency = like.frequency();
        notes.push(format!("{} with a single row: taken as {frequency} like the others", counted(single.len())));
        for (places, moment) in single {
            for series in &mut all[places] {
                series.index = Index::Calendar(like.starting(moment.0, moment.1));
            }
        }
    }
    let more = remarks.len().saturating_sub(SHOWN);
    notes.extend(remarks.into_iter().take(SHOWN));
    if more > 0 {
        notes.push(format!("and {more} more remarks of this kind on other series"));
    }
    Ok(all)
}

/// The step that most series have; the first of those that are equally common.
pub(super) fn usual(series: &[Series]) -> Option<Frequency> {
    let mut counts: HashMap<String, (usize, usize, Frequency)> = HashMap::new();
    for (at, series) in series.iter().enumerate() {
        if let Some(frequency) = series.calendar().map(Calendar::frequency) {
            counts.entry(frequency.to_string()).or_insert((0, at, frequency)).0 += 1;
        }
    }
    counts.into_values().max_by_key(|&(count, at, _)| (count, std::cmp::Reverse(at))).map(|(.., frequency)| frequency)
}

fn counted(series: usize) -> String {
    if series == 1 { "a series".into() } else { format!("{series} series") }
}
