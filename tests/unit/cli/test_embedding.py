"""``quantize --embedding``: token ids from a file to a model whose table is public, or secret."""

from pathlib import Path

import numpy as np
import pytest

import secure_quant as sq
from secure_quant_cli.main import main

OWNER = """
from torch import nn

def build():
    return nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(12, 2))
"""


def test_ids_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    ids = np.random.default_rng(0).integers(0, 20, (32, 3))
    np.savez(tmp_path / "ids.npz", x=ids)
    build, model = f"{tmp_path / 'owner.py'}:build", tmp_path / "model.sq"
    command = ["quantize", build, "--calibration", str(tmp_path / "ids.npz"), "--out", str(model)]
    assert main(command) == 2
    assert 'embedding="client"' in capsys.readouterr().err
    assert not model.exists()
    assert main([*command, "--embedding", "client"]) == 0
    graph = sq.load(model)
    assert [port.rows for port in graph.input_ports] == [20]
    assert sq.reference.run(graph, ids).shape == (32, 2)
    assert main(["inspect", str(model)]) == 0
    assert "input int64[3] of 20 public rows" in capsys.readouterr().out
    verify = ["verify", str(model), "--input", str(tmp_path / "ids.npz"), "--float", build]
    assert main(verify) == 0
    assert "bit-exact: yes" in capsys.readouterr().out
    assert main([*command, "--embedding", "private"]) == 0
    assert main(["inspect", str(model)]) == 0
    told = capsys.readouterr().out
    assert "input int64[3] of 20 secret rows" in told
    assert "quantize with embedding" in told  # what other engines say in place of a plan
    assert main(verify) == 0
    assert "bit-exact: yes" in capsys.readouterr().out
