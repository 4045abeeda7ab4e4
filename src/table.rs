//! Reads the series of a CSV file: finds its dialect, its time column and its number columns.
//!
//! * **Dialect.** Comma, semicolon, tab or bar between fields, whichever splits the first lines evenly; quotes, any line
//!   ends, a byte order mark. `1.234,5` and `1,5` are read with a decimal comma where the field separator is not a comma.
//! * **Header.** The first line, unless all its cells are numbers and dates.
//! * **Time.** The first column named like time (`date`, `time`, `ds`, `month`, `year`, ...) whose cells all are moments;
//!   otherwise the first column whose cells all are dates. Rows need not be ordered. Missing rows are missing values.
//! * **Values.** Every other column in which numbers prevail. Empty cells, `NA`, `NaN`, `null`, `-`, `?` and their like
//!   are missing.
//!
//! Memory: the file, per row 4 bytes for each value column and about 40 for the time column, and 4 bytes for each missing
//! row and value column; there are at most 100 missing rows for each row, and 2 in tables of millions of rows.

mod columns;
mod dialect;
mod rows;
mod values;

use std::fs;
use std::path::Path;

use crate::calendar::Frequency;
use crate::error::{Error, Place, Result, quoted};
use crate::series::Series;

/// Which columns to read. The default finds them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TableOptions {
    /// The value columns; empty for every column of numbers.
    pub columns: Vec<String>,
    /// The time column; `None` to find it.
    pub time: Option<String>,
    /// Ignore time and number the rows 1, 2, 3, ... in the order of the file.
    pub number_rows: bool,
}

impl TableOptions {
    /// Reads these value columns only.
    pub fn columns<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.columns = names.into_iter().map(Into::into).collect();
        self
    }

    /// Reads time from this column.
    pub fn time(mut self, name: impl Into<String>) -> Self {
        self.time = Some(name.into());
        self
    }
}

/// The series of a table, and what a person should know about how they were read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Table {
    /// One series for each value column, in the order of the file or of [`TableOptions::columns`].
    pub series: Vec<Series>,
    /// The name of the time column.
    pub time: Option<String>,
    /// The step between rows, if the table has moments and at least two rows.
    pub frequency: Option<Frequency>,
    /// Remarks, one line each: columns left out, rows reordered or missing, an ambiguous date format.
    pub notes: Vec<String>,
}

impl Table {
    /// Reads a CSV file.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Input`] with file, line and column when its text cannot be
    /// used.
    pub fn read_csv(path: impl AsRef<Path>, options: &TableOptions) -> Result<Table> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::io("read", path, source))?;
        Table::parse_csv(&path.display().to_string(), &bytes, options)
    }

    /// Reads CSV text; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Table::read_csv`].
    pub fn parse_csv(name: &str, bytes: &[u8], options: &TableOptions) -> Result<Table> {
        let text = dialect::text(name, bytes)?;
        let dialect = dialect::Dialect::of(text);
        let survey = columns::Survey::of(name, text, &dialect)?;
        let choice = survey.choose(name, options)?;
        let read = rows::Rows::read(name, text, &dialect, &survey, &choice)?;
        let mut notes = choice.notes;
        let time = choice.time.map(|time| survey.columns[time.column].name.clone());
        let (index, layout) = read.layout(name, time.as_deref(), &mut notes)?;
        let frequency = match &index {
            crate::Index::Calendar(calendar) => Some(calendar.frequency()),
            crate::Index::Steps { .. } => None,
        };
        let mut series = Vec::with_capacity(choice.values.len());
        for (&column, values) in choice.values.iter().zip(&read.values) {
            let title = &survey.columns[column].name;
            series.push(Series::new(title.clone(), layout.arrange(values)).with_index(index.clone()));
        }
        if series.iter().all(|series| series.values.is_empty()) {
            return Err(Error::input(Place::file(name), "has a header but no rows: add rows of data below it"));
        }
        Ok(Table { series, time, frequency, notes })
    }
}

/// `'a', 'b' and 3 more`
pub(crate) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.collect();
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| quoted(name)).collect();
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests;
