//! Words of a transcript, and how sure the model is of them.

use serde::Serialize;

use crate::error::Result;
use crate::text::Tokenizer;

/// Words at the seam of two windows that may be said in both, for each second that they have in common.
const PACE: f64 = 5.0;

/// A word as the model wrote it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Word {
    /// The word, with the signs beside it.
    pub text: String,
    /// The probability that the model gives it, after what it wrote before: the product over its tokens.
    pub confidence: f32,
}

/// The words of generated tokens, of which `log_probs` are the log-probabilities.
pub(super) fn of(tokenizer: &Tokenizer, tokens: &[u32], log_probs: &[f32], eos: u32) -> Result<Vec<Word>> {
    let tokens = match tokens.split_last() {
        Some((&last, rest)) if last == eos => rest,
        _ => tokens,
    };
    // A token's characters are what the text grows by; some give part of a character, which appears with the next one.
    let mut words: Vec<Word> = Vec::new();
    let (mut before, mut open, mut waiting) = (String::new(), false, 0.0f32);
    for (i, log_prob) in tokens.iter().enumerate().map(|(i, _)| (i, log_probs.get(i).copied().unwrap_or(0.0))) {
        let text = tokenizer.decode(tokens.get(..=i).unwrap_or_default())?;
        let grown = text.strip_prefix(before.as_str()).unwrap_or("");
        if grown.is_empty() || text.ends_with('\u{fffd}') {
            waiting += log_prob;
            continue;
        }
        let log_prob = log_prob + std::mem::take(&mut waiting);
        let mut first = true;
        for piece in grown.split_inclusive(char::is_whitespace) {
            let bare = piece.trim();
            if !bare.is_empty() {
                match words.last_mut() {
                    Some(word) if open => word.text.push_str(bare),
                    _ => words.push(Word { text: bare.to_string(), confidence: 1.0 }),
                }
                if let (true, Some(word)) = (first, words.last_mut()) {
                    word.confidence *= log_prob.exp();
                    first = false;
                }
            }
            open = !piece.ends_with(char::is_whitespace);
        }
        before = text;
    }
    Ok(words)
}

/// Words as one line.
pub(super) fn text(words: &[Word]) -> String {
    words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Appends the words of a window to those before it, with which it has `common` seconds in common: where the last ones and the
/// first ones have a run of words in common, the longest, the two are joined there.
pub(super) fn join(all: &mut Vec<Word>, next: &[Word], common: f64) {
    let reach = (common * PACE).ceil() as usize;
    let tail = all.len().saturating_sub(reach);
    let mut best = (0, 0, 0);
    for i in tail..all.len() {
        for j in 0..next.len().min(reach) {
            let same = |(a, b): &(&Word, &Word)| a.text.to_lowercase() == b.text.to_lowercase();
            let run = all[i..].iter().zip(&next[j..]).take_while(same).count();
            if run > best.0 {
                best = (run, i, j);
            }
        }
    }
    let (run, i, j) = best;
    if run == 0 {
        all.extend_from_slice(next);
    } else {
        // What one window heard at its very edge, the other heard whole.
        all.truncate(i);
        all.extend_from_slice(&next[j..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Word> {
        text.split_whitespace().map(|w| Word { text: w.into(), confidence: 0.5 }).collect()
    }

    #[test]
    fn windows_are_joined_where_both_heard_the_same() {
        let joined = |a: &str, b: &str, common: f64| {
            let mut all = words(a);
            join(&mut all, &words(b), common);
            text(&all)
        };
        assert_eq!(joined("bin blue at f two", "f two now", 1.0), "bin blue at f two now");
        assert_eq!(joined("bin blue at f to", "at f two now", 1.0), "bin blue at f two now");
        assert_eq!(joined("bin blue", "at f", 1.0), "bin blue at f");
        // Without anything in common, the same words were said twice.
        assert_eq!(joined("one two", "two three", 0.0), "one two two three");
        assert_eq!(joined("", "two three", 1.0), "two three");
        assert_eq!(joined("one Two", "", 1.0), "one Two");
        assert_eq!(joined("now Bin", "bin blue", 0.4), "now bin blue");
        // Only at the seam: the word before it was said long ago.
        assert_eq!(joined("now a b c d e f g", "now h", 1.0), "now a b c d e f g now h");
    }
}
