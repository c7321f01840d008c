"""Prometheus' own tool reads the rules, and finds that they say what their tests say."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"


@pytest.mark.parametrize(
    "words",
    [("check", "rules", "rules.yaml"), ("check", "config", "prometheus.yaml"),
     ("test", "rules", "rules_test.yaml")],
    ids=" ".join,
)  # fmt: skip
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool here")
    done = subprocess.run([program, *words], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
