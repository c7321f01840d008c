"""Graphs as the quantizer makes them, in every mode and every executor."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from conformance.executors import EXECUTORS, He, Mpc
from interop.operators import ROWS, samples
from secure_quant import reference
from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph, ops
from secure_quant.quantizer import AccuracyWarning, quantize
from secure_quant.quantizer.zoo import ResNet, RowClassifier


def apart() -> nn.Module:
    """Hidden features of which two are far larger: they enter the second layer several times."""
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight[3] *= 12
        model[0].weight[20] *= 5
    return model


MODELS = {
    "large features": (apart, (3, 8)),
    "transformer": (lambda: RowClassifier(length=4, width=16, heads=2, hidden=24), (4, 8)),
    "residual": (lambda: ResNet(1, width=4), (3, 32, 32)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64, 5), nn.Softmax(-1),
        ),
        (2, 8, 8),
    ),
}  # fmt: skip


OPERATORS = (
    "ConvTranspose2d", "Conv3d, groups, dilation", "bilinear x2", "AvgPool2d, no pad counted",
    "MaxPool2d, dilation", "maximum of two", "where h > 0, two values", "GroupNorm", "log_softmax",
    "cross-attention", "LSTMCell", "GRUCell", "einsum bij,ijk", "sign",
)  # fmt: skip
"""Of each family that passes write out, some of the models of one operator."""


@cache
def made(name: str, mode: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Graph, three inputs, and the reference's integers."""
    torch.manual_seed(4)
    build, shape = MODELS[name]
    x = torch.randn(16, *shape)
    graph = quantize(build(), x, mode=mode)
    q = reference.quantize_input(graph, x[:3].numpy() * 2)
    return graph, q, reference.run_int(graph, q)


@pytest.mark.parametrize("mode", ["static", "weight-only", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("executor", EXECUTORS[1:], ids=repr)
def test_executor_equals_the_reference(executor, name: str, mode: str) -> None:
    graph, q, want = made(name, mode)
    refused = executor.may_refuse & {type(node).__name__ for node in graph.nodes}
    if refused:
        run_time = refused <= {op.__name__ for op in ops.DYNAMIC}
        with pytest.raises(OpNotSupported, match="run time" if run_time else None):
            executor.prepare(graph)
        return
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, want)


def test_large_features_are_joined_more_than_once() -> None:
    graph, *_ = made("large features", "static")
    (join,) = (node for node in graph.nodes if isinstance(node, ops.Concat))
    assert len(join.inputs) > len(set(join.inputs)) > 1


@cache
def of_one_operator(name: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Graph, two inputs, and the reference's integers."""
    row = next(row for row in ROWS if row.name == name)
    torch.manual_seed(0)
    x = samples(row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # a jump, as it says
        graph = quantize(row.make(), x)
    q = reference.quantize_input(graph, x[:2].numpy() * 2)
    return graph, q, reference.run_int(graph, q)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("executor", [Mpc("balanced"), He("latency")], ids=repr)
def test_operators_that_passes_write_out(executor, name: str) -> None:
    graph, q, want = of_one_operator(name)
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, want)
