"""Requantize that only rounds against the definition: all values and masks of small rings, edges of
large, what both open, and when the planner takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.gates.shift import ShiftGate
from secure_quant.mpc.protocol.plan import MpcPlan, plan
from secure_quant.mpc.protocol.shifts import Shift, choose_shift, ramp_of
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import chi_square, run_gate, unpacked, words
from tests.unit.mpc.protocol.test_ramp import gate as ramp_gate
from tests.unit.mpc.protocol.test_requantize import expected, node


def rescale(multiplier: Any, shift: int, low: int, high: int, **more: Any) -> ops.Rescale:
    fields = {"bias": (), "inputs": ("x",)} | more
    return ops.Rescale(
        name="q", multiplier=multiplier, axis=-1, shift=shift, low=low, high=high, scale=1.0,
        **fields,
    )  # fmt: skip


def rounded(op: ops.Rescale, xs: Any) -> Any:
    """As Python's integers say it."""
    m = op.multiplier
    return [(int(x) * m[i % len(m)] + (1 << op.shift - 1)) // 2**op.shift for i, x in enumerate(xs)]


def gate(look: Shift, elements: int, ring: int) -> ShiftGate:
    free, dealt = ShiftGate.material(look, elements, ring)
    m = len(look.multiplier)
    return ShiftGate(
        name="q", inputs=("x",), shape=(elements // m, m), bits=ring, look=look, zero_point=0,
        axis=-1, free_words=free, dealt_words=dealt,
        payloads=tuple(((elements, bits),) for bits in look.payloads(ring)),
    )  # fmt: skip


def chosen(op: Any, x: Interval, ring: int) -> Shift:
    look = choose_shift(op, x, ring)
    assert look is not None
    return look


CASES = [
    (node((1,), 80, 2, tuple(range(-20, 20))), Interval(-50, 60)),
    (node((3,), 70, 3, tuple(range(30))), Interval(-20, 41)),
    (node((2,), 60, 3, tuple(range(9, 400, 7))), Interval(-30, 30)),  # in steps of seven
    (node((1,), 5, 3, (0, 0, 5, 6, 7, 8, 8)), Interval(12, 34)),  # what it repeats is not reached
    (rescale((1,), 4, -99, 99), Interval(-50, 60)),
    (rescale((1,), 6, -1, 1), Interval(-50, 60)),  # digits wider than the range
    (rescale((5,), 3, -99, 99), Interval(-17, 3)),
]


@pytest.mark.parametrize(("op", "x"), CASES)
def test_every_value_under_every_mask(op: Any, x: Interval) -> None:
    values = np.arange(x.lo, x.hi + 1)
    want = rounded(op, values) if isinstance(op, ops.Rescale) else expected(op, values)
    for ring in (1, 4, 17, 64):
        look = chosen(op, x, ring)
        rings = np.arange(2**look.ring, dtype=np.uint64)
        xs, rs = np.repeat(values, len(rings)), np.tile(rings, len(values))
        got, _, _ = run_gate(gate(look, len(xs), ring), [xs[:, None]], [rs[:, None]], seed=ring)
        wrong = (got.reshape(-1) - np.repeat(want, len(rings))) & ((1 << min(ring, 62)) - 1)
        assert not wrong.any()


@pytest.mark.parametrize("ring", [11, 26, 46, 61])
@pytest.mark.parametrize("multiplier", [(1,), (15, 3, 7)])
@pytest.mark.parametrize("shift", [1, 5, 13, 23])
def test_real_sizes_at_the_edges(ring: int, multiplier: Any, shift: int) -> None:
    rng = np.random.default_rng(shift + ring)
    bound = 2 ** (shift + 12) + 3
    op = rescale(multiplier, shift, -(2**20), 2**20)
    look = chosen(op, Interval(-bound, bound), ring)
    places = (np.arange(-40, 40)[:, None] << shift) + (1 << shift - 1) + np.array([-1, 0, 1])
    edges = np.concatenate([places.reshape(-1) // m for m in multiplier])
    xs = np.concatenate([edges, rng.integers(-bound, bound + 1, 3000), [-bound, bound] * 3])
    xs = np.clip(xs, -bound, bound)[: len(xs) // 3 * 3].reshape(-1, len(multiplier))
    rs = words(rng, *xs.shape)
    ends = np.arange(200).astype(np.uint64)
    rs.reshape(-1)[:400] = np.concatenate(
        [-ends, ends + (np.uint64(1) << np.uint64(look.ring - 1))]
    )
    got, _, _ = run_gate(gate(look, xs.size, ring), [xs], [rs], seed=1)
    want = np.array(rounded(op, xs.reshape(-1)))
    assert not ((got.reshape(-1) - want) & ((1 << ring) - 1)).any()


def test_the_widest_value_and_ring() -> None:
    """Of 2^60 and a ring of 64 bits, near both ends."""
    bound = 2**60 - 2**20
    op = rescale((1,), 37, -(2**24), 2**24)
    look = chosen(op, Interval(-bound, bound), 64)
    assert look.ring == 63
    xs = np.array([-bound, 1 - bound, -1, 0, 1, bound - 1, bound] * 300)[:, None]
    rs = words(np.random.default_rng(3), *xs.shape)
    got, _, _ = run_gate(gate(look, xs.size, 64), [xs], [rs], seed=1)
    want = np.array(rounded(op, xs.reshape(-1)), np.int64)
    assert (got.reshape(-1).astype(np.int64) == want).all()


@pytest.mark.parametrize(
    "op",
    [
        node((1,), 52, 2, (0, *range(40))),  # two entries are one
        node((1,), 80, 2, tuple(range(30))),  # clips above
        node((1,), 40, 2, tuple(range(50))),  # and below
        node((1,), 80, 2, tuple(range(50, 0, -1))),
        node((1,), 60, 0, tuple(range(130))),  # nothing is shifted
        rescale((1,), 2, -11, 99),
        rescale((1,), 2, -99, 14),
        rescale((1,), 0, -99, 99),
        rescale((1,), 2, -99, 99, bias=(1,)),
        rescale((1,), 2, -99, 99, inputs=("x", "s")),
    ],
)
def test_what_does_more_than_round(op: Any) -> None:
    assert choose_shift(op, Interval(-50, 60), 20) is None
    if isinstance(op, ops.Rescale):
        with pytest.raises(OpNotSupported):
            ramp_of(op, Interval(-50, 60))


def test_sizes_by_formula() -> None:
    """Bits per element as ``docs/spec/mpc.md`` states them, for s = 13: M = 4 for two digits,
    10 for three."""
    op, x = rescale((1,), 13, -(2**12), 2**12), Interval(2 - 2**24, 2**24 - 2**13)
    few, many = chosen(op, x, 10), chosen(op, x, 46)
    assert (few.borrow.digits, few.ring, few.wraps) == ((5, 4, 4), 23, False)
    assert sum(few.fields(10).in_order) == 32 + 2 * 16 + 11 * 10
    assert (many.borrow.digits, many.ring, many.wraps) == ((7, 6), 26, True)
    assert sum(many.fields(46).in_order) == 128 + 64 + 5 * 46 + (46 - 13)
    assert (few.payloads(10), many.payloads(46)) == ((5, 10), (3, 46))


def test_the_same_by_a_ramp() -> None:
    """For one host, which has a joint half of it."""
    op, x = rescale((3, 1), 9, -(2**13), 2**13), Interval(-(2**17), 2**17)
    look, rng = ramp_of(op, x), np.random.default_rng(1)
    xs = np.concatenate([[x.lo, x.hi] * 4, rng.integers(x.lo, x.hi + 1, 2000)]).reshape(-1, 2)
    got, _, _ = run_gate(ramp_gate(look, xs.size, 48), [xs], [words(rng, *xs.shape)], seed=2)
    want = np.array(rounded(op, xs.reshape(-1)))
    assert not ((got.reshape(-1) - want) & ((1 << 48) - 1)).any()


def test_what_is_opened_is_uniform() -> None:
    op = rescale((1,), 11, -(2**12), 2**12)
    xs = np.full((20000, 1), 77)
    made = gate(chosen(op, Interval(-(2**22), 2**22), 20), len(xs), 20)
    masks = words(np.random.default_rng(5), *xs.shape)
    _, _, rounds = run_gate(made, [xs], [masks], seed=3)
    assert len(rounds) == 2
    for ((count, bits),), sent in zip(made.payloads, rounds, strict=True):
        one, two = (unpacked(data, count, bits) for data in sent)
        opened = (one + two) % np.uint64(1 << bits) if bits == made.bits else one ^ two
        for values in (one, two, opened):
            assert chi_square(values, bits) < 6


def test_the_planner_takes_it_for_a_table_that_only_rounds() -> None:
    """And not for one that clips, nor in plans of before."""
    b = graphs.Builder((24,), seed=4)
    acc = b.linear("f", "x", 24, 40)
    most = b.centred[acc].hi >> 7
    table = tuple(range(-most - 1, most + 2))
    wide = b.requantize("r", acc, shift=7, offset=(most + 1) << 7, table=table, zero_point=0)
    clipped = b.requantize("c", wide, shift=2, offset=128 << 2)
    graph = b.graph(b.linear("g", clipped, 40, 3)).public()
    new, old = plan(graph), plan(graph, version=4)
    kinds = [{gate.name: type(gate) for gate in made.gates} for made in (new, old)]
    assert kinds[0]["r"] is ShiftGate
    assert ShiftGate not in {kinds[0]["c"], *kinds[1].values()}
    assert new.rounds < old.rounds
    for made in (new, old):
        assert MpcPlan.from_json(made.to_json(), graph).to_json() == made.to_json()
