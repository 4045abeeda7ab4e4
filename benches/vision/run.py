#!/usr/bin/env python3
"""Pictures to features: moesaic against transformers on torch, in one run.

    python3 benches/vision/run.py [--rounds 3] [--dtype f32]

Three jobs. Preprocessing: a picture of 2000 x 1500 pixels in memory to the 224 x 224 that CLIP takes, by the published slow
processor (Pillow and NumPy) and the fast one (torch), and to the 336 x 336 of LLaVA on a square of the mean colour. Encoder:
CLIP ViT-B/16 with random weights on 1 and 8 pictures. Answers: a model of MoE-LLaVA's shape with random weights (moe_llava.py;
1.3 billion parameters), from the pixels of one picture to 32 words of an answer. Makes a virtual environment under target/vision; the sides take turns,
and what they compute is compared.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "benches"))
from side_by_side import run as shared  # noqa: E402

WORK = ROOT / "target" / "vision"
PACKAGES = ["torch==2.8.0", "torchvision==0.23.0", "transformers==4.57.6", "numpy", "pillow"]
PICTURES = [1, 8]
PROMPT, STEPS = 40, 32


def floats(path):
    import array

    values = array.array("f")
    values.frombytes(path.read_bytes())
    return values


def difference(name):
    """Mean absolute difference of the two sides, over the reference's mean absolute value."""
    ours, theirs = (floats(WORK / f"{side}.{name}") for side in ["moesaic", "torch"])
    assert len(ours) == len(theirs) and len(ours) > 0
    return sum(abs(a - b) for a, b in zip(ours, theirs)) / sum(abs(b) for b in theirs)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--dtype", choices=["f32", "bf16"], action="append")
    arguments.add_argument("--python", help="an interpreter that has the packages, instead of a new environment")
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter = arguments.python or shared.python(WORK / "venv", PACKAGES)
    ours = shared.executables(["--bench", "vision"])["vision"]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    torch = shared.Worker([interpreter, HERE / "reference.py", WORK], offline)
    torch.ask("make")
    moesaic = shared.Worker([ours, WORK], offline)
    ceilings, took, differs = [], {}, {}

    def both(command, name, sides):
        for side, worker, how in sides:
            answer = worker.ask(f"{command}{how}")
            took.setdefault((name, side), []).append(answer["seconds"])
            print(name, side, f"{answer['seconds'] * 1000:.2f} ms", file=sys.stderr)

    for _ in range(arguments.rounds):
        ceilings.append(torch.ask("ceilings"))
        for kind in ["crop", "pad"]:
            sides = [("moesaic", moesaic, ""), ("torch", torch, " slow")]
            both(f"preprocess {kind}", f"preprocess, {kind}", sides + ([("fast", torch, " fast")] if kind == "crop" else []))
            differs[f"preprocess, {kind}"] = difference(kind)
    for dtype in arguments.dtype or ["f32", "bf16"]:
        moesaic.ask(f"load {dtype}")
        torch.ask(f"load {dtype}")
        for _ in range(arguments.rounds):
            for n in PICTURES:
                name = f"ViT-B/16, {dtype}, {n} picture{'s' if n > 1 else ''}"
                both(f"encode {n}", name, [("moesaic", moesaic, ""), ("torch", torch, "")])
                differs[name] = difference("encode")

    if not (WORK / "chat" / "config.json").exists():
        torch.ask("chat-make")
    for dtype in arguments.dtype or ["f32", "bf16"]:
        moesaic.ask(f"chat-load {dtype}")
        torch.ask(f"chat-load {dtype}")
        for turn in range(arguments.rounds + 1):
            for side, worker in [("moesaic", moesaic), ("torch", torch)]:
                answer = worker.ask(f"chat-run {PROMPT} {STEPS}")
                print(dtype, side, {k: round(v, 3) for k, v in answer.items()}, file=sys.stderr)
                for part, name in [("encode", "picture to tokens"), ("prefill", "prompt of 616"), ("decode", "a word")]:
                    seconds = answer[part] / (STEPS if part == "decode" else 1)
                    # The first turn warms caches.
                    took.setdefault((f"MoE-LLaVA, {dtype}, {name}", side), []).extend([seconds] if turn else [])
            differs.update({f"MoE-LLaVA, {dtype}, {name}": difference("chat") for name in ["picture to tokens", "prompt of 616", "a word"]})

    print(f"\n{shared.processor()}; {time.strftime('%Y-%m-%d')}\n")
    table = [("what", "moesaic ms", "transformers ms", "ratio", "fast processor ms", "ratio", "differs by")]
    for name in differs:
        median = {s: statistics.median(took[name, s]) * 1000 for s in ["moesaic", "torch", "fast"] if (name, s) in took}
        cell = lambda side: f"{median[side]:.2f}" if side in median else ""
        ratio = lambda side: f"{median[side] / median['moesaic']:.2f}" if side in median else ""
        table.append((name, cell("moesaic"), cell("torch"), ratio("torch"), cell("fast"), ratio("fast"), f"{100 * differs[name]:.2g} %"))
    shared.show(table)
    for name in ceilings[0]:
        print(f"ceiling in the same run: {name} {statistics.median(c[name] for c in ceilings):.0f}")
    torch.close()
    moesaic.close()


if __name__ == "__main__":
    main()
