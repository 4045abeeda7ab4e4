#!/usr/bin/env python3
"""The tokenizer of the small speech model: one token for each word of the corpus.

    python3 tools/avsr_tokenizer.py [--out examples/speech/tokenizer.json]

The words are those of the corpus's grammar (tools/avsr_corpus.py): commands, colours, prepositions, letters, digits and adverbs.
Before them stand the tokens of a speech model: first and last token, padding, and the tags around sound and lips.
"""

import argparse
import string
from pathlib import Path

from words import write

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<audio>", "</audio>", "<video>", "</video>"]
WORDS = (
    "bin lay place set blue green red white at by in with again now please soon "
    "zero one two three four five six seven eight nine"
).split() + list(string.ascii_lowercase)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/speech/tokenizer.json"))
    options = parser.parse_args()
    write(options.out, SPECIAL, WORDS, "WhitespaceSplit")


if __name__ == "__main__":
    main()
