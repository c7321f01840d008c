"""The owner's own file: what it raises is one line with its place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import secure_quant as sq
from secure_quant.errors import ConfigError
from secure_quant.quantizer import zoo
from secure_quant_cli.main import main
from secure_quant_cli.owner_code import build_model, owner_model


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


class TestFiles:
    """Models and parameters that no owner's code makes."""

    def test_a_model_file_is_quantized_and_verified(self, tmp_path: Path, capsys) -> None:
        torch.manual_seed(0)
        module, x = zoo.mlp().eval(), np.random.default_rng(0).normal(size=(32, 64))
        np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
        torch.export.save(
            torch.export.export(module, (torch.zeros(1, 64),)), tmp_path / "model.pt2"
        )
        made, data = str(tmp_path / "model.sq"), str(tmp_path / "x.npz")
        command = ["quantize", str(tmp_path / "model.pt2"), "--calibration", data, "--out", made]
        assert main(command) == 0
        np.testing.assert_array_equal(
            sq.reference.run(sq.load(made), x[:4]), sq.reference.run(sq.quantize(module, x), x[:4])
        )
        command = ["verify", made, "--input", data, "--engines", "reference", "--json"]
        capsys.readouterr()
        assert main([*command, "--float", str(tmp_path / "model.pt2"), "--limit", "4"]) == 0
        assert 0 < json.loads(capsys.readouterr().out)["float_error_max"] < 0.1

    def test_an_input_of_a_file_that_is_called_y_is_no_label(self, tmp_path: Path, capsys) -> None:
        class Sum(torch.nn.Module):
            def forward(self, x, y):
                return x[:, :4] + y

        rng = np.random.default_rng(0)
        arrays = {"x": rng.normal(size=(16, 8)), "y": rng.normal(size=(16, 4))}
        np.savez(tmp_path / "xy.npz", **arrays)
        np.savez(tmp_path / "x.npz", x=arrays["x"])
        example = (torch.zeros(2, 8), torch.zeros(2, 4))
        torch.export.save(torch.export.export(Sum(), example), tmp_path / "m.pt2")
        command = ["quantize", str(tmp_path / "m.pt2"), "--out", str(tmp_path / "m.sq")]
        assert main([*command, "--calibration", str(tmp_path / "xy.npz")]) == 0
        made = sq.reference.run(sq.load(tmp_path / "m.sq"), arrays)["output"]
        assert np.abs(made - arrays["x"][:, :4] - arrays["y"]).max() < 0.1
        assert main([*command, "--calibration", str(tmp_path / "x.npz")]) == 2
        assert "expected x, y" in capsys.readouterr().err

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_weights_go_into_what_the_factory_makes(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / "m.py").write_text(
            "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n"
        )
        state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        path = tmp_path / f"w{suffix}"
        if suffix == ".pt":
            torch.save({"state_dict": state, "epoch": 3}, path)
        else:
            save_file(state, path)
        data = np.zeros((2, 3), np.float32)
        model = owner_model(f"{tmp_path}/m.py:build", path, data)
        assert torch.equal(model.weight, state["weight"])
        state["weight"] = torch.ones(2, 4)
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ConfigError, match=r"other\.pt.*size mismatch"):
            owner_model(f"{tmp_path}/m.py:build", tmp_path / "other.pt", data)

    @pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
    def test_weights_under_the_name_of_a_wrapper(self, tmp_path: Path, wrapper: str) -> None:
        (tmp_path / "m.py").write_text(
            "from torch import nn\nMODEL = nn.Linear(3, 2)\ndef build():\n    return MODEL\n"
        )
        state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        torch.save({wrapper + name: value for name, value in state.items()}, tmp_path / "w.pt")
        for name in ("build", "MODEL"):  # a module is taken as what makes one
            model = owner_model(f"{tmp_path}/m.py:{name}", tmp_path / "w.pt", np.zeros((2, 3)))
            assert torch.equal(model.weight, state["weight"])

    def test_a_module_that_was_saved_whole_is_no_state_dict(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_text(
            "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n"
        )
        torch.save(torch.nn.Linear(3, 2), tmp_path / "whole.pt")
        torch.save(torch.zeros(2), tmp_path / "lone.pt")
        for name, says in (("whole", r"no tensors.*model\.state_dict\(\)"), ("lone", "Tensor")):
            with pytest.raises(ConfigError, match=says):
                owner_model(f"{tmp_path}/m.py:build", tmp_path / f"{name}.pt", np.zeros((2, 3)))

    def test_weights_are_never_executed(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_text(
            "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n"
        )
        torch.save({"weight": Path("harmless")}, tmp_path / "w.pt")  # an object, so pickled
        with pytest.raises(ConfigError, match=r"w\.pt"):
            owner_model(f"{tmp_path}/m.py:build", tmp_path / "w.pt", np.zeros((2, 3)))

    @pytest.mark.parametrize(
        ("model", "weights", "says"),
        [("none.onnx", None, "no such file"), ("m.pt2", "w.pt", "--weights"),
         ("m.sq", None, "quantized already"), ("w.pt", None, "--weights loads"),
         ("m.py:build", "w.txt", r"w\.txt"), ("m.py:build", "none.pt", "no such file")],
    )  # fmt: skip
    def test_misuse_is_named(self, tmp_path: Path, model, weights, says) -> None:
        (tmp_path / "m.py").write_text(
            "from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n"
        )
        (tmp_path / "m.pt2").write_bytes(b"")
        given = None if weights is None else tmp_path / weights
        with pytest.raises(ConfigError, match=says):
            owner_model(f"{tmp_path}/{model}", given, np.zeros((2, 3), np.float32))
