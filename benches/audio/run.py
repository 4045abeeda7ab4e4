#!/usr/bin/env python3
"""Features of an hour of sound, an encoder of Whisper-base's size, CED-base and U-SAM's Q-Former: moesaic against the reference
extractors and torch, in one run. And how long the small model that listens takes.

    python3 benches/audio/run.py [--rounds 5] [--minutes 60] [--python INTERPRETER]

Makes a virtual environment under target/audio (torch, torchaudio, transformers and python_speech_features), an hour of noise and
tones as a WAV file, and a model with random weights; then both sides do the same work in turns. Prints medians, ratios, and
how far the outputs differ.
"""

import argparse
import array
import math
import random
import statistics
import struct
import sys
import time
import wave
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "benches"))
from side_by_side import run as shared  # noqa: E402

WORK = ROOT / "target" / "audio"
PACKAGES = ["torch==2.8.0", "torchaudio==2.8.0", "transformers==4.57.6", "python_speech_features==0.6", "scipy", "numpy"]
# Seconds of sound for what is measured in memory.
SECONDS = 600


def sounds(minutes):
    """Two seconds of tones in noise, over and over with changing loudness, as 16-bit WAV and as floats."""
    rng = random.Random(20261125)
    period = [
        0.2 * math.sin(6.2832 * 220 * i / 16000) + 0.1 * math.sin(6.2832 * (300 + i / 20) * i / 16000) + 0.05 * rng.gauss(0, 1)
        for i in range(32000)
    ]
    blocks = []
    for block in range(64):
        gain = 0.2 + 0.8 * rng.random()
        blocks.append(array.array("h", (max(-32768, min(32767, round(32767 * gain * v))) for v in period)))
    path = WORK / f"{minutes}min.wav"
    if not path.exists():
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            for i in range(minutes * 30):
                file.writeframes(blocks[i * 7 % 64].tobytes())
    values = [v / 32768 for i in range(SECONDS // 2) for v in blocks[i * 7 % 64]]
    (WORK / "wave.f32").write_bytes(struct.pack(f"<{len(values)}f", *values))
    return path


def difference():
    """Mean absolute difference of both sides' last outputs, over the reference's mean absolute value."""
    read = lambda name: [v for (v,) in struct.iter_unpack("<f", (WORK / name).read_bytes())]
    ours, theirs = read("ours.f32"), read("theirs.f32")
    assert len(ours) == len(theirs) and len(ours) > 0, (len(ours), len(theirs))
    return sum(abs(a - b) for a, b in zip(ours, theirs)) / sum(abs(b) for b in theirs)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--minutes", type=int, default=60)
    arguments.add_argument("--python", help="an interpreter that has the packages, instead of a new environment")
    arguments = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    interpreter = arguments.python or shared.python(WORK / "venv", PACKAGES)
    ours = shared.executables(["--bench", "audio"])["audio"]
    file, model = sounds(arguments.minutes), WORK / "model"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    theirs = shared.Worker([interpreter, HERE / "reference.py", model, WORK / "wave.f32", WORK / "theirs.f32"], offline)
    if not (model / "qformer.safetensors").exists():
        theirs.ask(f"make {model}")
    ceilings = theirs.ask("ceilings")
    slow = {dtype: ceilings.pop(f"{dtype} is slow") for dtype in ["f32", "bf16"]}
    us = shared.Worker([ours, model, WORK / "wave.f32", WORK / "ours.f32"], {})
    table = []

    def compare(name, command, rounds, differs=True):
        turns = []
        for turn in range(rounds + 1):
            turns.append((us.ask(command)["seconds"], theirs.ask(command)["seconds"]))
        mine, other = (statistics.median(side) for side in zip(*turns[1:]))  # the first turn warms caches
        note = f"outputs differ by {100 * difference():.2g} %" if differs else ""
        table.append((name, f"{mine:.3f} s", f"{other:.3f} s", f"{other / mine:.2f}", note))
        print(*table[-1], file=sys.stderr)

    rounds, missing = arguments.rounds, theirs.ask("missing")["missing"]
    (WORK / "empty.f32").write_bytes(b"")
    fresh = shared.Worker([ours, model, WORK / "empty.f32", WORK / "ours.f32"], {})
    memory = fresh.ask(f"file {file}")
    fresh.close()
    compare(f"file of {arguments.minutes} min to Whisper features, 80 bands", f"file {file}", max(1, rounds // 3), False)
    for name, command in [
        ("Whisper features, 80 bands", "whisper 80"), ("Whisper features, 128 bands", "whisper 128"),
        ("AV-HuBERT features", "avhubert"), ("CED features", "ced"), ("44.1 to 16 kHz", "resample"),
    ]:
        if command in missing:
            mine = statistics.median(us.ask(command)["seconds"] for _ in range(rounds))
            table.append((f"{name}, {SECONDS} s of samples", f"{mine:.3f} s", "", "", "reference not installed"))
        else:
            compare(f"{name}, {SECONDS} s of samples", command, rounds)
    for dtype in ["f32", "bf16"]:
        us.ask(f"load {dtype}")
        if not slow[dtype]:
            theirs.ask(f"load {dtype}")
            for batch in [1, 4]:
                compare(f"Whisper-base encoder, {dtype}, {batch} x 30 s", f"encode {batch}", rounds)
        else:
            us.ask("encode 1")
            mine = statistics.median(us.ask("encode 1")["seconds"] for _ in range(rounds))
            table.append((f"Whisper-base encoder, {dtype}, 1 x 30 s", f"{mine:.3f} s", "", "", f"torch has no fast {dtype} here"))
    for part, name in [("ced", "CED-base"), ("qformer", "Q-Former, 14 windows")]:
        for dtype in ["f32", "bf16"]:
            us.ask(f"part {part} {dtype}")
            if not slow[dtype] and not (part == "ced" and "ced" in missing):
                theirs.ask(f"part {part} {dtype}")
                for batch in [1, 4]:
                    compare(f"{name}, {dtype}, {batch} x 10 s", f"listen {batch}", rounds)
            else:
                us.ask("listen 1")
                mine = statistics.median(us.ask("listen 1")["seconds"] for _ in range(rounds))
                table.append((f"{name}, {dtype}, 1 x 10 s", f"{mine:.4f} s", "", "", f"torch has no fast {dtype} here, or torchaudio is missing"))
    us.ask(f"chat {ROOT / 'assets/sound'}")
    chat = min((us.ask(f"chat {ROOT / 'assets/sound'}") for _ in range(rounds)), key=lambda answer: answer["seconds"])
    projectors = [(clips, us.ask(f"smop {clips}")) for clips in [1, 8]]
    us.close()
    theirs.close()

    print(f"\nAudio; {shared.processor()}; {time.strftime('%Y-%m-%d')}\n")
    shared.show([("what", "moesaic", "reference", "ratio", ""), *table])
    print()
    shared.show([("projector on 30 s of sound", "dense, 2,048 inside", "SMoP, 2 of 4 experts of 1,024", "SMoP / dense"), *(
        (f"{clips} clip{'s' if clips > 1 else ''}", f"{t['dense'] * 1000:.2f} ms", f"{t['sparse'] * 1000:.2f} ms", f"{t['sparse'] / t['dense']:.3f}")
        for clips, t in projectors)])
    print(f"\nassets/sound: loaded in {chat['load'] * 1000:.0f} ms; a question about each window of {chat['sound']:.0f} s of sound answered in "
          f"{chat['seconds']:.2f} s, {chat['sound'] / chat['seconds']:.0f} times real time")
    print(f"\nmoesaic's process peaks at {memory['peak'] / 2**20:.0f} MiB over {memory['windows']} windows of the file, "
          f"which has {file.stat().st_size / 2**20:.0f} MiB")
    print("ceilings in the same run:", ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items() if name != "seconds"))


if __name__ == "__main__":
    main()
