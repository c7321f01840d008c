"""docs/troubleshooting.md: each command that it shows fails with the message that it shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secure_quant as sq
from secure_quant_cli.main import main

TROUBLE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()
TOLD = re.compile(r"<!-- told -->\n```console\n\$ (.+)\nsecure-quant: (.+)\n```")
MODEL = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

class Odd(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x.reshape(-1, 2, 4)).S

def odd():
    return Odd()
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page's commands name."""
    from secure_quant.transport.certs import make_all
    from secure_quant_cli.split import split_for, write_bundles

    folder = tmp_path_factory.mktemp("bench")
    (folder / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    np.savez(folder / "wide.npz", x=np.zeros((3, 9), np.float32))
    np.savez(folder / "nan.npz", x=np.full((3, 8), np.nan, np.float32))
    np.savez(folder / "two.npz", a=x, b=x)
    names: dict[str, Any] = {}
    exec(MODEL, names)  # noqa: S102
    graph = sq.quantize(names["build"]().eval(), x)
    sq.save(graph, folder / "model.sq")
    sq.save(sq.quantize(names["build"]().eval(), x, mode="dynamic"), folder / "dynamic.sq")
    whole = bytearray((folder / "model.sq").read_bytes())
    (folder / "short.sq").write_bytes(whole[:500])
    whole[-5] ^= 1
    (folder / "changed.sq").write_bytes(whole)
    write_bundles(split_for(graph, "he"), folder / "he")
    make_all(folder / "certs")
    return folder


def test_there_are_messages_to_hold_to() -> None:
    assert len(TOLD.findall(TROUBLE)) == TROUBLE.count("<!-- told -->") >= 12


@pytest.mark.parametrize(("command", "message"), TOLD.findall(TROUBLE))
def test_errors_are_told_as_the_page_says(
    command: str, message: str, bench: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    shutil.copytree(bench, work)
    monkeypatch.chdir(work)
    words = shlex.split(command)[1:]
    if words[0] == "serve":  # which takes over the log of its process
        done = subprocess.run(
            [sys.executable, "-m", "secure_quant_cli", *words], capture_output=True, text=True
        )
        code, said = done.returncode, done.stderr
    else:
        code, said = main(words), capsys.readouterr().err
    assert code in (1, 2)
    told = said.splitlines()[-1]
    assert told.startswith("secure-quant: ")
    assert message in told
