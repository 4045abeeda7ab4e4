//! Conversations as ids: prompts with marks for pictures, and rows to train on.

use tokenizers::Tokenizer;

use super::{Template, Turn};
use crate::text::guarded;
use crate::{Error, Result};

/// Stands in a text for a picture.
pub const MARK: &str = "<image>";

/// Ids of a text in which [`MARK`]s stand for pictures; each becomes the id `mark`. The tokenizer's first token (its
/// beginning-of-text, where it has one) stands once, in front of all
/// ([`tokenizer_image_token`](https://github.com/haotian-liu/LLaVA/blob/v1.2.0/llava/mm_utils.py)).
///
/// # Errors
/// The tokenizer cannot take the text.
pub fn marked_ids(tokenizer: &Tokenizer, text: &str, mark: u32) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for (i, part) in text.split(MARK).enumerate() {
        if i > 0 {
            ids.push(mark);
        }
        let encoding = guarded(|| tokenizer.encode_fast(part, i == 0).map_err(|e| e.to_string()))
            .map_err(|e| Error::option(format!("the text cannot be tokenised: {e}")))?;
        ids.extend_from_slice(encoding.get_ids());
    }
    Ok(ids)
}

/// A conversation to train on: its ids, and for each a label, which is the id itself where it belongs to an answer or the mark
/// that ends one, and -100 elsewhere.
///
/// # Errors
/// A turn has no answer, or as [`Template::prompt`] and [`marked_ids`].
pub fn labelled(
    template: &Template,
    tokenizer: &Tokenizer,
    turns: &[Turn<'_>],
    mark: u32,
) -> Result<(Vec<u32>, Vec<i64>)> {
    let ids = marked_ids(tokenizer, &template.prompt(turns)?, mark)?;
    let mut labels = vec![-100; ids.len()];
    for end in 1..=turns.len() {
        let Some((last, before)) = turns.get(..end).and_then(<[_]>::split_last) else { continue };
        if last.answer.is_none() {
            return Err(Error::option("a conversation to train on needs an answer to each question"));
        }
        let asked = [before, &[Turn { answer: None, ..*last }]].concat();
        let from = marked_ids(tokenizer, &template.prompt(&asked)?, mark)?;
        let to = marked_ids(tokenizer, &template.prompt(&[before, &[*last]].concat())?, mark)?;
        // A tokenizer may join the end of a question with the start of its answer: what both have in common is the question.
        let from = from.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let to = to.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        for (label, id) in labels.iter_mut().zip(&ids).take(to).skip(from) {
            *label = i64::from(*id);
        }
    }
    Ok((ids, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One id for each word and line end.
    fn tokenizer() -> Tokenizer {
        let vocab = ["<unk>", "is", "it", "red", "yes", "no", "blue"];
        let vocab: serde_json::Map<_, _> = vocab.iter().zip(0..).map(|(w, i)| (w.to_string(), i.into())).collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [
                { "id": 7, "content": "\n", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                  "special": true }
            ],
            "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
        });
        json.to_string().parse().expect("a tokenizer")
    }

    #[test]
    fn answers_have_labels_and_nothing_else_has() -> Result<()> {
        let template = Template::named("plain").expect("known");
        let turn = |question, answer| Turn { question, answer: Some(answer) };
        let turns = [turn("<image>\nis it red", "yes"), turn("is it blue", "no")];
        let (ids, labels) = labelled(&template, &tokenizer(), &turns, 99)?;
        assert_eq!(ids, [99, 7, 1, 2, 3, 7, 4, 7, 1, 2, 6, 7, 5, 7]);
        assert_eq!(labels, [-100, -100, -100, -100, -100, -100, 4, 7, -100, -100, -100, -100, 5, 7]);
        assert!(labelled(&template, &tokenizer(), &[Turn { question: "is it red", answer: None }], 99).is_err());
        Ok(())
    }
}
