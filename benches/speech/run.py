#!/usr/bin/env python3
"""How much faster than real time the built-in speech model transcribes a video: decoding, finding the face, reading and writing.

    python3 benches/speech/run.py [--rounds 5] [--seconds 60]

Builds the program with H.264 (the variable MOESAIC names another one), makes a virtual environment under target/speech (numpy and
imageio-ffmpeg, whose ffmpeg repeats the clip of examples/data/speech without encoding it anew), and runs the program as a user
does. Prints medians of the whole process, from its start to its end, with what the machine can do in the same run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "speech"
CLIP = ROOT / "examples/data/speech/clip.mp4"
PACKAGES = ["numpy", "imageio-ffmpeg"]
sys.path.insert(0, str(ROOT / "tools"))
from runs import inside  # noqa: E402


def program():
    if "MOESAIC" in os.environ:
        return os.environ["MOESAIC"]
    subprocess.run(["cargo", "build", "--release", "--features", "h264", "--bin", "moesaic"], check=True, cwd=ROOT)
    return ROOT / "target/release/moesaic"


def ceilings():
    """Products of matrices and reading of memory, as numpy does them on all cores."""
    import numpy as np

    a = np.random.default_rng(1).standard_normal((2048, 2048), dtype=np.float32)
    best = min(timed(lambda: a @ a) for _ in range(5))
    big = np.ones(64 << 20, dtype=np.float32)
    read = min(timed(lambda: big.max()) for _ in range(5))
    return 2 * 2048**3 / best / 1e9, big.nbytes / read / 1e9


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_of(path):
    """Length of a file by ffmpeg's report."""
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    inside(WORK / "venv", *PACKAGES)
    import imageio_ffmpeg

    moesaic, long = program(), WORK / f"{args.seconds}s.mp4"
    repeats = round(args.seconds / seconds_of(CLIP)) - 1
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-stream_loop", str(repeats), "-i", str(CLIP), "-c", "copy", str(long)]
    subprocess.run(ffmpeg, check=True)
    flops, bytes_ = ceilings()
    print(f"numpy multiplied matrices of 2,048 at {flops:.0f} GFLOP/s in f32 and read {bytes_:.0f} GB/s\n")
    print("| file | takes | seconds | time, s | faster than real time |")
    print("| ---- | ----- | ------: | ------: | --------------------: |")
    for path in (CLIP, long):
        seconds = seconds_of(path)
        for senses in ("audio", "video", "audiovisual"):
            # Repeated without encoding it anew, the sound ends a second before the length that the file states.
            command = [moesaic, "transcribe", path, "--modality", senses, "--lenient"]
            quiet = {"check": True, "capture_output": True}
            subprocess.run(command, **quiet)
            spent = statistics.median(timed(lambda: subprocess.run(command, **quiet)) for _ in range(args.rounds))
            print(f"| {path.name} | {senses} | {seconds:.1f} | {spent:.3f} | {seconds / spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
