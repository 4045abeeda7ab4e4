//! A matrix as colours: spectrograms, scores, routes.

use std::fmt::Write as _;

use super::svg::{AXIS, FONT, TEXT, TITLE, text};
use super::ticks;

/// Rows of numbers over a common axis. The first row is drawn at the bottom.
#[derive(Debug, Clone, Copy)]
pub struct HeatMap<'a> {
    /// Stands above the picture.
    pub title: &'a str,
    /// A remark under the title. May be empty.
    pub caption: &'a str,
    /// `rows * cols` values, row after row. Values that are not finite are left white.
    pub values: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Where the first and the last column stand on the axis, such as seconds.
    pub x: (f64, f64),
    /// What the axis counts.
    pub unit: &'a str,
}

const WIDTH: f64 = 880.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 44.0;
/// Height of the coloured part.
const HEIGHT: f64 = 240.0;
/// Colours from low to high: dark blue over red to light yellow, brighter all the way (so it reads in grey too).
const STOPS: [[f64; 3]; 5] =
    [[13., 8., 61.], [94., 18., 110.], [188., 55., 84.], [245., 125., 21.], [252., 243., 176.]];
/// Steps of the scale: more cannot be told apart, and fewer make smaller files.
const LEVELS: usize = 32;
/// Columns and rows that are drawn at most; beyond that, neighbours are averaged.
const MOST: usize = 400;

/// Draws the maps one below the other, as a standalone SVG document that needs no fonts beside the viewer's own.
pub fn heat_maps(maps: &[HeatMap<'_>]) -> String {
    let each = TOP + HEIGHT + BOTTOM;
    let height = each * maps.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"{FONT}\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (at, map) in maps.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "<g transform=\"translate(0 {})\">", each * at as f64);
        draw(&mut out, map);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, map: &HeatMap<'_>) {
    let (values, rows, cols) = pooled(map);
    let (right, bottom) = (WIDTH - RIGHT, TOP + HEIGHT);
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
    // One path for each level: runs of equal colour are lines as wide as a row.
    let mut paths = vec![String::new(); LEVELS];
    let level = |v: f32| match (v - low) / (high - low) {
        _ if !v.is_finite() => None,
        part if part.is_finite() => Some(((part * LEVELS as f32) as usize).min(LEVELS - 1)),
        _ => Some(LEVELS / 2),
    };
    for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
        let mut c = 0;
        while c < cols {
            let this = level(row[c]);
            let run = row[c..].iter().take_while(|&&v| level(v) == this).count();
            if let Some(path) = this.and_then(|l| paths.get_mut(l)) {
                let _ = write!(path, "M{c},{}h{run}", rows as f64 - r as f64 - 0.5);
            }
            c += run;
        }
    }
    let _ = writeln!(
        out,
        "<g transform=\"translate({LEFT} {TOP}) scale({:.5} {:.5})\" shape-rendering=\"crispEdges\">",
        (right - LEFT) / cols.max(1) as f64,
        HEIGHT / rows.max(1) as f64
    );
    for (l, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
        let _ = writeln!(out, "<path stroke=\"{}\" d=\"{path}\"/>", colour(l as f64 / (LEVELS - 1) as f64));
    }
    out.push_str("</g>\n");

    let (first, last) = map.x;
    if last > first && first.is_finite() && last.is_finite() {
        for tick in ticks::values((first, last), 8) {
            let x = LEFT + (tick.at - first) / (last - first) * (right - LEFT);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.2}\" y1=\"{bottom}\" x2=\"{x:.2}\" y2=\"{:.2}\" stroke=\"{AXIS}\"/>",
                bottom + 5.0
            );
            text(out, (x, bottom + 20.0), &tick.label, &format!("fill=\"{TEXT}\" text-anchor=\"middle\""));
        }
    }
    text(out, (right, bottom + 36.0), map.unit, &format!("fill=\"{TEXT}\" text-anchor=\"end\""));
    for (row, y) in [(map.rows.saturating_sub(1), TOP + 10.0), (0, bottom)] {
        text(out, (LEFT - 8.0, y), &row.to_string(), &format!("fill=\"{TEXT}\" text-anchor=\"end\""));
    }
    text(out, (LEFT, 28.0), map.title, &format!("fill=\"{TITLE}\" font-size=\"18\" font-weight=\"600\""));
    text(out, (LEFT, 48.0), map.caption, &format!("fill=\"{TEXT}\""));
    if low.is_finite() && high.is_finite() {
        let range = format!("{low:.2} (dark) to {high:.2} (light)");
        text(out, (right, 48.0), &range, &format!("fill=\"{TEXT}\" text-anchor=\"end\""));
    }
}

/// The values with at most [`MOST`] rows and columns, and how many they are.
fn pooled(map: &HeatMap<'_>) -> (Vec<f32>, usize, usize) {
    let cols = map.values.len() / map.rows.max(1);
    let (by_row, by_col) = (map.rows.div_ceil(MOST).max(1), cols.div_ceil(MOST).max(1));
    let (rows, width) = (map.rows.div_ceil(by_row), cols.div_ceil(by_col));
    let mut out = Vec::with_capacity(rows * width);
    for r in 0..rows {
        for c in 0..width {
            let (mut sum, mut count) = (0.0, 0);
            for row in map.values.chunks_exact(cols.max(1)).skip(r * by_row).take(by_row) {
                for v in row.iter().skip(c * by_col).take(by_col) {
                    sum += v;
                    count += 1;
                }
            }
            out.push(sum / count as f32);
        }
    }
    (out, rows, width)
}

fn colour(part: f64) -> String {
    let at = part.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let i = (at as usize).min(STOPS.len() - 2);
    let (a, b, part) = (STOPS[i], STOPS[i + 1], at - i as f64);
    let mix = |k: usize| (a[k] + (b[k] - a[k]) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<'a>(values: &'a [f32], rows: usize) -> HeatMap<'a> {
        HeatMap { title: "a & b", caption: "", values, rows, x: (0.0, 2.0), unit: "seconds" }
    }

    #[test]
    fn every_value_has_its_colour() {
        let svg = heat_maps(&[map(&[0.0, 0.0, 1.0, 1.0, f32::NAN, 0.0], 2)]);
        assert!(svg.contains("<path stroke=\"#0d083d\" d=\"M0,1.5h2M2,0.5h1\"/>"), "{svg}");
        assert!(svg.contains("<path stroke=\"#fcf3b0\" d=\"M2,1.5h1M0,0.5h1\"/>"), "{svg}");
        assert!(svg.contains("a &amp; b") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn large_and_odd_maps() {
        let values: Vec<f32> = (0..3 * 5000).map(|i| i as f32).collect();
        assert!(heat_maps(&[map(&values, 3)]).len() < 40_000);
        for values in [&[][..], &[1.0], &[f32::NAN], &[f32::INFINITY, 1.0]] {
            heat_maps(&[map(values, 1), map(values, 0)]);
        }
    }
}
