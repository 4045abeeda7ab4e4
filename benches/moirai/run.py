#!/usr/bin/env python3
"""Moirai-MoE at the small size with random weights: moesaic against uni2ts' own forecaster on torch, side by side.

    python3 benches/moirai/run.py [--rounds 5] [--quick]
    python3 benches/moirai/run.py --short [--rounds 3] [--series 10000]

Makes a virtual environment under target/moirai (torch, uni2ts and what it needs from PyPI, about 6 GB), lets the reference write
a model, then lets both sides do the same work in turns: 1,000 values continued by 96, in patches of 16, with 100 sample paths.
Prints one table of medians and ratios, and how far both sides' samples agree.

--short instead reads many series of 100 days from one Parquet file and continues each by 12, by the program as a user runs it, on
one thread: with the built-in model, and with that Moirai-MoE. The variable MOESAIC names a program built with the feature
`table`; without it one is built.
"""

import argparse
import math
import os
import random
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

WORK = ROOT / "target" / "moirai"
MODEL = WORK / "model"
# What uni2ts imports for this model, as its own list would also bring data sets, logs and more; pyarrow writes the file of --short.
PACKAGES = [
    "torch==2.4.1", "numpy==1.26.4", "gluonts==0.14.4", "einops==0.7.0", "jaxtyping==0.3.11", "jax==0.4.38", "jaxlib==0.4.38",
    "lightning==2.5.6", "hydra-core==1.3.8", "scipy==1.17.1", "setuptools<70", "huggingface-hub==0.23.4", "safetensors==0.8.0",
    "pyarrow==17.0.0",
]
REFERENCE = "uni2ts==2.0.0"
CONTEXT, HORIZON, PATCH, PATHS = 1000, 96, 16, 100
LEVELS = [tenth / 10 for tenth in range(1, 10)]


def python():
    """The interpreter with the reference, its environment made where it is not there."""
    interpreter = shared.python(WORK / "venv", PACKAGES)
    if not list((WORK / "venv").glob("lib/*/site-packages/uni2ts")):
        subprocess.run([interpreter, "-m", "pip", "install", "-q", "--no-deps", REFERENCE], check=True)
    return interpreter


def inputs():
    """Four series: waves of two periods, with a trend and noise, around different levels."""
    rng = random.Random(20261129)
    rows = []
    for row in range(4):
        short, long, level = 12 + 5 * row, 150 + 40 * row, 50 * (row + 1)
        rows.append([
            level + 10 * math.sin(6.2832 * t / short) + 5 * math.sin(6.2832 * t / long) + 0.01 * t + 2 * rng.gauss(0, 1)
            for t in range(CONTEXT)
        ])
    (WORK / "series.f32").write_bytes(b"".join(struct.pack(f"<{CONTEXT}f", *row) for row in rows))
    return [statistics.stdev(row) for row in rows]


def blocks(name, *sizes):
    """Numbers of a file, in blocks of the first size, those in blocks of the second, and so on."""
    values = [v for (v,) in struct.iter_unpack("<f", (WORK / name).read_bytes())]
    assert values and all(math.isfinite(v) for v in values), name
    for size in sizes:
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def below(paths, quantiles, deviations):
    """Of nine levels, how many values of the first patch are not above our quantiles of those levels; then how many there are."""
    counts = [0] * len(LEVELS)
    for row, levels, deviation in zip(paths, quantiles, deviations):
        for at, level in enumerate(levels):
            # Part of the distribution is in single points, which rounding moves on each side.
            bounds = [quantile + 1e-5 * deviation for quantile in level]
            counts[at] += sum(value <= bound for path in row for value, bound in zip(path, bounds))
    return [*counts, len(paths) * PATHS * PATCH]


def apart(ours, theirs):
    """The largest difference of two sides' shares over the levels, and its standard deviation at one level, both in percent."""
    total = lambda turns: [sum(column) for column in zip(*turns)]
    (*mine, all_mine), (*other, all_other) = total(ours), total(theirs)
    off = max(abs(a / all_mine - b / all_other) for a, b in zip(mine, other))
    return 100 * off, 50 * math.sqrt(1 / all_mine + 1 / all_other)


def later_patches(ours, theirs):
    """Of the values after the first patch: the percentage of pairs in which the reference's is the smaller one, and the distance
    of our samples' quartiles over that of the reference's, as the median over values."""
    smaller, spreads = [], []
    for mine, other in zip(ours, theirs):
        for t in range(PATCH, HORIZON):
            a, b = sorted(path[t] for path in mine), sorted(path[t] for path in other)
            at = smaller_of_pairs = 0
            for value in a:
                while at < len(b) and b[at] < value:
                    at += 1
                smaller_of_pairs += at
            smaller.append(smaller_of_pairs / (len(a) * len(b)))
            quartiles = lambda values: values[3 * len(values) // 4] - values[len(values) // 4]
            spreads.append(quartiles(a) / quartiles(b))
    return 100 * statistics.fmean(smaller), statistics.median(spreads)


def measured(command, environment):
    """Seconds of a process from its start to its end, those that it computed, and the peak of its resident memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment},
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed; run it by hand to see why")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def show_ceilings(ceilings):
    print("ceilings in the same run:", ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))


def side_by_side(theirs, ours, rounds, counts, deviations):
    ceilings = theirs.ask("ceilings 2")
    us = shared.Worker([ours, MODEL, WORK / "series.f32", WORK / "ours.f32"], {})
    loads = us.ask("load"), theirs.ask("load")
    table, peaks = [], {}
    for count in counts:
        us.ask(f"first {count}")
        quantiles = blocks("ours.f32", PATCH, len(LEVELS), count)[0]
        read = lambda name: blocks(name, HORIZON, PATHS, count)[0]
        times = {"cached": [], "exact": [], "reference": []}
        first, later = {side: [] for side in times}, {"cached": [], "exact": []}
        for turn in range(rounds + 1):
            answers = {"reference": theirs.ask(f"forecast {count}")}
            reference = read("theirs.f32")
            first["reference"].append(below(reference, quantiles, deviations))
            for mode in later:
                answers[mode] = us.ask(f"forecast {count} {mode}")
                mine = read("ours.f32")
                first[mode].append(below(mine, quantiles, deviations))
                later[mode].append(later_patches(mine, reference))
            for side, answer in answers.items():
                times[side].extend([answer["seconds"]] if turn else [])  # the first turn warms caches
                peaks["reference" if side == "reference" else "moesaic"] = answer["peak"]
            print(count, turn, {side: round(answer["seconds"], 3) for side, answer in answers.items()}, file=sys.stderr)
        them = statistics.median(times["reference"])
        for mode in later:
            mine, (off, noise) = statistics.median(times[mode]), apart(first[mode], first["reference"])
            smaller, spread = (statistics.fmean(values) for values in zip(*later[mode]))
            table.append((
                f"{count} series, {mode}", f"{mine:.3f} s", f"{them:.3f} s", f"{them / mine:.2f}", f"{off:.1f} % ({noise:.1f} %)",
                f"{smaller:.1f} %", f"{spread:.2f}",
            ))
    us.close()

    print(f"\nMoirai-MoE small, random weights, f32, context {CONTEXT}, horizon {HORIZON}, patches of {PATCH}, {PATHS} paths; "
          f"{shared.processor()}; {time.strftime('%Y-%m-%d')}\n")
    shared.show([("what", "moesaic", "reference", "ratio", "first patch (noise)", "later: smaller", "later: spread"), *table])
    print("""
First patch, the same distribution in both modes: the largest difference between the shares of both sides' samples that our quantiles
0.1 to 0.9 are not exceeded by, and the standard deviation that so many samples have at one level. Later patches: how often the
reference's sample is smaller than ours, 50 % where they agree, and the distance of quartiles, ours over the reference's, 1 where they
agree; `cached` keeps the scale of the context there, which the reference computes anew.""")
    size = (MODEL / "model.safetensors").stat().st_size
    for name, load in zip(["moesaic", "the reference"], loads):
        imported = f" after {load['import']:.1f} s of imports" if "import" in load else ""
        print(f"{name} loads in {load['seconds']:.2f} s{imported} and peaks at {load['peak'] / size:.2f} times the model's size")
    print("peak of the whole process:", ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()))
    show_ceilings(ceilings)


def short(theirs, rounds, most):
    ceilings = theirs.ask("ceilings 1")
    program = os.environ.get("MOESAIC")
    program = program or shared.executables(["--features", "moesaic/table", "--bin", "moesaic"])["moesaic"]
    counts, models = [max(most // 10, 1), most], [("built-in", []), ("Moirai-MoE small", ["--model", MODEL])]
    for count in counts:
        theirs.ask(f"table {WORK / f'{count}.parquet'} {count}")
    theirs.close()
    out, runs = WORK / "short.csv", {}
    for turn in range(rounds):
        for name, model in models:
            for count in counts:
                file = WORK / f"{count}.parquet"
                command = [program, "forecast", file, "--id", "id", "--horizon", "12", "--output", out, *model]
                runs.setdefault((name, count), []).append(measured(command, {"CANDLE_NUM_THREADS": "1"}))
                with open(out) as lines:
                    assert sum(1 for _ in lines) == 1 + 12 * count, out
                print(turn, name, count, runs[name, count][-1], file=sys.stderr)
    rows, growths = [], []
    for name, _ in models:
        for count in counts:
            seconds, computed, _ = (statistics.median(values) for values in zip(*runs[name, count]))
            peak = max(peak for *_, peak in runs[name, count])
            rows.append((name, f"{count:,}", f"{seconds:.2f} s", f"{computed:.2f} s", f"{count / computed:.0f}", f"{peak / 2**20:.0f} MiB"))
        low, high = (max(peak for *_, peak in runs[name, count]) for count in counts)
        growths.append(f"{name}: memory grows to {high / low:.2f} times, {(high - low) / (counts[1] - counts[0]) / 1000:.1f} kB a series")
    print(f"\n`moesaic forecast FILE.parquet --id id --horizon 12 --output FILE.csv`, series of 100 days, one thread; "
          f"{shared.processor()}; {time.strftime('%Y-%m-%d')}\n")
    shared.show([("model", "series", "whole process", "computing", "series a second and core", "peak memory"), *rows])
    print()
    print("\n".join(growths))
    print(f"the file of {most:,} series has {(WORK / f'{most}.parquet').stat().st_size / 2**20:.1f} MiB")
    show_ceilings(ceilings)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, help="5, with --short 3")
    arguments.add_argument("--quick", action="store_true", help="one series alone")
    arguments.add_argument("--short", action="store_true", help="many short series through the program instead")
    arguments.add_argument("--series", type=int, default=10_000, help="of --short; a tenth is run too")
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter, deviations = python(), inputs()
    # Python libraries fetch nothing; a model made before is used again.
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    paths = [MODEL, WORK / "series.f32", WORK / "theirs.f32"]
    theirs = shared.Worker([interpreter, HERE / "reference.py", *paths], offline)
    if not (MODEL / "model.safetensors").exists():
        theirs.ask(f"make {MODEL}")
    if arguments.short:
        return short(theirs, arguments.rounds or 3, arguments.series)
    ours, counts = shared.executables(["--bench", "moirai"])["moirai"], [1] if arguments.quick else [1, 4]
    side_by_side(theirs, ours, arguments.rounds or 5, counts, deviations)
    theirs.close()


if __name__ == "__main__":
    main()
