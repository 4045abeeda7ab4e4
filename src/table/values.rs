//! Cells as numbers.

/// What a cell of a value column holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell {
    Number(f64),
    Missing,
    Infinite,
    Text,
}

const MISSING: [&str; 13] = ["na", "n/a", "#n/a", "nan", "null", "nil", "none", "missing", "nat", "-", "--", ".", "?"];
const INFINITE: [&str; 4] = ["inf", "infinity", "∞", "#div/0!"];

/// Reads a cell, its surrounding blanks ignored. With `comma`, a comma is the decimal mark and dots group thousands;
/// without, commas in well-formed groups of three are dropped.
pub(super) fn cell(raw: &str, comma: bool) -> Cell {
    let text = raw.trim();
    if text.is_empty() {
        return Cell::Missing;
    }
    let first = text.as_bytes().first().copied().unwrap_or_default();
    if first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.' | b',') {
        // `f64::from_str` also takes words; the first byte excludes them except after a sign.
        let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
        if bare.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == ',') {
            let parsed = match (comma, text.contains(',')) {
                (false, false) => text.parse().ok(),
                (false, true) => ungroup(text, ',', '.').and_then(|plain| plain.parse().ok()),
                (true, true) => ungroup(text, '.', ',').and_then(|plain| plain.replace(',', ".").parse().ok()),
                (true, false) => match ungroup(text, '.', ',') {
                    // In a file of decimal commas `1.234.567` can only be grouped; `1.234` may be either and is read
                    // as grouped, as the file's other cells are.
                    Some(plain) => plain.parse().ok(),
                    None => text.parse().ok(),
                },
            };
            return match parsed {
                Some(number) if f64::is_finite(number) => Cell::Number(number),
                Some(_) => Cell::Infinite,
                None if MISSING.contains(&text) => Cell::Missing,
                None => Cell::Text,
            };
        }
    }
    let lower = text.to_lowercase();
    if MISSING.contains(&lower.as_str()) {
        Cell::Missing
    } else if INFINITE.contains(&lower.trim_start_matches(['+', '-'])) {
        Cell::Infinite
    } else {
        Cell::Text
    }
}

/// Drops the marks that group the whole part in threes: `1,234,567.8` with `,` and `.` gives `1234567.8`. `None` when
/// they do not form groups.
fn ungroup(text: &str, group: char, decimal: char) -> Option<String> {
    let (sign, bare) = match text.strip_prefix(['+', '-']) {
        Some(bare) => (&text[..1], bare),
        None => ("", text),
    };
    let (whole, rest) = bare.find(decimal).map_or((bare, ""), |at| bare.split_at(at));
    if rest.contains(group) {
        return None;
    }
    let mut groups = whole.split(group);
    let lead = groups.next()?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let grouped = whole.contains(group);
    if grouped && (lead.is_empty() || lead.len() > 3 || !digits(lead) || groups.any(|g| g.len() != 3 || !digits(g))) {
        return None;
    }
    Some(format!("{sign}{}{rest}", whole.replace(group, "")))
}

/// What commas in a cell say about the decimal mark: `Some(true)` for a decimal comma, `Some(false)` for groups of
/// thousands before a decimal point, `None` when it could be either or there is no comma.
pub(super) fn comma_is_decimal(raw: &str) -> Option<bool> {
    let text = raw.trim();
    let comma = text.rfind(',')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'.' | b'+' | b'-' | b'e' | b'E')) {
        return None;
    }
    let after = text.len() - comma - 1;
    match text.rfind('.') {
        Some(dot) => Some(dot < comma),
        None if text.matches(',').count() > 1 => Some(false),
        None => (after != 3).then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_missing_values_and_text_are_told_apart() {
        let table = [
            ("1", Cell::Number(1.0)),
            (" -2.5e3 ", Cell::Number(-2500.0)),
            ("+.5", Cell::Number(0.5)),
            ("1,234,567.5", Cell::Number(1_234_567.5)),
            ("-1,234", Cell::Number(-1234.0)),
            ("1,23", Cell::Text),
            ("", Cell::Missing),
            ("NA", Cell::Missing),
            ("NaN", Cell::Missing),
            ("-", Cell::Missing),
            (".", Cell::Missing),
            ("#N/A", Cell::Missing),
            ("inf", Cell::Infinite),
            ("-Infinity", Cell::Infinite),
            ("1e999", Cell::Infinite),
            ("12%", Cell::Text),
            ("0x10", Cell::Text),
            ("twelve", Cell::Text),
            ("1_000", Cell::Text),
        ];
        for (text, expected) in table {
            assert_eq!(cell(text, false), expected, "{text:?}");
        }
    }

    #[test]
    fn decimal_commas_are_read_where_they_are_used() {
        assert_eq!(cell("1,5", true), Cell::Number(1.5));
        assert_eq!(cell("1.234,5", true), Cell::Number(1234.5));
        assert_eq!(cell("-1.234.567", true), Cell::Number(-1_234_567.0));
        assert_eq!(cell("12.5", true), Cell::Number(12.5));
        assert_eq!(cell("1,2,3", true), Cell::Text);
        assert_eq!(comma_is_decimal("1,5"), Some(true));
        assert_eq!(comma_is_decimal("1.234,567"), Some(true));
        assert_eq!(comma_is_decimal("1,234.5"), Some(false));
        assert_eq!(comma_is_decimal("1,234,567"), Some(false));
        assert_eq!(comma_is_decimal("1,234"), None);
        assert_eq!(comma_is_decimal("a,b"), None);
    }
}
