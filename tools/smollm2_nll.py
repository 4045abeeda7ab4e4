#!/usr/bin/env python3
"""The mean negative log-likelihood of a text under a llama in a GGUF file, in numpy alone: what tests/smollm2.rs expects.

    pip install numpy regex
    python3 tools/smollm2_nll.py SmolLM2-135M-Instruct.Q4_1.gguf examples/data/text/sonnets.txt

The text is that of the file up to a line of `%`.

Reads the file itself (tools/gguf_file.py), turns neighbouring dimensions as the rows stand there, and merges tokens by
the file's own list. It shares no code with the library.
"""

import sys

import numpy as np
import regex

from gguf_file import parse


def encode(metadata, text):
    """Digits one by one, GPT-2's pieces, then pairs by rank."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in printable}
    shown |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in shown)}
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    out = []
    for run in regex.findall(r"\p{N}|\P{N}+", text):
        for piece in regex.findall(pattern, run):
            parts = [shown[b] for b in piece.encode()]
            while len(parts) > 1:
                rank, i = min((ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(parts, parts[1:])))
                if rank == 1 << 60:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            out += [ids[part] for part in parts]
    return out


def logits(metadata, w, ids):
    get = lambda key: metadata["llama." + key]
    heads, kv, eps = get("attention.head_count"), get("attention.head_count_kv"), get("attention.layer_norm_rms_epsilon")
    x = w["token_embd.weight"][ids].astype(np.float64)
    t, h = x.shape
    d = h // heads
    angles = np.arange(t)[:, None] * get("rope.freq_base") ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    norm = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[name]

    def turned(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    causal = np.triu(np.full((t, t), -np.inf), 1)
    for i in range(get("block_count")):
        p = lambda name: w[f"blk.{i}.{name}.weight"].T
        n = norm(x, f"blk.{i}.attn_norm.weight")
        q = turned((n @ p("attn_q")).reshape(t, heads, d))
        k = np.repeat(turned((n @ p("attn_k")).reshape(t, kv, d)), heads // kv, 1)
        v = np.repeat((n @ p("attn_v")).reshape(t, kv, d), heads // kv, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + causal
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(t, h) @ p("attn_output")
        n = norm(x, f"blk.{i}.ffn_norm.weight")
        gate = n @ p("ffn_gate")
        x = x + (gate / (1 + np.exp(-gate)) * (n @ p("ffn_up"))) @ p("ffn_down")
    return norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T


def main():
    metadata, weights = parse(open(sys.argv[1], "rb").read())
    with open(sys.argv[2], encoding="utf-8", newline="") as file:
        ids = encode(metadata, file.read().split("%\n")[0])
    scores = logits(metadata, weights, ids)
    scores -= scores.max(-1, keepdims=True)
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    nll = -log_probs[np.arange(len(ids) - 1), ids[1:]]
    print(f"{len(ids)} tokens, mean negative log-likelihood of all but the first {nll.mean():.5f}")


if __name__ == "__main__":
    main()
