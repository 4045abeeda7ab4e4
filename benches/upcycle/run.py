"""A dense model and what it is upcycled to, trained on the same text for as many tokens and for as long.

    sudo apt-get install bible-kjv
    cargo build --release
    python3 benches/upcycle/run.py path/to/SmolLM2-135M-Instruct runs/upcycle

Writes the text (the King James Bible, out of copyright, by chapters; every 24th is held out, its first 500 characters are
measured), upcycles, trains the sparse model and then the dense one on one thread, each until it has used as much CPU time, and
prints a table. With --draw FILE.svg it draws the curves. What was measured is kept in WORK/*.csv; a run that is there already
is not repeated. The learning rate is constant after its warm-up, so that every point of a curve is the end of a shorter run.
"""

import argparse
import csv
import os
import pathlib
import re
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "target/release/moesaic"
CONFIG = """seed = {seed}
init = "{init}"

[data]
files = ["{work}/train.txt"]
validation_files = ["{work}/held_out.txt"]
separator = "%"
length = 256
rows = 4
eval_every = 10

[optimiser]
learning_rate = {rate}
final_learning_rate = {rate}
warmup = 5
weight_decay = 0.0

[plan]
steps = {steps}
log_every = 5
checkpoint_every = 1000000
out = "{work}/{name}"
"""


def text(work):
    if (work / "train.txt").exists():
        return
    lines = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    chapters = {}
    for line in lines.splitlines():
        book, chapter, verse = re.match(r"(\S+?)(\d+):\d+ (.*)", line).groups()
        chapters.setdefault((book, chapter), []).append(verse)
    whole = ["\n".join(verses) + "\n" for verses in chapters.values()]
    held_out = [chapter[:500] + "\n" for i, chapter in enumerate(whole) if i % 24 == 11]
    (work / "held_out.txt").write_text("%\n".join(held_out))
    (work / "train.txt").write_text("%\n".join(chapter for i, chapter in enumerate(whole) if i % 24 != 11))


def cpu(pid):
    """Seconds that a process has computed."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(work, name, init, args, until=None):
    """Trains, and keeps of every measurement: step, tokens, CPU seconds, loss. Ends after `until` CPU seconds."""
    kept = work / f"{name}.csv"
    if kept.exists():
        return [tuple(map(float, row)) for row in csv.reader(kept.open())]
    config = work / f"{name}.toml"
    steps = args.steps if until is None else 10 * args.steps
    config.write_text(CONFIG.format(seed=args.seed, init=init, work=work, name=name, steps=steps, rate=args.rate))
    environment = {**os.environ, "CANDLE_NUM_THREADS": "1"}
    process = subprocess.Popen(["nice", "-n", "10", PROGRAM, "train", "language", config], env=environment,
                               stdout=subprocess.PIPE, text=True)
    points = []
    for line in process.stdout:
        print(f"{name}: {cpu(process.pid):7.0f} s  {line}", end="", flush=True)
        found = re.match(r"step +(\d+)/.*validation ([0-9.]+)", line)
        if found:
            step = int(found[1])
            points.append((step, step * 4 * 256, cpu(process.pid), float(found[2])))
            if until is not None and points[-1][2] >= until:
                process.send_signal(signal.SIGINT)
                until = float("inf")
    process.wait()
    with kept.open("w") as file:
        csv.writer(file).writerows(points)
    return points


def at(points, column, value):
    """The loss where a column has this value, on the straight line between its neighbours."""
    for a, b in zip(points, points[1:]):
        if a[column] <= value <= b[column]:
            return a[3] + (b[3] - a[3]) * (value - a[column]) / max(b[column] - a[column], 1e-9)
    return points[-1][3]


def draw(path, sparse, dense):
    """Two panels: loss by tokens, and by CPU time."""
    curves = [("dense", "#888888", dense), ("8 experts, 2 for each token", "#c2410c", sparse)]
    low = min(p[3] for p in sparse + dense)
    high = max(p[3] for p in sparse + dense)
    low, high = int(low * 20) / 20, int(high * 20 + 1) / 20
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="300" viewBox="0 0 760 300" '
           'font-family="sans-serif" font-size="11">', '<rect width="760" height="300" fill="white"/>']
    for panel, (column, unit, label) in enumerate([(1, 1000, "thousand tokens"), (2, 60, "minutes of CPU, one thread")]):
        left, top, width, height = 50 + 370 * panel, 30, 320, 220
        most = max(p[column] for p in sparse + dense)
        x = lambda v: left + width * v / most
        y = lambda v: top + height * (high - v) / (high - low)
        for i in range(5):
            v = low + (high - low) * i / 4
            out.append(f'<line x1="{left}" x2="{left + width}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#e5e5e5"/>'
                       f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>')
            t = most * i / 4
            out.append(f'<text x="{x(t):.1f}" y="{top + height + 16}" text-anchor="middle">{t / unit:.0f}</text>')
        out.append(f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle">{label}</text>')
        for i, (name, colour, points) in enumerate(curves):
            line = " ".join(f"{x(p[column]):.1f},{y(p[3]):.1f}" for p in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out.append(f'<text x="{left + width}" y="{top + 12 + 15 * i}" text-anchor="end" fill="{colour}">{name}</text>')
    out.append('<text x="50" y="18">Loss on text that is held out (nats a token)</text></svg>')
    pathlib.Path(path).write_text("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--layers", default="3-29/4")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draw", type=pathlib.Path)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    text(work)
    if not (work / "upcycled").exists():
        subprocess.run([PROGRAM, "upcycle", args.dense, "--experts", "8", "--top-k", "2", "--layers", args.layers,
                        "--seed", str(args.seed), "--output", work / "upcycled"], check=True)
    sparse = train(work, "sparse", work / "upcycled", args)
    dense = train(work, "dense", args.dense.resolve(), args, until=sparse[-1][2])
    tokens, seconds = sparse[-1][1], sparse[-1][2]
    print("\n| model | before | after | tokens | CPU |\n| --- | ---: | ---: | ---: | ---: |")
    for name, before, after, n, s in [
        ("sparse", sparse[0][3], sparse[-1][3], tokens, seconds),
        ("dense, as many tokens", dense[0][3], at(dense, 1, tokens), tokens, None),
        ("dense, as long", dense[0][3], at(dense, 2, seconds), None, seconds),
    ]:
        shown = (f"{n / 1000:.0f} k" if n else "", f"{s / 60:.1f} min" if s else "")
        print(f"| {name} | {before:.3f} | {after:.3f} | {shown[0]} | {shown[1]} |")
    if args.draw:
        draw(args.draw, sparse, dense)


if __name__ == "__main__":
    sys.exit(main())
