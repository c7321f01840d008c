"""Joins have a grid of their own: what else reads their operands keeps its own."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.ir import ops


def samples(*shape):
    return torch.randn(128, *shape, generator=torch.Generator().manual_seed(1))


cat = torch.cat


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(cat([x, x], 1)),
        lambda m, x: m.b(cat([m.a(x)] * 2, 1)),
        lambda m, x: m.b(cat([h := m.a(x), h.relu()], 1)),
        lambda m, x: m.b(cat([x, m.a(x) * 100], 1)) * 0.01 + m.c(x),
        lambda m, x: m.b(cat([m.a(x) * 100, x], 1)) * 0.01 + m.c(x),
        lambda m, x: m.b(cat([h := m.a(x), h * 50], 1)) * 0.02 + m.c(h),
        lambda m, x: cat([h := m.a(x), h * 50], 1)[:, :4] + m.c(h),
        lambda m, x: m.b(cat([h := m.a(x), x * 9], 1)) + m.b(cat([x, h], 1)),
        lambda m, x: m.b(cat([cat([h := m.a(x), x[:, :4]], 1), h[:, :4] * 3], 1)),
        lambda m, x: m.b(cat([cat([(h := m.a(x)).view(-1, 2, 4), x.view(-1, 2, 4)], 1),
                              torch.stack([x[:, :4], h[:, 4:], x[:, 4:], h[:, :4]], 1)], 2)
                         .flatten(1)[:, :16]),
        lambda m, x: m.b(cat([m.a(x).view(-1, 2, 4).flatten(1), x * 20], 1)) * 0.01 + m.c(m.a(x)),
        lambda m, x: m.b(cat([*m.a(x).chunk(2, 1)][::-1] * 2, 1)) + m.a(x)[:, :4],
        lambda m, x: m.b(cat([x, m.a(x).softmax(-1)], 1)) + m.c(x),
        lambda m, x: cat([m.c(x), m.c(x) * 30], 1)[:, 4:],
    ],
)  # fmt: skip
def test_a_join_means_what_it_does_in_torch(forward):
    torch.manual_seed(0)
    follows(Net(forward, a=nn.Linear(8, 8), b=nn.Linear(16, 4), c=nn.Linear(8, 4)), samples(8))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x + x) + (h := m.a(x)) + h,
        lambda m, x: (h := m.a(x)) * h + h,
        lambda m, x: (h := m.a(x)) - h * 0.5 + h.relu(),
        lambda m, x: m.a(x) + m.a(x),
        lambda m, x: torch.matmul((h := m.a(x)).view(-1, 2, 4), h.view(-1, 4, 2)).flatten(1),
    ],
)
def test_a_value_with_itself(forward):
    torch.manual_seed(0)
    follows(Net(forward, a=nn.Linear(8, 8)), samples(8))


def test_an_operand_that_only_the_join_reads_is_rounded_once():
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.b(cat([m.a(x), m.a(x + 1)], 1)), a=nn.Linear(8, 8), b=nn.Linear(16, 4)
    )
    graph = follows(model, samples(8))
    inside = [node for node in graph.nodes if isinstance(node, ops.Requantize)]
    assert len(inside) == 3  # x + 1, and one for each operand


def test_joins_of_channels_and_pools():
    torch.manual_seed(0)
    model = Net(
        lambda m, x: functional.max_pool2d(cat([x * 10, m.a(x), x.flip(3)], 1), 2),
        a=nn.Conv2d(3, 4, 3, padding=1),
    )  # fmt: skip
    follows(model, samples(3, 6, 6))


@pytest.mark.parametrize("widths", [(0, 1, 0, 1), (2, 1, 0, 2), (1, 1)])
def test_maxima_of_what_is_padded_with_minus_infinity(widths):
    torch.manual_seed(0)
    model = Net(
        lambda m, x: functional.max_pool2d(functional.pad(m.a(x), widths, value=-math.inf), 3, 2),
        a=nn.Conv2d(2, 3, 1),
    )
    follows(model, samples(2, 6, 6))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.MaxPool2d((3, 2), (2, 3), ceil_mode=True),
        nn.AvgPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3), nn.AdaptiveAvgPool2d((3, None)),
    ],
    ids=repr,
)  # fmt: skip
def test_pools_over_uneven_sizes(pool):
    follows(pool, samples(2, 9, 9))


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool1d(3, 2), nn.MaxPool1d(2, ceil_mode=True), nn.AvgPool1d(3, 2, 1),
     nn.AdaptiveAvgPool1d(3)],
    ids=repr,
)  # fmt: skip
def test_pools_over_one_axis(pool):
    follows(pool, samples(2, 9))


def test_maxima_over_any_axis():
    torch.manual_seed(0)
    model = Net(lambda m, x: m.a(x).amax(1) + m.a(x).max(2).values.amax(1, keepdim=True)
                + m.a(x).max(1)[0], a=nn.Linear(8, 8))  # fmt: skip
    follows(model, samples(5, 8))


def test_a_class_token_far_smaller_than_what_it_stands_beside():
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.b(
            m.n(cat([m.token.expand(len(x), -1, -1), m.a(x)], 1) + m.place).flatten(1)
        ),
        a=nn.Linear(8, 8), n=nn.LayerNorm(8), b=nn.Linear(40, 4),
    )  # fmt: skip
    model.token = nn.Parameter(torch.randn(1, 1, 8) * 0.1)
    model.place = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
    graph = follows(model, samples(4, 8) * 3)
    assert widest(graph) == 2**12


def test_parts_of_one_value_joined_anew_keep_its_bits():
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.b(m.n(x + cat([(h := m.a(x).relu())[:, 2:], h[:, :2]], 1)).flatten(1)),
        a=nn.Linear(8, 8), n=nn.LayerNorm(8), b=nn.Linear(40, 4),
    )  # fmt: skip
    assert widest(follows(model, samples(5, 8))) == 2**8


def test_rows_of_zeros_beside_rows_of_length_one():
    torch.manual_seed(0)
    x = samples(6, 8)
    x[:, 4:] = 0  # as a window padded to its size
    model = Net(
        lambda m, x: m.b(functional.normalize(m.a(x), dim=-1).flatten(1)),
        a=nn.Linear(8, 8, bias=False), b=nn.Linear(48, 4),
    )  # fmt: skip
    follows(model, x)


def widest(graph):
    """Steps in the range of the widest Concat."""
    ranges = [graph.values[n.name].range for n in graph.nodes if isinstance(n, ops.Concat)]
    return max(found.hi - found.lo + 1 for found in ranges)
