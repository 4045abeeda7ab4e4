"""The torch side of run.py: transformers' Qwen3-MoE. Started by run.py, answers commands on standard input.

    make DIR                    writes a model with random weights in bf16, as the hub repository would hold it
    load DTYPE                  loads it
    run STREAMS PROMPT STEPS    a pass over PROMPT tokens of each stream, then STEPS passes over one token each
    ceilings                    matrix products and a memory read, for scale
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

# GFLOP/s below which torch has no real kernel for a type here.
SLOW = 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# OLMoE's proportions at half its width, in the layout that all three sides know.
CONFIG = dict(
    hidden_size=1024, intermediate_size=512, moe_intermediate_size=512, num_hidden_layers=16, num_attention_heads=16,
    num_key_value_heads=16, head_dim=64, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False, vocab_size=50304,
    max_position_embeddings=4096, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=False, hidden_act="silu",
    decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False, use_sliding_window=False,
)


def make(folder):
    torch.manual_seed(20261125)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen3MoeConfig(**CONFIG)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Wide enough that routers decide and attention attends, as in a trained model.
                weight.normal_(0.0, 1.0 if "embed" in name else weight.shape[1] ** -0.5)
            else:
                weight.fill_(1.0)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    written = json.loads((Path(folder) / "config.json").read_text())
    # candle asks for keys that transformers leaves out.
    written.update(CONFIG, model_type="qwen3_moe", sliding_window=None, max_window_layers=16)
    (Path(folder) / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def fastest(work, times=5):
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def ceilings():
    answer = {}
    for name, dtype in DTYPES.items():
        # Without processor support torch multiplies bf16 hundreds of times slower: a large product would take minutes.
        for n in [256, 2048]:
            a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
            rate = 2 * n**3 / fastest(lambda: a @ b, 20 if n == 256 else 5) / 1e9
            if rate < SLOW:
                break
        answer[f"torch {n}^3 {name} GFLOP/s"] = rate
        answer[f"{name} is slow"] = rate < SLOW
    buffer = torch.ones(1 << 28)
    answer["torch read of 1 GiB GB/s"] = buffer.numel() * 4 / fastest(buffer.sum) / 1e9
    return answer


def main(folder, ids, out):
    torch.set_num_threads(2)
    ids = torch.from_numpy(np.fromfile(ids, dtype="<u4").astype(np.int64))
    model = None

    def run(streams, prompt, steps):
        rows = ids[: streams * (prompt + steps)].reshape(streams, prompt + steps)
        with torch.inference_mode():
            start = time.perf_counter()
            answer = model(rows[:, :prompt], use_cache=True, logits_to_keep=1)
            prefill = time.perf_counter() - start
            start = time.perf_counter()
            for at in range(prompt, prompt + steps):
                answer = model(rows[:, at : at + 1], past_key_values=answer.past_key_values, use_cache=True)
            decode = time.perf_counter() - start
        answer.logits[:, -1].float().numpy().astype("<f4").tofile(out)
        return {"prefill": prefill, "decode": decode}

    for line in sys.stdin:
        command, *words = line.split()
        start = time.perf_counter()
        if command == "make":
            make(words[0])
            answer = {}
        elif command == "load":
            model = None
            model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=DTYPES[words[0]]).eval()
            answer = {"seconds": time.perf_counter() - start}
        elif command == "run":
            answer = run(*map(int, words))
        else:
            answer = ceilings()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
