"""Inputs of models from files, by the names that the file has, in any order, of any type."""

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from unit.quantizer.nets import relative_error

from secure_quant import reference
from secure_quant.errors import CalibrationError
from secure_quant.quantizer import quantize
from secure_quant_cli.main import main

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 20, (64, 5), generator=GENERATOR)
ROW = torch.randn(64, 4, generator=GENERATOR)
GIVEN = {"row": ROW, "ids": IDS}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.fc, self.row = nn.Embedding(20, 8), nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, ids, row):
        return self.fc(self.words(ids).mean(1)) - self.row(row)


def onnx_of(module, inputs, names):
    made = io.BytesIO()
    torch.onnx.export(module.eval(), inputs, made, dynamo=False, input_names=names)
    return onnx.load_from_string(made.getvalue())


EXAMPLE = IDS[:2], ROW[:2]
FILES = {
    "onnx": lambda: onnx_of(Words(), EXAMPLE, ["ids", "row"]),
    "exported": lambda: torch.export.export(Words(), EXAMPLE),
    "traced": lambda: torch.jit.trace(Words(), EXAMPLE),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["onnx", *(pytest.param(k, marks=pytest.mark.heavy) for k in ("exported", "traced"))]
)
def test_inputs_by_name_and_in_order(kind):
    model = FILES[kind]()
    want = Words()(IDS, ROW).detach().numpy()
    for data in (GIVEN, (IDS, ROW)):
        graph = quantize(model, data, embedding="client")
        assert relative_error(reference.run(graph, GIVEN)["output"], want) < 0.04
    with pytest.raises(CalibrationError, match=r"of ids, row.*'row' is missing"):
        quantize(model, {"ids": IDS}, embedding="client")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_and_its_data_on_the_command_line(tmp_path, capsys):
    onnx.save(FILES["onnx"](), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **{name: x.numpy() for name, x in GIVEN.items()})
    command = ["quantize", f"{tmp_path}/m.onnx", "--calibration", f"{tmp_path}/d.npz"]
    assert main([*command, "--embedding", "client", "--out", f"{tmp_path}/m.sq"]) == 0
    command = ["verify", f"{tmp_path}/m.sq", "--input", f"{tmp_path}/d.npz", "--limit", "4"]
    assert main([*command, "--engines", "onnx", "--float", f"{tmp_path}/m.onnx"]) == 0
    assert "bit-exact: yes" in capsys.readouterr().out


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.fc = kind(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.layer(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.heavy
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_that_begin_at_zero_for_any_batch(kind):
    """As torch writes them: an expansion to the number of samples."""
    model, x = Recurrent(kind), torch.randn(64, 5, 4, generator=GENERATOR)
    graph = quantize(onnx_of(model, (x[:1],), ["x"]), x)
    assert relative_error(reference.run(graph, x.numpy()), model(x).detach().numpy()) < 0.04


def written(kind, inputs, nodes, constants):
    """An ONNX model of inputs (name, type, shape) and one output "y"."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, of, ["n", *shape]) for name, of, shape in inputs],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def test_a_model_in_half_precision():
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    half = TensorProto.FLOAT16
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = quantize(written(half, [("x", half, [4])], [node], {"w": weight}), ROW)
    want = ROW.numpy() @ weight.astype(np.float32)
    assert relative_error(reference.run(graph, ROW.numpy()), want) < 0.02


def test_an_input_that_is_true_or_false():
    real = TensorProto.FLOAT
    node = helper.make_node("Where", ["kept", "x", "zero"], ["y"])
    inputs = [("kept", TensorProto.BOOL, [4]), ("x", real, [4])]
    kept = torch.rand(64, 4, generator=GENERATOR) > 0.5
    model = written(real, inputs, [node], {"zero": np.float32(0)})
    graph = quantize(model, {"x": ROW, "kept": kept})
    made = reference.run(graph, {"x": ROW, "kept": kept})["output"]
    assert relative_error(made, (ROW * kept).numpy()) < 0.02
