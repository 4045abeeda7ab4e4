//! A first pass over a table: what each column holds, and which columns to read.

use std::collections::HashSet;

use csv::ByteRecord;
use jiff::tz::TimeZone;

#[cfg(feature = "table")]
use super::arrow::Values;
use super::dialect::Dialect;
use super::rows::Count;
use super::values::{Cell, cell, comma_is_decimal};
use super::{TableOptions, listed};
use crate::calendar::{Format, TimeColumn, looks_like_date, zone};
use crate::error::{Error, Place, Result, one_line, quoted};

/// What the first pass learned.
pub(super) struct Survey {
    pub columns: Vec<Column>,
    /// Whether the first record is a header rather than data.
    pub header: bool,
    /// Whether a comma is the decimal mark.
    pub comma: bool,
    /// Records of data.
    pub rows: u64,
    /// What rows are counted by.
    pub count: Count,
}

pub(super) struct Column {
    pub name: String,
    numbers: u64,
    missing: u64,
    texts: u64,
    first_text: Option<(u64, String)>,
    pub time: TimeColumn,
    /// The time zone that the column's type names.
    pub zone: Option<TimeZone>,
    /// What the column holds instead of numbers, text and times.
    pub unreadable: Option<String>,
}

/// Wider tables are taken for a mistake: what is known of a column takes a hundred times the two bytes that it may take in
/// the file.
const MOST_COLUMNS: usize = 1 << 16;

/// Which columns to read, and how.
#[derive(Clone)]
pub(super) struct Choice {
    pub id: Option<usize>,
    pub time: Option<TimeChoice>,
    pub values: Vec<usize>,
    /// The time zone that was asked for.
    pub zone: Option<TimeZone>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TimeChoice {
    pub column: usize,
    pub format: Format,
    /// Whether another order of day and month fits all cells too.
    pub ambiguous: bool,
}

/// Goes through the records that hold anything, with the line on which each starts.
pub(super) fn each_record(
    name: &str,
    text: &[u8],
    dialect: &Dialect,
    mut visit: impl FnMut(&ByteRecord, u64) -> Result<()>,
) -> Result<()> {
    let mut reader = dialect.reader(text);
    let mut record = ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(Error::input(Place::file(name), one_line(&error.to_string()))),
        }
        if record.iter().any(|field| !field.iter().all(u8::is_ascii_whitespace)) {
            let line = record.position().map_or(0, csv::Position::line);
            visit(&record, line)?;
        }
    }
}

/// A field as text. Names may hold any bytes; numbers and dates are ASCII.
pub(super) fn field(record: &ByteRecord, column: usize) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(record.get(column).unwrap_or_default())
}

impl Survey {
    pub fn of(name: &str, text: &[u8], dialect: &Dialect) -> Result<Self> {
        let mut survey = Survey { columns: Vec::new(), header: true, comma: false, rows: 0, count: Count::Lines };
        survey.comma = decimal_comma(name, text, dialect)?;
        let mut first = true;
        each_record(name, text, dialect, |record, line| {
            if std::mem::take(&mut first) {
                survey.start(name, record, line)?;
                if survey.header {
                    return Ok(());
                }
            }
            survey.see(name, record, line)
        })?;
        Ok(survey)
    }

    /// Takes the names from the first record, or numbers the columns when it is data.
    fn start(&mut self, file: &str, record: &ByteRecord, line: u64) -> Result<()> {
        if record.len() > MOST_COLUMNS {
            let problem = format!(
                "has {} fields, more than the {MOST_COLUMNS} columns that a table may have: check its separators, or \
                 write one row for each series and time (--id)",
                record.len()
            );
            return Err(Error::input(Place::file(file).line(line), problem));
        }
        let data = |text: &str| matches!(cell(text, self.comma), Cell::Number(_)) || looks_like_date(text.trim());
        let blank = |text: &str| text.trim().is_empty();
        self.header = !record.iter().all(|field| {
            let text = String::from_utf8_lossy(field);
            blank(&text) || data(&text)
        });
        let mut names = HashSet::new();
        for at in 0..record.len() {
            let text = field(record, at);
            let mut name = if self.header { one_line(&text) } else { format!("column {}", at + 1) };
            if !name.is_empty() && names.contains(&name) {
                name = format!("{name} (column {})", at + 1);
            }
            names.insert(name.clone());
            self.columns.push(Column::new(name));
        }
        Ok(())
    }

    fn see(&mut self, name: &str, record: &ByteRecord, line: u64) -> Result<()> {
        let width = self.columns.len();
        let surplus = record.iter().skip(width).any(|field| !field.iter().all(u8::is_ascii_whitespace));
        if record.len() < width || surplus {
            let first = if self.header { "the header" } else { "the first line" };
            let problem =
                format!("has {} fields where {first} has {width}: check its separators and quotes", record.len());
            return Err(Error::input(Place::file(name).line(line), problem));
        }
        self.rows += 1;
        for (at, column) in self.columns.iter_mut().enumerate() {
            column.see(&field(record, at), line, self.comma);
        }
        Ok(())
    }

    /// Decides which column is time and which are values.
    pub fn choose(&self, name: &str, options: &TableOptions) -> Result<Choice> {
        let mut notes = Vec::new();
        let zone = options.zone.as_deref().map(|name| {
            zone(name).ok_or_else(|| {
                let name = quoted(name);
                Error::option(format!("{name} is not a time zone (--zone): give an IANA name such as Europe/Berlin"))
            })
        });
        let zone = zone.transpose()?;
        let time = match &options.time {
            Some(wanted) => {
                let column = self.find(name, wanted, "--time")?;
                Some(self.time(name, column, true, options.number_rows)?.ok_or_else(|| {
                    Error::input(
                        Place::file(name).column(&self.columns[column].name),
                        "holds no dates or times: name another column, or leave time out and number the rows",
                    )
                })?)
            }
            None => self.find_time(name, options.number_rows)?,
        };
        let id = options.id.as_ref().map(|wanted| self.find(name, wanted, "--id")).transpose()?;
        if let Some(id) = id.filter(|&id| time.is_some_and(|time| time.column == id)) {
            let problem = "is the time column: name another column for the ids of series (--id)";
            return Err(Error::input(Place::file(name).column(&self.columns[id].name), problem));
        }
        let taken = |column: usize| id == Some(column) || time.is_some_and(|time| time.column == column);
        let mut values = Vec::new();
        if options.columns.is_empty() {
            for (at, column) in self.columns.iter().enumerate().filter(|(at, _)| !taken(*at)) {
                if self.holds_values(at, time.is_some()) {
                    values.push(at);
                } else if let Some(kind) = &column.unreadable {
                    notes.push(format!("column {} holds {kind} and is left out", quoted(&column.name)));
                } else if let Some((number, text)) = &column.first_text {
                    let (title, word) = (quoted(&column.name), self.count.word());
                    notes.push(format!(
                        "column {title} holds text ({} on {word} {number}) and is left out",
                        quoted(text)
                    ));
                } else if !column.name.is_empty() && self.rows > 0 {
                    notes.push(format!("column {} holds no values and is left out", quoted(&column.name)));
                }
            }
        } else {
            for wanted in &options.columns {
                let at = self.find(name, wanted, "--column")?;
                if taken(at) {
                    let problem = match id == Some(at) {
                        true => "is the id column: name a column of values, or another id column",
                        false => "is the time column: name a column of values, or another time column",
                    };
                    return Err(Error::input(Place::file(name).column(&self.columns[at].name), problem));
                }
                if !values.contains(&at) {
                    values.push(at);
                }
            }
        }
        if self.rows == 0 {
            return Err(Error::input(Place::file(name), "has a header but no rows: add rows of data below it"));
        }
        if values.is_empty() {
            let all = listed(self.columns.iter().map(|column| column.name.as_str()));
            let problem = format!("has no column of numbers to forecast (columns: {all}): add one");
            return Err(Error::input(Place::file(name), problem));
        }
        let time = time.filter(|_| !options.number_rows);
        if time.is_none() && zone.is_some() {
            notes.push("there are no times to put in a time zone".into());
        }
        Ok(Choice { id, time, values, zone, notes })
    }

    /// The column of text, if there is exactly one beside time and values: it may tell the series of a long table apart.
    pub fn only_text(&self, choice: &Choice) -> Option<usize> {
        let taken: HashSet<usize> = choice.values.iter().copied().chain(choice.time.map(|time| time.column)).collect();
        let mut texts = (0..self.columns.len()).filter(|at| !taken.contains(at) && self.columns[*at].texts > 0);
        texts.next().filter(|&at| texts.next().is_none() && self.columns[at].missing == 0)
    }

    /// Numbers prevail, or it is the only column there is to forecast (so that a bad cell is reported, not skipped).
    fn holds_values(&self, at: usize, timed: bool) -> bool {
        let column = &self.columns[at];
        let only = self.columns.len() == 1 + usize::from(timed);
        column.numbers > 0 && column.numbers >= column.texts || only && (column.numbers + column.texts > 0)
    }

    /// The column of this name: exactly, or else but for case.
    fn find(&self, file: &str, wanted: &str, option: &str) -> Result<usize> {
        let wanted = wanted.trim();
        let exact = self.columns.iter().position(|column| column.name == wanted);
        let found = exact.or_else(|| self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(wanted)));
        found.ok_or_else(|| {
            let all = listed(self.columns.iter().map(|column| column.name.as_str()));
            Error::input(Place::file(file), format!("has no column {} ({option}); it has {all}", quoted(wanted)))
        })
    }

    fn find_time(&self, name: &str, lenient: bool) -> Result<Option<TimeChoice>> {
        if self.columns.len() < 2 {
            // A single column is what to forecast, unless it can only be dates (then there is nothing to forecast).
            return match self.columns.first().is_some_and(|column| column.time.formats(false).next().is_some()) {
                true if self.rows > 0 => self.time(name, 0, false, lenient),
                _ => Ok(None),
            };
        }
        let named = self.columns.iter().map(|column| named_like_time(&column.name));
        for (at, _) in named.enumerate().filter(|(_, named)| *named) {
            if let Some(choice) = self.time(name, at, true, lenient)? {
                return Ok(Some(choice));
            }
        }
        for at in 0..self.columns.len() {
            if let Some(choice) = self.time(name, at, false, lenient)? {
                return Ok(Some(choice));
            }
        }
        Ok(None)
    }

    /// How column `at` tells time, if it does. `numbers`: it may do so with bare numbers.
    ///
    /// # Errors
    /// When it begins as dates and then holds something else: a bad cell must not silently turn time into text.
    fn time(&self, name: &str, at: usize, numbers: bool, lenient: bool) -> Result<Option<TimeChoice>> {
        let column = &self.columns[at];
        if self.rows == 0 || column.missing == self.rows {
            return Ok(None);
        }
        let mut formats = column.time.formats(numbers);
        if let Some(format) = formats.next() {
            let ambiguous = format.order().is_some()
                && formats.any(|other| other.order().is_some_and(|o| Some(o) != format.order()));
            return Ok(Some(TimeChoice { column: at, format, ambiguous }));
        }
        match &column.time.failure {
            Some((line, text)) if column.time.dates_before_failure > 0 && !lenient => {
                let problem = format!("{} is not a date in the format of the rows above: correct it", quoted(text));
                Err(Error::input(self.count.place(Place::file(name).column(&column.name), *line), problem))
            }
            _ => Ok(None),
        }
    }
}

impl Column {
    pub fn new(name: String) -> Self {
        let (numbers, missing, texts) = (0, 0, 0);
        Column {
            name,
            numbers,
            missing,
            texts,
            first_text: None,
            time: TimeColumn::new(),
            zone: None,
            unreadable: None,
        }
    }

    fn see(&mut self, raw: &str, number: u64, comma: bool) {
        let text = raw.trim();
        match cell(text, comma) {
            Cell::Missing => {
                self.missing += 1;
                return; // a blank cell contradicts no format of time
            }
            Cell::Number(_) | Cell::Infinite => self.numbers += 1,
            Cell::Text => self.see_text(text, number),
        }
        self.time.see(text, number);
    }

    fn see_text(&mut self, text: &str, number: u64) {
        self.texts += 1;
        if self.first_text.is_none() {
            self.first_text = Some((number, text.to_string()));
        }
    }

    /// Sees the value of a typed column at a row of its batch; `None` is a missing one.
    #[cfg(feature = "table")]
    pub fn see_typed(&mut self, values: Option<&Values>, row: usize, number: u64) {
        match values {
            None => self.missing += 1,
            Some(Values::Text(text)) => self.see(&text(row), number, false),
            Some(Values::Moment(_)) => {
                self.texts += 1;
                self.first_text.get_or_insert_with(|| (number, "a time".to_string()));
            }
            Some(values) => match values.cell(row) {
                Cell::Missing => self.missing += 1,
                _ => {
                    self.numbers += 1;
                    if self.time.formats(true).next().is_some() {
                        self.time.see(&values.text(row), number);
                    }
                }
            },
        }
    }
}

/// Names that mean time, so that bare numbers under them (years, seconds since 1970, row numbers) are time too. The
/// empty name is what data frames write over their index.
pub(super) fn named_like_time(name: &str) -> bool {
    const NAMES: [&str; 20] = [
        "",
        "ds",
        "t",
        "day",
        "days",
        "week",
        "month",
        "months",
        "quarter",
        "year",
        "years",
        "yr",
        "hour",
        "period",
        "index",
        "idx",
        "step",
        "unnamed: 0",
        "__index_level_0__", // pandas in Parquet
        "rownames",
    ];
    let name = name.trim().to_lowercase();
    NAMES.contains(&name.as_str()) || name.contains("date") || name.contains("time")
}

/// Whether the numbers of the file have a decimal comma. Undecided cells (`1,234`) follow the separator: where fields
/// are split by semicolons, the comma was free to be the decimal mark.
fn decimal_comma(name: &str, text: &[u8], dialect: &Dialect) -> Result<bool> {
    if dialect.delimiter == b',' && !text.contains(&b'"') {
        return Ok(false);
    }
    let (mut decimal, mut grouped) = (false, false);
    each_record(name, text, dialect, |record, _| {
        for field in record.iter().filter(|field| field.contains(&b',')) {
            match comma_is_decimal(&String::from_utf8_lossy(field)) {
                Some(true) => decimal = true,
                Some(false) => grouped = true,
                None => {}
            }
        }
        Ok(())
    })?;
    Ok(!grouped && (decimal || dialect.delimiter == b';'))
}
