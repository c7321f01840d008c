"""Requantize without a dealer: material made by the two, the online half as it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.errors import OpNotSupported
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol import tables
from secure_quant.mpc.protocol.ring import reduce
from secure_quant.onehost.cases import JointCases
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.order import requantized
from secure_quant.onehost.requantize import JointRequantize
from tests.unit.mpc.protocol.test_requantize import CASES, expected, gate, looks, node
from tests.unit.onehost.drive import pair, words
from tests.unit.onehost.gates import online, prepared, shares


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


def possible(look: tables.Lookup) -> bool:
    """There is a joint half: V3 takes a shift."""
    return look.variant == "V4" or look.shift > 0


def run(look: tables.Lookup, op: Any, xs: Any, masks: Any, ring: int, pairs: Any) -> None:
    """xs: int64[batch, rows, channels]."""
    made = gate(look, xs[0].size, ring)
    joint = requantized(made)
    ends, sent = prepared(joint, pairs, masks)
    assert tuple(sent) == joint.sent_bytes(len(xs))
    got, rounds = online(made, ends, xs, masks)
    flat = np.concatenate([expected(op, x.reshape(-1)) for x in xs])
    assert (got.reshape(-1) == flat).all(), look
    assert [len(a) for a, _ in rounds] == list(made.payload_bytes(len(xs)))
    for one, two in zip(ends[0].side.free, ends[1].side.free, strict=True):
        assert (one != two).any()


@pytest.mark.parametrize(("multiplier", "offset", "shift", "table", "x"), CASES)
def test_every_lookup_there_is(
    multiplier: Any, offset: int, shift: int, table: Any, x: Interval, pairs: list[Pairing]
) -> None:
    """All values, random masks, all that the planner could take."""
    op, rng = node(multiplier, offset, shift, table), np.random.default_rng(shift)
    found = [look for look in looks(op, x) if look.width <= 10 and possible(look)]
    for variant in ("V4", "V3") if found[0].shift else ("V4",):
        kind = [look for look in found if look.variant == variant]
        assert {look.saturates for look in kind} == {True, False}
    least, most = min(found[0].shift, 1), min(found[0].shift, 4)
    assert {len(look.borrow.digits) for look in found} == set(range(least, most + 1))
    values = np.arange(x.lo, x.hi + 1)
    for look in found:
        xs = np.stack([values, values[::-1]])[:, :, None]
        run(look, op, xs, shares(rng, *xs.shape), 17, pairs)


@pytest.mark.parametrize("ring", [5, 22, 64])
def test_every_mask_of_a_small_ring(ring: int, pairs: list[Pairing]) -> None:
    """The opened δ takes any mask of the accumulator to a fresh one."""
    op = node((3,), -7, 3, tuple(range(-8, 6)))
    look = next(
        each for each in looks(op, Interval(-20, 41))
        if each.variant == "V4" and each.saturates and len(each.borrow.digits) == 2
    )  # fmt: skip
    rings = np.arange(2**look.ring, dtype=np.uint64)
    values = np.arange(-20, 42)
    xs = np.repeat(values, len(rings))[None, :, None]
    r = np.tile(rings, len(values))[None, :, None]
    first = words(np.random.default_rng(0), *r.shape)
    run(look, op, xs, [first, r - first], ring, pairs)


@pytest.mark.parametrize("ring", [11, 22, 33])
@pytest.mark.parametrize("size", [200, 256, 1000])
@pytest.mark.parametrize("multiplier", [(16,), (255, 3, 128)])
def test_real_sizes_at_the_edges(ring: int, size: int, multiplier: Any, pairs: Any) -> None:
    rng = np.random.default_rng(size + ring)
    table = tuple(rng.integers(-128, 128, size).tolist())
    shift, bound = 13, 2**19
    op = node(multiplier, 100 << shift, shift, table)
    steps = (np.arange(-3, size + 3)[:, None] << shift) + np.array([-1, 0, 1])
    edges = ((steps - op.offset).reshape(-1) // multiplier[0]).astype(np.int64)
    xs = np.concatenate([edges, rng.integers(-bound, bound + 1, 600), [-bound, bound]])
    xs = np.clip(xs, -bound, bound)[: len(xs) // 3 * 3].reshape(1, -1, len(multiplier))
    for objective in ("balanced", "traffic"):
        look = tables.choose(op, Interval(-bound, bound), objective, ring)
        run(look, op, xs, shares(rng, *xs.shape), ring, pairs)


@pytest.mark.parametrize(
    ("shift", "bound", "reach", "ring", "cots", "bits"),
    [
        (9, 900_000, 5, 22, 55, 1440),
        (9, 1_900_000, 6, 24, 57, 1541),
        (10, 7_500_000, 7, 22, 61, 1730),
    ],
)
def test_cost_by_formula(
    shift: int, bound: int, reach: int, ring: int, cots: int, bits: int
) -> None:
    """The examples of docs/spec/one-host.md, 6: ring 9 + 7 + reach, two digits, a half-tree."""
    op = node((1,), 128 << shift, shift, tuple(range(-128, 128)))
    look = next(
        each for each in looks(op, Interval(-bound, bound))
        if each.variant == "V4" and len(each.borrow.digits) == 2
        and (each.width, each.granule, each.reach) == (9, 7, reach)
    )  # fmt: skip
    joint = JointRequantize(gate(look, 64, ring))
    assert joint.formula() == (cots, bits)
    assert sum(joint.cots(1)) == 64 * cots
    assert sum(map(sum, joint.parts())) == bits
    assert sum(joint.sent_bytes(1)) == 8 * bits  # 64 elements fill their bytes


def test_formula_is_what_is_sent(pairs: list[Pairing]) -> None:
    """For every lookup of all cases: parts, closed formula and bytes agree."""
    for multiplier, offset, shift, table, x in CASES:
        op = node(multiplier, offset, shift, table)
        for look in looks(op, x):
            if possible(look):
                joint = requantized(gate(look, 64, 22))
                cots, bits = joint.formula()
                assert sum(joint.cots(1)) == 64 * cots
                assert sum(map(sum, joint.parts())) == bits
                up, down = joint.sent_bytes(1)
                assert up + down == 8 * bits


def test_what_is_opened_is_uniform(pairs: list[Pairing]) -> None:
    """One input, one mask of it: δ and every opened payload still spread over their range."""
    op = node((3,), -7, 3, tuple(range(-8, 6)))
    look = tables.choose(op, Interval(-20, 41), "balanced", 8)
    made, n = gate(look, 4096, 8), 4096
    zero = np.zeros((1, n, 1), np.uint64)
    ends, _ = prepared(JointRequantize(made), pairs, [zero, zero])
    assert (ends[0].offset == ends[1].offset).all()
    sizes = [(look.ring, ends[0].offset.reshape(-1))]
    _, rounds = online(made, ends, np.full((1, n, 1), 7), [zero, zero])
    for bits, (one, two) in zip(look.payloads(8), rounds, strict=True):
        whole = [np.unpackbits(np.frombuffer(p, np.uint8), bitorder="little") for p in (one, two)]
        ones = [p[: n * bits].reshape(n, bits).astype(np.uint64) for p in whole]
        for side in ones:
            assert (np.abs(side.sum(axis=0) - n / 2) < 6.5 * np.sqrt(n) / 2).all()
    for bits, values in sizes:
        for bit in range(bits):
            count = int((values >> np.uint64(bit) & np.uint64(1)).sum())
            assert abs(count - n / 2) < 6.5 * np.sqrt(n) / 2


@pytest.mark.parametrize("digits", [(11,), (6, 5)])
def test_a_wide_digit_is_a_tree(digits: Any, pairs: list[Pairing]) -> None:
    op = node((5,), 1 << 13, 11, tuple(range(-8, 6)))
    found = [look for look in looks(op, Interval(-9000, 9000)) if look.borrow.digits == digits]
    look = min(
        (each for each in found if each.variant == "V4"), key=lambda e: sum(e.fields(22).in_order)
    )
    xs = np.random.default_rng(2).integers(-9000, 9001, (1, 400, 1))
    xs[0, :5, 0] = [-9000, 9000, 0, -1, 1]
    run(look, op, xs, shares(np.random.default_rng(3), *xs.shape), 22, pairs)


@pytest.mark.parametrize("granule", [0, 3])
def test_two_trees_over_the_same_bits(granule: int, pairs: list[Pairing]) -> None:
    """Main and saturation both wide, so that both are trees, over bits that overlap."""
    op = node((1,), 40, 2, tuple(int(37 * i * i) % 256 - 128 for i in range(200)))
    look = next(
        each for each in looks(op, Interval(-5000, 5000))
        if each.variant == "V4" and each.saturates and each.granule == granule
        and each.width >= 9 and each.reach >= 9
    )  # fmt: skip
    xs = np.random.default_rng(2).integers(-5000, 5001, (1, 500, 1))
    xs[0, :5, 0] = [-5000, 5000, 0, -1, 1]
    run(look, op, xs, shares(np.random.default_rng(3), *xs.shape), 22, pairs)


@pytest.mark.parametrize(
    ("half", "variant", "shift"),
    [(JointRequantize, "V3", 3), (JointCases, "V4", 3), (JointCases, "V3", 0)],
)
def test_what_has_another_half_is_refused(half: Any, variant: str, shift: int) -> None:
    op = node((3,), -7, shift, tuple(range(-8, 6)))
    look = next(each for each in looks(op, Interval(-20, 41)) if each.variant == variant)
    with pytest.raises(OpNotSupported):
        half(gate(look, 4, 8))


@pytest.mark.parametrize("ring", [1, 5, 22])
def test_cases_in_rings_of_any_size(ring: int, pairs: list[Pairing]) -> None:
    op = node((5,), 1 << 13, 11, tuple(range(-8, 6)))
    xs = np.random.default_rng(2).integers(-9000, 9001, (2, 300, 1))
    xs[0, :5, 0] = [-9000, 9000, 0, -1, 1]
    found = [look for look in looks(op, Interval(-9000, 9000)) if look.variant == "V3"]
    for saturates in (True, False):
        look = min((e for e in found if e.saturates == saturates), key=lambda e: e.width)
        masks = shares(np.random.default_rng(3), *xs.shape)
        if ring >= 5:
            run(look, op, xs, masks, ring, pairs)
        else:  # what is left of y mod 2
            joint = JointCases(gate(look, 300, ring))
            ends, sent = prepared(joint, pairs, masks)
            assert tuple(sent) == joint.sent_bytes(2)
            got, _ = online(joint.gate, ends, xs, masks)
            whole = np.concatenate([expected(op, x.reshape(-1)) for x in xs])
            assert ((got.reshape(-1) - whole) % 2 == 0).all()


def test_cost_of_cases_by_formula() -> None:
    """The example of docs/spec/one-host.md, 5: s = 9, W = 9, q = 7, H = 5, ring 22."""
    op = node((1,), 128 << 9, 9, tuple(range(-128, 128)))
    look = next(
        each for each in looks(op, Interval(-900_000, 900_000))
        if each.variant == "V3" and (each.width, each.granule, each.reach) == (9, 7, 5)
    )  # fmt: skip
    assert JointCases(gate(look, 64, 22)).formula() == (61, 3746)


def test_a_planted_wrong_offset_is_seen(pairs: list[Pairing]) -> None:
    """The tests above fail where δ is off by a unit."""
    op = node((1,), 0, 0, tuple(range(-8, 6)))
    look = tables.choose(op, Interval(-12, 19), "balanced", 17)
    made = gate(look, 32, 17)
    xs, masks = np.arange(-12, 20)[None, :, None], shares(np.random.default_rng(1), 1, 32, 1)
    ends, _ = prepared(JointRequantize(made), pairs, masks)
    for end in ends:
        object.__setattr__(end, "offset", reduce(end.offset + np.uint64(1), look.ring))
    got, _ = online(made, ends, xs, masks)
    assert (got.reshape(-1) != expected(op, xs.reshape(-1))).any()
