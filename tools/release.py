#!/usr/bin/env python3
"""A commit -> dist/: sdist, wheel, checksums and a bill of materials, the same bytes in every run.

python tools/release.py [--out dist] [--commit HEAD]

The commit's files are built, never the working tree. Times in the archives are the commit's
(SOURCE_DATE_EPOCH); setuptools is the one of this environment, which constraints.txt pins.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"dev", "docs", "realweights"}
"""Extras of which nothing runs where we are installed."""
CRYPTEN = re.compile(r'^VERSION = "(.+)"$', re.MULTILINE)


def export(commit: str, folder: Path) -> int:
    """The commit's files into ``folder``; the time of the commit, in seconds."""
    git = ["git", "-C", str(ROOT), "-c", "tar.umask=0022"]
    archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    when = [*git, "log", "-1", "--format=%ct", commit]
    return int(subprocess.run(when, check=True, capture_output=True, text=True).stdout)


def build(tree: Path, out: Path, epoch: int) -> list[Path]:
    """sdist and wheel of ``tree``, in ``out``."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    (sdist,) = out.glob("*.tar.gz")
    _normalize(sdist, epoch)
    return sorted(out.glob("*.tar.gz")) + sorted(out.glob("*.whl"))


def _normalize(path: Path, epoch: int) -> None:
    """The same entries in order, of nobody, at one time: setuptools writes those of the builder."""
    with tarfile.open(path) as old:
        members = [(each, old.extractfile(each)) for each in old.getmembers()]
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
            for member, data in sorted(members, key=lambda each: each[0].name):
                made = tarfile.TarInfo(member.name)
                made.type, made.size, made.mtime = member.type, member.size, epoch
                made.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                new.addfile(made, data)
    with path.open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def shipped(tree: Path) -> list[str]:
    """``name==version`` of all that our extras bring, as constraints.txt pins it."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    lines = (tree / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    waiting = [Requirement(line) for line in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        if extra not in TOOLS:
            waiting += map(Requirement, needs)
    found: set[str] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in found or name not in pins:
            continue  # known, or not of this platform
        found.add(name)
        try:
            further = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed here: run make setup") from None
        for each in further:
            extras = need.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(each)
    text = (tree / "cli" / "secure_quant_cli" / "add_crypten.py").read_text()
    (crypten,) = CRYPTEN.findall(text)
    return sorted([*(f"{name}=={pins[name]}" for name in found), f"crypten=={crypten}"])


def bill(tree: Path, out: Path) -> Path:
    """A CycloneDX bill of what runs with us, all extras included."""
    listed = out / "shipped.txt"
    listed.write_text("\n".join(shipped(tree)) + "\n")
    (wheel,) = out.glob("*.whl")
    path = out / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    program = [sys.executable, "-m", "cyclonedx_py", "requirements", str(listed)]
    options = ["--output-reproducible", "--output-format", "JSON", "--output-file", str(path)]
    main = ["--pyproject", str(tree / "pyproject.toml"), "--mc-type", "library"]
    subprocess.run([*program, *main, *options], check=True, stderr=subprocess.DEVNULL)
    listed.unlink()
    return path


def checksums(paths: list[Path], out: Path) -> Path:
    """SHA256SUMS, as `sha256sum --check` reads it."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    made = out / "SHA256SUMS"
    made.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
    return made


def main() -> None:
    """Build into the folder, which must be empty or not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--commit", default="HEAD")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        sys.exit(f"{arguments.out} is not empty")
    os.umask(0o022)  # modes of files stand in the archives
    with tempfile.TemporaryDirectory() as scratch:
        tree, made = Path(scratch, "tree"), Path(scratch, "made")
        made.mkdir()
        epoch = export(arguments.commit, tree)
        paths = [*build(tree, made, epoch), bill(tree, made)]
        checksums(paths, made)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(made.iterdir()):
            shutil.copy(path, arguments.out)
    print((arguments.out / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
