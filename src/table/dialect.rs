//! How a file writes its fields: encoding, separator, header or not.

use crate::error::{Error, Place, Result};

/// About a Parquet file that is read as text.
pub(super) const NOT_CSV: &str = match cfg!(feature = "table") {
    true => "is a Parquet file, not CSV: read it as one, or export it as CSV",
    false => "is a Parquet file: build with `--features table` to read it, or export it as CSV",
};

/// The text of a file without its byte order mark.
///
/// # Errors
/// For empty files and for files that are not text in UTF-8 (or in an encoding that has ASCII digits).
pub(super) fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let refuse = |problem: &str| Err(Error::input(Place::file(name), problem));
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return refuse("is UTF-16 text: save it as CSV in UTF-8");
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    if bytes.starts_with(b"PAR1") {
        return refuse(NOT_CSV);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return refuse("is a zip archive or a spreadsheet: export it as CSV");
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return refuse("is compressed with gzip: unpack it first");
    }
    if bytes.contains(&0) {
        return refuse("is not a text file: export the data as CSV");
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return refuse("is empty: give a CSV file with a header and at least one row");
    }
    Ok(bytes)
}

/// How the fields of a file are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dialect {
    pub delimiter: u8,
}

/// In the order of preference when several split the lines equally well: a comma may be a decimal comma.
const DELIMITERS: [u8; 4] = [b'\t', b';', b',', b'|'];

impl Dialect {
    /// The separator that the first line has and that splits most of the next lines into as many fields.
    pub fn of(text: &[u8]) -> Self {
        const LINES: usize = 50;
        const BYTES: usize = 1 << 16;
        let head = &text[..text.len().min(BYTES)];
        let lines: Vec<&[u8]> = head
            .split(|&byte| byte == b'\n' || byte == b'\r')
            .filter(|line| !line.iter().all(u8::is_ascii_whitespace))
            .take(LINES)
            .collect();
        let mut best = (0, b',');
        for delimiter in DELIMITERS {
            let first = lines.first().map_or(0, |line| count(line, delimiter));
            let even = lines.iter().filter(|line| count(line, delimiter) == first).count();
            if first > 0 && even > best.0 {
                best = (even, delimiter);
            }
        }
        Dialect { delimiter: best.1 }
    }

    pub fn reader<'a>(&self, text: &'a [u8]) -> csv::Reader<&'a [u8]> {
        csv::ReaderBuilder::new().delimiter(self.delimiter).has_headers(false).flexible(true).from_reader(text)
    }
}

/// Separators outside quotes.
fn count(line: &[u8], delimiter: u8) -> usize {
    let mut quoted = false;
    let mut found = 0;
    for &byte in line {
        quoted ^= byte == b'"';
        found += usize::from(byte == delimiter && !quoted);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_told_apart() {
        let table: [(&str, u8); 7] = [
            ("time,y\n2024,1\n", b','),
            ("time;y\n2024;1,5\n2025;2,5\n", b';'),
            ("time\ty\n2024\t1,5\n", b'\t'),
            ("a|b\n1|2\n", b'|'),
            ("y\n1\n2\n", b','),
            ("\"a;b\",c\n\"x;y\",2\n", b','),
            ("date;a,b\n1;2\n2;3\n", b';'),
        ];
        for (text, delimiter) in table {
            assert_eq!(Dialect::of(text.as_bytes()).delimiter, delimiter, "{text:?}");
        }
    }

    #[test]
    fn files_that_are_not_csv_are_named() {
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b" \r\n\n", "empty"),
            (b"\xef\xbb\xbf", "empty"),
            (b"\xff\xfea\0", "UTF-16"),
            (b"PAR1....", "Parquet"),
            (b"PK\x03\x04", "spreadsheet"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"a,b\n1,\x002\n", "not a text file"),
        ] {
            let message = text("f", bytes).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
