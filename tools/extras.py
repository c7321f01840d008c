#!/usr/bin/env python3
"""Print the requirements of this distribution with some extras, one a line: what an image installs
before it has the source, so that a change of the source leaves that layer as it is.

python tools/extras.py he server > requirements.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extras: list[str]) -> list[str]:
    """The core's and those of ``extras``, sorted. Raises KeyError for an unknown extra."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    lines = set(project["dependencies"])
    for extra in extras:
        lines.update(project["optional-dependencies"][extra])
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
