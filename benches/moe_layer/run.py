#!/usr/bin/env python3
"""The sparse layer on the CPU beside memory, multiply-adds and torch's product, all in one run.

    python3 benches/moe_layer/run.py [--only "olmoe bf16"]

Uses the virtual environment of benches/side_by_side (torch from PyPI), which it makes if it is not there.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "side_by_side"))
import run as side_by_side  # noqa: E402

arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
arguments.add_argument("--only", default="", help="part of 'SHAPE DTYPE'")
only = arguments.parse_args().only
side_by_side.WORK.mkdir(parents=True, exist_ok=True)
environment = {**os.environ, "TORCH_PYTHON": str(side_by_side.python()), "MOE_LAYER": only}
subprocess.run(["cargo", "bench", "--workspace", "--bench", "moe_layer"], cwd=ROOT, check=True, env=environment)
print(side_by_side.processor())
