"""The QDQ form in onnxruntime: the integers of the graph but for rounding, said here exactly."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from interop.test_onnx_zoo import ZOO, quantized
from secure_quant import reference, save
from secure_quant.errors import ConfigError, MissingParameters, OpNotSupported
from secure_quant.interop.qdq_export import export_qdq, real_feeds, to_qdq
from secure_quant.ir import Graph, ops
from secure_quant.quantizer import quantize
from secure_quant_cli.main import main

LEVELS = onnxruntime.GraphOptimizationLevel
PLAIN, FUSED = LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL


def outputs(model, feed, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def relative(got, want):
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


SLOW = ("depthwise", "lenet-no-bias", "resnet-8")
ALL = [pytest.param(name, marks=pytest.mark.heavy if name in SLOW else ()) for name in ZOO]


@pytest.mark.parametrize("name", ALL)
def test_zoo_stays_near(name):
    """With onnxruntime's integer kernels in place and without: the largest is measured at 0.012."""
    graph, _ = quantized(name)
    x = np.random.default_rng(2).normal(size=(24, *ZOO[name][1])).astype(np.float32)
    want, model = reference.run(graph, x), to_qdq(graph)
    for level in (PLAIN, FUSED):
        assert relative(outputs(model, {"x": x}, level)["y"], want) < 0.025


def layer(table, shift: int, offset: int, *, bias: bool = True) -> Graph:
    """One linear layer and one table; every scale is a power of two, so float32 is exact."""
    rng = np.random.default_rng(4)
    nodes = (
        ops.Input(name="input", shape=(12,), scale=2.0**-4, zero_point=3),
        ops.Linear(name="fc", inputs=("input",), in_features=12, out_features=40, bias=bias,
                   bound=200_000, scale=2.0**-10),
        ops.Requantize(name="q", inputs=("fc",), multiplier=(1,), axis=-1, offset=offset,
                       shift=shift, table=table, scale=2.0 ** (shift - 10), zero_point=-5),
        ops.Output(name="output", inputs=("q",), scale=2.0 ** (shift - 10)),
    )  # fmt: skip
    parameters = {"fc.weight": rng.integers(-127, 128, (40, 12)).astype(np.int8)}
    if bias:
        parameters["fc.bias"] = rng.integers(-9000, 9000, 40).astype(np.int32)
    return Graph(nodes, parameters)


@pytest.mark.parametrize("level", [PLAIN, FUSED], ids=["plain", "fused"])
def test_integers_are_equal_where_buckets_are_steps(level):
    """All but halves, which go up here and to the even step there."""
    shift = 8
    half = 1 << (shift - 1)
    graph = layer(tuple(range(-128, 128)), shift, (123 << shift) + half)
    q = np.random.default_rng(5).integers(-128, 128, (500, 12)).astype(np.int8)
    x = (q.astype(np.float32) - 3) * 2.0**-4
    truth = reference.trace(graph, q)
    made = outputs(to_qdq(graph, inner=True), {"x": x}, level)
    assert np.array_equal(made["ir/input"], q)
    inside = (truth["q"] > -128) & (truth["q"] < 127)
    tie = (truth["fc"] % (1 << shift) == half) & inside
    off = truth["q"] - made["ir/q"]
    assert not off[~tie].any()
    assert set(np.unique(off[tie])) == {0, 1}
    assert 20 < tie.sum() < tie.size / 100
    assert np.array_equal(made["y"], (made["ir/q"] + 5) * np.float32(2.0 ** (shift - 10)))


def test_a_table_of_no_known_function_is_looked_up_exactly():
    table = tuple(np.random.default_rng(6).permutation(256) - 128)
    graph = layer(tuple(map(int, table)), 8, 123 << 8)
    q = np.random.default_rng(5).integers(-128, 128, (500, 12)).astype(np.int8)
    x = (q.astype(np.float32) - 3) * 2.0**-4
    truth = reference.trace(graph, q)["q"]
    for level in (PLAIN, FUSED):
        made = outputs(to_qdq(graph, inner=True), {"x": x}, level)
        assert np.array_equal(made["ir/q"], truth)


def test_per_channel_weights_and_int32_biases_stand_in_the_file():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    net[0].weight.data *= torch.logspace(-1, 0, 6).reshape(-1, 1, 1, 1)
    graph = quantize(net, torch.randn(64, 2, 8, 8), grid=32)
    model = to_qdq(graph)
    made = {each.name: each for each in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    by_output = {node.output[0]: node for node in model.graph.node}
    weight, bias = (by_output[name] for name in conv.input[1:])
    from onnx import TensorProto, numpy_helper

    assert made[weight.input[0]].data_type == TensorProto.INT8
    assert made[bias.input[0]].data_type == TensorProto.INT32
    scales, steps = (numpy_helper.to_array(made[each.input[1]]) for each in (weight, bias))
    assert scales.shape == steps.shape == (6,)
    assert scales[-1] / scales[0] > 5
    whole = numpy_helper.to_array(made[weight.input[0]]) * scales[:, None, None, None]
    assert np.abs(whole - net[0].weight.detach().numpy()).max() < scales.max() / 2 * 1.01
    assert np.allclose(steps, scales * graph.input.scale)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.table = nn.Linear(6, 8), nn.Embedding(20, 8)

    def forward(self, row, ids):
        h = torch.tanh(self.rows(row)) + self.table(ids).mean(1)
        return {"h": h, "top": h.relu()}


@pytest.mark.parametrize("embedding", ["client", "private"])
def test_named_inputs_row_numbers_and_outputs(embedding):
    torch.manual_seed(0)
    data = {"row": torch.randn(64, 6), "ids": torch.randint(0, 20, (64, 5))}
    graph = quantize(TwoInputs(), data, embedding=embedding)
    x = {name: value.numpy() for name, value in data.items()}
    want = reference.run(graph, x)
    made = outputs(to_qdq(graph), real_feeds(graph, x), FUSED)
    assert set(made) == {"h", "top"}
    for name, value in made.items():
        assert relative(value, want[name]) < 0.02


def test_what_cannot_be_written_is_refused():
    graph, _ = quantized("linear")
    with pytest.raises(MissingParameters):
        to_qdq(graph.public())
    dynamic, _ = quantized("mlp", mode="dynamic")
    with pytest.raises(OpNotSupported, match="mode='static'"):
        to_qdq(dynamic)


def test_the_command_writes_both_and_compares(tmp_path, capsys):
    graph, _ = quantized("mlp")
    save(graph, tmp_path / "m.sq")
    x = np.random.default_rng(3).normal(size=(40, 64))
    np.savez(tmp_path / "x.npz", x=x)
    line = ["export", f"{tmp_path}/m.sq", "--out", f"{tmp_path}/m.onnx"]
    assert main([*line, "--input", f"{tmp_path}/x.npz", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["exact"]["compared"] == 400
    assert said["exact"]["mismatches"] == 0
    assert 0 < said["qdq"]["relative"] < 0.02
    assert (tmp_path / "m.qdq.onnx").stat().st_size == said["qdq"]["bytes"]
    export_qdq(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.qdq.onnx").read_bytes()
    assert main([*line[:-1], f"{tmp_path}/m.bin"]) == 2


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["mlp", "lenet", "depthwise"])
def test_litert_computes_the_integers_of_the_qdq_form(name):
    """Google's runtime on what its converter made: int8 in, our scales within."""
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from secure_quant.quantizer.litert import to_litert

    graph, _ = quantized(name)
    model = interpreter.Interpreter(model_content=to_litert(to_qdq(graph)))
    model.allocate_tensors()
    (given,), (made,) = model.get_input_details(), model.get_output_details()
    assert given["dtype"] == np.int8
    scale, zero_point = given["quantization"]
    assert scale == pytest.approx(graph.input.scale, rel=1e-6)
    assert zero_point == graph.input.zero_point
    x = np.random.default_rng(2).normal(size=(24, *ZOO[name][1])).astype(np.float32)
    got = []
    for q in reference.quantize_input(graph, x):
        model.set_tensor(given["index"], q[None])
        model.invoke()
        got.append(model.get_tensor(made["index"])[0])
    assert relative(np.stack(got), outputs(to_qdq(graph), {"x": x}, PLAIN)["y"]) < 0.005
    assert relative(np.stack(got), reference.run(graph, x)) < 0.025


def test_without_litert_s_converter_that_is_said(monkeypatch):
    from secure_quant.quantizer import litert

    monkeypatch.setattr(litert, "find_spec", {}.get)
    with pytest.raises(ConfigError, match="install litert-torch"):
        litert.to_litert(to_qdq(quantized("linear")[0]))
