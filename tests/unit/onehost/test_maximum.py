"""Maxima without a dealer, against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.errors import OpNotSupported
from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.base import Wire
from secure_quant.mpc.protocol.gates.maximum import MaximumGate, levels
from secure_quant.mpc.protocol.ring import centred, reduce, to_ring
from secure_quant.onehost.cot import Pairing
from secure_quant.onehost.hots import hot_bits
from secure_quant.onehost.maximum import JointMaximum, borrow_of
from tests.unit.mpc.protocol.harness import drive as rounds_of
from tests.unit.onehost.drive import pair
from tests.unit.onehost.gates import prepared, shares


@pytest.fixture(scope="module")
def pairs() -> list[Pairing]:
    return pair()


def reduce_max(rows: int, candidates: int, width: int, bits: int, arity: int = 2) -> MaximumGate:
    return MaximumGate(
        name="m", inputs=("x",), shape=(rows, 1), bits=bits, width=width,
        node=ops.ReduceMax(name="m", inputs=("x",)), source=(rows, candidates),
        tournament=levels(candidates, arity),
    )  # fmt: skip


def run(gate: MaximumGate, x: Any, pairs: list[Pairing], seed: int = 0) -> Any:
    """The values, centred mod 2^bits, after all promises of cost are checked."""
    joint, batch = JointMaximum(gate), len(x)
    masks = shares(np.random.default_rng(seed), *x.shape)
    ends, sent = prepared(joint, pairs, masks)
    assert tuple(sent) == joint.sent_bytes(batch)
    masked = to_ring(x, 64) + masks[0] + masks[1]
    wires = [Wire(masked, own) for own in masks]
    runs = [joint.online(end, wire) for end, wire in zip(ends, wires, strict=True)]
    one, two, rounds = rounds_of(*runs)
    counts = joint.counts(batch)
    want = [
        (count * bits + 7) // 8
        for count, level in zip(counts, joint.payload_bits(), strict=True)
        for bits in level
    ]
    assert [len(a) for a, _ in rounds] == want
    assert (one.masked == two.masked).all()
    return centred(reduce(one.masked - one.mask - two.mask, gate.bits), gate.bits)


@pytest.mark.parametrize("width", [2, 3, 4, 9, 17, 23])
@pytest.mark.parametrize("spare", [0, 13])
@pytest.mark.parametrize("candidates", [2, 3, 7])
def test_against_numpy(width: int, spare: int, candidates: int, pairs: list[Pairing]) -> None:
    rng, bits = np.random.default_rng(width), width + spare
    half = 2 ** (width - 2)
    x = rng.integers(-half, half, (2, 40, candidates))
    x[0, 0], x[0, 1] = -half, half - 1  # ties and ends
    x[0, 2, 0], x[0, 2, 1:] = -half, half - 1
    x[0, 3, 0], x[0, 3, 1:] = half - 1, -half
    got = run(reduce_max(40, candidates, width, bits), x, pairs, width)
    assert (got == x.max(axis=-1, keepdims=True)).all()


def test_every_difference_under_every_mask(pairs: list[Pairing]) -> None:
    """w = 4, k = 4: all pairs of candidates, many masks each."""
    values = np.arange(-4, 4)
    x = np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)
    x = np.tile(x, (40, 1))[None]
    got = run(reduce_max(x.shape[1], 2, 4, 4), x, pairs)
    assert (got == x.max(axis=-1, keepdims=True)).all()


def test_pooling(pairs: list[Pairing]) -> None:
    node = ops.MaxPool(name="m", inputs=("x",), kernel=(3, 2), stride=(2, 1), padding=(1, 0))
    gate = MaximumGate(
        name="m", inputs=("x",), shape=(3, 3, 4), bits=22, node=node, width=9, source=(3, 5, 5),
        tournament=levels(6, 2),
    )  # fmt: skip
    x = np.random.default_rng(0).integers(-128, 128, (2, 3, 5, 5))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=-128)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), axis=(2, 3))[:, :, ::2, ::1]
    assert (run(gate, x, pairs) == windows.max(axis=(-2, -1))).all()


@pytest.mark.parametrize(
    ("width", "bits", "digits", "cots", "payload"),
    [(9, 22, (4, 4), 22, 165), (23, 23, (6, 6, 5, 5), 56, 729)],
)
def test_cost_by_formula(width: int, bits: int, digits: Any, cots: int, payload: int) -> None:
    """The examples of docs/spec/one-host.md."""
    joint = JointMaximum(reduce_max(64, 2, width, bits))
    assert joint.borrow.digits == digits
    assert joint.formula() == (cots, payload)


@pytest.mark.parametrize("width", range(2, 25))
def test_formula_is_what_is_counted(width: int) -> None:
    joint = JointMaximum(reduce_max(64, 2, width, max(width, 20)))
    cots, payload = joint.formula()
    assert sum(joint.cots(1)) == 64 * cots
    assert sum(map(sum, joint.parts())) == payload
    assert sum(joint.sent_bytes(1)) == 8 * payload


def test_digits_are_the_cheapest() -> None:
    assert len(borrow_of(1).digits) == 1
    for low in (8, 22):
        table = 2 * hot_bits(low) - 31 if low <= 14 else 10**9
        chosen = borrow_of(low)
        bits = 2 * sum(map(hot_bits, chosen.digits))
        bits += 2 * (len(chosen.products) - chosen.variables)
        assert bits + 31 * (2 * chosen.variables - len(chosen.digits)) < table


def test_maxima_of_four_are_refused() -> None:
    with pytest.raises(OpNotSupported, match="maxima of 4"):
        JointMaximum(reduce_max(4, 4, 9, 22, arity=4))
