"""The owner's commands in surroundings of other people's choosing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from patience import ample

from secure_quant.ir import artifact

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
        command, cwd=folder, env=environment | variables, capture_output=True, timeout=ample(600),
        check=False,
    )  # fmt: skip


THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "0"}
POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
SURROUNDINGS = [
    pytest.param((), {"PYTHONIOENCODING": "cp1252"} | THREADS, id="cp1252"),
    pytest.param((), POSIX, id="posix"),
    pytest.param(
        ("-O", "-W", "error"),
        {"PYTHONDONTWRITEBYTECODE": "1"},
        id="O",
        marks=pytest.mark.heavy,  # every import is compiled anew
    ),
]


@pytest.mark.parametrize(("python", "variables"), SURROUNDINGS)
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
