"""The browser's client: its own tests, and that what is committed of it is what it generates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.web_client import FOLDER, build, npm

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    build()


def test_its_own_tests_pass() -> None:
    told = npm("test")
    assert "\n# fail 0\n" in told or "ℹ fail 0\n" in told
    assert "\n# pass 0\n" not in told


def test_the_committed_page_is_what_its_source_makes() -> None:
    npm("run", "bundle", "--", "--check")


def test_the_committed_messages_are_those_of_the_protos(tmp_path: Path) -> None:
    buf = shutil.which("buf", path=f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if buf is None:
        pytest.skip("no buf here")
    subprocess.run([buf, "generate", "--output", tmp_path], cwd=FOLDER, check=True)
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.ts")}
    committed = list((FOLDER / "src" / "gen").rglob("*.ts"))
    assert len(made) == len(committed) > 0
    for path in committed:
        assert made[path.relative_to(FOLDER)].read_text() == path.read_text()
