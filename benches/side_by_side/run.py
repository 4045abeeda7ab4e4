#!/usr/bin/env python3
"""Time-MoE at the 50M size with random weights: moesaic against the reference implementation on torch, side by side.

    python3 benches/side_by_side/run.py [--rounds 5] [--quick]

Makes a virtual environment under target/side_by_side (torch, transformers and sktime from PyPI, about 1 GB), lets the
reference write a model, then lets both sides do the same work in turns and prints one table of medians and ratios. Ratios
are of medians within this run; outputs of both sides are compared.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "target" / "side_by_side"
PACKAGES = ["torch==2.4.1", "transformers==4.40.1", "sktime==1.2.0", "numpy<2"]


class Worker:
    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **environment},
        )

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]} stopped at {command!r}: run it by hand to see why")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def python(venv=WORK / "venv", packages=PACKAGES):
    """The interpreter of a virtual environment with these packages, made where it is not there."""
    binary = venv / "bin" / "python"
    ready = venv / "ready"
    if not ready.exists():
        print("installing", ", ".join(packages), file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [binary, "-m", "pip", "install", "-q"]
        # A newer pip goes on with a download of hundreds of megabytes where the connection broke.
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, "--resume-retries", "50", *packages], check=True)
        ready.touch()
    return binary


def executables(targets):
    """Builds targets of the workspace: their paths by name."""
    built = subprocess.run(
        ["cargo", "build", "--release", "--workspace", *targets, "--message-format=json"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def build():
    found = executables(["--bin", "moesaic", "--bench", "side_by_side"])
    return found["side_by_side"], found["moesaic"]


def inputs():
    """64 standardised series of 512 values: waves of several periods with noise."""
    rng = random.Random(20261124)
    rows = []
    for row in range(64):
        period, phase = 6 + row % 42, rng.random() * 6.28
        raw = [math.sin(6.2832 * t / period + phase) + 0.3 * rng.gauss(0, 1) + 0.002 * t for t in range(512)]
        mean, deviation = statistics.fmean(raw), statistics.stdev(raw)
        rows.append([(v - mean) / deviation for v in raw])
    (WORK / "series.f32").write_bytes(b"".join(struct.pack("<512f", *row) for row in rows))
    (WORK / "series.csv").write_text("y\n" + "".join(f"{v}\n" for v in rows[0]))


def difference():
    """Mean absolute difference of both sides' last forecasts, over the reference's mean absolute value."""
    read = lambda name: [v for (v,) in struct.iter_unpack("<f", (WORK / name).read_bytes())]
    ours, theirs = read("ours.f32"), read("theirs.f32")
    assert len(ours) == len(theirs) and len(ours) > 0
    return sum(abs(a - b) for a, b in zip(ours, theirs)) / sum(abs(b) for b in theirs)


def cold(command, environment):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, **environment})
    return time.perf_counter() - start


def processor():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{len(names)} cores of {names[0] if names else platform.processor()}"


def show(rows):
    """A table, its header first."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    line = lambda row: "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
    print(line(rows[0]))
    print("| " + " | ".join("-" * width for width in widths) + " |")
    for row in rows[1:]:
        print(line(row))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--quick", action="store_true", help="no 64 series: the reference takes minutes for them")
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter, (ours, program) = python(), build()
    inputs()
    model = WORK / "model"
    paths = [model, WORK / "series.f32"]
    # Python libraries fetch nothing; a model made before is used again.
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    start_theirs = lambda: Worker([interpreter, HERE / "reference.py", *paths, WORK / "theirs.f32"], offline)
    theirs = start_theirs()
    if not (model / "model.safetensors").exists():
        theirs.ask(f"make {model}")
    size = (model / "model.safetensors").stat().st_size
    ceilings = theirs.ask("ceilings")
    slow = {dtype: ceilings.pop(f"{dtype} is slow") for dtype in ["f32", "bf16"]}
    table = []

    def compare(name, us, them, note=""):
        us, them = statistics.median(us), statistics.median(them)
        table.append((name, f"{us:.3f} s", f"{them:.3f} s", f"{them / us:.2f}", note))
        print(f"{name}: {us:.3f} s, reference {them:.3f} s, {them / us:.2f}x {note}", file=sys.stderr)

    # Cold start: a process from nothing to the first forecast.
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import reference, io\n"
        f"sys.stdin = io.StringIO('forecast 1 f32\\n')\n"
        f"reference.main({str(model)!r}, {str(WORK / 'series.f32')!r}, {str(WORK / 'cold.f32')!r})"
    )
    ours_cold, theirs_cold = [], []
    for _ in range(min(arguments.rounds, 3)):
        ours_cold.append(cold([program, "forecast", WORK / "series.csv", "--horizon", "96", "--model", model], {}))
        theirs_cold.append(cold([interpreter, "-c", script], offline))
    compare("cold start to a first forecast, f32", ours_cold, theirs_cold, "`moesaic forecast FILE.csv` against a script")

    us = Worker([ours, *paths, WORK / "ours.f32"], {})
    for count in [1] if arguments.quick else [1, 64]:
        command = lambda dtype: f"forecast {count} {dtype}"
        times = {}
        for dtype in ["f32", "bf16"]:
            seconds = lambda worker: worker.ask(command(dtype))["seconds"]
            if slow[dtype]:
                # The reference would take minutes for one series: ours runs alone, compared with the reference's f32 below.
                seconds(us)
                times[dtype] = [seconds(us) for _ in range(arguments.rounds if count == 1 else 2)], []
                reason = f"reference not run: torch has no fast {dtype} on this processor"
                table.append((f"{count} series, {dtype} against {dtype}", f"{statistics.median(times[dtype][0]):.3f} s", "", "", reason))
                print(*table[-1], file=sys.stderr)
                continue
            if count == 1:
                seconds(us), seconds(theirs)  # warms caches
                turns = [(seconds(us), seconds(theirs)) for _ in range(arguments.rounds)]
                times[dtype] = [mine for mine, _ in turns], [other for _, other in turns]
            else:
                # The reference takes a minute or more: one turn of it between two of ours.
                before, other, after = seconds(us), seconds(theirs), seconds(us)
                times[dtype] = [before, after], [other]
            note = f"outputs differ by {100 * difference():.2g} %"
            compare(f"{count} series, {dtype} against {dtype}", *times[dtype], note)
        note = f"outputs differ by {100 * difference():.2g} %" if slow["bf16"] else ""
        compare(f"{count} series, bf16 against f32", times["bf16"][0], times["f32"][1], note)
    us.close()
    theirs.close()
    loads = []
    for dtype, bytes_each in [("f32", 2), ("bf16", 1)]:
        us = Worker([ours, *paths, WORK / "ours.f32"], {})
        answer = us.ask(f"load {dtype}")
        us.close()
        loads.append((dtype, answer["seconds"], answer["peak"] / (size * bytes_each)))

    print(f"\nTime-MoE 50M, random weights, context 512, horizon 96; {processor()}; {time.strftime('%Y-%m-%d')}\n")
    show([("what", "moesaic", "reference", "ratio", ""), *table])
    print()
    for dtype, seconds, peak in loads:
        print(f"moesaic loads {dtype} in {seconds:.2f} s and peaks at {peak:.2f} times the model's size")
    print("ceilings in the same run:", ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))


if __name__ == "__main__":
    main()
