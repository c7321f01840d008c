"""The borders of the reference: float in, float out, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.builder import Net
from secure_quant import reference
from secure_quant.errors import (
    DtypeMismatch,
    MissingParameters,
    ShapeMismatch,
    ValueOutOfRange,
)
from secure_quant.ir import Graph, ops


def _identity(scale: float, zero_point: int, shape: tuple[int, ...] = (4,)) -> Graph:
    return Graph((
        ops.Input(name="x", shape=shape, scale=scale, zero_point=zero_point),
        ops.Output(name="y", inputs=("x",), scale=scale),
    ))  # fmt: skip


def _linear() -> Graph:
    net = Net(0, (4,))
    net.linear(3)
    return net.done(per_channel=True)


@pytest.mark.parametrize(
    ("x", "scale", "zero_point", "q"),
    [(0.25, 0.1, 0, 2), (0.35, 0.1, 0, 3), (-0.15, 0.1, -3, -4), (7, 0.5, 120, 127)],
)
def test_input_examples_of_the_specification(x, scale, zero_point, q):
    graph = _identity(scale, zero_point, (1,))
    assert reference.quantize_input(graph, [[x]]).tolist() == [[q]]


def test_halves_go_to_the_even_integer_and_extremes_are_clipped():
    x = np.array([[0.5, 1.5, 2.5, -0.5], [-1.5, 1e300, -1e300, 63.0]])
    assert reference.quantize_input(_identity(1.0, 0), x).tolist() == [
        [0, 2, 2, 0], [-2, 127, -128, 63],
    ]  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_the_largest_floats_meet_the_smallest_scale_without_a_warning():
    x = np.array([[1.7e308, -1.7e308, 0.0, 5e-324]])
    graph = _identity(2.0**-120, 0)
    assert reference.quantize_input(graph, x).tolist() == [[127, -128, 0, 0]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_any_real_number_type_is_an_input(kind):
    got = reference.quantize_input(_identity(1.0, 0), np.array([[1, 2, 3, 100]], kind))
    assert got.dtype == np.int8
    assert got.tolist() == [[1, 2, 3, 100]]


@settings(max_examples=60, deadline=None)
@given(st.integers(-128, 127), st.floats(2.0**-120, 2.0**64))
def test_every_int8_survives_the_way_out_and_back_in(zero_point, scale):
    graph = _identity(scale, zero_point, (256,))
    q = np.arange(-128, 128).astype(np.int8)[None]
    y = reference.dequantize(graph, reference.run_int(graph, q))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(reference.quantize_input(graph, y), q)


def test_run_is_its_three_steps():
    graph = _linear()
    x = np.random.default_rng(0).normal(size=(5, 4))
    integers = reference.run_int(graph, reference.quantize_input(graph, x))
    want = integers * np.array(graph.output.multiplier) * graph.output.scale
    np.testing.assert_array_equal(reference.run(graph, x), want.astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_finite_numbers(bad):
    with pytest.raises(ValueOutOfRange, match="NaN or infinity"):
        reference.run(_linear(), [[0.0, bad, 0.0, 0.0]])


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 5)), np.zeros(4), np.zeros((1, 1, 4)), np.zeros((0, 4)), 1.0,
        [[1.0, 2.0], [3.0]],
    ],
)  # fmt: skip
def test_wrong_shapes(x):
    with pytest.raises(ShapeMismatch):
        reference.run(_linear(), x)


@pytest.mark.parametrize("kind", [complex, bool, object, "U1", "datetime64[s]"])
def test_types_that_are_no_numbers(kind):
    with pytest.raises(DtypeMismatch):
        reference.run(_linear(), np.zeros((1, 4)).astype(kind))


def test_integer_input_is_checked():
    graph = _linear()
    with pytest.raises(DtypeMismatch):
        reference.run_int(graph, np.zeros((1, 4)))
    with pytest.raises(ShapeMismatch):
        reference.run_int(graph, np.zeros((1, 3), np.int8))
    for value in (-129, 128, 2**40):
        with pytest.raises(ValueOutOfRange):
            reference.run_int(graph, np.full((1, 4), value))


def test_a_public_graph_has_nothing_to_multiply_with():
    graph = _linear().public()
    with pytest.raises(MissingParameters, match="fc1"):
        reference.run_int(graph, np.zeros((1, 4), np.int8))


def test_messages_hold_no_input_data():
    secret = 123.456
    with pytest.raises(ValueOutOfRange) as caught:
        reference.run(_linear(), [[secret, np.nan, secret, secret]])
    assert "123" not in str(caught.value)
    with pytest.raises(ValueOutOfRange) as caught:
        reference.run_int(_linear(), np.full((1, 4), 777))
    assert "777" not in str(caught.value)


def test_the_input_is_not_written_to():
    net = Net(5, (2, 4, 4))
    net.max_pool((2, 2), (1, 1))
    net.transpose(1, 0, 2)
    q = net.rng.integers(-128, 128, (2, 2, 4, 4))
    before = q.copy()
    reference.trace(net.done(), q)
    np.testing.assert_array_equal(q, before)
