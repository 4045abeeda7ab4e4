#!/usr/bin/env python3
"""Makes a corpus of time series with questions, for a model that reads them among words.

    python3 tools/series_corpus.py [--out data/series-questions] [--seed 1] [--count 12000 600 600]

Needs Python 3.9 or newer, nothing else. A series has 48 to 96 values: a level and a unit of its own, a trend or none, a season of 4, 6, 8, 12 or
24 steps or none, and noise. Asked is whether it is rising, falling or flat; whether it has a season, and of which period; which half is
higher; and what comes next: 8 to 32 steps, without the noise that nobody can know.

Files: train.jsonl, valid.jsonl, test.jsonl, with lines of {"series", "group", "turns": [{"task", "question", "answer" or "forecast"}]}, the
turns in any order. Everything is drawn from the seed, each line from its own.
"""

import argparse
import hashlib
import json
import math
import random
from pathlib import Path

PERIODS = {4: "four", 6: "six", 8: "eight", 12: "twelve", 24: "twenty four"}
STEPS = {8: ("eight", "8"), 16: ("sixteen", "16"), 24: ("twenty four", "24"), 32: ("thirty two", "32")}
QUESTIONS = {
    "trend": ("Is it rising, falling or flat?", "Which way does it go?"),
    "rising": ("Is it rising?",),
    "season": ("Does it have a season?", "Does it repeat?"),
    "period": ("What is the period?", "How long is its season?"),
    "half": ("Which half is higher?",),
    "forecast": ("Forecast {} steps.", "What are the next {} values?"),
}
WORDS = "rising falling flat yes no first second"


def words():
    """All text that a line may hold."""
    texts = [text for several in QUESTIONS.values() for text in several] + [WORDS, *PERIODS.values(), *(text for both in STEPS.values() for text in both)]
    return [text.replace("{}", " ") for text in texts]


def line(seed, part, index):
    rng = random.Random(f"{seed} {part} {index}")
    n, ahead = rng.randint(48, 96), rng.choice(list(STEPS))
    trend = rng.choice(("rising", "falling", "flat"))
    # By how many deviations of the rest it moves over the series.
    slope = {"rising": 1, "falling": -1, "flat": 0}[trend] * rng.uniform(1.5, 6) / n
    period = rng.choice(list(PERIODS)) if rng.random() < 0.65 else None
    waves = [(k, rng.uniform(0.2, 1) / k, rng.uniform(0, 2 * math.pi)) for k in (1, 2)]
    season = lambda i: sum(a * math.sin(2 * math.pi * k * i / period + at) for k, a, at in waves) if period else 0
    noise = rng.uniform(0.03, 0.25 if period else 0.5)
    level, unit = rng.uniform(-50, 200), 10 ** rng.uniform(-2, 3)
    clean = [level + unit * (slope * i + season(i)) for i in range(n + ahead)]
    series = [clean[i] + unit * noise * rng.gauss(0, 1) for i in range(n)]
    halves = [sum(series[: n // 2]) / (n // 2), sum(series[n // 2 :]) / (n - n // 2)]
    answers = {
        "trend": trend,
        "rising": "yes" if trend == "rising" else "no",
        "season": "yes" if period else "no",
        "half": "second" if halves[1] > halves[0] else "first",
    }
    if period:
        answers["period"] = PERIODS[period]
    digits = lambda values: [float(f"{v:.6g}") for v in values]
    turns = [{"task": task, "question": rng.choice(QUESTIONS[task]), "answer": answer} for task, answer in answers.items()]
    question = rng.choice(QUESTIONS["forecast"]).format(rng.choice(STEPS[ahead]))
    turns.append({"task": "forecast", "question": question, "forecast": digits(clean[n:])})
    rng.shuffle(turns)
    return json.dumps({"series": digits(series), "group": part, "turns": turns})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/series-questions"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, nargs=3, default=(12000, 600, 600), metavar=("TRAIN", "VALID", "TEST"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "valid", "test"), options.count):
        text = "".join(line(options.seed, part, i) + "\n" for i in range(count))
        (options.out / f"{part}.jsonl").write_text(text, encoding="utf-8")
        print(f"{part}: {count} lines; SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
