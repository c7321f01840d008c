"""The owner's own file: what it raises is one line with its place."""

from pathlib import Path

import pytest

from secure_quant.errors import ConfigError
from secure_quant_cli.main import main
from secure_quant_cli.owner_code import build_model


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def build():\n    raise ValueError('no\\nway')", r"m.py:2: got ValueError: no\nway"),
        ("import nothing_like_this", "m.py:1: got ModuleNotFoundError"),
        ("x = (\n", "m.py:1: got SyntaxError"),
        ("raise SystemExit(0)", "m.py:1: got SystemExit: 0"),
        ("def build(a):\n    pass", "m.py: got TypeError"),
        ("def build():\n    return 3", "got int, expected a torch.nn.Module"),
        ("build = 3", "no callable 'build'"),
    ],
)
def test_what_the_file_does_wrong(code: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(code)
    with pytest.raises(ConfigError) as caught:
        build_model(f"{tmp_path}/m.py:build")
    assert says in str(caught.value)


def test_training_takes_labels_from_the_file(tmp_path: Path) -> None:
    import numpy as np

    import secure_quant as sq

    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Linear(4, 3)\n"
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype(np.float32), rng.integers(0, 3, 32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    command = ["quantize", f"{tmp_path}/m.py:build", "--calibration", f"{tmp_path}/data.npz"]
    assert main([*command, "--out", f"{tmp_path}/m.sq", "--mode", "qat"]) == 0
    assert sq.reference.run(sq.load(tmp_path / "m.sq"), x).shape == (32, 3)
    np.savez(tmp_path / "data.npz", x=x, y=y[:5])
    assert main([*command, "--out", f"{tmp_path}/m.sq", "--mode", "qat"]) == 2
