#!/usr/bin/env python3
"""Makes what stands in for CUDA's toolkit and libraries, so that the feature `cuda` builds, and its tests run, where there are none.

    python3 tools/cuda_stand_in.py DIR [--emulate]      # writes DIR, and prints what the environment needs: eval "$(...)"

As it is, libcuda says that there is no device: what can be tested is the host's code, errors, and tensors on the CPU in the same binary. With --emulate
there is one: libcuda, libcublas and libcurand run on the emulator of kernels/tests/cuda, with the kernels of this workspace and candle's, all compiled
for the processor. What is built against one can run with the other. Needs a C compiler, and a C++ compiler to emulate.
The libraries' symbols are those in tools/cuda/symbols.txt.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SYMBOLS = HERE / "cuda/symbols.txt"
EMULATED = HERE / "cuda/emulated"
KERNELS = HERE.parent / "kernels"
# candle's kernels that have to do with quantised tensors of its own, which nothing here uses, are left out.
CANDLE = ["affine", "binary", "cast", "conv", "fill", "indexing", "reduce", "sort", "ternary", "unary"]

# Answers what build scripts ask for: a version, a list of GPUs, PTX of a file, a library of many.
NVCC = r"""#!/usr/bin/env python3
import pathlib, re, subprocess, sys

args = sys.argv[1:]
if {"--version", "-V"} & {*args}:
    print("nvcc: a stand-in\n\n\nCuda compilation tools, release 13.0, V13.0.88\nBuild stand-in")
    sys.exit()
if "--list-gpu-code" in args:
    print("sm_90")
    sys.exit()

def after(*names):
    return next((args[i + 1] for i, arg in enumerate(args[:-1]) if arg in names), None)

sources = [arg for arg in args if arg.endswith(".cu")]
out = after("-o", "--output-file")
if {"--ptx", "-ptx"} & {*args}:
    where = pathlib.Path(after("--output-directory") or ".")
    for source in sources:
        pathlib.Path(out or where / (pathlib.Path(source).stem + ".ptx")).write_text("")
elif {"--lib", "-lib"} & {*args}:
    # candle-kernels' build script runs in the folder of the package, whose src/ffi.rs names what the library has.
    names = sorted({*re.findall(r"pub fn (\w+)\(", pathlib.Path("src/ffi.rs").read_text())})
    code, made = pathlib.Path(out + ".c"), pathlib.Path(out + ".o")
    code.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
    subprocess.run(["cc", "-w", "-fPIC", "-c", "-o", made, code], check=True)
    subprocess.run(["ar", "rcs", out, made], check=True)
elif out:
    pathlib.Path(out).write_text("")
"""

# CUDA_ERROR_NO_DEVICE is 100.
SAID = """
int cuGetErrorString(int e, const char **p) { *p = "no CUDA device: a stand-in library"; return 0; }
int cuGetErrorName(int e, const char **p) { *p = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""


def libraries():
    found = {}
    for line in SYMBOLS.read_text().splitlines():
        if line.startswith("["):
            names = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            names.append(line)
    return found


def stubs(library, without=()):
    """What a library answers where it is not there, but for the functions `without`."""
    driver = library.startswith("libcuda.")
    own = {*without} or ({"cuGetErrorString", "cuGetErrorName"} if driver else set())
    return (SAID if driver and not without else "") + "".join(
        f"int {name}(void) {{ return {100 if driver else 1}; }}\n" for name in libraries()[library] if name not in own)


def emulate(lib64, scratch):
    cxx = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-fPIC", "-w", "-DMOESAIC_EMULATE", "-ffp-contract=off",
           f"-I{scratch}", f"-I{EMULATED}", f"-I{KERNELS / 'tests/cuda'}"]
    metadata = subprocess.run(["cargo", "metadata", "--locked", "--all-features", "--format-version", "1"], check=True, stdout=subprocess.PIPE, cwd=HERE)
    candle = next(pathlib.Path(package["manifest_path"]).parent / "src"
                  for package in json.loads(metadata.stdout)["packages"] if package["name"] == "candle-kernels")
    # candle's sources find all that they include in prelude.hpp.
    for header in ("cuda.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cuda/std/limits"):
        (scratch / header).parent.mkdir(parents=True, exist_ok=True)
        (scratch / header).touch()
    common = KERNELS / "src/cuda/common.cuh"
    sources = [(EMULATED / "prelude.hpp", candle / f"{name}.cu") for name in CANDLE]
    sources += [(common, source) for source in sorted((KERNELS / "src/cuda").glob("*.cu"))]

    def kernels(job):
        """Compiles a file of kernels, with a list of them by name."""
        prelude, source = job
        copy = scratch / f"{source.parent.name}_{source.name}"
        # Shared memory whose size is the launch's.
        copy.write_text(re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1 *\2 = (\1 *)emulator::shared;", source.read_text()))
        unit, made = copy.with_suffix(".cpp"), copy.with_suffix(".o")
        head = f'#include "{prelude}"\n#include "register.hpp"\nnamespace {copy.stem} {{\n#include "{copy}"\n}}\n'
        unit.write_text(head)
        command = [*cxx, f"-I{source.parent}", unit]
        text = subprocess.run([*command, "-E", "-P"], check=True, capture_output=True, text=True).stdout
        names = re.findall(r'extern "C"\s+__attribute__\(\(noinline\)\)\s+void\s+(\w+)\s*\(', text)
        unit.write_text(head + "".join(f"KERNEL({name}, {copy.stem}::{name})\n" for name in names))
        subprocess.run([*command, "-c", "-o", made], check=True)
        return made

    def plain(source):
        made = scratch / f"{source.stem}.o"
        subprocess.run([*cxx, "-c", "-o", made, source], check=True)
        return made

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        rest = [pool.submit(plain, source) for source in (EMULATED / "driver.cpp", KERNELS / "tests/cuda/emulator.cpp", EMULATED / "libraries.cpp")]
        objects = list(pool.map(kernels, sources))
        driver, emulator, other = [made.result() for made in rest]
    for library in libraries():
        parts = {"libcuda": [driver, emulator, *objects], "libcublas": [other], "libcurand": [other]}.get(library.split(".")[0])
        if parts is None:
            continue
        defined = subprocess.run(["nm", "-g", "--defined-only", "--format=posix", *parts], check=True, capture_output=True, text=True)
        code = scratch / "stub.c"
        code.write_text(stubs(library, {line.split()[0] for line in defined.stdout.splitlines() if line.strip()}))
        subprocess.run(["cc", "-w", "-fPIC", "-fno-builtin", "-c", "-o", scratch / "stub.o", code], check=True)
        # Nothing else is to be seen: the tests of the kernels bring an emulator of their own.
        (scratch / "seen").write_text("{ global: cu*; local: *; };")
        link = f"-Wl,-soname,{library},-z,defs,--version-script={scratch / 'seen'}"
        subprocess.run([cxx[0], "-shared", link, "-o", lib64 / library, *parts, scratch / "stub.o"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--emulate", action="store_true", help="with a device: the emulator")
    args = parser.parse_args()
    root = args.dir.resolve()
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    nvcc = root / "bin/nvcc"
    if not nvcc.exists() or nvcc.read_text() != NVCC:
        nvcc.write_text(NVCC)
        nvcc.chmod(0o755)
        (root / "include/cuda.h").write_text("#define CUDA_VERSION 13000\n")
    with tempfile.TemporaryDirectory() as scratch:
        for library in libraries():
            code = pathlib.Path(scratch) / "stub.c"
            code.write_text(stubs(library))
            out = root / "lib64" / library
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-nostdlib", f"-Wl,-soname,{library}", "-o", out, code], check=True)
            plain = root / "lib64" / (library.split(".so")[0] + ".so")
            plain.unlink(missing_ok=True)
            plain.symlink_to(library)
        if args.emulate:
            emulate(root / "lib64", pathlib.Path(scratch))
    for name, value in {
        "NVCC": nvcc, "CUDA_HOME": root, "CUDA_PATH": root, "CUDA_COMPUTE_CAP": "90",
        "PATH": f"{root}/bin:$PATH", "LD_LIBRARY_PATH": f"{root}/lib64${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}",
    }.items():
        print(f'export {name}="{value}"' if "$" in str(value) else f"export {name}={shlex.quote(str(value))}")


if __name__ == "__main__":
    main()
