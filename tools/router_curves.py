#!/usr/bin/env python3
"""Trains one small language model with each router, and draws how its loss on held-out text falls.

    python3 tools/router_curves.py [--out runs/routers] [--seeds 1] [--steps N] [--jobs N]

Builds the program (the variable MOESAIC names another), and fetches four novels of Jane Austen (tools/speech_corpus.py says from where)
with apt-get: Emma, Mansfield Park and Pride and Prejudice are trained on, Persuasion is held out. All models are that of
examples/routers.toml, byte by byte, with as many networks at work for a token: 2 of 8, or as near to it as the router comes by itself
(the table says how near). Training of a router that is dense there costs more, which the table says too. A run that was interrupted goes
on where it was; what is finished is not repeated. Needs Python 3.11 or newer.

Writes OUT/curves.json and OUT/curves.svg, and prints a table in Markdown.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import statistics
import tomllib

from runs import ROOT, build, inside, train

RECIPE = ROOT / "examples/routers.toml"
# Keys of the model that differ from the recipe's.
ROUTERS = {
    "softmax top-k": {},
    "sigmoid top-k, no balance": {"router": {"type": "sigmoid_top_k", "bias_rate": 0.0}},
    "sigmoid top-k, loss-free balance": {"router": {"type": "sigmoid_top_k", "bias_rate": 0.001}},
    # 4 of 16, half of which are null: 2 networks in the mean where the balance loss has its way.
    "null experts (AdaMoE)": {"num_experts_per_tok": 4, "router": {"type": "null_top_k", "null_experts": 8}},
    "zero, copy, constant (MoE++)": {
        "num_experts_per_tok": 3,
        "router": {"type": "pathways", "zero_experts": 1, "copy_experts": 1, "constant_experts": 2},
    },
    "ReLU (ReMoE)": {"router": {"type": "relu"}},
    "normed ReLU (BlockFFN)": {"router": {"type": "normed_relu", "locality": 0.003, "chunk_sparsity": 0.1}},
    "dense training (DS-MoE)": {"router": {"type": "dense_training"}},
}
# Networks at work for a token in training, where that is not what is measured.
TRAINED = {"dense training (DS-MoE)": 8.0}


def slug(name):
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")


def text(folder):
    """Novels as files."""
    import packages
    import speech_corpus as corpus

    if not (folder / "valid.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        novels = corpus.novels(packages.debian(folder, *corpus.TEXT))
        for part, names in (("train", ("emma", "mansfieldpark", "prideprejudice")), ("valid", ("persuasion",))):
            lines = [line for name in names for line in novels[name]]
            (folder / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def curve(log):
    """Steps, losses on held-out text, and networks at work for a token."""
    found = {}
    for line in log.read_text().splitlines():
        step, loss = re.search(r"step +(\d+)/", line), re.search(r"validation ([0-9.]+)", line)
        if step and loss:
            experts = re.search(r"experts ([0-9.]+)", line)
            found[int(step[1])] = (float(loss[1]), float(experts[1]) if experts else 2.0)
    return sorted((step, *values) for step, values in found.items())


def plot(results, out):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "moesaic"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5))
    for name, runs in results.items():
        steps = [step for step, *_ in runs[0]]
        losses = [statistics.mean(run[i][1] for run in runs) for i in range(len(steps))]
        axis.plot(steps, losses, label=f"{name}: {losses[-1]:.3f}", linewidth=2 if name == "softmax top-k" else 1.2)
    last = [run[-1][1] for runs in results.values() for run in runs]
    axis.set_ylim(min(last) - 0.05, max(last) + 0.7)
    axis.set_xlabel("step")
    axis.set_ylabel("nats a byte, held-out novel")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"\n{out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/routers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, help="steps of each run, where not the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    inside(args.out.resolve() / "venv", "numpy", "pillow", "espeakng-loader", "matplotlib")
    build()
    text(args.out / "text")
    recipe = tomllib.loads(RECIPE.read_text())
    files = {"files": [str(args.out / "text/train.txt")], "validation_files": [str(args.out / "text/valid.txt")]}

    def one(job):
        seed, name = job
        out = args.out / f"{slug(name)}-{seed}"
        changes = {"plan": {"steps": args.steps}} if args.steps else {}
        train("language", out, RECIPE, seed=seed, model={**recipe["model"], **ROUTERS[name]}, data={**recipe["data"], **files}, **changes)
        return curve(out.with_suffix(".log"))

    jobs = [(seed, name) for seed in args.seeds for name in ROUTERS]
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        done = dict(zip(jobs, pool.map(one, jobs)))
    results = {name: [done[seed, name] for seed in args.seeds] for name in ROUTERS}
    (args.out / "curves.json").write_text(json.dumps(results) + "\n")
    base = statistics.mean(run[-1][1] for run in results["softmax top-k"])
    print("| router | held-out loss, nats a byte | beside softmax top-k | networks a token |\n| --- | ---: | ---: | ---: |")
    for name, runs in results.items():
        losses, networks = [run[-1][1] for run in runs], statistics.mean(run[-1][2] for run in runs)
        spread = f" ± {(max(losses) - min(losses)) / 2:.3f}" if len(losses) > 1 else ""
        dense = f" ({TRAINED[name]:.0f} in training)" if name in TRAINED else ""
        print(f"| {name} | {statistics.mean(losses):.3f}{spread} | {statistics.mean(losses) - base:+.3f} | {networks:.2f}{dense} |")
    plot(results, args.out / "curves.svg")


if __name__ == "__main__":
    main()
