#!/usr/bin/env python3
"""Trains the small speech model with each way to share projectors, and prints how many words each gets wrong, by ear, by eye, by both.

    python3 tools/avsr_compare.py [--out runs/avsr] [--seeds 1 2] [--data data/avsr] [--most N] [--jobs 2] [--model FOLDER]

Builds the program (the variable MOESAIC names another), and makes the corpus of tools/avsr_corpus.py where it is not there, in a
virtual environment of its own. Trains the encoder once (examples/speech/encoder.toml), then for each seed a model with dense
projectors and one with each mixture of projectors (JEJR, JEDR, DEDR), alike in active parameters (examples/speech/train.toml). Measures
them on sentences and on a voice that they were not trained on, without noise, in babble and in white noise. --jobs models are trained
and measured at the same time. --model measures that model alone and trains nothing. A run that was interrupted goes on where it was; what is finished is not repeated.
Writes OUT/comparison.json and OUT/wer.svg, and prints tables in Markdown.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

from runs import PROGRAM, ROOT, build, inside, train

RECIPES = ROOT / "examples/speech"
MIXTURE = {"num_experts": 4, "top_k": 2, "intermediate_size": 128}
# Two experts of 128 for a token are as much work as one network of 256.
VARIANTS = {
    "dense": {"intermediate_size": 256},
    **{name: {"smop_mode": name, **MIXTURE} for name in ("JEJR", "JEDR", "DEDR")},
}
SETS = {"sentences": "test.csv", "voice": "voice.csv"}
SENSES = ("audio", "video", "audiovisual")


def measure(folder, data, most, other=False):
    """Errors on the held-out sets, by what the model takes and by noise."""
    kept = folder.parent / f"{folder.name}-wer{'-other' if other else ''}{f'-{most}' if most else ''}.json"
    if not kept.exists():
        found = {}
        for name, clips in SETS.items():
            command = [PROGRAM, "eval", "wer", data / clips, "--model", folder, "--json"]
            command += ["--noise", f"white,{data / 'babble_test.wav'}"]
            command += ["--modality", "audiovisual", "--other-lips"] if other else []
            command += ["--most", str(most)] if most else []
            # So small a model is as fast on one core.
            one = {**os.environ, "CANDLE_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=one)
            if done.returncode:
                sys.exit(done.stderr)
            found[name] = json.loads(done.stdout)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def condition(score):
    return "clean" if score["noise"] is None else f"{score['noise'].replace('babble_test', 'babble')} {score['snr']:.0f} dB"


def wer(runs, name, senses, where):
    """Of each run, its share of wrong words in percent."""
    scores = [score for run in runs for score in run[name] if score["senses"] == senses and condition(score) == where]
    return [100 * score["wer"] for score in scores]


def cell(values):
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")


def line(cells):
    print("| " + " | ".join(cells) + " |")


def show(results):
    """A table for each held-out set: noise in rows, models and what they take in columns."""
    first = next(iter(results.values()))[0]
    for name in SETS:
        rows = list(dict.fromkeys(condition(score) for score in first[name]))
        words = sum(clip["words"] for clip in first[name][0]["clips"])
        print(f"\nUnseen {name}: {len(first[name][0]['clips'])} clips, {words} words\n")
        line(["% of words wrong", *[f"{model}: {senses}" for model in results for senses in SENSES]])
        line(["---", *["---:"] * (len(results) * len(SENSES))])
        for row in rows:
            values = [wer(runs, name, senses, row) for runs in results.values() for senses in SENSES]
            line([row, *[cell(v) if v else "" for v in values]])


def lips(results, others):
    """What lips gain, and whether more than seeds differ; and that nothing is gained by the lips of another clip."""
    everything = [run for runs in results.values() for run in runs]
    for name in SETS:
        print(f"\nUnseen {name}, all models: what lips change\n")
        line(["% of words wrong", "by ear", "by ear and eye", "with the lips of another clip", "lips help each model"])
        line(["---", "---:", "---:", "---:", "---"])
        for where in dict.fromkeys(condition(score) for score in everything[0][name]):
            heard, both = wer(everything, name, "audio", where), wer(everything, name, "audiovisual", where)
            if heard:
                helps = sum(b < a for a, b in zip(heard, both))
                apart = ", by more than all of them differ" if max(both) < min(heard) else ""
                line([where, cell(heard), cell(both), cell(wer(others, name, "audiovisual", where)), f"{helps} of {len(both)}{apart}"])


def totals(runs, senses="audiovisual"):
    """Errors and words of each clip, in all noises, sets and runs together."""
    clips = {}
    for run in runs:
        for name in SETS:
            for score in (score for score in run[name] if score["senses"] == senses):
                for i, clip in enumerate(score["clips"]):
                    errors, words = clips.get((name, i), (0, 0))
                    clips[name, i] = errors + clip["substitutions"] + clip["deletions"] + clip["insertions"], words + clip["words"]
    return clips


def significance(results, draws=2000):
    """Differences to the dense model over all noises, with 95 % intervals of a bootstrap over clips."""
    base = totals(results["dense"])
    for name, runs in results.items():
        own, keys, rng, found = totals(runs), sorted(base), random.Random(1), []
        if name == "dense":
            continue
        rate = lambda table, chosen: 100 * sum(table[k][0] for k in chosen) / sum(table[k][1] for k in chosen)
        for _ in range(draws):
            chosen = rng.choices(keys, k=len(keys))
            found.append(rate(own, chosen) - rate(base, chosen))
        found.sort()
        low, high = found[int(0.025 * draws)], found[int(0.975 * draws)]
        print(f"{name} - dense, audio-visual, all noises: {rate(own, keys) - rate(base, keys):+.2f} points [{low:+.2f}, {high:+.2f}]")


def plot(results, out):
    """Word error rate by noise: a line for what a model takes, a band between its seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "moesaic"
    import matplotlib.pyplot as plt

    levels, colours = (10, 5, 0, -5), {"audio": "tab:blue", "audiovisual": "tab:green", "video": "tab:orange"}
    figure, axes = plt.subplots(2, len(results), figsize=(3.4 * len(results), 6), sharex=True, sharey=True, squeeze=False)
    for column, (model, runs) in zip(axes.T, results.items()):
        for axis, noise in zip(column, ("babble", "white")):
            for senses, colour in colours.items():
                rows = ["clean"] * len(levels) if senses == "video" else [f"{noise} {level} dB" for level in levels]
                values = [[v for name in ("sentences",) for v in wer(runs, name, senses, row)] for row in rows]
                axis.plot(levels, [statistics.mean(v) for v in values], color=colour, marker="o", label=senses)
                axis.fill_between(levels, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.25)
            axis.set_title(f"{model}, {noise}", fontsize=10)
            axis.grid(alpha=0.3)
    axes[0, 0].invert_xaxis()
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("signal to noise, dB (unseen sentences; bands are seeds)", fontsize=10)
    figure.supylabel("words wrong, %", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(f"\n{out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/avsr"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data/avsr"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--most", type=int, help="clips of each held-out set, where not all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=pathlib.Path, help="measure this model alone")
    args = parser.parse_args()
    python = inside(args.out.resolve() / "venv", "numpy", "pillow", "espeakng-loader", "matplotlib")
    build()
    if not (args.data / "test.csv").exists():
        subprocess.run([python, ROOT / "tools/avsr_corpus.py", "--out", args.data], check=True)
    results, others = {}, []
    if args.model:
        results[args.model.name] = [measure(args.model, args.data, args.most)]
        others.append(measure(args.model, args.data, args.most, other=True))
    else:
        encoder = train("encoder", args.out / "encoder", RECIPES / "encoder.toml")

        def one(seed, name):
            out = args.out / f"{name.lower()}-{seed}"
            train("speech", out, RECIPES / "train.toml", seed=seed, encoder=str(encoder), settings=VARIANTS[name])
            whole = out / "whole"
            return measure(whole, args.data, args.most), measure(whole, args.data, args.most, other=True)

        runs = [(seed, name) for seed in args.seeds for name in VARIANTS]
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for (_, name), (found, other) in zip(runs, pool.map(lambda run: one(*run), runs)):
                results.setdefault(name, []).append(found)
                others.append(other)
    (args.out / "comparison.json").write_text(json.dumps(results) + "\n")
    show(results)
    lips(results, others)
    if "dense" in results:
        print()
        significance(results)
    plot(results, args.out / "wer.svg")


if __name__ == "__main__":
    main()
