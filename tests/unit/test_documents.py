"""Links in the documents lead somewhere, and their commands are ones that exist."""

import re
import shlex
from pathlib import Path

import pytest

from secure_quant_cli.main import build_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "bench/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def commands(path: Path) -> list[str]:
    """The secure-quant commands in the shell blocks, one line each."""
    found = []
    for block in SHELL.findall(path.read_text()):
        for whole in block.replace("\\\n", " ").splitlines():
            line = whole.removesuffix(" &")
            words = shlex.split(line, comments=True)
            if words[:1] == ["secure-quant"]:
                found.append(line)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_exist(path: Path) -> None:
    for line in commands(path):
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_readme_shows_every_command_of_an_owner() -> None:
    shown = {shlex.split(line)[1] for line in commands(ROOT / "README.md")}
    assert {"quantize", "inspect", "verify", "split", "certs", "serve", "infer"} <= shown


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readmes_make_targets_exist(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_decisions_are_listed() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text()
    pages = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert pages
    assert [page.name for page in pages if page.name not in listed] == []
