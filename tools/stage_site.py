#!/usr/bin/env python3
"""The documents of the repository -> the pages of the site, in one folder, for its generator.

python tools/stage_site.py FOLDER

Documents stay where they are read on their own: in docs/, at the root, in deploy/ and bench/. Here
they come together under the paths of the site; links follow, also those to files that are no pages,
which are copied beside them. A notebook becomes a page of its cells and their stored outputs.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
ALONE = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "README.md": "project/readme.md",
    "RELEASE.md": "project/releasing.md",
    "SECURITY.md": "project/security.md",
    "bench/RESULTS.md": "project/results.md",
}
"""Documents outside docs/ and deploy/."""
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)$", re.DOTALL | re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|#")


def pages() -> dict[str, str]:
    """Path in the repository -> path in the site, of every page."""
    made = dict(ALONE)
    for folder, below in (("docs", ""), ("deploy", "deploy/")):
        for path in sorted((ROOT / folder).rglob("*.md")):
            made[path.relative_to(ROOT).as_posix()] = below + _index(path, ROOT / folder)
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        made[path.relative_to(ROOT).as_posix()] = f"notebooks/{path.stem}.md"
    return made


def _index(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return re.sub(r"(^|/)README\.md$", r"\1index.md", name)


def text_of(path: Path) -> str:
    """Markdown of a document or a notebook."""
    if path.suffix == ".ipynb":
        return "\n\n".join(_cells(json.loads(path.read_text()))) + "\n"
    return path.read_text()


def _cells(notebook: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        outputs = cell.get("outputs")
        for output in outputs if isinstance(outputs, list) else []:
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            if shown:
                yield f"```text\n{_joined(shown).rstrip()}\n```"


def _joined(lines: object) -> str:
    return lines if isinstance(lines, str) else "".join(map(str, lines))  # type: ignore[call-overload]


class Stage:
    """Writes pages and the files that they point to below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages = pages()
        self.broken: list[str] = []
        """``document: link`` of every link into nothing."""

    def write(self) -> None:
        for source, page in self._pages.items():
            text = text_of(ROOT / source)
            parts, end = [], 0
            for fence in FENCE.finditer(text):
                parts += [self._linked(text[end : fence.start()], source, page), fence[0]]
                end = fence.end()
            parts.append(self._linked(text[end:], source, page))
            self._put(page).write_text("".join(parts))

    def _linked(self, text: str, source: str, page: str) -> str:
        def link(found: re.Match[str]) -> str:
            if ELSEWHERE.match(found[2]):
                return found[0]
            target, _, anchor = found[2].partition("#")
            there = self._place(
                posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            )
            if there is None:
                self.broken.append(f"{source}: {found[2]}")
                return found[0]
            relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
            return f"{found[1]}{relative}{'#' if anchor else ''}{anchor}{found[3]}"

        return LINK.sub(link, text)

    def _place(self, target: str) -> str | None:
        """Where the site has a file or folder of the repository; it is copied if it is no page."""
        if target in self._pages:
            return self._pages[target]
        path = ROOT / target
        if path.is_dir():
            return self._pages.get(f"{target}/README.md")
        if not path.is_file():
            return None
        inside = PurePosixPath(target).is_relative_to("docs")
        place = target.removeprefix("docs/") if inside else f"files/{target}"
        if place.endswith((".md", ".html")):
            place += ".txt"  # the generator would make a page of it
        shutil.copyfile(path, self._put(place))
        return place

    def _put(self, place: str) -> Path:
        path = self._folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def main() -> None:
    """Fill the folder, which is emptied before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    if folder.exists():
        shutil.rmtree(folder)
    stage = Stage(folder)
    stage.write()
    if stage.broken:
        sys.exit("links into nothing:\n" + "\n".join(stage.broken))


if __name__ == "__main__":
    main()
