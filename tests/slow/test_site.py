"""The documentation is built as `make docs` builds it, and what it tells to run is run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from patience import ample

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
RUN = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)
TOOL = ROOT / "tools" / "run_notebooks.py"
BIN = Path(sys.executable).parent


class Loads(HTMLParser):
    """What a browser would fetch for a page by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        key = {"link": "href", "script": "src", "img": "src", "iframe": "src"}.get(tag)
        if key is not None and given.get(key):
            self.found.append(str(given[key]))


@pytest.mark.heavy
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere() -> None:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs the extra docs")
    folder = ROOT / "build"
    lines = re.search(r"^docs: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lines is not None
    script = lines[1].replace("$(BIN)", str(BIN))
    made = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=ample(120)
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "No issues found" in made.stdout + made.stderr
    pages = sorted((folder / "site").rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loads = Loads(page.read_text()).found
        assert loads
        assert [each for each in loads if re.match(r"[a-z]+:|//", each)] == [], page
    python = (folder / "site" / "reference" / "python.html").read_text()
    assert "infer_with_stats" in python


@pytest.mark.heavy
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_print_what_they_hold(path: Path) -> None:
    """But for figures, which another machine may round otherwise; cells assert what must hold."""
    program = (
        "import importlib.util, json, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('run', {str(TOOL)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"made = module.run(pathlib.Path({str(path)!r}))\n"
        "json.dump(made, sys.stdout)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=ample(120)
    )
    assert made.returncode == 0, made.stderr
    assert printed(made.stdout) == printed(path.read_text())


def printed(notebook: str) -> list[str]:
    cells = json.loads(notebook)["cells"]
    texts = ["".join(out["text"]) for cell in cells for out in cell.get("outputs", [])]
    assert texts
    return [re.sub(r"[\d.,]+", "#", text) for text in texts]


@pytest.mark.heavy
def test_the_quickstart_runs(tmp_path: Path) -> None:
    blocks = RUN.findall((ROOT / "docs" / "quickstart.md").read_text())
    assert len(blocks) == 5
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    made = subprocess.run(
        ["bash", "-eu", "-c", "\n".join(blocks)], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=ample(180),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "bit-exact: yes" in made.stdout
    assert "equal: True" in made.stdout
