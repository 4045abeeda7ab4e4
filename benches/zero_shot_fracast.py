#!/usr/bin/env python3
"""The zero-shot evaluation of `fracast` (PyPI, Apache-2.0, 85,001 parameters) beside ours, on the same cuts.

    python3 -m pip install fracast && python3 benches/zero_shot_fracast.py

Reads benches/zero_shot.toml, cuts every series as `moesaic eval forecast` does (src/eval.rs), lets fracast forecast by its
median, and prints MASE ratios against seasonal-naive beside those of `moesaic eval forecast --json`. Which series fracast
has seen in its training is not known.
"""

import csv
import json
import math
import subprocess
import tomllib
from pathlib import Path

import numpy as np
from fracast import FracastModel

ROOT = Path(__file__).resolve().parents[1]


def read(case):
    with open(ROOT / "benches" / case["file"]) as file:
        rows = list(csv.DictReader(file))
    return np.array([float(r[case["column"]]) if r[case["column"]] not in ("", "NA") else math.nan for r in rows], np.float32)


def filled(past):
    known = np.flatnonzero(np.isfinite(past))
    return np.interp(np.arange(len(past)), known, past[known]).astype(np.float32)


def scale(past, period):
    for lag in (period, 1):
        apart = np.abs(past[lag:].astype(float) - past[:-lag].astype(float))
        mean = np.nanmean(apart) if np.isfinite(apart).any() else 0.0
        if mean > 0:
            return mean
    return None


def main():
    plan = tomllib.loads((ROOT / "benches" / "zero_shot.toml").read_text())
    command = ["cargo", "run", "--release", "--quiet", "--", "eval", "forecast", "benches/zero_shot.toml", "--json"]
    ours = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    ours = {series["name"]: series for series in ours["series"]}
    model = FracastModel.from_pretrained(weights="fp32")
    print("| series            | moesaic | fracast |\n| ----------------- | ------: | ------: |")
    logs = []
    for case in plan["series"]:
        values, period, horizon = read(case), case["period"], case["horizon"]
        first, last, count = len(values) // 2, len(values) - horizon, plan["origins"]
        errors, naive = [], []
        for origin in sorted({first + (last - first) * i // (count - 1) for i in range(count)}):
            history = filled(values[:origin])[-plan["context"]:]
            actual, unit = values[origin:origin + horizon], scale(values[:origin], period)
            quantiles = model.forecast(history, horizon=horizon)
            median = quantiles[:, int(np.argmin(np.abs(np.asarray(model.quantiles) - 0.5)))]
            repeated = history[-period:][np.arange(horizon) % period]
            errors.append(np.nanmean(np.abs(median - actual)) / unit)
            naive.append(np.nanmean(np.abs(repeated - actual)) / unit)
        # Both sides must have cut alike.
        theirs = ours[case["name"]]["baselines"][0]["mase"]
        assert abs(np.mean(naive) - theirs) < 1e-3 * theirs, (case["name"], np.mean(naive), theirs)
        ratio = np.mean(errors) / np.mean(naive)
        logs.append((math.log(ours[case["name"]]["ratio"]), math.log(ratio)))
        print(f"| {case['name']:<17} | {math.exp(logs[-1][0]):7.3f} | {ratio:7.3f} |")
    mean = np.exp(np.mean(logs, axis=0))
    print(f"| geometric mean    | {mean[0]:7.3f} | {mean[1]:7.3f} |")


if __name__ == "__main__":
    main()
