#!/usr/bin/env python3
"""GGUF files: moesaic against llama.cpp's raw decode call, in one run.

    python3 benches/gguf/run.py [--rounds 3] [--model q4_k] [--smollm2 FILE]

The models: SmolLM2-135M-Instruct in Q4_1 (tools/fetch_smollm2.py brings it), and OLMoE's proportions with random weights (16
layers, 64 experts of 512, 8 a token, width 1024) in Q8_0 and Q4_K. Makes a virtual environment under target/gguf, in which pip
builds llama.cpp for this machine (ten minutes on two cores). Both sides take turns, on 2 threads each: prompts of 512 tokens, then single tokens,
for 1 and 8 streams; their last scores are compared.
"""

import argparse
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

WORK = ROOT / "target" / "gguf"
PACKAGES = ["llama-cpp-python==0.3.16", "gguf", "numpy"]
PROMPT, STEPS, STREAMS = 512, 64, [1, 8]
SMOLLM2 = ROOT / "data" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def scores(side):
    return [v for (v,) in struct.iter_unpack("<f", (WORK / f"{side}.f32").read_bytes())]


def difference():
    """Mean absolute difference of last scores, over the peer's mean absolute value."""
    ours, theirs = scores("ours"), scores("theirs")
    assert len(ours) == len(theirs) and len(ours) > 0
    return sum(abs(a - b) for a, b in zip(ours, theirs)) / sum(abs(b) for b in theirs)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--model", choices=["smollm2", "q8_0", "q4_k"], action="append")
    arguments.add_argument("--smollm2", type=Path, default=SMOLLM2)
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter = shared.python(WORK / "venv", PACKAGES)
    ours = shared.executables(["--bench", "language"])["language"]
    state, values = 20261125, []
    for _ in range(max(STREAMS) * (PROMPT + STEPS)):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append((state >> 33) % 49152)
    ids = WORK / "ids.u32"
    ids.write_bytes(struct.pack(f"<{len(values)}I", *values))
    table = [("model", "what", "moesaic", "llama.cpp", "ratio", "scores differ by")]
    reads = []
    for name in arguments.model or ["smollm2", "q8_0", "q4_k"]:
        path = arguments.smollm2 if name == "smollm2" else WORK / f"olmoe.{name}.gguf"
        if name != "smollm2" and not path.exists():
            partial = path.with_suffix(".partial")
            subprocess.run([interpreter, HERE / "make.py", name, partial], check=True)
            partial.rename(path)
        if not path.exists():
            sys.exit(f"{path} is not there: python3 tools/fetch_smollm2.py brings it, or name it with --smollm2")
        us = shared.Worker([ours, path, ids, WORK / "ours.f32"], {})
        them = shared.Worker([interpreter, HERE / "peer.py", ids, WORK / "theirs.f32"], {})
        us.ask("load f32"), them.ask(f"load {path}")
        took, differs = {}, {}
        for turn in range(arguments.rounds):
            reads.append(us.ask("read")["read"])
            for streams in STREAMS:
                for side, worker in [("moesaic", us), ("llama.cpp", them)]:
                    if turn == 0:
                        worker.ask(f"run {streams} 16 4")
                    answer = worker.ask(f"run {streams} {PROMPT} {STEPS}")
                    took.setdefault(("prefill", streams, side), []).append(answer["prefill"] / (streams * PROMPT))
                    took.setdefault(("decode", streams, side), []).append(answer["decode"] / (streams * STEPS))
                    print(name, turn, side, streams, {k: round(v, 3) for k, v in answer.items()}, file=sys.stderr)
                differs[streams] = difference()
        us.close()
        them.close()
        for part in ["decode", "prefill"]:
            for streams in STREAMS:
                mine, other = (statistics.median(took[part, streams, side]) for side in ["moesaic", "llama.cpp"])
                label = f"{part}, {streams} stream{'s' if streams > 1 else ''}"
                title = "SmolLM2-135M Q4_1" if name == "smollm2" else f"OLMoE's shape {name.upper()}"
                table.append((title, label, f"{1 / mine:.1f}", f"{1 / other:.1f}", f"{other / mine:.2f}", f"{100 * differs[streams]:.2g} %"))
    print(f"\n{shared.processor()}; {time.strftime('%Y-%m-%d')}; tokens a second of all streams\n")
    shared.show(table)
    print(f"\nread of cold memory in the same run, 2 threads: {statistics.median(reads):.1f} GB/s (median of {len(reads)})")


if __name__ == "__main__":
    main()
