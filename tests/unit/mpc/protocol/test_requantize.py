"""Requantize against the definition: every value and every mask of small rings, edges of large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from secure_quant.ir import ops
from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol import tables
from secure_quant.mpc.protocol.gates.requantize import RequantizeGate
from tests.unit.mpc.protocol.harness import chi_square, run_gate, unpacked, words


def node(multiplier: Any, offset: int, shift: int, table: Any) -> ops.Requantize:
    return ops.Requantize(
        name="q", inputs=("x",), multiplier=multiplier, axis=-1, offset=offset, shift=shift,
        table=table, scale=1.0, zero_point=0,
    )  # fmt: skip


def expected(op: ops.Requantize, x: Any) -> Any:
    """The definition, with Python's integers."""
    top, m = len(op.table) - 1, op.multiplier
    rows = []
    for i, value in enumerate(x.tolist()):
        u = (value * m[i % len(m)] + op.offset) >> op.shift
        rows.append(op.table[min(max(u, 0), top)])
    return np.array(rows)


def gate(look: tables.Lookup, elements: int, ring: int) -> RequantizeGate:
    """``ring``: bits of the number, where it is not lifted."""
    free, dealt = RequantizeGate.material(look, elements, ring)
    m = len(look.multiplier)
    return RequantizeGate(
        name="q", inputs=("x",), shape=(elements // m, m), bits=ring, look=look, zero_point=0,
        axis=-1, free_words=free, dealt_words=dealt,
        payloads=tuple(((elements, bits),) for bits in look.payloads(ring)),
    )  # fmt: skip


def looks(op: ops.Requantize, x: Interval) -> list[tables.Lookup]:
    """Every lookup that the planner could take."""
    multiplier, offset, shift = tables.reduced(op)
    ends = [x.lo * m + offset for m in multiplier] + [x.hi * m + offset for m in multiplier]
    return list(tables._candidates(op, Interval(min(ends), max(ends)), multiplier, offset, shift))


WAVY = tuple(int(37 * i * i + 11 * i) % 256 - 128 for i in range(9))
RAMP = tuple(range(-8, 6))
CASES = [
    ((1,), 0, 0, RAMP, Interval(-12, 19)),
    ((1,), 3, 2, WAVY, Interval(-50, 60)),
    ((3,), -7, 3, WAVY, Interval(-20, 41)),
    ((2,), 5, 3, RAMP, Interval(-60, 60)),
    ((1,), 9, 1, (700, -3, -700), Interval(-9, 9)),
    ((1,), -40, 1, RAMP, Interval(-9, 9)),
    ((1,), 90, 1, RAMP, Interval(-9, 9)),
]


@pytest.mark.parametrize(("multiplier", "offset", "shift", "table", "x"), CASES)
def test_every_value_under_every_mask(
    multiplier: Any, offset: int, shift: int, table: Any, x: Interval
) -> None:
    op = node(multiplier, offset, shift, table)
    cases = {
        (look.saturates, look.borrow.digits): look
        for look in reversed(tables.candidates(op, x, cases=True))
        if look.variant == "V5" and look.ring <= 9 and len(look.borrow.digits) < 3
    }
    every = [*looks(op, x), *tables.flat_candidates(op, x)]
    found = [look for look in every if look.ring <= 10 and look.width <= 7]
    found += cases.values()
    assert {look.variant for look in found} == ({"V3", "V4", "V5"} if shift else {"V3", "V4"})
    assert {look.saturates for look in found} == {True, False}
    for number, look in enumerate(found):
        values = np.arange(x.lo, x.hi + 1)
        rings = np.arange(2**look.ring, dtype=np.uint64)
        xs, rs = np.repeat(values, len(rings)), np.tile(rings, len(values))
        got, _, _ = run_gate(gate(look, len(xs), 17), [xs[:, None]], [rs[:, None]], seed=number)
        assert (got.reshape(-1) == expected(op, xs)).all(), look
        if look.variant == "V4" and look.floor == min(table) and number % 3 == 0:
            bits = (max(table) - min(table)).bit_length()
            bare = gate(replace(look, lifted=False, out_bits=bits), len(xs), bits)
            got, _, rounds = run_gate(bare, [xs[:, None]], [rs[:, None]], seed=number)
            assert (got.reshape(-1) + min(table) == expected(op, xs)).all(), look
            assert len(rounds) == len(look.payloads(17)) - 1


@pytest.mark.parametrize("multiplier", [1, 5, 64])
@pytest.mark.parametrize("shift", [0, 3, 9])
def test_tables_of_the_accumulator_itself(multiplier: int, shift: int) -> None:
    """Their entries are what the definition says, wherever the table lies in the range."""
    rng = np.random.default_rng(shift)
    for offset in (-1000, 77):
        op = node((multiplier,), offset, shift, tuple(rng.integers(-128, 128, 40).tolist()))
        for x in (Interval(-99, 120), Interval(0, 0), Interval(5, 400)):
            found = tables.flat_candidates(op, x)
            assert bool(found) == (multiplier > 1 or shift > 0)
            for look in found:
                acc = np.arange(x.lo, x.hi + 1)
                place = np.clip(acc + look.offset, 0, len(look.table) - 1)
                assert (np.array(look.table)[place] == expected(op, acc)).all()
                assert (look.shift, look.multiplier) == (0, (1,))


@pytest.mark.parametrize("ring", [11, 22, 33, 64])
@pytest.mark.parametrize("size", [200, 256, 1000])
@pytest.mark.parametrize("multiplier", [(16,), (255, 3, 128)])
def test_real_sizes_at_the_edges(ring: int, size: int, multiplier: Any) -> None:
    rng = np.random.default_rng(size + ring)
    table = tuple(rng.integers(-128, 128, size).tolist())
    shift, bound = 13, 2**19
    op = node(multiplier, 100 << shift, shift, table)
    steps = (np.arange(-3, size + 3)[:, None] << shift) + np.array([-1, 0, 1])
    edges = ((steps - op.offset).reshape(-1) // multiplier[0]).astype(np.int64)
    xs = np.concatenate([edges, rng.integers(-bound, bound + 1, 3000), [-bound, bound]])
    xs = np.clip(xs, -bound, bound)[: len(xs) // 3 * 3]
    seen, shape = set(), (-1, len(multiplier))
    for objective in ("latency", "traffic"):
        look = tables.choose(op, Interval(-bound, bound), objective, ring)
        seen.add(look.variant)
        two = replace(look, variant="V5") if look.variant == "V4" else look
        rs = rng.integers(0, 2**64, len(xs), dtype=np.uint64)
        rs[:200] = -np.arange(200).astype(np.uint64)
        for each in {look, two}:
            got, _, _ = run_gate(
                gate(each, len(xs), ring), [xs.reshape(shape)], [rs.reshape(shape)], seed=1
            )
            assert (got.reshape(-1) == expected(op, xs)).all(), each
    assert "V4" in seen


@pytest.mark.parametrize("digits", [(4,), (2, 2), (2, 1, 1), (1, 1, 1, 1)])
def test_the_borrow_from_digits(digits: tuple[int, ...]) -> None:
    borrow = tables.Borrow(digits)
    for c in range(16):
        for r in range(16):
            bits, low = 0, 0
            for i, size in enumerate(digits):
                a, b = (c >> low) % 2**size, (r >> low) % 2**size
                bits |= (a < b) << (2 * i - 1 if i else 0)
                bits |= (i > 0 and a == b) << (2 * i)
                low += size
            for n in range(1 << borrow.variables):
                kappa, made = int(borrow.kappa[bits ^ n]), int(borrow.monomials[n])
                assert (kappa & (made << 1 | 1)).bit_count() % 2 == (c < r)
                products = [made << 1 >> i & 1 | (i == 0) for i in range(len(borrow.products) + 1)]
                factors = borrow.factors[bits ^ n].view(np.int64).tolist()
                assert sum(f * p for f, p in zip(factors, products, strict=True)) == (c < r)


def test_sizes_by_formula() -> None:
    """Bits per element as ``docs/spec/mpc.md`` states them, for s = 8, W = 9, H = 7, ko = 22."""
    op = node((1,), 128 << 8, 8, tuple(range(-128, 128)))
    x = Interval(-(2**20), 2**20 - 1)
    seen = set()
    for look in tables.candidates(op, x, cases=True):
        if (look.width, look.granule) != (9, 7) or not look.saturates:
            continue
        h = 2**look.reach
        lift = 8 * 22 - 28
        if look.variant == "V3":
            want, online = 2 * 512 + h + 256 + 2 * 22 + 4 * lift, (19, 22)
        elif look.variant == "V5" and look.borrow.digits == (4, 4):
            want, online = 512 + h + 32 + 10 * (22 + 2 * lift), (21, 22)
        elif look.variant == "V5":
            continue
        elif look.borrow.digits == (8,):
            want, online = 512 + h + 256 + 33 + lift, (18, 8, 22)
        elif look.borrow.digits == (4, 4):
            want, online = 512 + h + 32 + 85 + lift, (20, 8, 22)
        else:
            continue
        seen.add((look.variant, look.borrow.digits))
        assert sum(look.fields(22).in_order) == want
        assert look.payloads(22) == online
    assert seen == {("V3", (8,)), ("V4", (8,)), ("V4", (4, 4)), ("V5", (4, 4))}


@pytest.mark.parametrize("saturates", [False, True])
def test_what_two_rounds_open_is_uniform(saturates: bool) -> None:
    """Of a fixed input, with range bits and without; both parties' shares as well."""
    op = node((1,), 0, 6, WAVY)
    look = next(
        each for each in tables.candidates(op, Interval(-6000, 9000), cases=True)
        if (each.variant, each.saturates, each.borrow.digits) == ("V5", saturates, (3, 3))
    )  # fmt: skip
    xs = np.full((20000, 1), 77)
    made = gate(look, len(xs), 20)
    masks = words(np.random.default_rng(5), *xs.shape)
    _, _, rounds = run_gate(made, [xs], [masks], seed=3)
    for ((count, bits),), sent in zip(made.payloads, rounds, strict=True):
        one, two = (unpacked(data, count, bits) for data in sent)
        opened = (one + two) % np.uint64(1 << bits) if bits == made.bits else one ^ two
        for values in (one, two, opened):
            assert chi_square(values, bits) < 6
