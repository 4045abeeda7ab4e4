//! Reads the series of a CSV or Parquet file: finds its dialect, its time column and its number columns.
//!
//! * **Dialect.** Comma, semicolon, tab or bar between fields, whichever splits the first lines evenly; quotes, any line
//!   ends, a byte order mark. `1.234,5` and `1,5` are read with a decimal comma where the field separator is not a comma.
//! * **Header.** The first line, unless all its cells are numbers and dates.
//! * **Time.** The first column named like time (`date`, `time`, `ds`, `month`, `year`, ...) whose cells all are moments;
//!   otherwise the first column whose cells all are dates. Rows need not be ordered. Missing rows are missing values.
//! * **Series.** One for each value column; in a long table one for each value of an id column, each with its own rows. The id
//!   column is given, or found where times repeat and a single column of text tells them apart.
//! * **Values.** Every other column in which numbers prevail. Empty cells, `NA`, `NaN`, `null`, `-`, `?` and their like
//!   are missing.
//! * **Parquet** (feature `table`). Types take the place of text: dates and time stamps are time, integers, floats and decimals
//!   are values, nulls and NaN are missing; a time stamp's zone is the zone of the series. Strings are read as cells of a CSV
//!   file are. Columns of other types are left out.
//!
//! Memory: the file, per row 8 bytes for each value column and about 90 for the time column, and 8 bytes for each missing
//! row and value column; there are at most 100 missing rows for each row, and 2 in tables of millions of rows. Ten million
//! rows of a time and two values take 1.25 GB. There are at most 65,536 columns, and the names in long tables of several value
//! columns have at most 512 bytes. Whatever a CSV file holds, this is below 128 KiB and 600 bytes for each of its bytes. A Parquet
//! file is decoded 4,096 rows at a time, which takes at most its longest page (below 2 GiB) and the text of those rows for each
//! column; a file of more than 2^28 rows is refused.

#[cfg(feature = "table")]
mod arrow;
mod columns;
mod dialect;
mod layout;
mod long;
#[cfg(feature = "table")]
mod parquet;
mod rows;
mod values;

use std::fs;
use std::path::Path;

#[cfg(feature = "table")]
#[doc(hidden)] // for the program's panic hook
pub use self::parquet::reading;

use crate::calendar::Frequency;
use crate::error::{Error, Place, Result, quoted};
use crate::series::Series;

/// Which columns to read. The default finds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableOptions {
    /// The value columns; empty for every column of numbers.
    pub columns: Vec<String>,
    /// The time column; `None` to find it.
    pub time: Option<String>,
    /// The column that tells the series of a long table apart; `None` to find it where times repeat.
    pub id: Option<String>,
    /// The IANA name of the time zone (`Europe/Berlin`) that times without an offset are in and all times are shown in; `None`
    /// for the one that the file names, or none. See [`TableOptions::zone`].
    pub zone: Option<String>,
    /// Ignore time and number the rows 1, 2, 3, ... in the order of the file.
    pub number_rows: bool,
}

impl TableOptions {
    /// Reads these value columns only.
    pub fn columns<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.columns = names.into_iter().map(Into::into).collect();
        self
    }

    /// Tells series apart by this column: the table is long, one row for each series and time.
    pub fn id(mut self, name: impl Into<String>) -> Self {
        self.id = Some(name.into());
        self
    }

    /// Takes times as what the clocks of this time zone show, or, where they have offsets from UTC, puts them in this zone. An
    /// hour that clocks skip is then no gap, one that comes twice is two rows (their order tells them apart), and days and
    /// longer steps keep the time of day.
    pub fn zone(mut self, name: impl Into<String>) -> Self {
        self.zone = Some(name.into());
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
    /// One series for each value column, in the order of the file or of [`TableOptions::columns`]; in a long table for each id
    /// in the order of the file, named by the id, and `id/column` where there are several value columns.
    pub series: Vec<Series>,
    /// The name of the id column of a long table.
    pub id: Option<String>,
    /// The name of the time column.
    pub time: Option<String>,
    /// The step between rows, if the table has moments and at least two rows; the most common one of a long table.
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
        Table::build(name, &survey, options, |choice| rows::Rows::read(name, text, &dialect, &survey, choice))
    }

    /// Reads a CSV or Parquet file, told apart by its content and the end of its name (`.parquet`). Parquet takes feature
    /// `table`.
    ///
    /// # Errors
    /// As [`Table::read_csv`]; [`Error::Input`] for a Parquet file that is damaged, or that this build cannot read.
    pub fn read(path: impl AsRef<Path>, options: &TableOptions) -> Result<Table> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::io("read", path, source))?;
        Table::parse(&path.display().to_string(), bytes, options)
    }

    /// Reads the content of a CSV or Parquet file; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn parse(name: &str, bytes: Vec<u8>, options: &TableOptions) -> Result<Table> {
        if !bytes.starts_with(b"PAR1") && !name.to_ascii_lowercase().ends_with(".parquet") {
            return Table::parse_csv(name, &bytes, options);
        }
        #[cfg(feature = "table")]
        return arrow::table(name, &parquet::File::open(name, bytes)?, options);
        #[cfg(not(feature = "table"))]
        Err(Error::input(Place::file(name), dialect::NOT_CSV))
    }

    /// The series of a table in Arrow record batches, which must have one schema; `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Input`] with column and row when the table cannot be used.
    #[cfg(feature = "table")]
    pub fn from_batches(name: &str, batches: &[arrow_array::RecordBatch], options: &TableOptions) -> Result<Table> {
        arrow::table(name, &arrow::InMemory { name, batches }, options)
    }

    /// The series of surveyed columns; `rows` reads the chosen ones.
    fn build(
        name: &str,
        survey: &columns::Survey,
        options: &TableOptions,
        rows: impl Fn(&columns::Choice) -> Result<rows::Rows>,
    ) -> Result<Table> {
        let mut choice = survey.choose(name, options)?;
        let mut read = rows(&choice)?;
        if let (None, Some(candidate)) = (choice.id, survey.only_text(&choice).filter(|_| read.repeats())) {
            // Whether the column tells series apart shows when no time repeats within one.
            let id = columns::Choice { id: Some(candidate), ..choice.clone() };
            let split = rows(&id)?;
            if split.by_id().iter().all(|rows| !rows.repeats()) {
                (choice, read) = (id, split);
                let title = &survey.columns[candidate].name;
                choice.notes.retain(|note| !note.starts_with(&format!("column {} ", quoted(title))));
                let series = read.ids.len();
                choice.notes.push(format!("times repeat; {} tells {series} series apart", quoted(title)));
            }
        }
        let titles: Vec<&str> = choice.values.iter().map(|&at| survey.columns[at].name.as_str()).collect();
        let time = choice.time.map(|time| survey.columns[time.column].name.clone());
        let id = choice.id.map(|id| survey.columns[id].name.clone());
        let mut notes = choice.notes;
        let series = match id {
            Some(_) => long::series(name, &read, &titles, time.as_deref(), &mut notes)?,
            None => {
                let (index, layout) = read.layout(name, time.as_deref(), &mut notes)?;
                let named = titles.iter().zip(&read.values);
                named
                    .map(|(title, values)| Series::new(*title, layout.arrange(values)).with_index(index.clone()))
                    .collect()
            }
        };
        if series.iter().all(|series| series.values.is_empty()) {
            return Err(Error::input(Place::file(name), "has a header but no rows: add rows of data below it"));
        }
        let frequency = long::usual(&series);
        Ok(Table { series, id, time, frequency, notes })
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

#[cfg(all(test, feature = "table"))]
mod parquet_tests;
#[cfg(test)]
mod tests;
