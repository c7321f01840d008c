"""A graph with several inputs and outputs is an ONNX model with as many, by name."""

import numpy as np
import onnxruntime

from conformance.port_cases import ports
from secure_quant import reference
from secure_quant.interop.onnx_export import feeds, packed, to_onnx
from secure_quant.ir import Graph, ops


def test_inputs_and_outputs_by_name_and_the_same_integers():
    graph = ports()
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "picture": ("tensor(int8)", ["batch", 2, 6, 6]),
        "row": ("tensor(int8)", ["batch", 10]),
        "mask": ("tensor(int8)", ["batch", 3]),
        "words": ("tensor(int8)", ["batch", 2, 4]),
    }
    names = [output.name for output in session.get_outputs()]
    assert names == [
        "logits",
        "masked",
        "mask'",
        "hidden",
        "pooled",
        "gated",
        "again",
        "some",
        "read",
    ]
    q = np.random.default_rng(5).integers(-128, 128, (20, 93)).astype(np.int8)
    made = dict(zip(names, session.run(None, feeds(graph, q)), strict=True))
    want = reference.named(graph, reference.run_int(graph, q))
    for name, values in made.items():
        assert values.dtype == np.int64
        assert np.array_equal(values, want[name.removesuffix("'")]), name
    assert np.array_equal(packed(graph, made), reference.run_int(graph, q))


def test_inner_values_beside_them():
    graph = ports()
    session = onnxruntime.InferenceSession(to_onnx(graph, inner=True).SerializeToString())
    q = np.random.default_rng(6).integers(-128, 128, (4, 93)).astype(np.int8)
    truth = reference.trace(graph, q)
    names = [output.name for output in session.get_outputs()]
    inner = 0
    for name, values in zip(names, session.run(None, feeds(graph, q)), strict=True):
        if name.startswith("ir/"):
            inner += 1
            assert np.array_equal(values, truth[name.removeprefix("ir/")]), name
    ends = ops.Input | ops.InputPort | ops.OutputPort | ops.Output
    assert inner == sum(not isinstance(node, ends) for node in graph.nodes)


def test_names_that_the_export_itself_uses():
    half = {"dtype": "float32", "scale": 0.5, "zero_point": 0}
    graph = Graph(
        (
            ops.Input(name="x", shape=(4,), scale=1.0, zero_point=0),
            ops.InputPort(name="a", inputs=("x",), port="v1", start=0, shape=(2,), **half),
            ops.InputPort(name="b", inputs=("x",), port="c2", start=2, shape=(2,), **half),
            ops.Mul(name="m", inputs=("a", "b"), bound=2**15, scale=0.25),
            ops.ReduceSum(name="s", inputs=("a",), bound=2**9, scale=0.5),
            ops.OutputPort(name="c", inputs=("m",), port="v4", scale=0.25),
            ops.OutputPort(name="d", inputs=("s",), port="y", scale=0.5),
            ops.Output(name="y", inputs=("c", "d"), scale=1.0),
        )
    )
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    q = np.random.default_rng(7).integers(-128, 128, (9, 4)).astype(np.int8)
    product, total = session.run(["v4", "y"], {"v1": q[:, :2], "c2": q[:, 2:]})
    assert np.array_equal(np.hstack([product, total]), reference.run_int(graph, q))
