"""Requantize by a ramp against the definition: all values and masks of small rings, edges of large,
and what both open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.ramp import RampGate
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from secure_quant.mpc.protocol.plan import MpcPlan, plan
from secure_quant.mpc.protocol.ramps import Ramp, choose_ramp
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import chi_square, run_gate, unpacked, words
from tests.unit.mpc.protocol.test_requantize import expected, node


def gate(look: Ramp, elements: int, ring: int) -> RampGate:
    free, dealt = RampGate.material(look, elements, ring)
    m = len(look.multiplier)
    return RampGate(
        name="q", inputs=("x",), shape=(elements // m, m), bits=ring, look=look, zero_point=0,
        axis=-1, free_words=free, dealt_words=dealt,
        payloads=tuple(((elements, bits),) for bits in look.payloads(ring)),
    )  # fmt: skip


def chosen(op: Any, x: Interval) -> Ramp:
    look = choose_ramp(op, x)
    assert look is not None
    return look


CASES = [
    ((1,), 3, 2, tuple(range(-4, 4)), Interval(-50, 60)),
    ((3,), -7, 3, (5, 5, 5, 6, 6), Interval(-20, 41)),
    ((1,), 9, 1, tuple(range(16)), Interval(-9, 9)),
    ((1,), 9, 1, (-3, *range(-3, 5), 4, 4), Interval(4, 9)),  # never below
    ((1,), 90, 1, (0, 1, 2, 3), Interval(4, 9)),  # always above
    ((1,), -90, 1, (0, 1, 2, 3), Interval(4, 9)),  # always below
    ((2,), 6, 3, tuple(range(8)), Interval(-30, 30)),
    ((1,), 8, 2, tuple(range(5)), Interval(-40, 10)),  # five steps, and never above them
    ((1,), 2, 2, (4, 4, 5, 6), Interval(3, 40)),  # three, and never below them
    ((1,), 3, 2, (-9, -9, -6, -3, 0), Interval(-50, 60)),  # in steps of three
    ((1,), 8, 2, (100, 250, 400), Interval(-40, 3)),
]


@pytest.mark.parametrize(("multiplier", "offset", "shift", "table", "x"), CASES)
def test_every_value_under_every_mask(
    multiplier: Any, offset: int, shift: int, table: Any, x: Interval
) -> None:
    op = node(multiplier, offset, shift, table)
    look = chosen(op, x)
    values = np.arange(x.lo, x.hi + 1)
    rings = np.arange(2**look.ring, dtype=np.uint64)
    xs, rs = np.repeat(values, len(rings)), np.tile(rings, len(values))
    for ring in (2, 17, 64):
        got, _, _ = run_gate(gate(look, len(xs), ring), [xs[:, None]], [rs[:, None]], seed=ring)
        wrong = (got.reshape(-1) - expected(op, xs)) & ((1 << min(ring, 62)) - 1)
        assert not wrong.any()


@pytest.mark.parametrize("ring", [11, 26, 64])
@pytest.mark.parametrize("multiplier", [(1,), (15, 3, 7)])
@pytest.mark.parametrize(("steps", "shift"), [(8, 14), (8, 5), (12, 10), (4, 18)])
def test_real_sizes_at_the_edges(ring: int, multiplier: Any, steps: int, shift: int) -> None:
    rng = np.random.default_rng(steps + ring)
    bound = 2 ** (shift + steps + 1)
    op = node(multiplier, (1 << shift + steps - 1) + 5, shift, tuple(range(-7, 2**steps - 7)))
    look = chosen(op, Interval(-bound, bound))
    places = (np.arange(-3, 2**steps + 3)[:, None] << shift) + np.array([-1, 0, 1])
    edges = ((places - op.offset).reshape(-1) // multiplier[0]).astype(np.int64)
    xs = np.concatenate([edges, rng.integers(-bound, bound + 1, 4000), [-bound, bound]])
    xs = np.clip(xs, -bound, bound)[: len(xs) // 3 * 3].reshape(-1, len(multiplier))
    rs = words(rng, *xs.shape)
    rs.reshape(-1)[:400] = -np.arange(400).astype(np.uint64)
    made = gate(look, xs.size, ring)
    got, _, _ = run_gate(made, [xs], [rs], seed=1)
    want = np.array(expected(op, xs.reshape(-1)))
    keep = (1 << min(ring, 62)) - 1
    assert not ((got.reshape(-1) - want) & keep).any()


@pytest.mark.parametrize(
    ("table", "shift"),
    [
        ((0, 1, 2), 4),  # three steps are no power of two
        ((0, 1, 1, 2, 3), 4),
        ((0, 2, 4, 5), 4),
        ((3, 2, 1, 0), 4),
        ((0, 1, 2, 3, 2, 3), 4),
        ((5, 5, 5), 4),
        ((0, 1, 2, 3), 0),
    ],
)
def test_what_is_no_ramp(table: Any, shift: int) -> None:
    assert choose_ramp(node((1,), 0, shift, table), Interval(-99, 99)) is None


def test_sizes_by_formula() -> None:
    """Bits per element as ``docs/spec/mpc.md`` states them, for s = 13, q = 8, H = 5, ko = 22."""
    op = node((1,), 128 << 13, 13, tuple(range(-128, 128)))
    look = chosen(op, Interval(-(2**24), 2**24))
    assert (look.reach, look.borrow.digits, look.lower) == (5, (5, 4, 4, 4, 4), 3)
    assert sum(look.fields(22).in_order) == 32 + 3 * 46 - 9 + 32 + 4 * 16 + 7 * 22
    assert look.payloads(22) == (9 + 3, 3, 22)


def test_what_is_opened_is_uniform() -> None:
    op = node((1,), 128 << 6, 6, tuple(range(-128, 128)))
    xs = np.full((20000, 1), 77)
    made = gate(chosen(op, Interval(-9000, 9000)), len(xs), 20)
    masks = words(np.random.default_rng(5), *xs.shape)
    _, _, rounds = run_gate(made, [xs], [masks], seed=3)
    for ((count, bits),), sent in zip(made.payloads, rounds, strict=True):
        one, two = (unpacked(data, count, bits) for data in sent)
        opened = (one + two) % np.uint64(1 << bits) if bits == made.bits else one ^ two
        for values in (one, two, opened):
            assert chi_square(values, bits) < 6


def test_plans_of_before_ramps_are_derived_as_they_were() -> None:
    graph = graphs.lenet().public()
    old, new = plan(graph, version=2), plan(graph)
    kinds = [{type(gate) for gate in each.gates} for each in (old, new)]
    assert RampGate not in kinds[0]
    assert RequantizeGate in kinds[0]
    assert RampGate in kinds[1]
    for made in (old, new):
        assert MpcPlan.from_json(made.to_json(), graph).to_json() == made.to_json()
    assert b'"version":2' in old.to_json()
