"""Maxima with ties, borders and all values of small rings."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np
import pytest

from secure_quant.ir import ops
from secure_quant.mpc.kernels import counts
from secure_quant.mpc.protocol.gates.maximum import MaximumGate, cut_digits, levels
from tests.unit.mpc.protocol.harness import run_gate, words


def reduce_max(
    rows: int, candidates: int, width: int, ring: int, arity: int, digits: Any = ()
) -> MaximumGate:
    op = ops.ReduceMax(name="m", inputs=("x",))
    tournament = levels(candidates, arity)
    free, dealt = MaximumGate.material(tournament, rows, width, ring, digits)
    return MaximumGate(
        name="m", inputs=("x",), shape=(rows, 1), bits=ring, node=op, width=width,
        source=(rows, candidates), tournament=tournament, free_words=free, dealt_words=dealt,
        payloads=MaximumGate.rounds(tournament, rows, ring, digits), digits=digits,
    )  # fmt: skip


@pytest.mark.parametrize("digits", [(), (2,), (1, 1)])
@pytest.mark.parametrize("arity", [2, 3, 4])
def test_every_tuple_with_ties(arity: int, digits: Any) -> None:
    xs = np.array(list(itertools.product(range(-2, 2), repeat=arity)))
    for ring in (3, 9, 64):
        gate = reduce_max(len(xs), arity, 3, ring, arity, digits)
        rng = np.random.default_rng(ring)
        for turn in range(6):
            got, _, _ = run_gate(gate, [xs], [words(rng, *xs.shape)], seed=turn)
            assert (got[:, 0] == xs.max(1)).all()


@pytest.mark.parametrize("digits", [(), (3, 2), (2, 2, 1), (1, 1, 1, 2)])
def test_every_difference_under_every_mask(digits: Any) -> None:
    """The comparison reads differences alone: all of them, under all masks of a difference."""
    deltas, rs = np.meshgrid(np.arange(-15, 16), np.arange(64, dtype=np.uint64))
    xs = np.stack([np.maximum(deltas, 0), np.maximum(-deltas, 0)], -1).reshape(-1, 2)
    masks = np.zeros(xs.shape, np.uint64)
    masks[:, 0] = rs.reshape(-1)
    gate = reduce_max(len(xs), 2, 6, 12, 2, digits)
    got, _, _ = run_gate(gate, [xs], [masks])
    assert (got[:, 0] == xs.max(1)).all()


@pytest.mark.parametrize("digits", [(), (4, 4)])
@pytest.mark.parametrize("arity", [2, 4])
@pytest.mark.parametrize("candidates", [2, 3, 5, 7, 9, 10, 13, 16, 17, 25, 49])
def test_any_number_of_candidates(candidates: int, arity: int, digits: Any) -> None:
    rng = np.random.default_rng(candidates)
    xs = rng.integers(-128, 128, (40, candidates))
    xs[:10] = rng.integers(126, 128, (10, candidates))
    gate = reduce_max(40, candidates, 9, 23, arity, digits)
    got, _, rounds = run_gate(gate, [xs], [words(rng, *xs.shape)])
    assert (got[:, 0] == xs.max(1)).all()
    depth = next(d for d in range(1, 9) if arity**d >= candidates)
    assert len(rounds) == (3 if digits else 2) * depth


def test_accumulators_by_digits() -> None:
    """Differences of 23 bits, at their ends and around nothing."""
    rng = np.random.default_rng(2)
    xs = rng.integers(-(2**21), 2**21, (3000, 3))
    xs[:900, 1] = xs[:900, 0] + np.arange(-450, 450)
    xs[900:1000] = [-(2**21), 2**21 - 1, 0]
    digits = cut_digits(22)
    assert sum(digits) == 22
    gate = reduce_max(len(xs), 3, 23, 26, 3, digits)
    got, _, _ = run_gate(gate, [xs], [words(rng, *xs.shape)])
    assert (got[:, 0] == xs.max(1)).all()


def test_sizes_by_digits() -> None:
    """Bits a maximum as ``docs/spec/mpc.md`` states them, for w = 9 and ko = 26."""
    assert cut_digits(8) == (4, 4)
    for arity, pairs, products in ((2, 1, 2), (3, 3, 11), (4, 6, 39)):
        free, dealt = MaximumGate.material(levels(arity, arity), 640, 9, 26, (4, 4))
        assert (free, 64 * dealt) == (1280, 640 * (pairs * 33 + products * 26))
    assert cut_digits(25) == ()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((2, 2), (2, 2), (0, 0)),
        ((3, 3), (2, 2), (1, 1)),
        ((3, 2), (1, 2), (1, 1)),
        ((1, 1), (2, 1), (0, 0)),
    ],
)
def test_windows_and_borders(kernel: Any, stride: Any, padding: Any) -> None:
    from secure_quant.reference import kernels as truth

    op = ops.MaxPool(name="m", inputs=("x",), kernel=kernel, stride=stride, padding=padding)
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (3, 7, 9))
    want = truth.windows(x[None], kernel, stride, padding, (1, 1), -128).max((-1, -2))[0]
    tournament = levels(prod(kernel), 4)
    free, dealt = MaximumGate.material(tournament, want.size, 9, 20)
    gate = MaximumGate(
        name="m", inputs=("x",), shape=want.shape, bits=20, node=op, width=9, source=x.shape,
        tournament=tournament, free_words=free, dealt_words=dealt,
        payloads=MaximumGate.rounds(tournament, want.size, 20),
    )  # fmt: skip
    got, _, _ = run_gate(gate, [x], [words(rng, *x.shape)])
    assert (got == want).all()


def test_sizes_by_formula() -> None:
    assert [counts.products(a) for a in (2, 3, 4)] == [2, 11, 39]
    assert [counts.pairs(a) for a in (2, 3, 4)] == [1, 3, 6]
    gate = reduce_max(64, 4, 9, 22, 4)
    assert gate.dealt_words == 6 * 256 + 39 * 22
    assert gate.payloads == (((64, 6),), ((64, 22),))
