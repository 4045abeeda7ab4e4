"""Writes a GGUF file of OLMoE's proportions with random weights, all matrices of one block format. Started by run.py.

    make.py q8_0|q4_k FILE
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, EXPERTS, PICKS, INNER, VOCABULARY = 16, 1024, 16, 64, 8, 512, 50304
KINDS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_k": gguf.GGMLQuantizationType.Q4_K}


def blocks(rng, kind, rows, width):
    """Rows of blocks whose values have mean 0 and variance 1 / width, as bytes `[rows, bytes of a row]`."""
    wanted = width**-0.5
    if kind == "q8_0":
        n = rows * width // 32
        data = np.empty((n, 34), np.uint8)
        data[:, 2:] = np.clip(np.rint(rng.normal(0, 40, (n, 32))), -127, 127).astype(np.int8).view(np.uint8)
        scale = np.full((n, 1), wanted / 40, np.float16)
        data[:, :2] = scale.view(np.uint8)
        return data.reshape(rows, -1)
    n = rows * width // 256
    data = np.empty((n, 144), np.uint8)
    data[:, 16:] = rng.integers(0, 256, (n, 128), np.uint8)
    # Eight scales and the same eight numbers as minima, 6 bits each: with `dmin = 7.5 d` the mean of 0..=15 becomes 0.
    s = rng.integers(32, 64, (n, 8), np.uint8)
    low, high = s[:, :4], s[:, 4:]
    data[:, 4:8] = low | (high >> 4) << 6
    data[:, 8:12] = low | (high >> 4) << 6
    data[:, 12:16] = (high & 15) | (high & 15) << 4
    d = wanted / (47.5 * 4.61)
    data[:, :2] = np.full((n, 1), d, np.float16).view(np.uint8)
    data[:, 2:4] = np.full((n, 1), 7.5 * d, np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def main(kind, path):
    rng = np.random.default_rng(20261125)
    writer = gguf.GGUFWriter(path, "olmoe")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(PICKS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")

    def matrix(name, *shape):
        data = blocks(rng, kind, int(np.prod(shape[:-1])), shape[-1])
        writer.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=KINDS[kind])

    def floats(name, values):
        writer.add_tensor(name, values.astype(np.float32))

    ones = np.ones(WIDTH)
    # Tokens that differ: rows of variance 1.
    embeddings = blocks(rng, "q8_0", VOCABULARY, WIDTH)
    embeddings.reshape(-1, 34)[:, :2] = np.full((1, 1), 1 / 40, np.float16).view(np.uint8)
    writer.add_tensor("token_embd.weight", embeddings, raw_dtype=KINDS["q8_0"])
    floats("output_norm.weight", ones)
    matrix("output.weight", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        for name in ["attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"]:
            floats(f"blk.{i}.{name}.weight", ones)
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"]:
            matrix(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        floats(f"blk.{i}.ffn_gate_inp.weight", rng.normal(0, WIDTH**-0.5, (EXPERTS, WIDTH)))
        matrix(f"blk.{i}.ffn_gate_exps.weight", EXPERTS, INNER, WIDTH)
        matrix(f"blk.{i}.ffn_up_exps.weight", EXPERTS, INNER, WIDTH)
        matrix(f"blk.{i}.ffn_down_exps.weight", EXPERTS, WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
