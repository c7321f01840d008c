"""onnxruntime computes the same integers as the reference, for every model of the zoo."""

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch

from secure_quant import reference
from secure_quant.errors import MissingParameters
from secure_quant.interop.onnx_export import export_onnx, to_onnx
from secure_quant.quantizer import Clip, KMeans, Log, Uniform, quantize
from secure_quant.quantizer.zoo import (
    DepthwiseNet,
    LeNet,
    ResNet,
    RowClassifier,
    TransformerEncoder,
    linear,
    mlp,
)

ZOO = {
    "linear": (linear, (8,), 1000),
    "mlp": (mlp, (64,), 1000),
    "lenet": (LeNet, (3, 32, 32), 200),
    "lenet-no-bias": (lambda: LeNet(bias=False, padding=2), (3, 32, 32), 200),
    "depthwise": (DepthwiseNet, (3, 32, 32), 100),
    "resnet-8": (lambda: ResNet(1, width=8), (3, 32, 32), 50),
    "row-classifier": (RowClassifier, (8, 8), 500),
    "transformer": (TransformerEncoder, (16, 64), 100),
}
SCHEMES = [
    Uniform(per_channel=False), Uniform(keep_small=True), Clip(), Clip("percentile"), Log(),
    KMeans(), KMeans(256),
]  # fmt: skip


@cache
def quantized(name, **options):
    build, shape, count = ZOO[name]
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    graph = quantize(build(), rng.normal(size=(32, *shape)), **options)
    # Uniform over all of int8: saturation on both sides everywhere.
    return graph, rng.integers(-128, 128, (count, *shape)).astype(np.int8)


def differing(graph, q):
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    (y,) = session.run(None, {"x": q})
    assert y.dtype == np.int64
    return int((y != reference.run_int(graph, q)).sum())


@pytest.mark.parametrize("name", ZOO)
def test_same_integers(name):
    assert differing(*quantized(name)) == 0


# Capturing the deep models takes long; bench/onnx_equality.py crosses all with all.
SMALL = ["linear", "mlp", "lenet"]
PAIRS = [
    (name, scheme) for name in ZOO for scheme in SCHEMES
    if name in SMALL or scheme in (Log(), KMeans())
]  # fmt: skip


@pytest.mark.parametrize(("name", "scheme"), PAIRS, ids=repr)
def test_same_integers_with_every_scheme(name, scheme):
    graph, q = quantized(name, scheme=scheme)
    assert differing(graph, q[:16]) == 0


def test_inner_values_are_those_of_the_trace():
    graph, q = quantized("row-classifier")
    model = to_onnx(graph, inner=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    assert names == ["y", *(f"ir/{node.name}" for node in graph.nodes[1:-1])]
    truth = reference.trace(graph, q[:16])
    for name, made in zip(names[1:], session.run(None, {"x": q[:16]})[1:], strict=True):
        assert np.array_equal(made, truth[name.removeprefix("ir/")]), name


@pytest.mark.parametrize("name", ["mlp", "lenet", "depthwise", "row-classifier"])
def test_same_integers_with_int16_activations(name):
    graph, q = quantized(name, mode="weight-only")
    assert differing(graph, q[:50]) == 0


def test_only_standard_operators(tmp_path):
    graph, _ = quantized("mlp")
    export_onnx(graph, tmp_path / "model.onnx")
    model = to_onnx(graph)
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString()
    assert {node.domain for node in model.graph.node} == {""}
    assert {p.key: p.value for p in model.metadata_props}["secure_quant.hash"] == graph.hash


def test_a_public_graph_is_refused():
    graph, _ = quantized("linear")
    with pytest.raises(MissingParameters):
        to_onnx(graph.public())
