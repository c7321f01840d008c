#!/usr/bin/env python3
"""pyproject.toml -> constraints.txt: the exact versions of our own environments and images.

pip resolves this distribution with all its extras, for the Python and platform it runs on, and
installs nothing. Versions that stand in constraints.txt stay, where the ranges still allow them;
what is new in pyproject.toml is added and what nothing needs any more is dropped.

    python tools/lock.py              keep what is there
    python tools/lock.py --upgrade    take the newest of everything
    python tools/lock.py --check      exit 1 if constraints.txt is not what would be written
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints.txt"
HEAD = """\
# Exact versions of our own environments and images. What others may install: pyproject.toml.
# Written by tools/lock.py (make lock) on Linux x86-64, Python 3.11; 3.12 and 3.13 have wheels too.
"""


def resolved(upgrade: bool) -> dict[str, str]:
    """Name -> version of everything that ``.[dev]`` installs."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), f"{ROOT}[dev]"]
        if LOCK.exists() and not upgrade:
            command += ["--constraint", str(LOCK)]
        subprocess.run(command, check=True, cwd=scratch)
        found = json.loads(report.read_text())["install"]
    pins = {each["metadata"]["name"].lower().replace("_", "-"): each["metadata"]["version"]
            for each in found if each["metadata"]["name"] != "secure-quant"}  # fmt: skip
    # Which build of torch is the installer's choice (PIP_EXTRA_INDEX_URL), not the lock's; what a
    # CUDA build brings along it pins itself.
    pins["torch"] = pins["torch"].partition("+")[0]
    return {name: version for name, version in sorted(pins.items())
            if not name.startswith(("nvidia-", "cuda-", "triton"))}  # fmt: skip


def main() -> int:
    """Exit status: 0, or 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="forget the present versions")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    pins = resolved(arguments.upgrade)
    text = HEAD + "".join(f"{name}=={version}\n" for name, version in pins.items())
    if not arguments.check:
        LOCK.write_text(text)
        return 0
    if not LOCK.exists() or LOCK.read_text() != text:
        print("constraints.txt is not current (run: make lock)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
