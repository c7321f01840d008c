"""A model of several named inputs and outputs through the commands, to encrypted answers."""

import json
from pathlib import Path

import numpy as np
import pytest

import secure_quant as sq
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.main import main

OWNER = """
import torch
from torch import nn

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.picture, self.row, self.head = nn.Linear(16, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, picture, row, flag):
        h = torch.relu(self.picture(picture.flatten(1)) + self.row(row)) * flag.float()
        return {"scores": self.head(h), "file": h}

build = Both
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("owner")
    (home / "owner.py").write_text(OWNER)
    rng = np.random.default_rng(0)
    data = {
        "picture": rng.random((64, 4, 4), np.float32), "row": rng.normal(size=(64, 3)),
        "flag": rng.integers(0, 2, (64, 1)).astype(bool), "y": rng.integers(0, 4, 64),
    }  # fmt: skip
    np.savez(home / "data.npz", **data)
    np.savez(home / "x.npz", **{name: array[:5] for name, array in data.items()})
    model, build = home / "model.sq", f"{home / 'owner.py'}:build"
    quantize = ["quantize", build, "--calibration", str(home / "data.npz"), "--out", str(model)]
    assert main(quantize) == 0
    for engine in ("mpc", "he"):
        assert main(["split", str(model), "--engine", engine, "--out", str(home / engine)]) == 0
    assert main(["certs", "--out", str(home / "certs")]) == 0
    return home


@pytest.fixture(scope="module")
def cluster(home: Path):
    started = Cluster(home / "certs", home / "logs", {"mpc": home / "mpc", "he": home / "he"})
    with started:
        yield started


def given(home: Path) -> dict[str, np.ndarray]:
    with np.load(home / "x.npz") as arrays:
        return {name: arrays[name] for name in ("picture", "row", "flag")}


@pytest.mark.parametrize("engine", ["mpc", "he"])
def test_infer(engine: str, home: Path, cluster: Cluster, capsys) -> None:
    want = sq.reference.run(sq.load(home / "model.sq"), given(home))
    command = ["infer", "--engine", engine, "--input", str(home / "x.npz")]
    command += ["--target", ",".join(cluster.targets[engine]), "--tls", str(home / "certs")]
    capsys.readouterr()
    assert main([*command, "--json", "--out", str(home / "out.npz")]) == 0
    printed = json.loads(capsys.readouterr().out)["y"]
    with np.load(home / "out.npz") as saved:
        assert sorted(saved.files) == ["file", "scores"]
        for name, value in want.items():
            assert np.array_equal(saved[name], value)
            assert np.array_equal(np.array(printed[name], np.float32), value)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[6], len(lines)] == ["scores:", "file:", 12]


def test_an_input_that_is_missing_is_named(home: Path, cluster: Cluster, capsys) -> None:
    np.savez(home / "part.npz", picture=given(home)["picture"])
    command = ["infer", "--engine", "he", "--input", str(home / "part.npz")]
    command += ["--target", cluster.targets["he"][0], "--tls", str(home / "certs")]
    assert main(command) == 2
    assert "no array 'row'" in capsys.readouterr().err


def test_verify(home: Path, capsys) -> None:
    page = home / "page.html"
    command = ["verify", str(home / "model.sq"), "--input", str(home / "x.npz"), "--json"]
    command += ["--float", f"{home / 'owner.py'}:build", "--html", str(page)]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bit_exact"] is True
    assert set(report["engines"]) == {"mpc", "he", "onehost", "onnx"}
    assert 0 < report["float_error_mean"] < report["float_error_max"] < 0.1
    assert {"accuracy_float", "accuracy_int8"} <= set(report)
    errors = {layer["name"] for layer in report["layers"] if "float_error_max" in layer}
    assert {"input.picture", "output.scores", "output.file"} <= errors
    assert [record["float_error_mean"] < 0.2 for record in report["schemes"]] == [True] * 7
    text = page.read_text()
    assert "Inputs and outputs" in text
    assert all(name in text for name in ("picture", "row", "flag", "scores"))


def test_inspect(home: Path, capsys) -> None:
    assert main(["inspect", str(home / "model.sq")]) == 0
    shown = capsys.readouterr().out
    assert "inputs  picture float32[4, 4], row float32[3], flag bool[1]" in shown
    assert "outputs scores float32[4], file float32[8]" in shown
    assert main(["inspect", str(home / "model.sq"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [port["name"] for port in found["inputs"]] == ["picture", "row", "flag"]
    assert [port["shape"] for port in found["outputs"]] == [[4], [8]]


def test_a_loss_that_does_not_take_two_outputs_is_named(home: Path, capsys) -> None:
    build, data = f"{home / 'owner.py'}:build", str(home / "data.npz")
    command = ["quantize", build, "--calibration", data, "--out", str(home / "qat.sq")]
    assert main([*command, "--mode", "qat"]) == 2
    assert "the loss of a training step" in capsys.readouterr().err


def test_bench(home: Path, capsys) -> None:
    command = ["bench", "--model", str(home / "model.sq"), "--engine", "reference", "--batch", "2"]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mismatches"] == 0
