"""The documentation: pages have places, errors ways out, and what is generated is current."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secure_quant import errors

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TROUBLE = (DOCS / "troubleshooting.md").read_text()


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def in_nav(entries: list[Any]) -> list[str]:
    found = []
    for entry in entries:
        for target in entry.values():
            found += in_nav(target) if isinstance(target, list) else [target]
    return found


def test_every_page_is_in_the_menu_once() -> None:
    listed = in_nav(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    pages = set(tool("stage_site").pages().values())
    decisions = {page for page in pages if re.match(r"adr/\d", page)}  # listed on their own page
    assert len(listed) == len(set(listed))
    assert set(listed) == pages - decisions, "the menu stands in zensical.toml"


def test_links_follow_to_the_site(tmp_path: Path) -> None:
    stage = tool("stage_site").Stage(tmp_path)
    stage.write()
    assert stage.broken == []
    assert "(../project/security.md#one-host-" in (tmp_path / "threats.md").read_text().replace(
        "(project", "(../project"
    )
    assert "examples/qat.py" in (tmp_path / "quantization.md").read_text()
    assert (tmp_path / "files" / "examples" / "qat.py").exists()


def test_a_link_into_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tool("stage_site")
    monkeypatch.setattr(module, "text_of", lambda _: "[x](nowhere.md) ```\n[y](no.md)\n```")
    stage = module.Stage(tmp_path)
    stage.write()
    assert any(each.endswith(": nowhere.md") for each in stage.broken)


def test_reference_is_what_the_code_says() -> None:
    for name, text in tool("gen_reference").pages().items():
        assert (DOCS / "reference" / name).read_text() == text, "run make generated"


def test_pictures_are_what_would_be_drawn() -> None:
    module = tool("gen_diagrams")
    for name, flow in module.FLOWS.items():
        path = DOCS / "images" / "flow" / f"{name}.svg"
        assert path.read_text() == module.picture(flow), "run make generated"


def test_performance_is_what_was_measured() -> None:
    module = tool("gen_performance")
    text = module.RESULTS.read_text()
    assert module.PAGE.read_text() == module.page(text), "run make generated"
    for name, drawn in module.plots(text).items():
        shown = re.findall(r"<text [^>]*>([^<]+)<", drawn)
        kept = (module.IMAGES / f"{name}.svg").read_text()
        assert re.findall(r"<text [^>]*>([^<]+)<", kept) == shown, "run make generated"


def test_every_error_has_a_way_out() -> None:
    """Each once, under the heading of its branch."""
    rows: dict[str, str] = {}
    for section in TROUBLE.split("\n### ")[1:]:
        branch = section.partition("\n")[0]
        for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE):
            assert name not in rows
            rows[name] = branch
    kinds = {name: getattr(errors, name) for name in errors.__all__}
    assert set(rows) == set(kinds) - {"SecureQuantError"}
    assert "`SecureQuantError` is the base of all" in TROUBLE
    for name, branch in rows.items():
        assert issubclass(kinds[name], getattr(errors, branch)), name


def test_columns_of_docstrings_become_lists() -> None:
    pytest.importorskip("griffe", reason="needs the extra docs")
    listed = tool("griffe_layout").listed
    assert listed("What.\n\nshape  of\n       it\nscale  of it") == (
        "What.\n\n- `shape`: of\n  it\n- `scale`: of it"
    )
    assert listed("Two words.  And more\n  of it") == "Two words.  And more\n  of it"
