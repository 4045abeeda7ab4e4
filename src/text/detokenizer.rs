//! Tokens to text as they come.

use super::Tokenizer;
use crate::error::Result;

/// Tokens of a prompt that the first new token's text may depend on.
const BEFORE: usize = 8;
/// Tokens without a complete character after which the rest counts as complete.
const LONGEST: usize = 64;

/// Turns the tokens of one row into pieces of text that are whole characters.
///
/// A token's text may depend on its neighbours (a space before a word, bytes of one character), so each piece is the
/// difference of two texts of a few tokens, and characters wait until all their bytes are there.
#[derive(Debug, Default)]
pub(super) struct Detokenizer {
    /// The newest tokens.
    ids: Vec<u32>,
    /// Bytes of the text of `ids` that were given away.
    given: usize,
    /// Tokens after which the text was complete last time.
    complete: usize,
}

impl Detokenizer {
    /// For what follows these tokens.
    pub fn after(prompt: &[u32], tokenizer: &Tokenizer) -> Result<Self> {
        let ids = prompt.get(prompt.len().saturating_sub(BEFORE)..).unwrap_or_default().to_vec();
        let given = tokenizer.decode(&ids)?.len();
        Ok(Self { complete: ids.len(), ids, given })
    }

    /// The text that this token completes.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let complete = whole.len() == text.len() || self.ids.len() - self.complete > LONGEST;
        let end = if complete { text.len() } else { whole.len() };
        // A decoder may take back what it showed for bytes that turn out otherwise; then there is nothing to add.
        let piece = text.get(self.given..end).unwrap_or_default().to_string();
        self.given = self.given.max(end);
        if complete {
            self.ids.drain(..self.complete);
            self.complete = self.ids.len();
            self.given = tokenizer.decode(&self.ids)?.len();
        }
        Ok(piece)
    }

    /// What still waits for bytes that will not come.
    pub fn finish(&self, tokenizer: &Tokenizer) -> Result<String> {
        Ok(tokenizer.decode(&self.ids)?.get(self.given..).unwrap_or_default().to_string())
    }
}

/// The text of `ids` behind a prompt.
pub(super) fn whole(prompt: &[u32], ids: &[u32], tokenizer: &Tokenizer) -> Result<String> {
    let before = prompt.get(prompt.len().saturating_sub(BEFORE)..).unwrap_or_default();
    let given = tokenizer.decode(before)?.len();
    Ok(tokenizer.decode(&[before, ids].concat())?.get(given..).unwrap_or_default().to_string())
}
