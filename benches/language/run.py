#!/usr/bin/env python3
"""A sparse language model with random weights: moesaic, transformers on torch, and candle-transformers, in one run.

    python3 benches/language/run.py [--rounds 2] [--dtype f32] [--steps 32]

The model has OLMoE's proportions (16 layers, 64 experts of 512, 8 a token, width 1024; 1.7 billion parameters) in the
layout of Qwen3-MoE, which all three know. Makes a virtual environment and builds candle's side under target/language (about
2 GB, and 3.4 GB for the model), then starts one side after the other, as f32 fills 7 GB: each loads the model, runs prompts of
512 tokens and then single tokens, for 1 and 8 streams. All sides run the same tokens; their last scores are compared.
"""

import argparse
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "benches"))
from side_by_side import run as shared  # noqa: E402

WORK = ROOT / "target" / "language"
PACKAGES = ["torch==2.8.0", "transformers==4.57.6", "numpy"]
PROMPT = 512
STREAMS = [1, 8]
SIDES = ["moesaic", "torch", "candle"]


def build():
    subprocess.run(
        ["cargo", "build", "--release", "--manifest-path", HERE / "candle" / "Cargo.toml", "--target-dir", WORK / "candle"],
        check=True,
    )
    return shared.executables(["--bench", "language"])["language"], WORK / "candle" / "release" / "language-candle"


def ids(steps):
    """Tokens of eight streams, by a generator that any language can repeat."""
    state, values = 20261125, []
    for _ in range(max(STREAMS) * (PROMPT + steps)):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 33) % 50304)
    (WORK / "ids.u32").write_bytes(struct.pack(f"<{len(values)}I", *values))


def scores(side):
    return [v for (v,) in struct.iter_unpack("<f", (WORK / f"{side}.f32").read_bytes())]


def difference(side, streams):
    """Mean absolute difference of last scores from ours, over the other side's mean absolute value."""
    ours, theirs = WORK / f"moesaic.{streams}", scores(side)
    ours = [v for (v,) in struct.iter_unpack("<f", ours.read_bytes())]
    assert len(ours) == len(theirs) and len(ours) > 0
    return sum(abs(a - b) for a, b in zip(ours, theirs)) / sum(abs(b) for b in theirs)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=32)
    arguments.add_argument("--dtype", choices=["f32", "bf16"], action="append")
    arguments.add_argument("--side", choices=SIDES, action="append", help="not all of them")
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter = shared.python(WORK / "venv", PACKAGES)
    ours, candle = build()
    ids(arguments.steps)
    model = WORK / "model"
    commands = {"moesaic": [ours], "torch": [interpreter, HERE / "reference.py"], "candle": [candle]}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def start(side):
        return shared.Worker([*commands[side], model, WORK / "ids.u32", WORK / f"{side}.f32"], offline)

    torch = start("torch")
    if not (model / "model.safetensors").exists():
        torch.ask(f"make {model}")
    ceilings = [torch.ask("ceilings")]
    torch.close()
    size = (model / "model.safetensors").stat().st_size
    seconds, differs, loads, notes = {}, {}, [], []
    for dtype in arguments.dtype or ["f32", "bf16"]:
        for turn in range(arguments.rounds):
            for side in arguments.side or SIDES:
                worker = start(side)
                if side == "torch":
                    ceilings.append(worker.ask("ceilings"))
                loaded = worker.ask(f"load {dtype}")
                if side == "moesaic":
                    loads.append((dtype, loaded["seconds"], loaded["peak"] / (size * (2 if dtype == "f32" else 1))))
                # torch takes many minutes for products in a type that it has no kernel for: then its prompts are short, and
                # only its steps count.
                slow = side == "torch" and ceilings[-1][f"{dtype} is slow"]
                for streams in STREAMS:
                    prompt, steps = (16, min(8, arguments.steps)) if slow else (PROMPT, arguments.steps)
                    worker.ask(f"run {streams} 8 2")
                    answer = worker.ask(f"run {streams} {prompt} {steps}")
                    if not slow:
                        seconds.setdefault((dtype, "prefill", streams, side), []).append(answer["prefill"])
                        if side == "moesaic":
                            (WORK / f"{side}.{streams}").write_bytes((WORK / f"{side}.f32").read_bytes())
                        elif (WORK / f"moesaic.{streams}").exists():
                            differs[dtype, streams, side] = difference(side, streams)
                    seconds.setdefault((dtype, "decode", streams, side), []).append(answer["decode"] / steps)
                    print(dtype, turn, side, streams, {k: round(v, 3) for k, v in answer.items()}, file=sys.stderr)
                if slow:
                    note = f"torch has no fast {dtype} on this processor: its prompt was not run, its steps follow a prompt of 16"
                    notes += [note] if note not in notes else []
                worker.close()

    print(f"\n16 layers, width 1024, 64 experts of 512, 8 a token; {shared.processor()}; {time.strftime('%Y-%m-%d')}\n")
    table = [("what", "moesaic", "torch", "candle", "torch / ours", "candle / ours", "scores differ by")]
    for dtype in arguments.dtype or ["f32", "bf16"]:
        for part in ["prefill", "decode"]:
            for streams in STREAMS:
                took = {s: seconds.get((dtype, part, streams, s)) for s in SIDES}
                took = {s: statistics.median(t) if t else None for s, t in took.items()}
                rate = streams * (PROMPT if part == "prefill" else 1)
                cell = lambda side: f"{rate / took[side]:.1f}" if took[side] else ""
                ratio = lambda side: f"{took[side] / took['moesaic']:.2f}" if took[side] and took["moesaic"] else ""
                off = [f"{100 * differs[dtype, streams, s]:.2g} %" for s in ["torch", "candle"] if (dtype, streams, s) in differs]
                name = f"{dtype}, {part}, {streams} stream{'s' if streams > 1 else ''}"
                table.append((name, cell("moesaic"), cell("torch"), cell("candle"), ratio("torch"), ratio("candle"), ", ".join(off)))
    shared.show(table)
    print("\nTokens a second of all streams.", *(f"{note[0].upper()}{note[1:]}." for note in notes))
    for dtype, took, peak in loads[:: arguments.rounds]:
        print(f"moesaic loads {dtype} in {took:.1f} s and peaks at {peak:.2f} times the weights")
    names = [name for name in ceilings[0] if "is slow" not in name]
    median = lambda name: statistics.median(c[name] for c in ceilings if name in c)
    print("ceilings in the same run:", ", ".join(f"{name} {median(name):.0f}" for name in names))


if __name__ == "__main__":
    main()
