#!/usr/bin/env python3
"""Tiny GGUF files of random weights, each with a detail of llama.cpp's format, and the logits that llama.cpp computes from them.

    pip install gguf==0.19.0 llama-cpp-python==0.3.16
    python3 tools/gguf_models.py

writes `tests/fixtures/gguf/NAME.gguf` and `tests/fixtures/gguf/logits.json` (token ids, and by file the logits of each of
them; keys and values are cached in f32, attention is not fused). `models/tests/decoder/llama_cpp.rs` reads them.
"""

import json
import pathlib

import gguf
import llama_cpp
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/gguf"
IDS = [3, 17, 8, 8, 25, 1, 30, 12, 5, 22, 9, 14]
VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, CONTEXT = 32, 32, 1, 4, 2, 64
F32, F16, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0


class Model:
    def __init__(self, name, architecture):
        self.path = OUT / f"{name}.gguf"
        self.writer = w = gguf.GGUFWriter(str(self.path), architecture)
        self.random = np.random.default_rng(list(name.encode()))
        w.add_tokenizer_model("none")
        w.add_vocab_size(VOCABULARY)
        w.add_context_length(CONTEXT)
        w.add_embedding_length(WIDTH)
        w.add_block_count(LAYERS)
        w.add_head_count(HEADS)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(100.0)
        self.tensor("token_embd.weight", VOCABULARY, WIDTH, scale=1.0)
        self.norm("output_norm.weight", WIDTH)
        self.tensor("output.weight", VOCABULARY, WIDTH, scale=0.3)

    def put(self, name, values, kind=F32):
        values = gguf.quants.quantize(values.astype(np.float32), kind)
        self.writer.add_tensor(name, values, raw_dtype=kind)

    def tensor(self, name, *shape, scale=0.25, kind=F32):
        self.put(name, self.random.normal(0, scale, shape), kind)

    def norm(self, name, width):
        self.put(name, 1 + self.random.normal(0, 0.1, width))

    def logits(self):
        w = self.writer
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), llama_cpp.llama_model_default_params())
        assert model, self.path
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.type_k, options.type_v, options.flash_attn = CONTEXT, 0, 0, False
        context = llama_cpp.llama_init_from_model(model, options)
        batch = llama_cpp.llama_batch_init(len(IDS), 0, 1)
        batch.n_tokens = len(IDS)
        for i, token in enumerate(IDS):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        assert llama_cpp.llama_decode(context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (VOCABULARY,)).tolist()
            for i in range(len(IDS))
        ]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        return [[float(f"{v:.7g}") for v in row] for row in rows]


def attention(model, i, biases=""):
    dim = WIDTH // HEADS
    model.norm(f"blk.{i}.attn_norm.weight", WIDTH)
    for part, rows in [("q", WIDTH), ("k", KV_HEADS * dim), ("v", KV_HEADS * dim), ("output", WIDTH)]:
        model.tensor(f"blk.{i}.attn_{part}.weight", rows, WIDTH)
        if part[0] in biases:
            model.tensor(f"blk.{i}.attn_{part}.bias", rows)
    model.norm(f"blk.{i}.ffn_norm.weight", WIDTH)


def dense(model, i):
    for part, shape in [("gate", (48, WIDTH)), ("up", (48, WIDTH)), ("down", (WIDTH, 48))]:
        model.tensor(f"blk.{i}.ffn_{part}.weight", *shape)


def experts(model, i, kinds=(F32, F32, F32)):
    model.tensor(f"blk.{i}.ffn_gate_inp.weight", 4, WIDTH)
    for part, kind, shape in zip(["gate", "up", "down"], kinds, [(4, 32, WIDTH), (4, 32, WIDTH), (4, WIDTH, 32)]):
        model.tensor(f"blk.{i}.ffn_{part}_exps.weight", *shape, kind=kind)


def llama(name, biases="", keys=lambda w: None):
    model = Model(name, "llama")
    model.writer.add_head_count_kv(KV_HEADS)
    model.writer.add_feed_forward_length(48)
    model.writer.add_rope_dimension_count(WIDTH // HEADS)
    keys(model.writer)
    for i in range(LAYERS):
        attention(model, i, biases)
        dense(model, i)
    return model


def granitemoe(name, positions=None, kinds=(F32, F32, F32)):
    model = Model(name, "granitemoe")
    w = model.writer
    w.add_head_count_kv(KV_HEADS)
    w.add_feed_forward_length(32)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_expert_count(4)
    w.add_expert_used_count(2)
    w.add_logit_scale(3.0)
    w.add_residual_scale(0.5)
    w.add_embedding_scale(2.0)
    w.add_attention_scale(0.25)
    if positions is not None:
        w.add_rope_scaling_finetuned(positions)
    for i in range(LAYERS):
        attention(model, i)
        experts(model, i, kinds)
    return model


def deepseek2(name, apart, multiplier, kind=F32):
    """Latent attention, keys and values of which are expanded by one tensor or by two."""
    nope, rope, value, rank, query = 32, 8, 16, 32, 24
    model = Model(name, "deepseek2")
    w = model.writer
    w.add_head_count_kv(1 if apart else HEADS)
    w.add_feed_forward_length(48)
    w.add_leading_dense_block_count(0)
    w.add_q_lora_rank(query)
    w.add_kv_lora_rank(rank)
    w.add_key_length(rank + rope if apart else nope + rope)
    w.add_value_length(rank if apart else value)
    if apart:
        w.add_key_length_mla(nope + rope)
        w.add_value_length_mla(value)
    w.add_expert_feed_forward_length(32)
    w.add_expert_count(4)
    w.add_expert_used_count(2)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(1.5)
    w.add_expert_weights_norm(False)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    w.add_rope_dimension_count(rope)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(4.0)
    w.add_rope_scaling_orig_ctx_len(16)
    if multiplier is not None:
        w.add_rope_scaling_yarn_log_mul(multiplier)
    for i in range(LAYERS):
        model.norm(f"blk.{i}.attn_norm.weight", WIDTH)
        model.tensor(f"blk.{i}.attn_q_a.weight", query, WIDTH)
        model.norm(f"blk.{i}.attn_q_a_norm.weight", query)
        model.tensor(f"blk.{i}.attn_q_b.weight", HEADS * (nope + rope), query)
        model.tensor(f"blk.{i}.attn_kv_a_mqa.weight", rank + rope, WIDTH)
        model.norm(f"blk.{i}.attn_kv_a_norm.weight", rank)
        if apart:
            model.tensor(f"blk.{i}.attn_k_b.weight", HEADS, rank, nope, kind=kind)
            model.tensor(f"blk.{i}.attn_v_b.weight", HEADS, value, rank)
        else:
            model.tensor(f"blk.{i}.attn_kv_b.weight", HEADS * (nope + value), rank)
        model.tensor(f"blk.{i}.attn_output.weight", WIDTH, HEADS * value)
        model.norm(f"blk.{i}.ffn_norm.weight", WIDTH)
        experts(model, i)
        for part in ["gate", "up", "down"]:
            model.tensor(f"blk.{i}.ffn_{part}_shexp.weight", 32, WIDTH)
    return model


def scaling(kind=None, factor=None, attention=None, original=None):
    def keys(w):
        if kind is not None:
            w.add_rope_scaling_type(kind)
        if factor is not None:
            w.add_rope_scaling_factor(factor)
        if attention is not None:
            w.add_rope_scaling_attn_factors(attention)
        if original is not None:
            w.add_rope_scaling_orig_ctx_len(original)

    return keys


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    yarn, none = gguf.RopeScalingType.YARN, gguf.RopeScalingType.NONE
    models = {
        "llama_factor_alone": lambda name: llama(name, keys=scaling(factor=4.0)),
        "llama_factor_of_no_type": lambda name: llama(name, keys=scaling(none, 4.0)),
        "llama_yarn_attention": lambda name: llama(name, keys=scaling(yarn, 4.0, 1.3, 16)),
        "llama_bias_of_queries": lambda name: llama(name, "qkv"),
        "llama_bias_of_output": lambda name: llama(name, "o"),
        "granitemoe_no_positions": lambda name: granitemoe(name, False),
        "granitemoe_mixed_types": lambda name: granitemoe(name, True, (F16, F32, F32)),
        "deepseek2_apart": lambda name: deepseek2(name, True, 0.0707),
        "deepseek2_apart_blocks": lambda name: deepseek2(name, True, 0.0707, Q8_0),
        "deepseek2_yarn_no_multiplier": lambda name: deepseek2(name, False, None),
    }
    logits = {name: make(name).logits() for name, make in models.items()}
    (OUT / "logits.json").write_text(json.dumps({"ids": IDS, "logits": logits}, separators=(",", ":")) + "\n")
    print(*sorted((path.stat().st_size, path.name) for path in OUT.iterdir()), sep="\n")
