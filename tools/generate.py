#!/usr/bin/env python3
"""Pages, pictures and manifests that are made of code and of results, and a check of them.

python tools/generate.py                     write all
python tools/generate.py manifests           write those of tools/gen_manifests.py
python tools/generate.py --check [NAME ...]  exit 1 if a committed file is not what would be written

Each ``gen_NAME.py`` has ``made()``, path -> text, and may have ``drawn()``, the same for files
whose bytes depend on the version of a library: they are written, not checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

NAMES = ("settings", "reference", "performance", "diagrams", "monitoring", "manifests")


def generate(name: str) -> None:
    """Write the files of ``gen_NAME.py``."""
    module = importlib.import_module(f"gen_{name}")
    for path, text in (module.made() | getattr(module, "drawn", dict)()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def stale(name: str) -> list[Path]:
    """Committed files that ``gen_NAME.py`` would write otherwise."""
    made = importlib.import_module(f"gen_{name}").made()
    return [path for path, text in made.items() if not path.exists() or path.read_text() != text]


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    args = parser.parse_args()
    for name in args.names or NAMES:
        if name not in NAMES:
            parser.error(f"no generator is called {name}: there are {', '.join(NAMES)}")
        if not args.check:
            generate(name)
        elif old := stale(name):
            sys.exit(f"not what their source says: {', '.join(map(str, old))}: run make generated")


if __name__ == "__main__":
    main()
