"""The TypeScript client of this checkout, built; and programs of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from patience import ample

FOLDER = Path(__file__).parents[2] / "client" / "web"


def npm(*words: str) -> str:
    """What an npm command printed. Skips where there is no npm."""
    program = shutil.which("npm")
    if program is None:
        pytest.skip("no npm here")
    done = subprocess.run(
        [program, *words], cwd=FOLDER, capture_output=True, text=True, timeout=ample(300)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build() -> None:
    """Packages where there are none yet, then the compiled client and its tests."""
    if not (FOLDER / "node_modules" / ".package-lock.json").is_file():
        npm("ci", "--no-audit", "--no-fund")
    npm("run", "build")


def live(wanted: dict[str, Any], ca: Path) -> dict[str, Any]:
    """``test/live.ts`` in Node, which trusts the authority ``ca``."""
    done = subprocess.run(
        ["node", "dist/test/live.js"], cwd=FOLDER, input=json.dumps(wanted), capture_output=True,
        text=True, timeout=ample(60), env=os.environ | {"NODE_EXTRA_CA_CERTS": str(ca)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
