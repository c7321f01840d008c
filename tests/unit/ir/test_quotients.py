"""Bounds of products that are divided by the sum of their weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from unit.ir.nodes import src

from secure_quant import reference
from secure_quant.errors import OverflowRisk
from secure_quant.ir import Graph, ops

KEYS, WIDTH = 3, 4


def graph(bound: int, *, two: bool = False, of: str = "e", low: int = 0) -> Graph:
    """Weights of 0 to 7, or from ``low``, and 60 // S, or a sum of ``two`` tables."""
    table = tuple(60 // max(s, 1) for s in range(7 * KEYS + 1))
    common = {"multiplier": (1,), "axis": -1, "offset": 0, "scale": 1.0, "zero_point": 0}
    nodes = [
        src(shape=(KEYS, WIDTH)),
        ops.Slice(name="s", inputs=("x",), axis=1, start=0, stop=KEYS),
        ops.Requantize(name="e", inputs=("s",), shift=5, table=(low, *range(1, 8)), **common),
        ops.MatMul(name="m", inputs=("e", "x"), transpose_b=False, bound=2**14, scale=1.0),
        ops.ReduceSum(name="t", inputs=(of,), bound=7 * KEYS if of == "e" else 2**9, scale=1.0),
        ops.Requantize(name="r", inputs=("t",), shift=0, table=table, **common),
    ]
    factor = "r"
    if two:
        nodes += [
            ops.Requantize(name="r2", inputs=("t",), shift=1, table=(0, 1, 2), **common),
            ops.Add(name="r3", inputs=("r", "r2"), factors=(1, 1), bound=2**9, scale=1.0),
        ]
        factor = "r3"
    nodes += [
        ops.Mul(name="q", inputs=("m", factor), bound=bound, scale=1.0),
        ops.Output(name="y", inputs=("q",), scale=1.0),
    ]
    return Graph(tuple(nodes), {})


def exact(two: bool) -> int:
    sums = np.arange(7 * KEYS + 1)
    r = 60 // np.maximum(sums, 1) + (np.clip(sums >> 1, 0, 2) if two else 0)
    return int((sums * r).max()) * 128


@pytest.mark.parametrize("two", [False, True])
def test_the_least_bound_is_that_of_one_sum(two: bool) -> None:
    most = exact(two)
    made = graph(most, two=two)
    with pytest.raises(OverflowRisk):
        graph(most - 1, two=two)
    q = np.random.default_rng(0).integers(-128, 128, (4000, KEYS, WIDTH)).astype(np.int8)
    assert np.abs(reference.run_int(made, q)).max() <= most


def test_what_is_no_quotient_has_the_bound_of_any_product() -> None:
    """Weights below 0, or a factor of another sum."""
    for other in (graph(2**20, low=-1), graph(2**20, of="s")):
        nodes = list(other.nodes)
        nodes[-2] = dataclasses.replace(nodes[-2], bound=exact(False))
        with pytest.raises(OverflowRisk):
            Graph(tuple(nodes), {})
