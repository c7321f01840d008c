"""The owner's tools in surroundings of other people's choosing."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from secure_quant.ir import artifact
from secure_quant_cli.console import plain_where_needed, table


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("ascii", "  ----  --------"), ("cp1252", "  ----  --------"), ("utf-8", "  ────  ────────")],
)
def test_tables_in_any_encoding(monkeypatch, encoding, line):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    plain_where_needed()
    print(table(("name", "range"), [("a", "−1 … 2"), ("b", "≤ 5")]))
    sys.stdout.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert lines[1][: len(line)] == line[: len(lines[1])]
    assert len({len(text) for text in lines[:2]}) == 1


def test_streams_that_cannot_be_set_are_left(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    plain_where_needed()


MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("owner")
    (made / "model.py").write_text(MODEL)
    np.savez(made / "x.npz", x=np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32))
    return made


def run(folder, *arguments, python=(), **variables):
    command = [sys.executable, *python, "-m", "secure_quant_cli", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "LC_ALL")}
    return subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, timeout=600,
        check=False,
    )  # fmt: skip


SURROUNDINGS = [
    ((), {"PYTHONIOENCODING": "cp1252"}),
    ((), {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    (("-O", "-W", "error"), {"PYTHONDONTWRITEBYTECODE": "1"}),
    ((), {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "0"}),
]


@pytest.mark.parametrize(("python", "variables"), SURROUNDINGS, ids=["cp1252", "posix", "O", "omp"])
def test_quantize_inspect_and_verify(folder, python, variables):
    steps = [
        ["quantize", "model.py:build", "--calibration", "x.npz", "--out", "model.sq"],
        ["inspect", "model.sq"],
        ["verify", "model.sq", "--input", "x.npz", "--float", "model.py:build", "--engines",
         "reference"],
    ]  # fmt: skip
    for step in steps:
        done = run(folder, *step, python=python, **variables)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        assert done.stdout
    assert artifact.decode((folder / "model.sq").read_bytes()).input.shape == (8,)
