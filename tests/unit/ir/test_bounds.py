"""Bounds on accumulators: reached, never passed, and exact in the arithmetic that relies on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from unit.ir.nodes import conv, end, linear, requantize, src

from conformance.builder import Net
from secure_quant import reference
from secure_quant.errors import OverflowRisk
from secure_quant.ir import Graph, Interval
from secure_quant.ir.bounds import conv_output, linear_bound, public_bound


def test_conv_output_against_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for _ in range(200):
        kernel, stride, dilation = (tuple(rng.integers(1, 4, 2).tolist()) for _ in range(3))
        padding = tuple(rng.integers(0, 3, 2).tolist())
        node = conv(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
        x = torch.zeros(1, 1, 7, 9)
        want = torch.nn.functional.conv2d(
            x, torch.zeros(1, 1, *kernel), None, stride, padding, dilation
        )
        assert conv_output((1, 7, 9), node) == tuple(want.shape[2:])


@pytest.mark.parametrize("zero_point", [-128, -5, 0, 100, 127])
def test_an_adversary_reaches_the_bound_exactly_and_never_more(zero_point):
    net = Net(zero_point + 200, (12,), zero_point=zero_point)
    name = net.linear(9)
    weight, bias = net.parameters[f"{name}.weight"], net.parameters[f"{name}.bias"]
    bound = linear_bound(weight, bias, net.centred["x"])
    high = np.where(weight > 0, 127, -128)
    low = np.where(weight > 0, -128, 127)
    reached = reference.trace(net.done(), np.concatenate([high, low]).astype(np.int8))[name]
    assert np.abs(reached).max() == bound
    node = dataclasses.replace(net.nodes[1], bound=bound)
    parameters = net.parameters
    tight = Graph((net.nodes[0], node, end(name)), parameters)
    assert tight.values[name].range == Interval(-bound, bound)
    with pytest.raises(OverflowRisk, match=f"{bound - 1} declared, {bound} proven"):
        Graph((net.nodes[0], dataclasses.replace(node, bound=bound - 1), end(name)), parameters)


def test_the_largest_accumulators_are_still_exact():
    """Near 2**31, far beyond what float32 holds."""
    rng = np.random.default_rng(1)
    weight = rng.choice([-128, -127, 127], (2, 60_000)).astype(np.int8)
    bias = np.array([2**29, -(2**29)], np.int32)
    x = src((60_000,), zero_point=-128)
    node = linear(in_features=60_000, bias=True, bound=2**31 - 1)
    with pytest.raises(OverflowRisk):
        Graph(
            (x, dataclasses.replace(node, bound=2**29), end("fc")),
            {"fc.weight": weight, "fc.bias": bias},
        )
    graph = Graph((x, node, end("fc")), {"fc.weight": weight, "fc.bias": bias})
    q = rng.integers(-128, 128, (3, 60_000)).astype(np.int8)
    want = (q.astype(np.int64) + 128) @ weight.T.astype(np.int64) + bias
    np.testing.assert_array_equal(reference.run_int(graph, q), want)


@pytest.mark.parametrize("features", [510, 512, 515, 517, 520, 2000])
def test_accumulators_around_the_end_of_float32_are_exact(features):
    """127 · 255 · 518 is about 2**24, from where float32 skips odd integers."""
    weight = np.full((2, features), 127, np.int8)
    bias = np.array([1, -2], np.int32)
    node = linear(
        in_features=features, bias=True, bound=linear_bound(weight, bias, Interval(0, 255))
    )
    graph = Graph(
        (src((features,), zero_point=-128), node, end("fc")), {"fc.weight": weight, "fc.bias": bias}
    )
    q = np.full((1, features), 127, np.int8)
    for step in range(4):
        q[0, :step] -= 1
        want = 127 * (q[0].astype(int) + 128).sum() + bias
        assert reference.run_int(graph, q).tolist() == [want.tolist()]


def test_padding_counts_where_zero_is_not_in_the_range():
    """x̂ is 100 or 120, but 0 in the padding, where the two weights no longer cancel."""
    weight = np.array([[[[127, -127]]]], np.int8)
    nodes = (
        src((1, 1, 3)),
        requantize(table=(100, 120), axis=0),
        conv(
            inputs=("q",),
            in_channels=1,
            out_channels=1,
            kernel=(1, 2),
            padding=(0, 1),
            bound=127 * 120,
        ),
        end("c", axis=0),
    )
    graph = Graph(nodes, {"c.weight": weight})
    made = reference.run_int(graph, np.full((1, 1, 1, 3), 127, np.int8))
    assert np.abs(made).max() == 127 * 120
    tight = (*nodes[:2], dataclasses.replace(nodes[2], bound=127 * 120 - 1), nodes[3])
    with pytest.raises(OverflowRisk):
        Graph(tight, {"c.weight": weight})


def test_specification_example_of_a_bound():
    assert linear_bound(np.array([[3, -2]], np.int8), np.array([5]), Interval(0, 255)) == 770


@pytest.mark.parametrize("bound", [0, 1, 15, 16, 17, 12345, 2**27 + 1, 2**31 - 1, 2**31])
def test_public_bound_says_four_bits_and_never_less(bound):
    made = public_bound(bound)
    assert bound <= made <= max(bound * 9 // 8 + 1, 1)
    assert made == 2**31 - 1 or bin(made).rstrip("0").count("1") <= 4
    assert made < 2**31 or bound >= 2**31
