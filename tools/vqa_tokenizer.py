#!/usr/bin/env python3
"""The tokenizer of the small vision model: one token for each word of the corpus, lower case.

    python3 tools/vqa_tokenizer.py [--corpus data/vqa/train.jsonl] [--out examples/vision/tokenizer.json]

Words are runs of letters and digits, or of other signs; what the corpus lacks becomes <unk>. A line end, with which the plain
conversation template ends questions and answers, is a token of its own, and so is the picture's mark.
"""

import argparse
import json
import re
from pathlib import Path

from words import write

SPECIAL = ["<unk>", "<image>", "\n"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path("data/vqa/train.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("examples/vision/tokenizer.json"))
    options = parser.parse_args()
    words = set()
    for line in options.corpus.read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["turns"]:
            for text in (turn["question"], turn["answer"]):
                words.update(re.findall(r"\w+|[^\w\s]+", text.lower()))
    write(options.out, SPECIAL, words, "Whitespace")


if __name__ == "__main__":
    main()
