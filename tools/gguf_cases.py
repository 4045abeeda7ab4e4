#!/usr/bin/env python3
"""Records what other programs make of text, for the tests of tokenizers from GGUF files.

    pip install sentencepiece tokenizers regex gguf==0.19.0 llama-cpp-python==0.3.16
    python3 tools/gguf_cases.py

writes `src/text/gguf/cases.json`:

* `sentences`: a small SentencePiece vocabulary (pieces, scores, llama.cpp's types of tokens), trained here on
  `examples/data/text`, and the ids that SentencePiece itself gives texts.
* `pieces`: what byte-level tokenizers split texts into, by the name that GGUF files have for them; by the ready-made
  pre-tokenizers of `tokenizers` where the models use these, else by the models' pattern in Python's `regex`.
* `llama_cpp`: what llama.cpp splits texts into, found with a vocabulary that has every part of the text as one token, and
  every way of making it as a merge: what is left apart was split.
"""

import io
import json
import pathlib
import tempfile

import gguf
import llama_cpp
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


def byte_characters():
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def split_by_llama_cpp(name, text):
    characters = byte_characters()
    raw = "".join(characters[b] for b in text.encode())
    # A merge that no text needs, as there must be one.
    tokens, merges = [*characters.values(), "qq"], {"q q": None}
    known = set(tokens)
    for size in range(2, len(raw) + 1):
        for i in range(len(raw) - size + 1):
            part = raw[i : i + size]
            if part not in known:
                known.add(part)
                tokens.append(part)
            merges.update((f"{part[:k]} {part[k:]}", None) for k in range(1, size))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vocabulary.gguf"
        w = gguf.GGUFWriter(path, "llama")
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(name)
        w.add_token_list(tokens)
        w.add_token_types([1] * len(tokens))
        w.add_token_merges(list(merges))
        w.add_add_bos_token(False)
        for add in [w.add_context_length, w.add_embedding_length, w.add_block_count, w.add_feed_forward_length, w.add_head_count]:
            add(4)
        w.add_layer_norm_rms_eps(1e-5)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    data = text.encode()
    ids = (llama_cpp.llama_token * len(data))()
    count = llama_cpp.llama_tokenize(
        llama_cpp.llama_model_get_vocab(model), data, len(data), ids, len(data), False, False
    )
    llama_cpp.llama_model_free(model)
    back = {c: b for b, c in characters.items()}
    return [bytes(back[c] for c in tokens[i]).decode() for i in ids[:count]]


NAMES = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder", "deepseek-v3"]


def by_llama_cpp():
    texts = TEXTS + ["a1234, 東京タワー!x", "a 1234 $x"]
    return {name: [[text, split_by_llama_cpp(name, text)] for text in texts] for name in NAMES}


if __name__ == "__main__":
    path = ROOT / "src/text/gguf/cases.json"
    cases = {"sentences": sentences(), "pieces": pieces(), "llama_cpp": by_llama_cpp()}
    path.write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")
