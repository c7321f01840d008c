"""The commands on a leveled model: an error beside its bound, and no claim to be bit-exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secure_quant_cli.engines import leveled
from secure_quant_cli.main import main

OWNER = """
from torch import nn
from secure_quant.quantizer.leveled import Square

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), Square(), nn.Linear(4, 2))

def other():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "owner.py").write_text(OWNER)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(3, 2, 3)))
    return tmp_path


def quantize(folder: Path, factory: str = "build") -> int:
    data, out = str(folder / "x.npz"), str(folder / "m.sq")
    owner = f"{folder / 'owner.py'}:{factory}"
    return main(["quantize", owner, "--mode", "leveled", "--calibration", data, "--out", out])


def test_from_float_to_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(folder) == 0
    assert (folder / "m.sq").stat().st_mode & 0o077 == 0
    capsys.readouterr()
    assert main(["verify", str(folder / "m.sq"), "--input", str(folder / "x.npz"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bit_exact"] is False
    assert 0 < report["error_max"] <= report["error_bound"] < 1e-4
    assert main(["split", str(folder / "m.sq"), "--engine", "he-leveled",
                 "--out", str(folder / "bundles")]) == 0  # fmt: skip
    assert {each.name for each in (folder / "bundles").iterdir()} == {"server.sqb", "client.sqb"}


def test_inspect_says_what_the_plan_promises(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(folder)
    capsys.readouterr()
    assert main(["inspect", str(folder / "m.sq"), "--batch", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["widths"] == [6, 4, 2]
    assert found["bytes_up"] % 3 == 0
    assert found["bytes_down"] % 3 == 0
    assert found["key_bytes_up"] > found["bytes_up"] > found["bytes_down"] > 0
    assert main(["inspect", str(folder / "m.sq")]) == 0
    shown = capsys.readouterr().out
    assert "6 → 4 → 2" in shown
    assert found["hash"] in shown


def test_an_error_above_the_bound_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(folder)
    found = {"error_max": 2e-3, "error_bound": 1e-3, "within_bound": False}
    monkeypatch.setattr(leveled, "_compare", lambda *_: found)
    assert main(["verify", str(folder / "m.sq"), "--input", str(folder / "x.npz")]) == 1
    assert "within bound: NO" in capsys.readouterr().out


def test_what_does_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(folder, "other") == 2
    assert "ReLU" in capsys.readouterr().err
    quantize(folder)
    model, out = str(folder / "m.sq"), str(folder / "bundles")
    assert main(["split", model, "--engine", "he", "--out", out]) == 2
    assert main(["verify", model, "--input", str(folder / "x.npz"), "--engines", "mpc"]) == 2
