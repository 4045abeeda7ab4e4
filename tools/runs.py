"""What the comparisons of trained models share: recipes in TOML, runs that go on where they were, environments of Python."""

import json
import os
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = pathlib.Path(os.environ.get("MOESAIC", ROOT / "target/release/moesaic"))


def build():
    """Builds the program, unless the variable MOESAIC names another."""
    if "MOESAIC" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--workspace", "--bins"], check=True, cwd=ROOT)


def value_of(value):
    """A value as TOML, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {value_of(of)}" for key, of in value.items()) + " }"
    return "[" + ", ".join(map(value_of, value)) + "]" if isinstance(value, list) else json.dumps(value)


def toml(table, name=""):
    """A table as TOML: plain values first, then tables."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {value_of(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", *toml(value, f"{name}.{key}" if name else key)]
    return lines


def environment(venv, *packages):
    """The Python of a virtual environment with these packages."""
    ready = venv / "ready"
    if not ready.exists() or ready.read_text().split() != list(packages):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", *packages], check=True)
        ready.write_text(" ".join(packages))
    return venv / "bin/python"


def inside(venv, *packages):
    """Goes on in the Python of such an environment: the script starts anew there."""
    python = environment(venv, *packages)
    if pathlib.Path(sys.executable) != python:
        os.execv(python, [python, *sys.argv])
    return python


def train(kind, out, recipe, **changes):
    """The model that `moesaic train KIND` makes of a recipe, in `out` unless it is there; `changes` replace values of the recipe, `plan`
    key by key. A run that was interrupted goes on where it was."""
    config = tomllib.loads(recipe.read_text())
    plan = {**config["plan"], **changes.pop("plan", {})}
    config = {key: value for key, value in {**config, **changes, "plan": plan}.items() if value is not None}
    config["plan"]["out"] = str(out)
    path, text = out.with_suffix(".toml"), "\n".join(toml(config)) + "\n"
    if out.exists() and path.exists() and path.read_text() != text:
        sys.exit(f"{out} was begun by another recipe, {path}: remove it, or name another folder with --out")
    if (out / "model/model.safetensors").exists():
        return out / "model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    command = [PROGRAM, "train", kind, path] + (["--resume"] if any(out.glob("checkpoint-*")) else [])
    with open(out.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(command, env={**os.environ, "CANDLE_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        for line in process.stdout:
            log.write(line)
            log.flush()
            print(f"{out.name}: {line}", end="", flush=True)
        if process.wait():
            sys.exit(f"{out}: training failed; its log is {out.with_suffix('.log')}")
    return out / "model"
