#!/usr/bin/env python3
"""Trains the model that reads everything in four ways that cost a token the same, and prints what each answers and how soon it learns.

    python3 tools/omni_compare.py [--out runs/omni] [--seeds 1 2] [--steps N] [--jobs N] [--parts dense ...]

Builds the program (the variable MOESAIC names another), and makes the corpora of tools/vqa_corpus.py, sound_corpus.py and series_corpus.py
where they are not there, in virtual environments of its own. For each seed it trains, from random weights by the recipe of examples/omni/train.toml, but for
fewer steps and with all sources and questions as often as each other:

    dense     one network of the same width for all tokens
    mixed     eight experts that tokens of all modalities share, each of which chooses an eighth of them
    aware     two experts for each modality, each of which chooses half of its tokens (MoMa)
    untied    the same, with attention and norms of its own for each modality (Mixture-of-Transformers)

then the routers that make each causal (auxiliary.toml), and asks questions of the test parts. A run that was interrupted goes on where it was; what is
finished is not repeated. Needs Python 3.11 or newer.

Writes OUT/comparison.json and OUT/curves.svg, the held-out losses by modality, and prints tables in Markdown: right answers, errors of
forecasts, and the share of the dense model's steps after which another has its last loss. As every step costs as much, that is
the FLOPs saved.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

from runs import PROGRAM, ROOT, build, environment, inside, train

RECIPES = ROOT / "examples/omni"
VARIANTS = {
    "dense": {"backbone": {"mixed_experts": 1}},
    "mixed": {"backbone": {"mixed_experts": 8}},
    "aware": {},
    "untied": {"backbone": {"untied": True}},
}
TESTS = ("data/vqa/test.jsonl", "data/sound/test.jsonl", "data/series-questions/test.jsonl")


MOST = 300  # pictures, sounds and series that are asked about
STEPS = 2000


def corpora(out):
    """Makes what is not there."""
    def make(script, data, *packages):
        if not (ROOT / data).exists():
            python = environment(out.resolve() / f"venv-{script}", *packages) if packages else sys.executable
            subprocess.run([python, ROOT / f"tools/{script}.py"], check=True, cwd=ROOT)

    make("vqa_corpus", TESTS[0], "pillow", "numpy")
    make("sound_corpus", TESTS[1], "numpy", "soundfile", "pillow", "espeakng-loader")
    make("series_corpus", TESTS[2])


def measure(folder):
    kept = folder / "test.json"
    if not kept.exists():
        command = [PROGRAM, "eval", "omni", folder, *TESTS, "--most", str(MOST), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(done.stderr)
        kept.write_text(done.stdout)
    return json.loads(kept.read_text())


def curves(log):
    """By what is measured, steps and losses on held-out questions."""
    found = {}
    for line in log.read_text().splitlines():
        step = re.search(r"step +(\d+)/", line)
        for name, loss in re.findall(r"valid\.([a-z.]+) ([0-9.]+)", line):
            found.setdefault(name, {})[int(step[1])] = float(loss)
    return {name: sorted(losses.items()) for name, losses in found.items()}


def saved(curve, dense):
    """The share of the dense model's steps after which this curve is as low as its end."""
    end = dense[-1][1]
    for (before, above), (step, loss) in zip([(0, float("inf")), *curve], curve):
        if loss <= end:
            part = (above - end) / (above - loss) if above < float("inf") else 1
            return (before + part * (step - before)) / dense[-1][0]
    return None


def row(cells):
    print("| " + " | ".join(cells) + " |")


def cell(values, scale=1.0, digits=1):
    half = scale * (max(values) - min(values)) / 2
    return f"{scale * statistics.mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def kind(part):
    """What a part of the test questions is about."""
    return {"test": "series", "seen": "sounds", "unseen": "sounds"}.get(part["group"], "pictures")


def tables(results):
    row(["% right, or forecast's error beside the last value's", "questions", *results])
    row(["---", *["---:"] * (1 + len(results))])

    def line(label, take):
        """A row of what `take` finds in a run: a count and a value."""
        found = {name: [take(run["measured"]) for run in runs] for name, runs in results.items()}
        scale, digits = (1, 3) if "error" in label else (100, 1)
        row([label, str(next(iter(found.values()))[0][0]), *(cell([value for _, value in of], scale, digits) for of in found.values())])

    def of_kind(name):
        def take(measured):
            shares = [part["share"] for part in measured["parts"] if "share" in part and kind(part) == name]
            count = sum(share["questions"] for share in shares)
            return count, sum(share["right"] for share in shares) / count
        return take

    for name in ("pictures", "sounds", "series"):
        line(f"**{name}**", of_kind(name))
    line("**all in words**", lambda measured: (measured["all"]["questions"], measured["all"]["accuracy"]))
    for i, part in enumerate(next(iter(results.values()))[0]["measured"]["parts"]):
        label = f"{kind(part)}: {part['task']}" + (f", {part['group']}" if kind(part) != "series" else "")
        if "share" in part:
            line(label, lambda measured: (measured["parts"][i]["share"]["questions"], measured["parts"][i]["share"]["accuracy"]))
        if "errors" in part:
            line(f"{label}: error", lambda measured: (measured["parts"][i]["errors"]["forecasts"], measured["parts"][i]["errors"]["ratio"]))
    if "dense" not in results:
        return
    print("\nSteps to the dense model's last held-out loss, as a share of its steps:\n")
    names = list(results["dense"][0]["curves"])
    row(["", *names])
    row(["---", *["---:"] * len(names)])
    for variant, runs in results.items():
        if variant != "dense":
            shares = [[saved(run["curves"][name], dense["curves"][name]) for run, dense in zip(runs, results["dense"])] for name in names]
            row([variant, *(" / ".join("not reached" if s is None else f"{s:.2f}" for s in of) for of in shares)])


def plot(results, out):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "moesaic"
    import matplotlib.pyplot as plt

    names = list(next(iter(results.values()))[0]["curves"])
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names):
        for colour, (variant, runs) in zip(("#555555", "#1f77b4", "#d62728", "#2ca02c"), results.items()):
            for i, run in enumerate(runs):
                steps, losses = zip(*run["curves"][name])
                axis.plot(steps, losses, color=colour, linewidth=1.2, label=variant if i == 0 else None)
        axis.set_yscale("log")
        axis.set_title(f"{name}, held out", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"\n{out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/omni"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each run [{STEPS}]")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--parts", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="which of the four")
    args = parser.parse_args()
    inside(args.out.resolve() / "venv", "matplotlib")
    build()
    corpora(args.out)
    second = tomllib.loads((RECIPES / "auxiliary.toml").read_text())["plan"]["steps"]
    # From random weights, and all sources and questions as often as each other.
    plain = tomllib.loads((RECIPES / "train.toml").read_text())["data"]
    plain["train"] = [{**source, "weight": 1.0} for source in plain["train"]]
    for source in plain["train"]:
        source.pop("repeat", None)

    def one(job):
        seed, name = job
        out = args.out / f"{name}-{seed}"
        model = train("omni", out, RECIPES / "train.toml", seed=seed, init=None, settings=VARIANTS[name], data=plain, plan={"steps": args.steps})
        if name == "dense":  # has no routers
            return {"seed": seed, "measured": measure(model), "curves": curves(out.with_suffix(".log"))}
        causal = args.out / f"{name}-{seed}-causal"
        whole = train("omni", causal, RECIPES / "auxiliary.toml", seed=seed, init=str(model), plan={"steps": min(second, args.steps)})
        return {"seed": seed, "measured": measure(whole), "curves": curves(out.with_suffix(".log"))}

    jobs = [(seed, name) for seed in args.seeds for name in args.parts]
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        done = dict(zip(jobs, pool.map(one, jobs)))
    results = {name: [done[seed, name] for seed in args.seeds] for name in args.parts}
    (args.out / "comparison.json").write_text(json.dumps(results) + "\n")
    tables(results)
    plot(results, args.out / "curves.svg")


if __name__ == "__main__":
    main()
