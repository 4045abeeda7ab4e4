#!/usr/bin/env python3
"""The tokenizer of the small model that reads everything: one token for each word of its three corpora, lower case.

    python3 tools/omni_tokenizer.py [--out examples/omni/tokenizer.json]

Words are those of the tokenizers of the small models that look (examples/vision) and listen (examples/sound), and of questions about
series (tools/series_corpus.py): runs of letters and digits, or of other signs; what the corpora lack becomes <unk>.
"""

import argparse
import json
import re
from pathlib import Path

import series_corpus
from runs import ROOT
from words import write

SPECIAL = ["<unk>", "<s>", "</s>", "<forecast>"]


def known(model):
    """The words of another tokenizer, without its special tokens."""
    tokenizer = json.loads((ROOT / "examples" / model / "tokenizer.json").read_text(encoding="utf-8"))
    return set(tokenizer["model"]["vocab"]) - {token["content"] for token in tokenizer["added_tokens"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/omni/tokenizer.json"))
    options = parser.parse_args()
    series = {word for text in series_corpus.words() for word in re.findall(r"\w+|[^\w\s]+", text.lower())}
    write(options.out, SPECIAL, known("vision") | known("sound") | series, "Whitespace")


if __name__ == "__main__":
    main()
