#!/usr/bin/env python3
"""Records what other programs make of text, for the tests of tokenizers from GGUF files.

    pip install sentencepiece tokenizers regex
    python3 tools/gguf_cases.py

writes `src/text/gguf/cases.json`:

* `sentences`: a small SentencePiece vocabulary (pieces, scores, llama.cpp's types of tokens), trained here on
  `examples/data/text`, and the ids that SentencePiece itself gives texts.
* `pieces`: what byte-level tokenizers split texts into, by the name that GGUF files have for them; by the ready-made
  pre-tokenizers of `tokenizers` where the models use these, else by the models' pattern in Python's `regex`.
"""

import io
import json
import pathlib

import regex
import sentencepiece
from tokenizers import pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = [
    "Shall I compare thee to a summer's day?",
    "  two spaces,\ttab\n\nand 3 lines\r\n 12345 6.7e-8",
    "I'LL say it's DON'T, we've they're I'd 'tis",
    "Grüße aus Köln, 東京 and Владивосток — naïve café ½ ²",
    "emoji 😀👩‍👩‍👧 and \u00a0nbsp,\u2003em space",
    "if (x[i] != y->z) { return 0x1F; } // done   ",
    "ends in spaces   ",
    " ",
    "ǅ ა Ა 𝐀 ﬁ ＡＢ１２",
]


def sentences():
    lines = [l for f in sorted((ROOT / "examples/data/text").glob("*.txt")) for l in f.read_text().splitlines() if l.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        user_defined_symbols=["<|user|>"], character_coverage=0.99, minloglevel=2, num_threads=1,
    )
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def kind(i):
        if spm.is_unknown(i):
            return 2
        if spm.is_control(i):
            return 3
        if spm.is_byte(i):
            return 6
        return 4 if spm.id_to_piece(i) == "<|user|>" else 1

    n = spm.get_piece_size()
    cases = [[text, spm.encode(text)] for text in TEXTS if text.strip()]
    return {
        "tokens": [spm.id_to_piece(i) for i in range(n)], "scores": [spm.get_score(i) for i in range(n)],
        "types": [kind(i) for i in range(n)], "cases": cases,
    }


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LONG = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama-bpe": CONTRACTIONS + LONG % "{1,3}",
    "qwen2": CONTRACTIONS + LONG % "",
}


def builtin(steps, text):
    step = pre_tokenizers.Sequence(steps)
    return [text[a:b] for _, (a, b) in step.pre_tokenize_str(text)]


def pieces():
    digits = pre_tokenizers.Digits(individual_digits=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    out = {
        "gpt-2": [[t, builtin([plain], t)] for t in TEXTS],
        "smollm": [[t, builtin([digits, plain], t)] for t in TEXTS],
    }
    for name, pattern in PATTERNS.items():
        out[name] = [[t, regex.findall(pattern, t)] for t in TEXTS]
        assert all("".join(p) == t for t, p in out[name])
    return out


if __name__ == "__main__":
    path = ROOT / "src/text/gguf/cases.json"
    path.write_text(json.dumps({"sentences": sentences(), "pieces": pieces()}, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")
