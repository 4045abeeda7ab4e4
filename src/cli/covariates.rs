//! Columns that go along with those that are forecast: `--covariate`, `--future` and `--together`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use moesaic::{Forecast, ForecastOptions, Forecaster, Group, Series, Table, TableOptions};

/// What of a table is looked at beside what is forecast.
#[derive(Debug, clap::Args)]
pub(super) struct CovariateArgs {
    /// Column that is looked at and not forecast, for models that see several series (Moirai-MoE); may be given several times. Rows
    /// after the end of what is forecast, here or in --future, make it known ahead; it must then reach to the horizon
    #[arg(long, value_name = "NAME")]
    covariate: Vec<String>,
    /// A CSV or Parquet file with the rows of covariates that are known ahead: columns of the same names, times that go on where the
    /// table ends
    #[arg(long, value_name = "FILE", requires = "covariate")]
    future: Option<PathBuf>,
    /// Forecast all columns as one, each seeing the others, for models that see several series (Moirai-MoE)
    #[arg(long)]
    together: bool,
}

/// Series that go along, each with what is known of it ahead.
pub(super) struct Company {
    covariates: Vec<Series>,
    together: bool,
}

impl CovariateArgs {
    /// The columns to read where `targets` are to be forecast; empty for all.
    pub fn columns(&self, targets: &[String]) -> Vec<String> {
        if targets.is_empty() { Vec::new() } else { targets.iter().chain(&self.covariate).cloned().collect() }
    }

    /// Takes the covariates out of the table; `None` where every series is forecast alone. `options` are those that the table was
    /// read with.
    pub fn take(&self, table: &mut Table, options: &TableOptions) -> Result<Option<Company>> {
        if self.covariate.is_empty() && !self.together {
            return Ok(None);
        }
        if let Some(id) = &table.id {
            bail!(
                "column '{id}' tells series apart: --covariate and --together take a table with one column for each series; \
                 turn it around first"
            );
        }
        let names: BTreeSet<&str> = self.covariate.iter().map(String::as_str).collect();
        let (mut covariates, targets): (Vec<Series>, Vec<Series>) =
            std::mem::take(&mut table.series).into_iter().partition(|series| names.contains(series.name.as_str()));
        if let Some(gone) = names.iter().find(|name| covariates.iter().all(|series| series.name != **name)) {
            bail!("the table has no column of numbers '{gone}' to take as a covariate");
        }
        if targets.is_empty() {
            bail!("every column is a covariate: nothing is left to forecast");
        }
        table.series = targets;
        if let Some(path) = &self.future {
            let mut options = options.clone();
            // Not by name: a covariate that is not known ahead need not be in the file.
            options.columns = Vec::new();
            let mut found = false;
            let all = Table::read(path, &options)?;
            for later in &all.series {
                let Some(series) = covariates.iter_mut().find(|series| series.name == later.name) else { continue };
                found = true;
                if let Err(problem) = go_on(series, later, all.time.is_none()) {
                    bail!("{}: column '{}': {problem}", path.display(), later.name);
                }
            }
            if !found {
                bail!("{}: holds no column of numbers with the name of a covariate", path.display());
            }
        }
        Ok(Some(Company { covariates, together: self.together }))
    }
}

/// Rows beyond the end of a table that a file may begin at; further away it is another table's.
const FARTHEST: usize = 1 << 16;

/// Puts the values of `later` where their times say, or right behind where rows are only `numbered`.
fn go_on(series: &mut Series, later: &Series, numbered: bool) -> Result<(), String> {
    let end = series.values.len();
    let mut row = end;
    if !numbered {
        let begin = later.stamp(0);
        let Some(found) = (0..end + FARTHEST).find(|&row| {
            let stamp = i64::try_from(row).ok().and_then(|row| series.stamp(row));
            stamp.is_some() && stamp == begin
        }) else {
            return Err("its first row is none of the table's steps, before or after its end".into());
        };
        row = found;
    }
    for (at, &value) in later.values.iter().enumerate() {
        let place = row + at;
        let stamps = [series.stamp(place as i64), later.stamp(at as i64)];
        if !numbered && stamps[0] != stamps[1] {
            return Err(format!("its rows have another step than the table's (row {})", at + 1));
        }
        if place >= series.values.len() {
            series.values.resize(place + 1, f32::NAN);
        }
        // What the table has already is not overwritten by a gap.
        if !value.is_nan() {
            series.values[place] = value;
        }
    }
    Ok(())
}

impl Company {
    /// Forecasts the series with the others and the covariates.
    pub fn forecast(
        &self,
        model: &Forecaster,
        series: &[Series],
        horizon: usize,
        options: &ForecastOptions,
    ) -> Result<Vec<Forecast>> {
        let groups: Vec<Group> = match self.together {
            true => vec![self.group(series)],
            false => series.iter().map(|series| self.group(std::slice::from_ref(series))).collect(),
        };
        Ok(model.forecast_groups(&groups, horizon, options)?.into_iter().flatten().collect())
    }

    /// The series up to the last value of any of them. A covariate with a value after that is known ahead.
    fn group(&self, targets: &[Series]) -> Group {
        let end = targets.iter().map(observed).max().unwrap_or(0);
        let cut = |series: &Series, end: usize| {
            let mut values = series.values[..end.min(series.values.len())].to_vec();
            values.resize(end, f32::NAN);
            Series::new(series.name.as_str(), values).with_index(series.index.clone())
        };
        let (known, past): (Vec<&Series>, Vec<&Series>) =
            self.covariates.iter().partition(|series| observed(series) > end);
        let targets: Vec<Series> = targets.iter().map(|series| cut(series, end)).collect();
        Group::new(targets)
            .with_known(known.into_iter().map(|series| cut(series, observed(series))).collect::<Vec<_>>())
            .with_past(past.into_iter().map(|series| cut(series, end)).collect::<Vec<_>>())
    }
}

/// Rows up to the last observed value.
fn observed(series: &Series) -> usize {
    series.values.iter().rposition(|value| !value.is_nan()).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn covariates_are_cut_to_what_is_known_of_them() {
        let covariates =
            vec![Series::new("rain", [1.0, 2.0, NAN, NAN, NAN]), Series::new("price", [1.0, NAN, 3.0, 4.0, NAN])];
        let company = Company { covariates, together: false };
        let group = company.group(&[Series::new("a", [1.0, 2.0, 3.0, NAN, NAN])]);
        assert_eq!(group.targets[0].values, [1.0, 2.0, 3.0]);
        assert_eq!((group.known.len(), group.known[0].values.len()), (1, 4));
        assert_eq!((group.past[0].name.as_str(), group.past[0].values.len()), ("rain", 3));
    }

    #[test]
    fn later_rows_go_where_their_times_say() {
        let mut series = Series::new("price", [1.0, 2.0, NAN]);
        go_on(&mut series, &Series::new("price", [7.0, NAN, 9.0]), true).unwrap();
        assert_eq!(series.values[3], 7.0);
        assert!(series.values[4].is_nan() && series.values[5] == 9.0);
        let daily = |first: &str, values: &[f32]| {
            let calendar = moesaic::Calendar::new(first.parse().unwrap(), moesaic::Frequency::DAILY);
            Series::new("price", values).with_calendar(calendar)
        };
        // The file repeats the last row of the table.
        let mut series = daily("2024-01-01", &[1.0, 2.0, 3.0]);
        go_on(&mut series, &daily("2024-01-03", &[3.5, 4.0]), false).unwrap();
        assert_eq!(series.values, [1.0, 2.0, 3.5, 4.0]);
        let mut series = daily("2024-01-01", &[1.0, 2.0, 3.0]);
        assert!(go_on(&mut series, &daily("2023-01-03", &[3.5]), false).is_err());
    }
}
