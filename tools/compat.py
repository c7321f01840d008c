#!/usr/bin/env python3
"""Do we live with others? Installs our wheel beside them, at both ends of our ranges, and uses it.

Each case is a fresh environment under .compat/: an interpreter, a neighbour (or none), an end.
"highest" is what pip takes; "lowest" pins everything in our pyproject.toml to the oldest version
that our ranges, the neighbour's own and the interpreter's wheels allow. In it tools/compat_smoke.py
imports both, compares the reference, a homomorphic server that traces and a gateway before it with
an independent computation, and the case "roles" runs the whole demonstration with torch, numba and
CrypTen.

    python tools/compat.py [--only TEXT]... [--python PATH]... [--keep] [--list]

The first interpreter runs every case; others leave the neighbours' lowest end out. PIP_FIND_LINKS
or PIP_EXTRA_INDEX_URL may give torch's CPU build; else the cases "roles" take gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".compat"
ENDS = ("highest", "lowest")
MINORS = (11, 12, 13)
TIMEOUT_SECONDS = 1800

# Neighbour -> what to install beside us, and what of it to import.
NEIGHBOURS = {
    "alone": ([], []),
    "flwr": (["flwr"], ["flwr", "flwr.client", "flwr.server"]),
    "kserve": (["kserve"], ["kserve"]),
    "tritonclient": (["tritonclient[grpc,http]"], ["tritonclient.grpc", "tritonclient.http"]),
    "ray": (["ray[serve]"], ["ray", "ray.serve"]),
    "transformers": (["transformers"], ["transformers"]),
    "roles": ([], []),
}
FAMILY = "opentelemetry-"
"""Begins the names of packages that are released together and pin each other."""
LIGHT = ("he", "server", "gateway", "onnx", "report", "traces", "budgets")
ALL = (*LIGHT, "quantize", "mpc", "demo")


@dataclass(frozen=True)
class Case:
    """One environment."""

    python: Path
    minor: int
    neighbour: str
    end: str

    @property
    def name(self) -> str:
        return f"3.{self.minor}-{self.neighbour}-{self.end}"

    @property
    def extras(self) -> tuple[str, ...]:
        return ALL if self.neighbour == "roles" else LIGHT


def interpreters(given: list[Path]) -> dict[int, Path]:
    """Minor version -> interpreter: those given, or what PATH and pyenv have."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[int, Path] = {}
    for path in given or [
        Path(sys.executable),
        *(Path(at) for minor in MINORS if (at := shutil.which(f"python3.{minor}"))),
        *(at for minor in MINORS for at in sorted(pyenv.glob(f"3.{minor}.*/bin/python"))),
    ]:
        code = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run((path, "-c", code), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            if major == 3 and minor in MINORS:
                found.setdefault(minor, path)
        elif given:
            raise SystemExit(f"{path}: not an interpreter")
    return found


def cases(found: dict[int, Path]) -> list[Case]:
    """Every case that these interpreters can run."""
    first = next(iter(found))
    return [
        Case(python, minor, neighbour, end)
        for minor, python in found.items() for neighbour in NEIGHBOURS for end in ENDS
        if minor == first or end == "highest" or neighbour in ("alone", "roles")
    ]  # fmt: skip


def run(log: Path, *command: str | Path) -> str:
    """stdout; stdout and stderr go to ``log`` too. Raises CalledProcessError."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False,
        cwd=log.parent, timeout=TIMEOUT_SECONDS, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}\n")
    done.check_returncode()
    return done.stdout


def build(log: Path) -> Path:
    """Our wheel, from a clean build folder, since setuptools keeps what was deleted."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    shutil.rmtree(PLACE / "wheel", ignore_errors=True)
    run(log, sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", PLACE / "wheel", ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    (wheel,) = (PLACE / "wheel").glob("*.whl")
    return wheel


def our_ranges(extras: tuple[str, ...]) -> dict[str, SpecifierSet]:
    """Canonical name -> range, of the core and these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    ranges: dict[str, SpecifierSet] = {}
    for one in map(Requirement, lines):
        name = canonicalize_name(one.name)
        ranges[name] = ranges.get(name, SpecifierSet()) & one.specifier
    return ranges


def lowest(case: Case, pip: list[str | Path], wanted: list[str], log: Path) -> dict[str, str]:
    """Name -> the oldest version that we, everybody else in the environment and wheels allow."""
    ranges = our_ranges(case.extras)
    report = log.with_suffix(".json")
    run(log, *pip, "install", "--dry-run", "--report", report, *wanted)
    for each in json.loads(report.read_text())["install"]:
        metadata = each["metadata"]
        name = canonicalize_name(metadata["name"])
        if name == "secure-quant" or name in ranges or name.startswith(FAMILY):
            continue  # what ours ask of one another moves with their versions
        for line in metadata.get("requires_dist", []):
            one = Requirement(line)
            extras = each.get("requested_extras") or [""]
            applies = one.marker is None or any(
                one.marker.evaluate({"extra": extra, "python_version": f"3.{case.minor}"})
                for extra in extras
            )
            if applies and canonicalize_name(one.name) in ranges:
                ranges[canonicalize_name(one.name)] &= one.specifier
    pins = {}
    for name, allowed in ranges.items():
        said = run(log, *pip, "index", "versions", "--only-binary=:all:", name)
        known = re.search(r"^Available versions: (.+)$", said, re.MULTILINE)
        fitting = allowed.filter(known.group(1).split(", ") if known else [])
        pins[name] = Version(str(min(fitting, key=lambda v: Version(str(v))))).public
    return pins


def check(case: Case, wheel: Path, keep: bool) -> str:
    """What was installed, in a line. Raises CalledProcessError, TimeoutExpired."""
    place, log = PLACE / "env" / case.name, PLACE / "log" / f"{case.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    run(log, case.python, "-m", "venv", place)
    python = place / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    packages, modules = NEIGHBOURS[case.neighbour]
    wanted = [f"secure-quant[{','.join(case.extras)}] @ {wheel.as_uri()}", *packages]
    pins = lowest(case, pip, wanted, log) if case.end == "lowest" else {}
    constraints = log.with_suffix(".txt")
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    run(log, *pip, "install", "--prefer-binary", "-c", constraints, *wanted)
    run(log, *pip, "check")
    smoke = (python, "-I", ROOT / "tools" / "compat_smoke.py", ROOT / "tests" / "vectors")
    shown = run(log, *smoke, *modules).splitlines()
    if case.neighbour == "roles":
        command = place / "bin" / "secure-quant"
        run(log, command, "add-crypten")
        run(log, command, "demo", "--images", "3", "--work", place / "demo")
        shown[-2] = run(log, *pip, "list", "--format", "json")
    if not keep:
        shutil.rmtree(place)
    return versions(shown[-2], case)


def versions(text: str, case: Case) -> str:
    """``name version`` of what ranges speak of, from the smoke's or pip's JSON."""
    found = json.loads(text)
    if isinstance(found, list):
        found = {canonicalize_name(each["name"]): each["version"] for each in found}
    names = sorted(our_ranges(case.extras).keys() & found.keys())
    return ", ".join(f"{name} {found[name]}" for name in names)


def main() -> int:
    """Exit status: the number of cases that failed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", action="append", default=[], help="cases with this in their name")
    add("--python", action="append", type=Path, default=[], help="an interpreter")
    add("--keep", action="store_true", help="keep the environments")
    add("--list", action="store_true", help="name the cases and stop")
    arguments = parser.parse_args()
    found = interpreters(arguments.python)
    wanted = arguments.only or [""]
    chosen = [case for case in cases(found) if any(text in case.name for text in wanted)]
    if arguments.list or not chosen:
        print(*(case.name for case in chosen), sep="\n")
        return 0 if chosen else 1
    for minor in sorted(set(MINORS) - found.keys()):
        print(f"no Python 3.{minor} here: not run")
    PLACE.mkdir(exist_ok=True)
    wheel, failed = build(PLACE / "build.log"), 0
    for case in chosen:
        start = time.monotonic()
        try:
            said = f"ok      {check(case, wheel, arguments.keep)}"
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed += 1
            last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            said = f"FAILED  {' '.join(map(str, last))} (.compat/log/{case.name}.log)"
        print(f"{case.name:28} {time.monotonic() - start:5.0f} s  {said}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} cases passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
