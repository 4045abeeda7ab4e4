"""Tokenizers with one token for each word, as small models have them."""

import json


def write(out, special, words, pre_tokenizer):
    """Writes a `tokenizer.json`: special tokens, the first of which stands for unknown words, then the words in their order."""
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(special)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": pre_tokenizer},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": special[0]},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {len(vocabulary)} tokens")
