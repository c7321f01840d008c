"""One model of each architecture family, bit by bit through every engine that takes it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from conformance.executors import He, Mpc, OneHost
from conformance.families import FAMILIES
from secure_quant import reference
from secure_quant.errors import OpNotSupported
from secure_quant.ir import Graph
from secure_quant.quantizer import quantize

EXECUTORS = (Mpc("traffic"), He("traffic"), OneHost())
NEAR = 0.15
"""Relative error to float of the worst of these; random weights amplify what rounding there is."""


@cache
def made(name: str, embedding: str = "client") -> tuple[Graph, np.ndarray]:
    """Graph and three inputs, one of them beyond the calibration; compared with float torch."""
    torch.manual_seed(3)
    build, shape = FAMILIES[name]
    model, x = build(), _inputs(shape)
    with torch.no_grad():
        if shape is not None:
            model.train()(x)  # statistics of BatchNorm
        model.eval()
        want = (model(**x) if shape is None else model(x)).numpy()
    graph = quantize(model, x, embedding=embedding if shape is None else None)
    arrays: Any = {k: v.numpy() for k, v in x.items()} if shape is None else x.numpy()
    got = reference.run(graph, arrays)
    got = got["output"] if isinstance(got, dict) else got
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < NEAR
    q = reference.quantize_input(graph, arrays)[:3].copy()
    if shape is not None:
        q[2] = np.random.default_rng(0).integers(-128, 128, q[2].shape)
    return graph, q


def _inputs(shape: tuple[int, ...] | None) -> Any:
    if shape is not None:
        return torch.randn(64, *shape)
    hidden = torch.arange(4)[None] >= torch.randint(1, 5, (64, 1))
    return {"ids": torch.randint(0, 12, (64, 4)), "hidden": hidden}


@pytest.mark.heavy
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("executor", EXECUTORS, ids=repr)
def test_family_equals_the_reference(executor: Any, name: str) -> None:
    graph, q = made(name)
    refused = executor.may_refuse & {type(node).__name__ for node in graph.nodes}
    assert not refused
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.heavy
def test_text_with_a_secret_table() -> None:
    graph, q = made("text", "private")
    got = Mpc("latency").prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))
    for executor in (He("traffic"), OneHost()):
        with pytest.raises(OpNotSupported):
            executor.prepare(graph)
