#!/usr/bin/env python3
"""Trains the small model that listens in five ways, and prints how many test questions each answers right, and where their tokens go.

    python3 tools/sound_compare.py [--out runs/sound] [--data data/sound] [--seeds 1 2] [--steps N] [--jobs N] [--model FOLDER]

Builds the program (the variable MOESAIC names another), and makes the corpus of tools/sound_corpus.py where it is not there, in a
virtual environment of its own. For each seed it trains, from the same recipe (examples/sound/train.toml): a model with one encoder,
Whisper's or CED's; both side by side with one projector; with a mixture of four projectors that the prompt weighs; and that mixture
without the contrastive loss between sound and answers (SACLM). --jobs says how many are trained at a time, each with the recipe's
workers; results do not depend on it. --model measures that model alone and trains nothing. A run that was interrupted goes on where
it was; what is finished is not repeated. Needs Python 3.11 or newer.

Writes OUT/comparison.json and OUT/experts.svg, the shares of experts by task, and prints tables in Markdown. What a table says of a
projector or a layer in bits is what an expert tells of the task (mutual information, all tasks being equally likely).
"""

import argparse
import collections
import concurrent.futures
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tomllib

from runs import PROGRAM, ROOT, build, inside, train

RECIPE = ROOT / "examples/sound/train.toml"
PLAIN = {"num_experts": 1}
VARIANTS = {
    "Whisper alone": {"settings": {"ced": False, **PLAIN}},
    # A step is 160 ms then, as long as a window of both.
    "CED alone": {"settings": {"whisper": False, "window_length": 1, **PLAIN}},
    "concatenation": {"settings": PLAIN},
    "MoE projector": {},
    "MoE, no SACLM": {"contrastive": 0.0},
}


def measure(folder, data):
    """Shares of right answers by task and group, and routes by task."""
    kept = folder / "test.json"
    if not kept.exists():
        done = subprocess.run([PROGRAM, "eval", "sound", folder, data / "test.jsonl", "--json"], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(done.stderr)
        kept.write_text(done.stdout)
    return json.loads(kept.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def likeliest(data):
    """Right answers of one that does not listen: to each question what is most often right in training, by task and group."""
    answers = collections.defaultdict(collections.Counter)
    for line in lines(data / "train.jsonl"):
        answers[line["question"]][line["answer"]] += 1
    right = collections.defaultdict(list)
    for line in lines(data / "test.jsonl"):
        known = answers[line["question"]].most_common(1)
        right[line["task"], line["group"]].append(bool(known) and known[0][0] == line["answer"])
    return right


def parameters(folder):
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def cell(values):
    half = (max(values) - min(values)) / 2
    return f"{100 * statistics.mean(values):.1f}" + (f" ± {100 * half:.1f}" if len(values) > 1 else "")


def row(cells):
    print("| " + " | ".join(cells) + " |")


def table(results, data):
    """Tasks in rows, models in columns, each the mean of its seeds and half their range."""
    guess = likeliest(data)
    first = next(iter(results.values()))[0]["measured"]
    row(["% of test questions right", "questions", "likeliest answer", *results])
    row(["---", *["---:"] * (2 + len(results))])
    groups = {}
    for i, part in enumerate(first["parts"]):
        shares = {name: [run["measured"]["parts"][i]["share"] for run in runs] for name, runs in results.items()}
        groups.setdefault(part["group"], []).append((part["task"], shares))
        values = [cell([share["accuracy"] for share in of]) for of in shares.values()]
        row([f"{part['task']}, {part['group']}", str(part["share"]["questions"]), cell([statistics.mean(guess[part["task"], part["group"]])]), *values])
    for group, parts in groups.items():
        def of(name, run):
            return sum(s[name][run]["right"] for _, s in parts) / sum(s[name][run]["questions"] for _, s in parts)
        all_guesses = [right for (_, own), rights in guess.items() if own == group for right in rights]
        values = [cell([of(name, run) for run in range(len(runs))]) for name, runs in results.items()]
        row([f"**all, {group}**", str(len(all_guesses)), cell([statistics.mean(all_guesses)]), *values])
    all_guesses = [right for rights in guess.values() for right in rights]
    values = [cell([run["measured"]["all"]["accuracy"] for run in runs]) for runs in results.values()]
    row(["**all**", str(first["all"]["questions"]), cell([statistics.mean(all_guesses)]), *values])
    row(["parameters", "", "", *(f"{runs[0]['parameters']:,}" for runs in results.values())])


def places(routes):
    """By place, projector or layer, the shares of its experts by task."""
    first = next(iter(routes.values()))
    found = {"projector": {task: of["projectors"] for task, of in routes.items()}} if len(first["projectors"]) > 1 else {}
    for i in range(len(first["layers"])):
        found[f"layer {i + 1}"] = {task: of["layers"][i] for task, of in routes.items()}
    return found


def bits(shares):
    """What an expert tells of the task."""
    entropy = lambda p: -sum(v * math.log2(v) for v in p if v > 0)
    mean = [statistics.mean(column) for column in zip(*shares.values())]
    return entropy(mean) - statistics.mean(entropy(p) for p in shares.values())


def routing(results):
    """For each place, what its experts tell of the task; and the weights of the projectors by task."""
    print("\nWhat an expert tells of the task, bits:\n")
    names = [name for name, runs in results.items() if places(runs[0]["measured"]["routes"])]
    where = list(dict.fromkeys(place for name in names for place in places(results[name][0]["measured"]["routes"])))
    row(["", *names])
    row(["---", *["---:"] * len(names)])
    for place in where:
        cells = []
        for name in names:
            found = [places(run["measured"]["routes"]).get(place) for run in results[name]]
            cells.append(" / ".join(f"{bits(shares):.3f}" for shares in found if shares))
        row([place, *cells])
    for name in names:
        for run in results[name]:
            shares = places(run["measured"]["routes"]).get("projector")
            if not shares:
                continue
            print(f"\n{name}, seed {run['seed']}: mean weight of each projector by task, %\n")
            count = len(next(iter(shares.values())))
            row(["task", *(f"projector {i + 1}" for i in range(count))])
            row(["---", *["---:"] * count])
            for task, weights in shares.items():
                row([task, *(f"{100 * weight:.1f}" for weight in weights)])


def plot(results, out):
    """Heat maps: tasks in rows, experts in columns; a line of them for a model."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "moesaic"
    import matplotlib.pyplot as plt

    models = [(f"{name}, seed {run['seed']}", places(run["measured"]["routes"])) for name, runs in results.items() for run in runs]
    models = [(label, found) for label, found in models if "projector" in found] or models
    columns = max(len(found) for _, found in models)
    figure, axes = plt.subplots(len(models), columns, figsize=(2.9 * columns, 2.6 * len(models)), squeeze=False)
    for line, (label, found) in zip(axes, models):
        for axis in line[len(found):]:
            axis.axis("off")
        for axis, (place, shares) in zip(line, found.items()):
            values = list(shares.values())
            axis.imshow(values, vmin=0, vmax=max(2 / len(values[0]), max(map(max, values))), aspect="auto", cmap="viridis")
            axis.set_title(f"{label}: {place}" if axis is line[0] else place, fontsize=8)
            axis.set_xticks(range(len(values[0])), [str(i + 1) for i in range(len(values[0]))], fontsize=7)
            axis.set_yticks(range(len(shares)), list(shares) if axis is line[0] else [""] * len(shares), fontsize=7)
    figure.supxlabel("expert", fontsize=9)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"\n{out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sound"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/sound"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, help="steps of each run, where not the recipe's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--model", type=pathlib.Path, help="measure this model alone")
    args = parser.parse_args()
    python = inside(args.out.resolve() / "venv", "numpy", "soundfile", "pillow", "espeakng-loader", "matplotlib")
    build()
    if not all((args.data / f"{part}.jsonl").exists() for part in ("train", "valid", "test")):
        subprocess.run([python, ROOT / "tools/sound_corpus.py", "--out", args.data], check=True)

    recipe = tomllib.loads(RECIPE.read_text())

    def one(job):
        seed, name = job
        out = args.out / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
        changes = {"plan": {"steps": args.steps}} if args.steps else {}
        data = {**recipe["data"], "clips": str(args.data / "train.jsonl"), "valid": str(args.data / "valid.jsonl")}
        model = train("sound", out, RECIPE, seed=seed, data=data, **VARIANTS[name], **changes)
        return {"seed": seed, "measured": measure(model, args.data), "parameters": parameters(model)}

    if args.model:
        results = {args.model.name: [{"seed": 0, "measured": measure(args.model, args.data), "parameters": parameters(args.model)}]}
    else:
        jobs = [(seed, name) for seed in args.seeds for name in VARIANTS]
        with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
            done = dict(zip(jobs, pool.map(one, jobs)))
        results = {name: [done[seed, name] for seed in args.seeds] for name in VARIANTS}
    (args.out / "comparison.json").write_text(json.dumps(results) + "\n")
    table(results, args.data)
    routing(results)
    plot(results, args.out / "experts.svg")


if __name__ == "__main__":
    main()
