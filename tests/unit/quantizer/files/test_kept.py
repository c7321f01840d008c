"""Models that are quantized already keep their scales: QDQ ONNX against onnxruntime, pt2e against
torch."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn
from torch.nn import functional
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

import secure_quant as sq
from secure_quant import reference
from secure_quant.errors import ConfigError, UnsupportedModule
from secure_quant.interop.qdq_export import to_qdq
from secure_quant.ir import ops
from secure_quant.ir.kept import MOST_STEPS
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.pipeline import converted_model
from secure_quant.quantizer.zoo import mlp

RNG = np.random.default_rng(5)


class Mixed(nn.Module):
    """A join of different grids, uneven steps, a sum, pools, a clamp and a leaky step."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.c = nn.Conv2d(16, 6, 3, stride=2, padding=1)
        self.d = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6 * 16, 7)

    def forward(self, x):
        h = torch.cat([self.a(x).relu(), self.b(x)], 1)
        h = functional.leaky_relu(self.c(functional.max_pool2d(h, 2)), 0.2)
        h = functional.avg_pool2d(h + self.d(h), 1)
        return self.fc(h.flatten(1)).sigmoid()


class Reader(CalibrationDataReader):
    def __init__(self, x):
        self._parts = iter([{"x": part} for part in np.split(x, 4)])

    def get_next(self):
        return next(self._parts, None)


def quantized(module, x, tmp_path, *, per_channel, activation=QuantType.QUInt8, **more):
    """What onnxruntime's static quantizer makes of a torch module."""
    made, source = tmp_path / "q.onnx", io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.from_numpy(x[:1]),), source, input_names=["x"],
            output_names=["y"], dynamo=False, dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    logging.disable(logging.WARNING)
    quantize_static(
        onnx.load_from_string(source.getvalue()), made, Reader(x), quant_format=QuantFormat.QDQ,
        per_channel=per_channel, activation_type=activation, weight_type=QuantType.QInt8, **more,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    return made


def run(model, feed, names=None):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(names, feed)


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    net = Mixed()
    net.d.weight.data *= torch.logspace(-1.5, 0, 6).reshape(-1, 1, 1, 1)
    return net, np.random.default_rng(7).normal(size=(32, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("per_channel", "activation"),
    [(False, QuantType.QInt8), (True, QuantType.QUInt8)],
    ids=["int8, per tensor", "uint8, per channel"],
)  # fmt: skip
def test_onnx_integers_are_onnxruntime_s(tmp_path, mixed, per_channel, activation):
    net, x = mixed
    path = quantized(net, x, tmp_path, per_channel=per_channel, activation=activation)
    graph = sq.quantize(path, x)
    model = onnx.load(path)
    made = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    rounds = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    shift = 128 if activation == QuantType.QUInt8 else 0
    grids = {(float(made[node.input[1]]), int(made[node.input[2]]) - shift) for node in rounds}
    ours = [n for n in graph.nodes if isinstance(n, ops.Input | ops.Requantize)]
    for node in ours:  # scales have seven digits in a graph
        assert any(np.isclose(node.scale, s, rtol=1e-6) and node.zero_point == z for s, z in grids)
    (y,) = run(model, {"x": x})
    step = graph.values[graph.output.name].scale
    off = np.rint((reference.run(graph, x) - y) / step)
    assert np.abs(off).max() <= 1
    assert (off != 0).mean() < 0.25
    if per_channel:  # channels 30 times apart: looked up in parts
        assert any(isinstance(node, ops.Gather) for node in graph.nodes)


def test_one_layer_differs_next_to_halves_alone(tmp_path):
    """From equal integers: onnxruntime's and ours are equal but where the real value is within the
    multiplier's error of a half."""
    torch.manual_seed(0)
    x = np.random.default_rng(6).normal(size=(256, 24)).astype(np.float32)
    path = quantized(nn.Sequential(nn.Linear(24, 40), nn.ReLU()), x, tmp_path, per_channel=False)
    graph, model = sq.quantize(path, x), onnx.load(path)
    (layer,) = (node for node in graph.nodes if isinstance(node, ops.Linear))
    (table,) = (node for node in graph.nodes if isinstance(node, ops.Requantize))
    (y,) = run(model, {"x": x})
    values = reference.trace(graph, reference.quantize_input(graph, x))
    weight = next(
        numpy_helper.to_array(each) for each in model.graph.initializer
        if each.data_type == TensorProto.INT8 and each.dims
    )  # fmt: skip
    assert np.array_equal(np.sort(graph.weight(layer), None), np.sort(weight, None))
    theirs = np.rint(y / table.scale).astype(int) + table.zero_point
    real = theirs_real(model, x) / table.scale + table.zero_point
    differ = values[table.name] != theirs
    from_half = np.abs(real - np.floor(real) - 0.5)
    assert 0 < differ.sum() < differ.size / 20
    assert from_half[differ].max() < MOST_STEPS / 2


def theirs_real(model, x):
    """What the last QuantizeLinear of a model reads."""
    last = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][-1]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(helper.make_empty_tensor_value_info(last.input[0]))
    return run(made, {"x": x}, [last.input[0]])[0]


def test_our_own_qdq_form_comes_back():
    torch.manual_seed(0)
    x = RNG.normal(size=(64, 64)).astype(np.float32)
    first = sq.quantize(mlp(), x)
    again = sq.quantize(to_qdq(first), x)
    for kind in (ops.Input, ops.Requantize):
        pairs = zip(
            *([n for n in g.nodes if isinstance(n, kind)] for g in (first, again)), strict=True
        )
        for a, b in pairs:
            assert (a.scale, a.zero_point) == (pytest.approx(b.scale, rel=1e-6), b.zero_point)
    for name in ("weight", "bias"):
        arrays = [
            [a for key, a in sorted(g.parameters.items()) if key.endswith(name)]
            for g in (first, again)
        ]  # fmt: skip
        for a, b in zip(*arrays, strict=True):
            assert np.array_equal(a, b)
    want, got = reference.run(first, x), reference.run(again, x)
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.02


def test_uneven_padding_is_a_kernel_with_zeros(tmp_path):
    torch.manual_seed(0)
    x = RNG.normal(size=(32, 2, 8, 8)).astype(np.float32)
    path = quantized(nn.Sequential(nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU()), x, tmp_path,
                     per_channel=True)  # fmt: skip
    model = onnx.load(path)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    pads = next(each for each in conv.attribute if each.name == "pads")
    pads.ints[:] = [0, 0, 1, 1]
    graph = sq.quantize(model, x)
    (y,) = run(model, {"x": x})
    assert np.abs(np.rint((reference.run(graph, x) - y) / graph.output.scale)).max() <= 1


def qdq(nodes, constants, shape=(6,)):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


Q, DQ = "QuantizeLinear", "DequantizeLinear"
ONE = {"s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.07),
       "w": RNG.integers(-127, 128, (6, 4)).astype(np.int8), "ws": np.float32(0.01),
       "f": RNG.normal(size=(6, 4)).astype(np.float32), "u": np.uint8(7),
       "a": RNG.integers(0, 256, (6, 4)).astype(np.uint8), "z16": np.int16(0)}  # fmt: skip
node = helper.make_node
REFUSED = {
    "another scale": (
        [node(Q, ["x", "s", "z"], ["q"]), node(DQ, ["q", "t", "z"], ["y"])], "0.07"),
    "int16": ([node(Q, ["x", "s", "z16"], ["q"]), node(DQ, ["q", "s", "z16"], ["y"])], "int16"),
    "integers that something else reads": (
        [node(Q, ["x", "s", "z"], ["q"]), node("Cast", ["q"], ["y"], to=1)], "DequantizeLinear"),
    "float weights": (
        [node(Q, ["x", "s", "z"], ["q"]), node(DQ, ["q", "s", "z"], ["d"]),
         node("MatMul", ["d", "f"], ["y"])], "no|not int8 times a scale"),
    "zero points of weights": (
        [node(Q, ["x", "s", "z"], ["q"]), node(DQ, ["q", "s", "z"], ["d"]),
         node(DQ, ["a", "ws", "u"], ["k"]), node("MatMul", ["d", "k"], ["y"])],
        "not int8 times a scale"),
    "float activations": (
        [node(DQ, ["w", "ws"], ["k"]), node("MatMul", ["x", "k"], ["y"])], "not"),
    "operators on integers": (
        [node("DynamicQuantizeLinear", ["x"], ["q", "d", "e"]), node(DQ, ["q", "d", "e"], ["y"])],
        "QDQ form"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(name):
    nodes, said = REFUSED[name]
    used = {each for n in nodes for each in n.input}
    model = qdq(nodes, {key: value for key, value in ONE.items() if key in used})
    with pytest.raises(UnsupportedModule, match=said):
        sq.quantize(model, RNG.normal(size=(16, 6)).astype(np.float32))


def converted(module, x):
    with quiet():
        program = torch.export.export(
            module.eval(), (x[:3],), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
        )
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
        prepared(x)
        return convert_pt2e(prepared)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(2, 6, 3), nn.Linear(6 * 9, 12), nn.Linear(12, 5)

    def forward(self, x):
        h = functional.max_pool2d(self.conv(x).relu(), 2)
        return self.last(self.fc(h.flatten(1)).relu())


def test_pt2e_models_keep_their_scales(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 2, 8, 8)
    made = converted(Plain(), x)
    with torch.no_grad(), quiet():
        want = made(x).numpy()
        program = torch.export.export(made, (x[:2],))
        torch.export.save(program, tmp_path / "m.pt2")
    scales = [
        float(n.args[1]) for n in made.graph.nodes if "quantize_per_tensor" in str(n.target)
        and "dequantize" not in str(n.target)
    ]  # fmt: skip
    for model in (made, program, tmp_path / "m.pt2"):
        graph = sq.quantize(model, x)
        tables = [n for n in graph.nodes if isinstance(n, ops.Requantize)]
        assert len(tables) == 2 + 0 * len(scales)
        for each in (graph.input, *tables):
            assert any(np.isclose(each.scale, scale, rtol=1e-6) for scale in scales)
        got = reference.run(graph, x.numpy())
        assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.02


def test_modes_and_schemes_are_for_float_models(tmp_path):
    x = RNG.normal(size=(16, 64)).astype(np.float32)
    own, _ = converted_model(mlp(), [torch.from_numpy(x)])
    assert len(sq.quantize(own, x).nodes) == 5
    path = quantized(mlp(), x, tmp_path, per_channel=True)
    for options in ({"mode": "weight-only"}, {"scheme": "log"}):
        with pytest.raises(ConfigError, match="a quantized model"):
            sq.quantize(path, x, **options)
