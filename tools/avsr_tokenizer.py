#!/usr/bin/env python3
"""The tokenizer of the small speech model: one token for each word of the corpus.

    python3 tools/avsr_tokenizer.py [--out examples/speech/tokenizer.json]

The words are those of the corpus's grammar (tools/avsr_corpus.py): commands, colours, prepositions, letters, digits and adverbs.
Before them stand the tokens of a speech model: first and last token, padding, and the tags around sound and lips.
"""

import argparse
import json
import string
from pathlib import Path

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<audio>", "</audio>", "<video>", "</video>"]
WORDS = (
    "bin lay place set blue green red white at by in with again now please soon "
    "zero one two three four five six seven eight nine"
).split() + list(string.ascii_lowercase)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/speech/tokenizer.json"))
    options = parser.parse_args()
    vocabulary = {word: i for i, word in enumerate(SPECIAL + sorted(WORDS))}
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(SPECIAL)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(vocabulary)} tokens")


if __name__ == "__main__":
    main()
