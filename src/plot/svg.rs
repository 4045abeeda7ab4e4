//! A picture as SVG: written out directly, because the libraries that draw charts round every point to whole pixels.

use std::fmt::Write as _;

use super::ticks::{self, Tick};
use super::{Lines, Panel};

const WIDTH: f64 = 880.0;
/// Height of one panel.
const HEIGHT: f64 = 360.0;
/// Around the plot of a panel.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 40.0;

pub(super) const FONT: &str = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,'DejaVu Sans',sans-serif";
pub(super) const TITLE: &str = "#111827";
pub(super) const TEXT: &str = "#6b7280";
const GRID: &str = "#e5e7eb";
pub(super) const AXIS: &str = "#9ca3af";
const HISTORY: &str = "#374151";
const FORECAST: &str = "#e8590c";
const FUTURE: &str = "#fff9f4";
/// Intervals, laid over each other.
const BAND: &str = "#f4a261";

/// Draws the panels one below the other, as a standalone SVG document that needs no fonts beside the viewer's own.
pub fn svg(panels: &[Panel<'_>]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"{FONT}\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", HEIGHT * at as f64);
        draw(&mut out, panel);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// The plot area and its scales.
struct Frame<'a> {
    lines: &'a Lines,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame<'_> {
    fn x(&self, x: f64) -> f64 {
        let (low, high) = self.lines.x;
        self.left + (x - low) / (high - low) * (self.right - self.left)
    }

    fn y(&self, y: f64) -> f64 {
        let (low, high) = self.lines.y;
        self.bottom - (y - low) / (high - low) * (self.bottom - self.top)
    }
}

fn draw(out: &mut String, panel: &Panel<'_>) {
    let lines = panel.lines(100);
    let frame = Frame { lines: &lines, left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM };
    let Frame { left, right, top, bottom, .. } = frame;
    let boundary = frame.x(lines.boundary);

    rect(out, boundary, top, right - boundary, bottom - top, FUTURE);
    for Tick { at, label } in ticks::values(lines.y, 6) {
        let y = frame.y(at);
        line(out, (left, y), (right, y), GRID, "");
        text(out, (left - 10.0, y + 4.0), &label, &format!("fill=\"{TEXT}\" text-anchor=\"end\""));
    }
    for Tick { at, label } in ticks::rows(panel.series, lines.x, 9) {
        let x = frame.x(at);
        line(out, (x, bottom), (x, bottom + 5.0), AXIS, "");
        text(out, (x, bottom + 20.0), &label, &format!("fill=\"{TEXT}\" text-anchor=\"middle\""));
    }
    line(out, (left, bottom), (right, bottom), AXIS, "");
    line(out, (boundary, top), (boundary, bottom), AXIS, " stroke-dasharray=\"3 3\"");

    for band in &lines.bands {
        area(out, &frame, band);
    }
    for run in lines.history.iter().chain(&lines.actual) {
        path(out, &frame, run, HISTORY, 1.6);
    }
    path(out, &frame, &lines.forecast, FORECAST, 2.2);
    if let [_, .., end] = lines.forecast[..] {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"3\" fill=\"{FORECAST}\"/>",
            frame.x(end.0),
            frame.y(end.1)
        );
    }

    text(out, (left, 30.0), &panel.series.name, &format!("fill=\"{TITLE}\" font-size=\"18\" font-weight=\"600\""));
    text(out, (left, 50.0), panel.caption, &format!("fill=\"{TEXT}\""));
    let levels: Vec<String> =
        panel.forecast.intervals.iter().map(|interval| format!("{} %", percent(interval.level))).collect();
    legend(out, right, &levels.join(", "));
}

/// A level in percent, without decimals that say nothing.
fn percent(level: f64) -> f64 {
    (level * 1e4).round() / 1e2
}

/// The key to the lines, its right end at `right`; `band` names the intervals, if there are any.
fn legend(out: &mut String, right: f64, band: &str) {
    if !band.is_empty() {
        let x = right - 150.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"22\" width=\"18\" height=\"10\" fill=\"{BAND}\" fill-opacity=\"0.45\"/>"
        );
        text(out, (x + 25.0, 31.0), &format!("interval {band}"), &format!("fill=\"{TEXT}\""));
    }
    for (label, colour, width, at) in [("history", HISTORY, 1.6, 150.0), ("forecast", FORECAST, 2.2, 72.0)] {
        let x = right - at;
        let _ = writeln!(
            out,
            "<path d=\"M{x:.2} 46H{:.2}\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linecap=\"round\"/>",
            x + 18.0
        );
        text(out, (x + 25.0, 50.0), label, &format!("fill=\"{TEXT}\""));
    }
}

/// What lies between the ends of an interval.
fn area(out: &mut String, frame: &Frame<'_>, [lower, upper]: &[Vec<(f64, f64)>; 2]) {
    let mut d = String::new();
    for (at, &(x, y)) in lower.iter().chain(upper.iter().rev()).enumerate() {
        let _ = write!(d, "{}{:.2} {:.2}", if at == 0 { "M" } else { "L" }, frame.x(x), frame.y(y));
    }
    if !d.is_empty() {
        let _ = writeln!(out, "<path d=\"{d}Z\" fill=\"{BAND}\" fill-opacity=\"0.3\"/>");
    }
}

fn path(out: &mut String, frame: &Frame<'_>, points: &[(f64, f64)], colour: &str, width: f64) {
    if let [(x, y)] = points {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"{width}\" fill=\"{colour}\"/>",
            frame.x(*x),
            frame.y(*y)
        );
        return;
    }
    let mut d = String::new();
    for (at, &(x, y)) in points.iter().enumerate() {
        let _ = write!(d, "{}{:.2} {:.2}", if at == 0 { "M" } else { "L" }, frame.x(x), frame.y(y));
    }
    let _ = writeln!(
        out,
        "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" \
         stroke-linecap=\"round\"/>"
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, more: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(out, "<path d=\"M{x1:.2} {y1:.2}L{x2:.2} {y2:.2}\" stroke=\"{colour}\"{more}/>");
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{height:.2}\" fill=\"{colour}\"/>",
        width.max(0.0)
    );
}

pub(super) fn text(out: &mut String, (x, y): (f64, f64), text: &str, style: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "<text x=\"{x:.2}\" y=\"{y:.2}\" {style}>{}</text>", escaped(text));
    }
}

/// Text that came with the data, safe inside an SVG element.
fn escaped(text: &str) -> String {
    let plain = crate::error::one_line(text);
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::wave;
    use super::*;
    use crate::forecaster::Interval;

    #[test]
    fn names_from_the_data_cannot_break_the_document() {
        let (mut series, forecast) = wave(50, 10);
        series.name = "<script>a & b</script>\u{0}".into();
        let panel = Panel { series: &series, forecast: &forecast, caption: "x < y" };
        let picture = svg(&[panel, panel]);
        assert!(picture.contains("&lt;script&gt;a &amp; b&lt;/script&gt;</text>"));
        assert!(!picture.contains("<script>") && !picture.contains('\0'));
        assert_eq!(picture.matches("<svg").count(), 1);
        assert_eq!(picture.matches("<g ").count(), 2);
        assert_eq!(picture.matches("&lt; y").count(), 2);
    }

    #[test]
    fn intervals_are_areas_and_named() {
        let (series, mut forecast) = wave(60, 12);
        let shifted = |by: f32| forecast.values.iter().map(|v| v + by).collect::<Vec<_>>();
        let interval = Interval { level: 0.9, lower: shifted(-1.0), upper: shifted(1.0) };
        let without = svg(&[Panel { series: &series, forecast: &forecast, caption: "" }]);
        forecast.intervals = vec![interval];
        let with = svg(&[Panel { series: &series, forecast: &forecast, caption: "" }]);
        assert_eq!((with.matches("fill-opacity=\"0.3\"").count(), without.matches("fill-opacity").count()), (1, 0));
        assert!(with.contains(">interval 90 %</text>") && !without.contains("interval"));
        // Both ends of 13 points, closed.
        let area = with.split("Z\" fill=").next().unwrap().rsplit("d=\"").next().unwrap();
        assert_eq!(area.matches(' ').count(), 26);
    }

    #[test]
    fn every_point_is_drawn_inside_the_frame() {
        let (series, mut forecast) = wave(300, 24);
        forecast.values[3] = 400.0;
        let panel = Panel { series: &series, forecast: &forecast, caption: "" };
        let lines = panel.lines(100);
        let picture = svg(&[panel]);
        let d = picture.split(&format!("stroke=\"{FORECAST}\" stroke-width=\"2.2\" stroke-linejoin")).next().unwrap();
        let d = d.rsplit("<path d=\"").next().unwrap().split('"').next().unwrap();
        let points: Vec<(f64, f64)> = d[1..]
            .split('L')
            .map(|pair| pair.split_once(' ').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
            .collect();
        assert_eq!(points.len(), lines.forecast.len());
        assert!(points.iter().all(|(x, y)| (LEFT..=WIDTH - RIGHT).contains(x) && (TOP..=HEIGHT - BOTTOM).contains(y)));
    }
}
