"""Requantize by a ramp without a dealer: material made by the two, the online half as it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.ir.values import Interval
from secure_quant.mpc.protocol.ramps import Ramp
from secure_quant.mpc.protocol.ring import reduce
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.ramp import JointRamp
from tests.unit.mpc.protocol.test_ramp import CASES, chosen, gate
from tests.unit.mpc.protocol.test_requantize import expected, node
from tests.unit.onehost.drive import both, drive, pair, words
from tests.unit.onehost.gates import in_one_piece, online, prepared, shares
from tests.unit.onehost.ledger import Ledger


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


def run(look: Ramp, op: Any, xs: Any, masks: Any, ring: int, pairs: Any) -> None:
    """xs: int64[batch, rows, channels]."""
    made = gate(look, xs[0].size, ring)
    joint = JointRamp(made)
    ends, sent = prepared(joint, pairs, masks)
    assert tuple(sent) == joint.sent_bytes(len(xs))
    got, rounds = online(made, ends, xs, masks)
    flat = np.concatenate([expected(op, x.reshape(-1)) for x in xs])
    assert not ((got.reshape(-1) - flat) & ((1 << min(ring, 62)) - 1)).any(), look
    assert [len(a) for a, _ in rounds] == list(made.payload_bytes(len(xs)))


@pytest.mark.parametrize(("multiplier", "offset", "shift", "table", "x"), CASES)
def test_every_value_under_every_mask(
    multiplier: Any, offset: int, shift: int, table: Any, x: Interval, pairs: list[Pairing]
) -> None:
    """δ takes any mask of the accumulator to a fresh one."""
    op, rng = node(multiplier, offset, shift, table), np.random.default_rng(shift)
    look = chosen(op, x)
    values, rings = np.arange(x.lo, x.hi + 1), np.arange(2**look.ring, dtype=np.uint64)
    xs, r = np.repeat(values, len(rings)), np.tile(rings, len(values))
    for ring in (2, 17, 64):
        first = words(rng, 1, len(xs), 1)
        run(look, op, xs[None, :, None], [first, r[None, :, None] - first], ring, pairs)


@pytest.mark.parametrize("ring", [11, 26, 64])
@pytest.mark.parametrize("multiplier", [(1,), (15, 3, 7)])
@pytest.mark.parametrize(("steps", "shift"), [(8, 14), (8, 5), (4, 18)])
def test_real_sizes_at_the_edges(
    ring: int, multiplier: Any, steps: int, shift: int, pairs: list[Pairing]
) -> None:
    rng = np.random.default_rng(steps + ring)
    bound = 2 ** (shift + steps + 1)
    op = node(multiplier, (1 << shift + steps - 1) + 5, shift, tuple(range(-7, 2**steps - 7)))
    places = (np.arange(-3, 2**steps + 3)[:, None] << shift) + np.array([-1, 0, 1])
    edges = ((places - op.offset).reshape(-1) // multiplier[0]).astype(np.int64)
    xs = np.concatenate([edges, rng.integers(-bound, bound + 1, 600), [-bound, bound]])
    xs = np.clip(xs, -bound, bound)[: len(xs) // 6 * 6].reshape(2, -1, len(multiplier))
    run(chosen(op, Interval(-bound, bound)), op, xs, shares(rng, *xs.shape), ring, pairs)


def real() -> Ramp:
    return chosen(node((1,), 128 << 13, 13, tuple(range(-128, 128))), Interval(-(2**24), 2**24))


def test_cost_by_formula() -> None:
    """The example of docs/spec/one-host.md: s = 13, q = 8, H = 5, ko = 22."""
    joint = JointRamp(gate(real(), 64, 22))
    assert (joint.gate.look.ring, joint.gate.look.borrow.digits) == (26, (5, 4, 4, 4, 4))
    assert joint.formula() == (73, 1071)


@pytest.mark.parametrize("ring", [1, 8, 22, 40])
def test_formula_is_what_is_counted(ring: int) -> None:
    looks = [chosen(node(*case[:4]), case[4]) for case in CASES]
    for look in (*looks, real()):
        joint = JointRamp(gate(look, 64 * len(look.multiplier), ring))
        cots, bits = joint.formula()
        count = joint.gate.elements
        assert sum(joint.cots(1)) == count * cots
        assert sum(map(sum, joint.parts())) == bits
        assert 8 * sum(joint.sent_bytes(1)) == count * bits


def test_what_is_opened_is_uniform(pairs: list[Pairing]) -> None:
    """One input, one mask of it: δ and every opened payload still spread over their range."""
    op, n = node((1,), 9, 1, tuple(range(16))), 4096
    look = chosen(op, Interval(-9, 9))
    made, zero = gate(look, n, 8), np.zeros((1, n, 1), np.uint64)
    ends, _ = prepared(JointRamp(made), pairs, [zero, zero])
    assert (ends[0].offset == ends[1].offset).all()
    _, rounds = online(made, ends, np.full((1, n, 1), 7), [zero, zero])
    seen = []
    for bits, (one, two) in zip(look.payloads(8), rounds, strict=True):
        whole = [np.unpackbits(np.frombuffer(p, np.uint8), bitorder="little") for p in (one, two)]
        seen += [p[: n * bits].reshape(n, bits) for p in whole]
        seen += [seen[-1] ^ seen[-2]] if bits != made.bits else []
    places = np.arange(look.ring, dtype=np.uint64)
    seen.append(ends[0].offset.reshape(-1, 1) >> places & np.uint64(1))
    for bits_of in seen:
        assert (np.abs(bits_of.sum(axis=0) - n / 2) < 6.5 * np.sqrt(n) / 2).all()


def test_no_pad_block_serves_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    joint, fresh = JointRamp(gate(real(), 20, 22)), pair()
    both(fresh, lambda p: p.fill(*joint.cots(1)))
    ledger, zero = Ledger(monkeypatch), np.zeros((1, 20, 1), np.uint64)
    runs = [in_one_piece(joint, p, zero, joint.fresh(p, 1)) for p in fresh]
    drive(*(ledger.follow(party, each) for party, each in enumerate(runs)))
    assert ledger.check()["pads"] > 0


def test_a_planted_wrong_offset_is_seen(pairs: list[Pairing]) -> None:
    op = node((1,), 9, 1, tuple(range(16)))
    look = chosen(op, Interval(-9, 9))
    made = gate(look, 19, 17)
    xs, masks = np.arange(-9, 10)[None, :, None], shares(np.random.default_rng(1), 1, 19, 1)
    ends, _ = prepared(JointRamp(made), pairs, masks)
    for end in ends:
        object.__setattr__(end, "offset", reduce(end.offset + np.uint64(2), look.ring))
    got, _ = online(made, ends, xs, masks)
    assert (got.reshape(-1) != expected(op, xs.reshape(-1))).any()
