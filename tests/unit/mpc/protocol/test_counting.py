"""Maxima of values of few levels, by counting."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from conformance import sum_cases
from secure_quant.ir import ops
from secure_quant.mpc.protocol.gates.counting import CountingGate
from secure_quant.mpc.protocol.plan import plan
from secure_quant.reference import run_int
from tests.unit.mpc.protocol.harness import Pair, run_gate, words


def counting(
    source: tuple[int, ...], low: int, levels: int, ring: int, *, summed: bool, bare: bool = False
) -> CountingGate:
    free, dealt = CountingGate.material(source, levels, ring, summed=summed)
    return CountingGate(
        name="m", inputs=("x",), shape=(*source[:-1], 1), bits=ring, low=low, levels=levels,
        node=ops.ReduceMax(name="m", inputs=("x",)), source=source, free_words=free,
        dealt_words=dealt, payloads=CountingGate.rounds(source, levels, ring, summed=summed),
        summed=summed, bare=bare,
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
@pytest.mark.parametrize(("levels", "low"), [(2, -1), (3, -2), (8, 7)])
def test_numbers_under_every_mask_by_xor(levels: int, low: int, summed: bool) -> None:
    """Two candidates of 2 to 8 levels, as a Requantize opens them before they are lifted."""
    size = 1 << (levels - 1).bit_length()
    xs = np.array(list(itertools.product(range(levels), repeat=2)))
    masks = np.array(list(itertools.product(range(size), repeat=2)), np.uint64)
    many, under = np.repeat(xs, len(masks), 0), np.tile(masks, (len(xs), 1))
    gate = counting(many.shape, low, levels, 9, summed=summed, bare=True)
    opened = (many.astype(np.uint64) ^ under) - under  # the harness adds the mask
    got, _, _ = run_gate(gate, [opened.view(np.int64)], [under], seed=levels)
    assert (got[:, 0] == many.max(1) + low).all()


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


def test_scores_are_counted_as_they_are_opened() -> None:
    """A Requantize that counting alone reads is not lifted; the answers are the reference's."""
    graph = sum_cases.maximum_of_few_levels()
    pair = Pair(graph, "balanced")
    before = plan(graph.public(), version=4)
    gates = [gate for gate in pair.plan.gates if isinstance(gate, CountingGate)]
    assert [gate.bare for gate in gates] == [False, True]  # a ramp of the input takes less
    assert pair.plan.rounds <= before.rounds
    assert not any(gate.xored for gate in before.gates)
    q = np.random.default_rng(3).integers(-128, 128, (20, *graph.input.shape)).astype(np.int8)
    got, _, rounds = pair.infer(q)
    assert (got == run_int(graph, q)).all()
    assert len(rounds) == pair.plan.rounds
