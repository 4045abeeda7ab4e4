//! A picture in characters: braille dots, eight to a cell.

use super::ticks::{self, Tick};
use super::{Lines, Panel};

/// Colours of the eight-colour palette, which every terminal theme keeps readable.
const FORECAST: &str = "\u{1b}[36m";
const DIM: &str = "\u{1b}[2m";
const BOLD: &str = "\u{1b}[1m";
const RESET: &str = "\u{1b}[0m";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ink {
    None,
    /// The ends of an interval.
    Band,
    History,
    Forecast,
}

/// Draws a panel in at most `width` columns (40 at least) and `height` rows of plot (4 at least), with escape sequences
/// if `colour`. Without colour the rule between history and forecast tells them apart. Ends with a line break.
pub fn terminal(panel: &Panel<'_>, width: usize, height: usize, colour: bool) -> String {
    let (width, height) = (width.max(40), height.max(4));
    let lines = panel.lines(60);
    let y_ticks = ticks::values(lines.y, height / 2 + 1);
    let margin = y_ticks.iter().map(|tick| tick.label.chars().count()).max().unwrap_or(0);
    let plot = Area { columns: width.saturating_sub(margin + 3).max(10), rows: height, lines: &lines };
    let paint = |code: &str, text: &str| {
        if colour { format!("{code}{text}{RESET}") } else { text.to_string() }
    };

    let mut out = String::new();
    let cut = |text: &str| crate::error::one_line(text).chars().take(width).collect::<String>();
    let (name, caption) = (cut(&panel.series.name), cut(panel.caption));
    let beside = name.chars().count() + 2 + caption.chars().count() <= width;
    out.push_str(&paint(BOLD, &name));
    if !caption.is_empty() {
        out.push_str(if beside { "  " } else { "\n" });
        out.push_str(&paint(DIM, &caption));
    }
    out.push_str("\n\n");
    let cells = plot.cells();
    let boundary = plot.column(lines.boundary);
    let marks: Vec<(usize, &Tick)> = y_ticks.iter().map(|tick| (plot.dot_row(tick.at) / 4, tick)).collect();
    for (row, line) in cells.iter().enumerate() {
        let mark = marks.iter().find(|(at, _)| *at == row).map(|(_, tick)| tick.label.as_str());
        let axis = if mark.is_some() { "┤" } else { "│" };
        out.push_str(&paint(DIM, &format!(" {:>margin$} {axis}", mark.unwrap_or_default())));
        let mut text = String::new();
        let mut inked = Ink::None;
        let mut flush = |text: &mut String, inked: Ink| {
            let painted = match inked {
                Ink::Forecast => paint(FORECAST, text),
                Ink::Band => paint(DIM, text),
                Ink::None | Ink::History => std::mem::take(text),
            };
            text.clear();
            out.push_str(&painted);
        };
        let end = line.iter().rposition(|cell| cell.1 != Ink::None).map_or(0, |end| end + 1).max(boundary + 1);
        for (column, &(dots, ink)) in line.iter().enumerate().take(end) {
            if ink != inked && ink != Ink::None {
                flush(&mut text, inked);
                inked = ink;
            }
            text.push(match dots {
                0 if column == boundary => '┊',
                0 => ' ',
                // The block of braille patterns is ordered by its dots' bits.
                dots => char::from_u32(0x2800 + u32::from(dots)).unwrap_or(' '),
            });
        }
        flush(&mut text, inked);
        out.push('\n');
    }
    let x_ticks = ticks::rows(panel.series, lines.x, (plot.columns / 12).max(2));
    let (axis, labels) = plot.bottom(&x_ticks, boundary);
    out.push_str(&paint(DIM, &format!(" {:margin$} └{axis}", "")));
    out.push('\n');
    out.push_str(&paint(DIM, &format!(" {:margin$}  {labels}", "")));
    out.push('\n');
    let (before, after) = ("◄ history", "forecast ►");
    let room = plot.columns - after.chars().count() - 1;
    let ahead = paint(FORECAST, after);
    out.push_str(&format!(
        " {:margin$}  {before:>width$} {ahead}\n",
        "",
        width = boundary.min(room).min(usize::from(u16::MAX))
    ));
    out
}

/// The cells of the plot and the lines drawn in them.
struct Area<'a> {
    columns: usize,
    rows: usize,
    lines: &'a Lines,
}

impl Area<'_> {
    /// Dots from the left, two to a cell.
    fn dot_column(&self, x: f64) -> usize {
        share(x, self.lines.x, 2 * self.columns)
    }

    /// Dots from the top, four to a cell.
    fn dot_row(&self, y: f64) -> usize {
        4 * self.rows - 1 - share(y, self.lines.y, 4 * self.rows)
    }

    fn column(&self, x: f64) -> usize {
        self.dot_column(x) / 2
    }

    /// The braille dots of each cell and who drew there last.
    fn cells(&self) -> Vec<Vec<(u8, Ink)>> {
        let mut cells = vec![vec![(0, Ink::None); self.columns]; self.rows];
        // Only the widest interval, dotted, and first: what is drawn later prevails in a cell.
        for end in self.lines.bands.first().into_iter().flatten() {
            self.dots(&mut cells, end);
        }
        for run in &self.lines.history {
            self.draw(&mut cells, run, Ink::History);
        }
        self.draw(&mut cells, &self.lines.forecast, Ink::Forecast);
        cells
    }

    /// A dotted line: one dot to a column of cells.
    fn dots(&self, cells: &mut [Vec<(u8, Ink)>], points: &[(f64, f64)]) {
        for pair in points.windows(2) {
            let (from, to) = (self.dot_column(pair[0].0), self.dot_column(pair[1].0));
            for x in (from..=to).filter(|x| x % 2 == 1) {
                let along = if to > from { (x - from) as f64 / (to - from) as f64 } else { 1.0 };
                let y = pair[0].1 + (pair[1].1 - pair[0].1) * along;
                self.draw(cells, &[(self.lines.x.0 + self.width() * x as f64, y)], Ink::Band);
            }
        }
    }

    /// What one dot is wide on the x axis.
    fn width(&self) -> f64 {
        (self.lines.x.1 - self.lines.x.0) / (2 * self.columns - 1) as f64
    }

    fn draw(&self, cells: &mut [Vec<(u8, Ink)>], points: &[(f64, f64)], ink: Ink) {
        /// Unicode numbers the dots of a braille cell down its left column, then its right, the lowest pair last.
        const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        let mut set = |x: usize, y: usize| {
            if let Some(cell) = cells.get_mut(y / 4).and_then(|row| row.get_mut(x / 2)) {
                *cell = (cell.0 | DOTS[y % 4][x % 2], ink);
            }
        };
        let dots: Vec<(usize, usize)> = points.iter().map(|&(x, y)| (self.dot_column(x), self.dot_row(y))).collect();
        if let [(x, y)] = dots[..] {
            set(x, y);
        }
        for pair in dots.windows(2) {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
            let steps = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
            for step in 0..=steps {
                let along = |a: usize, b: usize| a as f64 + (b as f64 - a as f64) * step as f64 / steps as f64;
                set(along(x0, x1).round() as usize, along(y0, y1).round() as usize);
            }
        }
    }

    /// The bottom axis and the labels under it; labels that would touch are left out.
    fn bottom(&self, ticks: &[Tick], boundary: usize) -> (String, String) {
        let mut axis = vec!['─'; self.columns];
        axis[boundary.min(self.columns - 1)] = '┴';
        let mut labels = String::new();
        let mut used = 0;
        for tick in ticks {
            let (at, length) = (self.column(tick.at), tick.label.chars().count());
            let start = at.saturating_sub(length / 2).min(self.columns.saturating_sub(length));
            if at >= self.columns || (used > 0 && start < used + 2) {
                continue;
            }
            axis[at] = if at == boundary { '┼' } else { '┬' };
            labels.extend(std::iter::repeat_n(' ', start - used));
            labels.push_str(&tick.label);
            used = start + length;
        }
        (axis.into_iter().collect(), labels)
    }
}

/// The dot of `dots` that `value` falls on.
fn share(value: f64, (low, high): (f64, f64), dots: usize) -> usize {
    let part = (value - low) / (high - low);
    (part * (dots - 1) as f64).round().clamp(0.0, (dots - 1) as f64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::tests::wave;
    use super::*;
    use crate::forecaster::Interval;

    #[test]
    fn a_picture_fits_its_width_and_shows_both_lines() {
        let (series, forecast) = wave(200, 24);
        let panel = Panel { series: &series, forecast: &forecast, caption: "hourly" };
        for width in [40, 80, 132] {
            let picture = terminal(&panel, width, 12, false);
            assert!(picture.lines().all(|line| line.chars().count() <= width), "{picture}");
            assert!(!picture.contains('\u{1b}'));
            assert!(picture.contains('┊') && picture.contains("forecast"), "{picture}");
            assert!(picture.contains(" Jan"), "{picture}");
        }
        let long = Panel { caption: &"a remark ".repeat(20), ..panel };
        assert!(terminal(&long, 80, 12, false).lines().all(|line| line.chars().count() <= 80));
        let coloured = terminal(&panel, 80, 12, true);
        assert!(coloured.contains(FORECAST) && coloured.contains(BOLD));
        let mut plain = coloured;
        for code in [FORECAST, BOLD, DIM, RESET] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, terminal(&panel, 80, 12, false));
    }

    #[test]
    fn the_widest_interval_is_dotted() {
        let (series, mut forecast) = wave(100, 40);
        let plain = terminal(&Panel { series: &series, forecast: &forecast, caption: "" }, 80, 12, false);
        let shifted = |by: f32| forecast.values.iter().map(|v| v + by).collect::<Vec<_>>();
        let interval = Interval { level: 0.8, lower: shifted(-20.0), upper: shifted(20.0) };
        forecast.intervals = vec![interval];
        let banded = Panel { series: &series, forecast: &forecast, caption: "" };
        let text = terminal(&banded, 80, 12, false);
        let inked = |text: &str| text.chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count();
        assert!(text != plain && inked(&text) > 30, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(terminal(&banded, 80, 12, true).contains(DIM));
    }

    #[test]
    fn flat_short_and_gappy_series_are_drawn() {
        let (mut series, mut forecast) = wave(1, 1);
        terminal(&Panel { series: &series, forecast: &forecast, caption: "" }, 80, 12, true);
        (series, forecast) = wave(30, 5);
        series.values.iter_mut().for_each(|value| *value = 3.0);
        forecast.values.fill(3.0);
        let flat = terminal(&Panel { series: &series, forecast: &forecast, caption: "" }, 80, 12, false);
        assert!(flat.contains("3.0"), "{flat}");
        series.values[10..20].fill(f32::NAN);
        let gappy = terminal(&Panel { series: &series, forecast: &forecast, caption: "" }, 80, 12, false);
        assert_ne!(flat, gappy);
    }
}
