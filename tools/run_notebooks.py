#!/usr/bin/env python3
"""Run the notebooks of examples/notebooks and keep what they print in them.

python tools/run_notebooks.py [NOTEBOOK ...]

Their cells are plain Python, without a kernel's own commands, so that running them in order in one
namespace is all that a kernel does; only what is printed is kept.
"""

from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"


def run(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of this run. Raises what a cell raises."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        source = "".join(cell["source"])
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, f"{path.name}[{count}]", "exec"), names)  # noqa: S102 - our own
        text = printed.getvalue()
        cell["execution_count"] = count
        cell["outputs"] = [_stream(text)] if text else []
    return notebook


def _stream(text: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}


def main() -> None:
    """Run each and write it anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebook", nargs="*", type=Path)
    for path in parser.parse_args().notebook or sorted(FOLDER.glob("*.ipynb")):
        text = json.dumps(run(path), indent=1, ensure_ascii=False)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
