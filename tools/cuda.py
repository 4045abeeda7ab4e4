#!/usr/bin/env python3
"""Compiles the kernels of kernels/src/cuda, or checks that what is there in bin/ comes from them.

    python3 tools/cuda.py [--check] [--report] [--tools DIR]

Needs no GPU and no CUDA toolkit: the compiler comes from PyPI, in the version that is pinned here, into DIR (target/cuda-tools; about 300 MB to
download). It needs a C++ compiler for its preprocessor. For each source it writes bin/NAME.sm_90a.cubin, machine code for Hopper, and
bin/NAME.compute_80.ptx, which the driver (580 or newer) compiles for other GPUs from Ampere on. The same sources give the same bytes.

--check compiles into a scratch folder and fails where a byte differs, or a register is spilled. Exits with 3 where the compiler cannot be installed. --report prints what each kernel uses.
"""

import argparse
import filecmp
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from runs import ROOT, environment

SOURCES = ROOT / "kernels/src/cuda"
BINARIES = SOURCES / "bin"
# One release of the compiler: nvcc 13.0.88 and what it includes.
TOOLKIT = "cuda-toolkit[nvcc,nvvm,crt,cudart]==13.0.3.*"
OPTIONS = ["-std=c++17", "-O3"]
TARGETS = {
    "sm_90a.cubin": ["-gencode=arch=compute_90a,code=sm_90a", "-cubin", "--resource-usage"],
    "compute_80.ptx": ["-arch=compute_80", "-ptx"],
}


def compiler(tools):
    try:
        python = environment(tools, TOOLKIT)
    except subprocess.CalledProcessError as error:
        print(f"NOT CHECKED: the compiler could not be installed into {tools} ({error})", file=sys.stderr)
        sys.exit(3)
    where = subprocess.run([python, "-c", "import nvidia; print(nvidia.__path__[0])"], check=True, capture_output=True, text=True)
    return pathlib.Path(where.stdout.strip()) / "cu13/bin/nvcc"


def compile_all(nvcc, out, report):
    spilled = []

    def look(text, target, report):
        kernel = None
        for line in text.splitlines():
            if found := re.search(r"Compiling entry function '(\w+)'", line):
                kernel = found[1]
            elif found := re.search(r"Used (\d+) registers.*", line):
                if report:
                    print(f"{kernel}: {found[0]}")
            elif (found := re.search(r"(\d+) bytes spill stores", line)) and found[1] != "0":
                spilled.append(f"{kernel}, {target}: {found[0]}")

    def compile_one(source):
        for name, options in TARGETS.items():
            # By its bare name, as messages and assembly hold the path.
            command = [nvcc, *OPTIONS, *options, "-o", out / f"{source.stem}.{name}", source.name]
            done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{source.name}, {name}:\n{done.stdout}{done.stderr}")
            look(done.stdout + done.stderr, name, report)
        # What the driver does with PTX: ptxas is stricter than the front end.
        ptx = out / f"{source.stem}.compute_80.ptx"
        done = subprocess.run([nvcc.parent / "ptxas", "-v", "-arch=sm_80", "-o", "/dev/null", ptx], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{ptx.name}, sm_80:\n{done.stderr}")
        look(done.stdout + done.stderr, "sm_80", False)

    # In a folder of another name each time: what gets of it into the output, --check sees.
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES.glob("*.cu*"):
            shutil.copy(source, folder)
        for source in sorted(pathlib.Path(folder).glob("*.cu")):
            compile_one(source)
    if spilled:
        sys.exit("registers are spilled: " + "; ".join(spilled))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    parser.add_argument("--report", action="store_true", help="print registers and shared memory of each kernel for sm_90a")
    parser.add_argument("--tools", type=pathlib.Path, default=ROOT / "target/cuda-tools", help="where the compiler is, or goes")
    args = parser.parse_args()
    nvcc = compiler(args.tools.resolve())
    if not args.check:
        BINARIES.mkdir(exist_ok=True)
        compile_all(nvcc, BINARIES, args.report)
        return
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        compile_all(nvcc, scratch, args.report)
        names = sorted({path.name for folder in (scratch, BINARIES) for path in folder.iterdir()})
        _, differ, missing = filecmp.cmpfiles(scratch, BINARIES, names, shallow=False)
        if differ or missing:
            sys.exit(f"not what the sources give: {', '.join(differ + missing)}; run python3 tools/cuda.py")
        print(f"{len(names)} binaries are what the sources give")


if __name__ == "__main__":
    main()
