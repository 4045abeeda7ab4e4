//! Names and shapes as they stand in messages. They come from files, so they are cut to length and kept on one line.

/// Returns an error of one line. Not `candle_core::bail!`, which puts a stack trace into the text itself where
/// `RUST_BACKTRACE` is set: what is wrong with a file is no matter of who called whom.
macro_rules! refuse {
    ($($message:tt)*) => { return Err($crate::checkpoint::text::error(format!($($message)*))) };
}
pub(super) use refuse;

/// An error of one line, without a stack trace (see [`refuse`]).
pub(super) fn error(message: impl Into<String>) -> candle_core::Error {
    candle_core::Error::Msg(message.into())
}

/// Longest name that a message repeats in full, in characters.
const LONGEST: usize = 160;
/// Names longer than this are not looked at for likeness: comparing costs the product of both lengths.
const LONGEST_COMPARED: usize = 256;
/// Least likeness, of 1, for a name to be worth showing: below it the hint misleads more than it helps.
const LIKE: f64 = 0.6;

/// A name in quotes, on one line, cut where it is very long.
pub fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push_str("...");
    }
    format!("\"{text}\"")
}

/// Another library's message, on one line and cut where it is very long (serde_json repeats strings of the file).
pub fn one_line(message: impl std::fmt::Display) -> String {
    let message = message.to_string();
    let mut text: String = message.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if message.chars().nth(LONGEST).is_some() {
        text.push_str("...");
    }
    text
}

/// `[2, 3]`, as messages show a shape.
pub(crate) fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}

/// The most alike of `names`, where one is alike enough; the first in order among equals.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > LONGEST_COMPARED {
        return None;
    }
    let mut best: Option<(f64, &str)> = None;
    for name in names.filter(|n| n.len() <= LONGEST_COMPARED) {
        let score = likeness(wanted, name);
        if score >= LIKE && best.is_none_or(|(top, _)| score > top) {
            best = Some((score, name));
        }
    }
    best.map(|(_, name)| name)
}

/// From 0 to 1. A prefix that one side lacks ("model." before every name) is the commonest way to differ, so it counts
/// little; otherwise one minus the share of characters to edit.
fn likeness(a: &str, b: &str) -> f64 {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    if long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.')) {
        return 0.95;
    }
    strsim::normalized_damerau_levenshtein(a, b)
}
