//! SentencePiece vocabularies (`tokenizer.ggml.model` is `llama`): pieces with scores, spaces as `▁`.
//!
//! Made into merges as `transformers` makes them
//! ([`convert_slow_tokenizer.py`](https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/convert_slow_tokenizer.py),
//! `LlamaConverter`): two pieces merge where they make a third, those of the highest score first. Characters that are no piece
//! are written in bytes.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{CONTROL, Source, UNKNOWN};
use crate::error::{Error, Result};

/// A merge: the score of what it makes, and the two parts with their ids.
struct Merge<'a> {
    score: f64,
    left: (&'a str, usize),
    right: (&'a str, usize),
}

/// `tokenizer.json`, and that texts begin with the first token where the file does not say.
pub(super) fn tokenizer(source: &Source<'_>) -> Result<(Value, bool)> {
    let scores = source.metadata.numbers("tokenizer.ggml.scores").map_err(|e| source.broken(&e))?;
    let Some(scores) = scores.filter(|scores| scores.len() == source.tokens.len()) else {
        let problem = "its tokenizer has not one score for each token (tokenizer.ggml.scores): download it again";
        return Err(Error::config(source.path, problem));
    };
    let unknown = match source.id("unknown")? {
        Some(id) => Some(id),
        None => (0..source.tokens.len()).find(|&id| source.kind(id) == UNKNOWN),
    };
    let merges: Vec<Value> = merges(source, &scores).iter().map(|merge| json!([merge.left.0, merge.right.0])).collect();
    let prefix = source.flag("add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let special = |id: usize| source.kind(id) == CONTROL || Some(id) == unknown;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": source.added(special),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.and_then(|id| source.tokens.get(id)),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": source.vocabulary(), "merges": merges,
        },
    });
    Ok((tokenizer, true))
}

/// All pairs of pieces that make a piece, in the order in which they merge.
fn merges<'a>(source: &Source<'a>, scores: &[f64]) -> Vec<Merge<'a>> {
    let tokens: &'a [String] = source.tokens;
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        ids.entry(token).or_insert(id);
    }
    let mut all = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let first = all.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                all.push(Merge { score, left: (left, l), right: (right, r) });
            }
        }
        if let Some(own) = all.get_mut(first..) {
            own.sort_by_key(|merge| (merge.left.1, merge.right.1));
        }
    }
    // Stable: equals stay in the order of the vocabulary.
    let length = |text: &str| text.chars().count();
    all.sort_by(|a, b| {
        let lengths = |m: &Merge<'_>| (length(m.left.0), length(m.right.0));
        b.score.total_cmp(&a.score).then_with(|| lengths(b).cmp(&lengths(a)))
    });
    all
}
