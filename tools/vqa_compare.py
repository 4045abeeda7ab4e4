#!/usr/bin/env python3
"""Trains the small vision model and what becomes of it as it grows sparse, and prints how many test questions each answers right.

    python3 tools/vqa_compare.py [--out runs/vision] [--seeds 1 2] [--look N] [--steps N] [--tune N]

Builds the program (the variable MOESAIC names another), and makes the corpus of tools/vqa_corpus.py where it is not there, in a
virtual environment of its own (pillow and numpy). For each seed a dense model is trained from seeded weights, on captions
(examples/vision/look.toml), then on questions (train.toml). From it go on, for equally many steps on the same rows (tune.toml): the
dense model itself; one whose projector became a mixture of experts; one whose language model did; and one with both. Needs Python
3.11 or newer. A run that was interrupted goes on where it was; what is finished is not repeated. Writes OUT/comparison.json and prints
a table in Markdown.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

from runs import PROGRAM, ROOT, build, environment, train

RECIPES = ROOT / "examples/vision"
CONNECTOR = {"projector_experts": 4, "projector_top_k": 2}
# Four copies of a dense network, each cut in two: two halves for a token are as much work as the network was.
BACKBONE = {"experts": 8, "top_k": 2, "granularity": 2, "layers": [1, 3]}
VARIANTS = {
    "dense": None,
    "sparse connector": {"experts": 0, **CONNECTOR},
    "MoE backbone": BACKBONE,
    "both": {**BACKBONE, **CONNECTOR},
}


def corpus(venv, out):
    python = environment(venv, "pillow", "numpy")
    subprocess.run([python, ROOT / "tools/vqa_corpus.py", "--out", out], check=True)


def measure(folder, data):
    """Shares of right answers: of all, and by source and kind."""
    kept = folder / "test.json"
    if not kept.exists():
        command = [PROGRAM, "eval", "vision", folder, data, "--json"]
        kept.write_text(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    return json.loads(kept.read_text())


def parameters(folder):
    """Parameters in all, and those that work on one token: of experts only as many as a token takes."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    config = json.loads((folder / "config.json").read_text())
    projector, text = config["projector"], config["text_config"]
    total = active = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        count = 1
        for size in tensor["shape"]:
            count *= size
        total += count
        if ".experts." in name:
            inside = text if name.startswith("language_model.") else projector
            count = count * inside.get("num_experts_per_tok", inside.get("num_selected")) // inside["num_experts"]
        active += count
    return total, active


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/vision"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--look", type=int, help="steps on captions, where not the recipe's")
    parser.add_argument("--steps", type=int, help="steps of the dense model on questions, where not the recipe's")
    parser.add_argument("--tune", type=int, help="steps of what goes on from it, where not the recipe's")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/vqa"))
    args = parser.parse_args()
    build()
    if not (args.data / "test.jsonl").exists():
        corpus(args.out / "venv", args.data)
    steps = lambda n: {"plan": {"steps": n}} if n else {}
    results = {}
    for seed in args.seeds:
        look = train("vision", args.out / f"look-{seed}", RECIPES / "look.toml", seed=seed, **steps(args.look))
        base = train("vision", args.out / f"base-{seed}", RECIPES / "train.toml", seed=seed, init=str(look), **steps(args.steps))
        for name, upcycle in VARIANTS.items():
            out = args.out / f"{name.replace(' ', '-')}-{seed}"
            model = train("vision", out, RECIPES / "tune.toml", seed=seed, init=str(base), upcycle=upcycle, **steps(args.tune))
            results.setdefault(name, []).append({"measured": measure(model, args.data / "test.jsonl"),
                                                 "parameters": parameters(model)})
    (args.out / "comparison.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results)


def show(results):
    """A table: kinds of questions in rows, models in columns, each the mean of its seeds and, with several, half their range."""
    def cell(values):
        half = (max(values) - min(values)) / 2
        return f"{100 * statistics.mean(values):.1f}" + (f" ± {100 * half:.1f}" if len(values) > 1 else "")

    first = next(iter(results.values()))[0]["measured"]
    line = lambda cells: print("| " + " | ".join(cells) + " |")
    line(["% of test questions right", "questions", *results])
    line(["---", *["---:"] * (1 + len(results))])
    sources = {}
    for i, part in enumerate(first["parts"]):
        shares = {name: [run["measured"]["parts"][i]["share"] for run in runs] for name, runs in results.items()}
        sources.setdefault(part["source"], []).append(shares)
        values = [cell([s["accuracy"] for s in runs]) for runs in shares.values()]
        line([f"{part['source']}: {part['kind']}", str(part["share"]["questions"]), *values])
    for source, parts in sources.items():
        def of(name, run):
            return sum(p[name][run]["right"] for p in parts) / sum(p[name][run]["questions"] for p in parts)
        count = sum(next(iter(p.values()))[0]["questions"] for p in parts)
        values = [cell([of(name, run) for run in range(len(runs))]) for name, runs in results.items()]
        line([f"**{source}**", str(count), *values])
    values = [cell([run["measured"]["all"]["accuracy"] for run in runs]) for runs in results.values()]
    line(["**all**", str(first["all"]["questions"]), *values])
    numbers = [runs[0]["parameters"] for runs in results.values()]
    line(["parameters", "", *(f"{total:,}" for total, _ in numbers)])
    line(["of them for a token", "", *(f"{active:,}" for _, active in numbers)])


if __name__ == "__main__":
    main()
