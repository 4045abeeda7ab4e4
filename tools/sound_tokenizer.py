#!/usr/bin/env python3
"""The tokenizer of the small model that listens: one token for each word of the corpus, lower case.

    venv/bin/python tools/sound_tokenizer.py [--out examples/sound/tokenizer.json]

The words are those of the corpus's questions and answers (tools/sound_corpus.py says what must be installed), and of the prompts of
U-SAM's tasks. Words are runs of letters and digits, or of other signs; what the corpus lacks becomes <unk>.
"""

import argparse
from pathlib import Path

from sound_corpus import vocabulary
from words import write

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/sound/tokenizer.json"))
    options = parser.parse_args()
    write(options.out, SPECIAL, vocabulary(), "Whitespace")


if __name__ == "__main__":
    main()
