//! Training windows from a folder of CSV files.
//!
//! Every file has a header line and one row per time step, evenly spaced. One column may hold the time (named `time`,
//! `date`, `datetime`, `timestamp`, `year`, `month` or `ds`, else the first column that holds text) and is ignored; every
//! other column is one series. Empty cells, `NA`, `NaN`, `null` and `None` are missing values.

use super::window::moments;
use super::{Batch, Series, Source, Windowing};
use candle_core::{Error, Result, bail};
use moesaic_kernels::rng::Rng;
use moesaic_kernels::shown;
use std::path::{Path, PathBuf};

/// A series needs this many observed values to be used at all.
const MIN_OBSERVED: usize = 48;

/// Whole-number factors by which windows may be averaged down: hours to days, days to weeks, months to quarters and years.
const FACTORS: [usize; 8] = [2, 3, 4, 6, 7, 8, 12, 24];

/// How windows are cut from the series of a folder.
///
/// Scaling and offset need no augmentation, because every row is standardised. Down-sampling turns an hourly series into
/// 2-hourly to daily ones with other periods and noise, and negation turns a pattern into one as plausible for most series, so
/// both are on: real series are few. Time reversal is not offered: rises and falls, shocks and recoveries differ in direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CsvOptions {
    /// How raw series become rows.
    pub windowing: Windowing,
    /// Share of windows that are averaged down by a factor of 2 to 24, where the series is long enough.
    pub aggregate: f64,
    /// Share of windows turned upside down.
    pub negate: f64,
    /// Share of windows that are a convex mixture of two standardised ones (TSMixup, arXiv 2403.07815 section 4.1).
    pub mix: f64,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { windowing: Windowing::default(), aggregate: 0.35, negate: 0.15, mix: 0.2 }
    }
}

/// All series of a folder of CSV files, as a source of windows. A series is drawn with a weight of the logarithm of its
/// length, so that one long file does not drown the others.
#[derive(Clone, Debug)]
pub struct CsvFolder {
    series: Vec<Series>,
    /// Running sums of the weights.
    weights: Vec<f64>,
    skipped: Vec<String>,
    options: CsvOptions,
}

impl CsvFolder {
    /// Reads every `*.csv` of a folder (not of its subfolders), in the order of the names.
    ///
    /// Errors name the file, and the row and column of a cell that is no number.
    pub fn open(folder: &Path, options: CsvOptions) -> Result<Self> {
        let name = folder.display();
        let entries = std::fs::read_dir(folder)
            .map_err(|e| Error::msg(format!("cannot read the data folder {name}: {e}; fetch or create it first")))?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::msg(format!("cannot read the data folder {name}: {e}")))?.path();
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        if paths.is_empty() {
            bail!("the data folder {name} holds no .csv file");
        }
        let mut series = Vec::new();
        for path in &paths {
            series.extend(read_csv(path)?);
        }
        Self::from_series(series, options)
    }

    /// The same from series in memory. Series with fewer than 48 observed values are left out (see [`Self::skipped`]); none left
    /// is an error.
    pub fn from_series(series: Vec<Series>, options: CsvOptions) -> Result<Self> {
        for (name, share) in [("aggregate", options.aggregate), ("negate", options.negate), ("mix", options.mix)] {
            if !(0.0..=1.0).contains(&share) {
                bail!("the share {name} = {share} of training windows must be between 0 and 1");
            }
        }
        let observed = |s: &Series| s.values.iter().filter(|v| v.is_finite()).count();
        let (series, short): (Vec<Series>, Vec<Series>) = series.into_iter().partition(|s| observed(s) >= MIN_OBSERVED);
        if series.is_empty() {
            bail!("no series with at least {MIN_OBSERVED} observed values among the {} given", short.len());
        }
        let mut sum = 0.0;
        let weights = series
            .iter()
            .map(|s| {
                sum += (s.values.len() as f64 / 16.0).ln();
                sum
            })
            .collect();
        Ok(Self { series, weights, skipped: short.into_iter().map(|s| s.name).collect(), options })
    }

    /// The series that windows are cut from.
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// Names of series that were too short to use.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The series as the model may see them: raw and averaged down, at every offset. This is what
    /// [`super::contamination`] should look at, so that yearly means of a monthly series are found too.
    pub fn views(&self) -> Vec<Series> {
        let mut views = self.series.clone();
        for series in &self.series {
            for factor in usable_factors(&self.options, series.values.len()) {
                views.extend((0..factor).map(|offset| Series {
                    name: format!("{} (means of {factor} from {offset})", series.name),
                    values: average_down(&series.values[offset..], factor),
                }));
            }
        }
        views
    }

    /// A raw window of at most `n` values.
    fn window(&self, rng: &mut Rng, n: usize) -> Vec<f64> {
        let place = rng.uniform() * self.weights.last().copied().unwrap_or(0.0);
        let index = self.weights.partition_point(|w| *w <= place).min(self.series.len() - 1);
        let values = &self.series[index].values;
        let factors: Vec<usize> = usable_factors(&self.options, values.len()).collect();
        let factor = if !factors.is_empty() && rng.chance(self.options.aggregate) {
            factors[rng.below(factors.len())]
        } else {
            1
        };
        let length = (n * factor).min(values.len());
        let start = rng.below(values.len() - length + 1);
        average_down(&values[start..start + length], factor)
    }
}

impl Source for CsvFolder {
    fn batch(&self, seed: u64, step: u64, rows: usize, length: usize) -> Result<Batch> {
        let CsvOptions { windowing, negate, mix, .. } = self.options;
        Batch::by_row((seed, step), rows, length, |rng, values, mask| {
            // Windows in a gap or a constant stretch are drawn again.
            for _ in 0..16 {
                let n = windowing.draw_length(rng, length);
                let mut raw = self.window(rng, n);
                let other = rng.chance(mix).then(|| self.window(rng, raw.len()));
                if let Some(other) = other {
                    blend(rng, &mut raw, &other);
                }
                if rng.chance(negate) {
                    raw.iter_mut().for_each(|v| *v = -*v);
                }
                if windowing.finish(rng, &raw, values, mask) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Factors that leave a series of `n` values at least 128 means.
fn usable_factors(options: &CsvOptions, n: usize) -> impl Iterator<Item = usize> + use<> {
    let on = options.aggregate > 0.0;
    FACTORS.into_iter().filter(move |factor| on && n / factor >= 128)
}

/// Means of `factor` values in a row; missing where more than half of them are.
fn average_down(values: &[f64], factor: usize) -> Vec<f64> {
    if factor == 1 {
        return values.to_vec();
    }
    values
        .chunks_exact(factor)
        .map(|part| {
            let known = part.iter().filter(|v| v.is_finite()).count();
            if known * 2 < factor {
                return f64::NAN;
            }
            part.iter().filter(|v| v.is_finite()).sum::<f64>() / known as f64
        })
        .collect()
}

/// Replaces a window by a convex mixture with another, both standardised; a value missing in either is missing. Windows of
/// different lengths meet at their ends.
fn blend(rng: &mut Rng, raw: &mut Vec<f64>, other: &[f64]) {
    let n = raw.len().min(other.len());
    raw.drain(..raw.len() - n);
    let other = &other[other.len() - n..];
    let (Some((mean, deviation)), Some((other_mean, other_deviation))) = (moments(raw), moments(other)) else { return };
    let weight = rng.uniform();
    for (value, other) in raw.iter_mut().zip(other) {
        *value = (1.0 - weight) * (*value - mean) / deviation + weight * (other - other_mean) / other_deviation;
    }
}

fn is_missing(cell: &str) -> bool {
    cell.is_empty() || ["na", "n/a", "nan", "null", "none"].iter().any(|m| cell.eq_ignore_ascii_case(m))
}

fn is_time(name: &str) -> bool {
    ["time", "date", "datetime", "timestamp", "year", "month", "ds"].iter().any(|t| name.eq_ignore_ascii_case(t))
}

/// Reads the value columns of one CSV file as series named `file:column`.
///
/// Errors name the file, and the line and column of a cell that is neither a finite number nor missing.
pub fn read_csv(path: &Path) -> Result<Vec<Series>> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|e| Error::msg(format!("{name}: {e}")))?;
    parse_csv(&name, file)
}

/// [`read_csv`] from any reader; `file` is what messages and the names of series call it.
pub fn parse_csv(file: &str, text: impl std::io::Read) -> Result<Vec<Series>> {
    let bad = |e: csv::Error| Error::msg(format!("{file}: {e}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let mut names: Vec<String> = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
    if let Some(first) = names.first_mut() {
        // Spreadsheets put a byte order mark before the first name.
        *first = first.trim_start_matches('\u{feff}').to_owned();
    }
    let mut time = names.iter().position(|name| is_time(name));
    let mut columns: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    // The csv crate refuses rows of another width, and its message has the line.
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(bad)?;
        for (index, cell) in record.iter().enumerate() {
            let value = if time == Some(index) || is_missing(cell) {
                f64::NAN
            } else {
                match cell.parse::<f64>() {
                    Ok(value) if value.is_finite() => value,
                    // Text in the first row marks the time column, if no name did.
                    Err(_) if row == 0 && time.is_none() => {
                        time = Some(index);
                        f64::NAN
                    }
                    _ => {
                        let line = record.position().map_or(row as u64 + 2, csv::Position::line);
                        bail!(
                            "{file}: line {line}, column {}: {} is not a finite number; correct it, leave it \
                             empty if it is missing, or remove the column",
                            shown(&names[index]),
                            shown(cell)
                        );
                    }
                }
            };
            columns[index].push(value);
        }
    }
    let values: Vec<Series> = names
        .into_iter()
        .zip(columns)
        .enumerate()
        .filter(|(index, _)| time != Some(*index))
        .map(|(_, (name, values))| Series { name: format!("{file}:{name}"), values })
        .collect();
    match values.first() {
        None => bail!("{file}: no value column (columns are the time and one series each)"),
        Some(first) if first.values.is_empty() => bail!("{file}: no rows below the header"),
        Some(_) => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::super::contamination;
    use super::*;
    use std::fs;

    fn wave(n: usize) -> Vec<f64> {
        (0..n).map(|t| (t as f64 * 0.3).sin() * 3.0 + f64::from((t * t % 13) as u32)).collect()
    }

    fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn table(n: usize) -> String {
        let rows = wave(n).into_iter().enumerate().map(|(t, v)| {
            let second = if t % 9 == 4 { "NA".to_owned() } else { format!("{}", v * v) };
            format!("2020-01-{:02},{v},{second}\n", t % 28 + 1)
        });
        format!("day,a,b\n{}", rows.collect::<String>())
    }

    #[test]
    fn reads_columns_and_gives_standardised_windows() {
        let dir = folder(&[("x.csv", table(700)), ("notes.txt", "no".into()), ("y.CSV", "v\n1\n2\n".into())]);
        let source = CsvFolder::open(dir.path(), CsvOptions::default()).unwrap();
        assert_eq!(source.series().len(), 2);
        assert_eq!(source.skipped().len(), 1);
        assert!(source.series()[0].name.ends_with("x.csv:a"));
        assert!(source.series()[1].values[4].is_nan());
        let batch = source.batch(1, 2, 40, 96).unwrap();
        assert_eq!(batch, source.batch(1, 2, 40, 96).unwrap());
        assert_ne!(batch, source.batch(1, 3, 40, 96).unwrap());
        assert!(batch.values.iter().all(|v| v.is_finite()));
        assert!(batch.mask.contains(&0.0));
        // Rows longer than the series are padded on the left.
        let long = source.batch(1, 2, 4, 1024).unwrap();
        assert!(long.mask.chunks(1024).all(|m| m[..300].iter().all(|m| *m == 0.0)));
    }

    #[test]
    fn windows_are_true_to_the_series() {
        let plain =
            CsvOptions { aggregate: 0.0, negate: 0.0, mix: 0.0, windowing: Windowing { future: 8, short: 0.0 } };
        let series = vec![Series { name: "w".into(), values: wave(500) }];
        let source = CsvFolder::from_series(series.clone(), plain).unwrap();
        let batch = source.batch(7, 0, 8, 64).unwrap();
        let mut starts = Vec::new();
        for row in batch.values.chunks(64) {
            let row = [Series { name: "row".into(), values: row.iter().map(|v| f64::from(*v)).collect() }];
            let found = contamination::check(&row, &series).collisions;
            assert_eq!(found.len(), 1);
            starts.push(found[0].evaluation_at);
        }
        starts.sort_unstable();
        starts.dedup();
        assert!(starts.len() > 4, "{starts:?}");
    }

    #[test]
    fn views_hold_the_means_that_training_sees() {
        let monthly =
            CsvFolder::from_series(vec![Series { name: "m".into(), values: wave(12 * 140) }], CsvOptions::default());
        let monthly = monthly.unwrap();
        let yearly = average_down(&wave(12 * 140)[5..], 12);
        let evaluation = [Series { name: "yearly".into(), values: yearly }];
        assert_eq!(contamination::check(monthly.series(), &evaluation).collisions, []);
        let found = contamination::check(&monthly.views(), &evaluation).collisions;
        assert!(found.iter().any(|c| c.training == "m (means of 12 from 5)"), "{found:?}");
        assert_eq!(average_down(&[1.0, f64::NAN, 4.0, f64::NAN, f64::NAN, 6.0], 3)[0], 2.5);
        assert!(average_down(&[1.0, f64::NAN, 4.0, f64::NAN, f64::NAN, 6.0], 3)[1].is_nan());
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let cases = [
            ("text.csv", "time,y\n2020,1\n2021,oops\n", "line 3, column \"y\": \"oops\""),
            ("inf.csv", "time,y\n2020,inf\n", "\"inf\" is not a finite number"),
            ("ragged.csv", "time,y\n2020,1\n2021\n", "line: 3"),
            ("header.csv", "time,y\n", "no rows"),
            ("empty.csv", "", "no value column"),
            ("time.csv", "date\n2020-01-01\n", "no value column"),
        ];
        for (name, text, expected) in cases {
            let dir = folder(&[(name, text.into())]);
            let message = CsvFolder::open(dir.path(), CsvOptions::default()).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
        let dir = folder(&[("short.csv", "y\n1\n2\n".into())]);
        let message = CsvFolder::open(dir.path(), CsvOptions::default()).unwrap_err().to_string();
        assert!(message.contains("at least 48"), "{message}");
        let dir = folder(&[]);
        assert!(CsvFolder::open(dir.path(), CsvOptions::default()).unwrap_err().to_string().contains("no .csv"));
        assert!(CsvFolder::open(&dir.path().join("gone"), CsvOptions::default()).is_err());
        let wrong = CsvOptions { mix: 1.5, ..CsvOptions::default() };
        assert!(CsvFolder::from_series(vec![Series { name: "w".into(), values: wave(99) }], wrong).is_err());
    }
}
