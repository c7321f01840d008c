"""The float model in the commands: its true error, and bounds on it."""

import json
from pathlib import Path

import numpy as np
import pytest

import secure_quant as sq
from secure_quant_cli.main import main

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        h[:, :4].relu_()
        return self.b(h)

class Plain(Net):
    def forward(self, x):
        return self.b(self.a(x))

class Branches(Net):
    def forward(self, x):
        return self.b(self.a(x)) if float(x.sum()) > -1e9 else x[:, :3]

def build():
    return Net()

def plain():
    return Plain()

def branches():
    return Branches()

def coarse():
    model = Plain()
    with torch.no_grad():
        model.a.weight[0] *= 3000
        model.b.weight[:, 0] /= 1e6
    return model
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "m.py").write_text(SOURCE)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(32, 8)))
    return tmp_path


def made(home: Path, factory: str, *options: str) -> int:
    return main([
        "quantize", f"{home}/m.py:{factory}", "--calibration", f"{home}/x.npz", "--out",
        f"{home}/model.sq", *options,
    ])  # fmt: skip


@pytest.mark.parametrize("factory", ["plain", "build", "branches"])
def test_the_error_that_is_shown_is_that_of_the_module_itself(factory, home, capsys) -> None:
    """Also against a module that the graph was not made of, and one that cannot be captured."""
    import torch

    assert made(home, "plain") == 0
    capsys.readouterr()
    command = ["verify", f"{home}/model.sq", "--input", f"{home}/x.npz", "--engines", "reference"]
    assert main([*command, "--float", f"{home}/m.py:{factory}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    space: dict[str, object] = {}
    exec(SOURCE, space)  # noqa: S102  the text above
    x = np.load(home / "x.npz")["x"].astype(np.float32)
    with torch.no_grad():
        want = space[factory]()(torch.from_numpy(x.copy())).numpy()  # type: ignore[operator]
    off = np.abs(sq.reference.run(sq.load(home / "model.sq"), x) - want)
    assert report["float_error_max"] == pytest.approx(off.max(), rel=1e-4)
    assert report["float_error_mean"] == pytest.approx(off.mean(), rel=1e-4)
    assert (report["float_error_max"] > 0.1) == (factory == "build")


def test_a_large_error_writes_no_file(home, capsys) -> None:
    assert made(home, "coarse") == 2
    assert "max_error" in capsys.readouterr().err
    assert not (home / "model.sq").exists()
    assert made(home, "coarse", "--max-error", "inf") == 0
    assert "warning: the integers are off the float model" in capsys.readouterr().err
    assert (home / "model.sq").exists()
    assert made(home, "plain", "--max-error", "1e-6") == 2


@pytest.mark.parametrize("bound", ["0", "-1", "nan"])
def test_bounds_that_are_none(bound, home, capsys) -> None:
    assert made(home, "plain", "--max-error", bound) == 2
    assert "--max-error" in capsys.readouterr().err


@pytest.mark.parametrize("bound", ["1e-6", "0.5"])
def test_leveled_models_have_the_bound_too(bound, home, capsys) -> None:
    (home / "m.py").write_text(
        "from torch import nn\nfrom secure_quant.quantizer.leveled import Square\n"
        "def build():\n    return nn.Sequential(nn.Linear(8, 8), Square(), nn.Linear(8, 2))\n"
    )
    code = made(home, "build", "--mode", "leveled", "--max-error", bound)
    assert code == (2 if bound == "1e-6" else 0)
