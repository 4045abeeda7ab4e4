#!/usr/bin/env python3
"""Makes what stands in for CUDA's toolkit and libraries, so that the feature `cuda` builds, and its tests run, where there are none.

    python3 tools/cuda_stand_in.py DIR      # writes DIR, and prints what the environment needs: eval "$(...)"

It compiles no CUDA: candle's own kernels become empty. Its libcuda says that there is no device, so what is tested is the host's code, errors, and
tensors on the CPU in the same binary. Needs a C compiler. The libraries' symbols are those in tools/cuda/symbols.txt.
"""

import argparse
import pathlib
import shlex
import subprocess
import tempfile

SYMBOLS = pathlib.Path(__file__).parent / "cuda/symbols.txt"

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dir", type=pathlib.Path)
    root = parser.parse_args().dir.resolve()
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    nvcc = root / "bin/nvcc"
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    (root / "include/cuda.h").write_text("#define CUDA_VERSION 13000\n")
    with tempfile.TemporaryDirectory() as scratch:
        for library, names in libraries().items():
            driver = library.startswith("libcuda.")
            own = {"cuGetErrorString", "cuGetErrorName"} if driver else set()
            code = pathlib.Path(scratch) / "stub.c"
            code.write_text((SAID if driver else "") + "".join(
                f"int {name}(void) {{ return {100 if driver else 1}; }}\n" for name in names if name not in own))
            out = root / "lib64" / library
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-nostdlib", f"-Wl,-soname,{library}", "-o", out, code], check=True)
            plain = root / "lib64" / (library.split(".so")[0] + ".so")
            plain.unlink(missing_ok=True)
            plain.symlink_to(library)
    for name, value in {
        "NVCC": nvcc, "CUDA_HOME": root, "CUDA_PATH": root, "CUDA_COMPUTE_CAP": "90",
        "PATH": f"{root}/bin:$PATH", "LD_LIBRARY_PATH": f"{root}/lib64${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}",
    }.items():
        print(f'export {name}="{value}"' if "$" in str(value) else f"export {name}={shlex.quote(str(value))}")


if __name__ == "__main__":
    main()
