//! The tables of an evaluation as text.

use super::{Baseline, DistributionResult, DistributionScore, Evaluation};
use std::fmt;

impl fmt::Display for Evaluation {
    /// A table of the series and one of the comparisons, aligned, and valid Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![vec!["series".into(), "n".into(), "period".into(), "horizon".into()]];
        let header = &mut rows[0];
        header.push(format!("MASE {}", self.model));
        header.extend(Baseline::ALL.map(|b| b.name().to_owned()));
        header.extend([
            "ratio".into(),
            "origins won".into(),
            "sMAPE".into(),
            "s-naive".into(),
            "RMSE".into(),
            "s-naive".into(),
        ]);
        let level = self.series.iter().find_map(|series| series.interval).map(|interval| interval.level);
        if let Some(level) = level {
            header.extend([format!("inside {:.0} %", 100.0 * level), "width".into()]);
        }
        let inside =
            |score: &DistributionScore| score.inside.map_or("-".into(), |c| format!("{:.1} %", 100.0 * c.covered));
        let between = self.series.iter().find_map(|series| series.distribution.as_ref()?.model.inside);
        let distributions = self.series.iter().any(|series| series.distribution.is_some());
        if distributions {
            let level = between.map_or("-".into(), |inside| format!("inside {:.0} %", 100.0 * inside.level));
            header.extend(["CRPS".into(), "s-naive".into(), "ratio".into(), level, "s-naive".into()]);
        }
        for series in &self.series {
            let mut row = vec![series.name.clone()];
            row.extend([series.length, series.period, series.horizon].map(|n| n.to_string()));
            row.push(format!("{:.3}", series.model.mase));
            row.extend(series.baselines.iter().map(|b| format!("{:.3}", b.score.mase)));
            row.push(series.ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")));
            row.push(format!("{}/{}", series.origins_won, series.origins));
            let naive = series.baselines.first().map_or(series.model, |b| b.score);
            row.extend([series.model.smape, naive.smape].map(|v| format!("{v:.1}")));
            row.extend([series.model.rmse, naive.rmse].map(short));
            if level.is_some() {
                row.push(series.interval.map_or("-".into(), |i| format!("{:.1} %", 100.0 * i.covered)));
                row.push(series.interval.map_or("-".into(), |i| format!("{:.2}", i.width)));
            }
            match &series.distribution {
                Some(DistributionResult { model, seasonal_naive, ratio, .. }) => {
                    row.extend([model, seasonal_naive].map(|score| format!("{:.4}", score.crps)));
                    row.push(ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")));
                    row.extend([model, seasonal_naive].map(inside));
                }
                None if distributions => row.extend(std::iter::repeat_n("-".to_string(), 5)),
                None => {}
            }
            rows.push(row);
        }
        write_table(f, &rows)?;
        writeln!(f)?;
        let mut rows = vec![
            ["against", "geometric mean of MASE ratios", "series won", "lost", "equal"].map(String::from).to_vec(),
        ];
        for summary in &self.summary {
            rows.push(vec![
                summary.baseline.name().into(),
                summary.ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")),
                summary.won.to_string(),
                summary.lost.to_string(),
                summary.equal.to_string(),
            ]);
        }
        write_table(f, &rows)?;
        if let Some(summary) = self.distribution {
            let ratio = summary.ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
            let (won, lost) = (summary.won, summary.lost);
            writeln!(
                f,
                "\nCRPS against seasonal-naive with its own past errors: geometric mean of ratios {ratio}, {won} series won, \
                 {lost} lost."
            )?;
        }
        let covered: Vec<f64> = self.series.iter().filter_map(|s| s.interval).map(|i| i.covered).collect();
        match level {
            Some(level) => writeln!(
                f,
                "\nIntervals of {:.0} % hold {:.1} % of the values, each series counted alike.",
                100.0 * level,
                100.0 * covered.iter().sum::<f64>() / covered.len().max(1) as f64
            ),
            None => Ok(()),
        }
    }
}

/// Four digits that matter.
fn short(value: f64) -> String {
    let digits = (3 - value.abs().max(1e-3).log10().floor() as i32).clamp(0, 6);
    format!("{value:.*}", digits as usize)
}

/// Pads the cells of each column to one width: the first column to the left, the others to the right.
fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    // Formatting takes no width beyond this.
    let widths: Vec<usize> = (0..columns).map(|c| width(c).min(usize::from(u16::MAX))).collect();
    for (index, row) in rows.iter().enumerate() {
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if c == 0 {
                write!(f, "| {cell:<width$} |")?;
            } else {
                write!(f, " {cell:>width$} |")?;
            }
        }
        writeln!(f)?;
        if index == 0 {
            for (c, &width) in widths.iter().enumerate() {
                write!(
                    f,
                    "{} {}{} |",
                    if c == 0 { "|" } else { "" },
                    "-".repeat(width - 1),
                    if c == 0 { "-" } else { ":" }
                )?;
            }
            writeln!(f)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(
            [0.0, 0.012_345, 1.234_56, 98.765_4, 12_345.6].map(short),
            ["0.000000", "0.01235", "1.235", "98.77", "12346"]
        );
    }
}
