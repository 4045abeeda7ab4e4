#!/usr/bin/env python3
"""The sparse layer on a GPU beside what the machine can do, candle's kernels, torch's, and one in Triton, all in one run: one table.

    python3 benches/gpu/run.py [--ours PROGRAM] [--python PYTHON] [--only "e64 512"] [--smoke]

Needs an NVIDIA GPU, and a Python with torch (2.9 or newer) that sees it; with vLLM in it there is a column of Triton. Builds our side with cargo, for
which CUDA's toolkit must be there, unless --ours names the program: built elsewhere, it needs the libraries alone. All sides get the same choices of
experts; each time is a median of three series of calls. --smoke takes small shapes and torch on the CPU: it shows that all sides run, and its times mean nothing.
"""

import argparse
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "side_by_side"))
from run import Worker  # noqa: E402

# (name, experts, k, hidden, inner)
SHAPES = [
    ("e64 k8 OLMoE", 64, 8, 2048, 1024),
    ("e8 k2 Mixtral", 8, 2, 4096, 14336),
    ("e128 k8 Qwen3-30B-A3B", 128, 8, 2048, 768),
    ("e256 k8 DeepSeek-V3", 256, 8, 7168, 2048),
    ("e8 k2 Time-MoE-50M", 8, 2, 384, 768),
    ("e4 k2 SMoP", 4, 2, 2048, 2048),
]
TOKENS = [1, 4, 16, 64, 512, 4096, 16384]
SMOKE = [("e4 k2 small", 4, 2, 32, 16)], [1, 8]
# From so many tokens on arithmetic is the limit, not memory.
MANY = 512
# Training is measured where its gradients, as large as the weights, leave room beside them.
TRAINED = 4096


def choose(experts, k, tokens, skewed):
    """The experts of each token. Skewed: the e-th of them with a weight of 1 / (e + 1)."""
    draw = random.Random(tokens)
    share = [1 / (e + 1) for e in range(experts)]
    for _ in range(tokens):
        if not skewed:
            yield draw.sample(range(experts), k)
            continue
        # The k largest of uniform numbers to the power of 1 / share are a weighted sample without repetition.
        keys = [draw.random() ** (1 / of) for of in share]
        yield sorted(range(experts), key=keys.__getitem__, reverse=True)[:k]


def shown(seconds):
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ours", type=Path, help="our side, built before")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--only", default="", help="part of 'SHAPE TOKENS ROUTING'")
    parser.add_argument("--smoke", action="store_true", help="small shapes, torch on the CPU: times mean nothing")
    args = parser.parse_args()
    if not args.ours:
        subprocess.run(["cargo", "build", "--release"], cwd=HERE, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
        args.ours = target / "release/gpu-bench"
    shapes, counts = SMOKE if args.smoke else (SHAPES, TOKENS)
    device = "cpu" if args.smoke else "cuda"
    sides = {
        "ours": Worker([args.ours.resolve(), "serve"], {"MOESAIC_CUDA_KERNELS": "1"}),
        "composed": Worker([args.ours.resolve(), "serve"], {"MOESAIC_CUDA_KERNELS": "0"}),
        "torch": Worker([args.python, HERE / "peers.py", device], {}),
    }
    said = set()

    def seconds(side, what):
        answer = sides[side].ask(f"run {what}")
        if "error" in answer and (side, what, answer["error"]) not in said:
            said.add((side, what, answer["error"]))
            print(f"{side} {what}: {answer['error']}", file=sys.stderr)
        return answer.get("seconds")

    size, side = (1 << 20, 64) if args.smoke else (1 << 32, 8192)
    copies = {name: sides[name].ask(f"copy {size}")["gb_s"] for name in ("ours", "torch")}
    products = {name: sides[name].ask(f"product {side}")["tflop_s"] for name in ("ours", "torch")}
    copy, product = max(copies.values()), max(products.values())
    rows, shares = [], []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "choices"
        for name, experts, k, hidden, inner in shapes:
            wanted = [(t, r) for t in counts for r in ("uniform", "skewed") if args.only in f"{name} {t} {r}"]
            if not wanted:
                continue
            for worker in sides.values():
                worker.ask(f"weights {experts} {hidden} {inner}")
            for tokens, routing in wanted:
                choices = list(choose(experts, k, tokens, routing == "skewed"))
                file.write_bytes(b"".join(struct.pack(f"<{k}I", *row) for row in choices))
                for worker in sides.values():
                    worker.ask(f"tokens {tokens} {k} {file}")
                times = {
                    "ours": seconds("ours", "experts"), "route": seconds("ours", "route"), "layer": seconds("ours", "layer"),
                    "composed": seconds("composed", "experts"), "candle": seconds("ours", "candle"),
                    "loop": seconds("torch", "loop"), "grouped": seconds("torch", "grouped"), "triton": seconds("torch", "triton"),
                }
                if tokens == min(TRAINED, max(counts)) and experts * hidden * inner < 1 << 31:
                    times["train"], times["train grouped"] = seconds("ours", "train"), seconds("torch", "train")
                used = len({expert for row in choices for expert in row})
                work = 6 * tokens * k * hidden * inner
                ours = times["ours"]
                reach = trained = ""
                if ours is not None and tokens < MANY:
                    reach = f"{100 * used * 6 * hidden * inner / ours / 1e9 / copy:.0f} % of copy"
                elif ours is not None:
                    reach = f"{100 * work / ours / 1e12 / product:.0f} % of product"
                if times.get("train"):
                    trained = f"{100 * 3 * work / times['train'] / 1e12 / product:.0f} % of product"
                route = f"{100 * times['route'] / times['layer']:.0f} %" if times["route"] and times["layer"] else ""
                peers = [times[peer] for peer in ("candle", "loop", "grouped", "triton") if times[peer] is not None]
                best = f"{min(peers) / ours:.2f}" if peers and ours else ""
                if best:
                    shares.append(min(peers) / ours)
                cells = [name, tokens, routing, shown(ours), reach, route, *(shown(times[peer]) for peer in ("composed", "candle", "loop", "grouped", "triton")), best,
                         shown(times.get("train")), trained, shown(times.get("train grouped"))]
                rows.append(cells)
                print(*cells, sep=" | ", file=sys.stderr)
    for worker in sides.values():
        worker.close()
    print(f"copy: ours {copies['ours']:.0f}, torch {copies['torch']:.0f} GB/s; product of bf16 [{side}, {side}]: candle {products['ours']:.0f}, torch {products['torch']:.0f} TFLOP/s")
    if args.smoke:
        print("--smoke: these times mean nothing")
    head = ["layer", "tokens", "routing", "ours ms", "reached", "routing of the layer", "candle's operations ms", "candle moe_gemm ms", "torch loop ms", "torch grouped ms",
            "Triton ms", "best peer / ours", "train ms", "reached", "torch train ms"]
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(map(str, row)) + " |")
    if shares:
        print(f"best peer / ours, geometric mean: {statistics.geometric_mean(shares):.2f}; faster than all in {sum(share > 1 for share in shares)} of {len(shares)}")


if __name__ == "__main__":
    main()
