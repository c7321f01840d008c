"""Maxima of values of few levels, by counting."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.counting import CountingGate
from tests.unit.mpc.protocol.harness import run_gate, words


def counting(
    source: tuple[int, ...], low: int, levels: int, ring: int, *, summed: bool
) -> CountingGate:
    free, dealt = CountingGate.material(source, levels, ring, summed=summed)
    return CountingGate(
        name="m", inputs=("x",), shape=(*source[:-1], 1), bits=ring, low=low, levels=levels,
        node=ops.ReduceMax(name="m", inputs=("x",)), source=source, free_words=free,
        dealt_words=dealt, payloads=CountingGate.rounds(source, levels, ring, summed=summed),
        summed=summed,
    )  # fmt: skip


SUMMED = pytest.mark.parametrize("summed", [False, True])


@SUMMED
@pytest.mark.parametrize(("levels", "low"), [(2, -1), (3, -2), (4, 7)])
def test_every_tuple_under_every_mask(levels: int, low: int, summed: bool) -> None:
    """Three candidates of 2 to 4 levels, each under all masks of a level."""
    size = 1 << (levels - 1).bit_length()
    xs = np.array(list(itertools.product(range(levels), repeat=3)))
    masks = np.array(list(itertools.product(range(size), repeat=3)), np.uint64)
    many = np.repeat(xs, len(masks), 0) + low
    gate = counting(many.shape, low, levels, 9, summed=summed)
    for seed in range(3):
        got, _, _ = run_gate(gate, [many], [np.tile(masks, (len(xs), 1))], seed=seed)
        assert (got[:, 0] == many.max(1)).all()


@SUMMED
@pytest.mark.parametrize("candidates", [1, 7, 8, 127, 128, 256])
@pytest.mark.parametrize("levels", [5, 64])
def test_any_number_of_candidates(candidates: int, levels: int, summed: bool) -> None:
    """Counts that fill their bits, and those that no candidate reaches."""
    rng = np.random.default_rng(candidates)
    xs = rng.integers(-3, levels - 3, (2, 5, candidates))
    xs[0, 0], xs[0, 1], xs[1, 2] = -3, levels - 4, 0
    for ring in (7, 64):
        gate = counting(xs.shape, -3, levels, ring, summed=summed)
        got, _, _ = run_gate(gate, [xs], [words(rng, *xs.shape)], seed=ring)
        assert (got[..., 0] == xs.max(-1)).all()


@SUMMED
def test_what_is_opened_is_uniform(summed: bool) -> None:
    """Each opened count, bit and sum of a fixed input takes every value alike over the seeds."""
    xs = np.array([[0, 2, 1]])
    gate = counting((1, 3), 0, 4, 3, summed=summed)
    sizes = [8, 8] if summed else [8, 2, 8]
    seen: list[Any] = [np.zeros(size, int) for size in sizes]
    rng = np.random.default_rng(0)
    for seed in range(400):
        _, _, rounds = run_gate(gate, [xs], [words(rng, 1, 3)], seed=seed)
        for counts, (a, b) in zip(seen, rounds, strict=True):
            one, two = a[0], b[0]
            counts[(one ^ two) & 1 if len(counts) == 2 else (one + two) & 7] += 1
    for counts in seen:
        wanted = counts.sum() / len(counts)
        assert ((counts - wanted) ** 2 / wanted).sum() < 30
