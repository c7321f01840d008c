"""The place of the largest: exactly the reference's, and nothing else is opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant import reference
from secure_quant.errors import OpNotSupported
from secure_quant.ir import Interval, ops
from secure_quant.ir.policy import with_output
from secure_quant.ir.values import Value
from secure_quant.mpc.protocol.gates.order import TopKGate, group_sizes
from secure_quant.mpc.protocol.order import tournament_of
from secure_quant.mpc.protocol.plan import plan
from secure_quant.mpc.protocol.ring import reduce
from tests.unit.mpc.protocol import graphs
from tests.unit.mpc.protocol.harness import Pair, chi_square, run_gate, unpacked, words


def gate(
    candidates: int, reach: int, objective: str, positions: int = 1, count: int = 1,
    multiplier: Any = (1,),
) -> TopKGate:  # fmt: skip
    node = ops.TopK(name="t", inputs=("x",), multiplier=multiplier, axis=1, count=count)
    source = positions, candidates
    value = Value(source, Interval(-reach, reach), 1.0, 0, accumulator=True)
    tournament = tournament_of(node, value, objective)
    width = tournament[0].compare.look.ring
    free, dealt = TopKGate.material(tournament, positions)
    return TopKGate(
        name="t", inputs=("x",), shape=(positions, count), bits=64, multiplier=multiplier, axis=1,
        source=source, zero_point=0, width=width, tournament=tournament, free_words=free,
        dealt_words=dealt, payloads=TopKGate.rounds(tournament, positions, width),
    )  # fmt: skip


def first_of_all(x: Any, count: int = 1) -> Any:
    """By Python's own order of pairs."""
    lines = [sorted((-v, c) for c, v in enumerate(line))[:count] for line in x.tolist()]
    return np.array([[c for _, c in line] for line in lines])


@pytest.mark.parametrize("objective", ["latency", "balanced", "traffic"])
@pytest.mark.parametrize("candidates", [2, 3, 4, 5, 10, 11, 17, 41])
@pytest.mark.parametrize("reach", [1, 100, 2**20])
def test_it_is_the_first_of_the_largest(candidates: int, objective: str, reach: int) -> None:
    rng = np.random.default_rng(candidates)
    made = gate(candidates, reach, objective, positions=40)
    x = rng.integers(-reach, reach + 1, (40, candidates))
    x[0], x[1], x[2, -2:], x[3, 0] = -reach, reach, reach, -reach
    got, _, _ = run_gate(made, [x], [words(rng, *x.shape)])
    assert (got == first_of_all(x)).all()


def test_multipliers_weigh_scores() -> None:
    rng, multiplier = np.random.default_rng(0), (1, 255, 7, 90, 64, 2)
    x = rng.integers(-1000, 1001, (60, 6))
    made = gate(6, 1000, "balanced", positions=60, multiplier=multiplier)
    got, _, _ = run_gate(made, [x], [words(rng, *x.shape)])
    assert (got == first_of_all(x * np.array(multiplier))).all()


@pytest.mark.parametrize("count", [2, 5, 12])
def test_several_places_in_order(count: int) -> None:
    rng = np.random.default_rng(count)
    x = rng.integers(-6, 7, (50, 12))  # many are equal
    made = gate(12, 6, "traffic", positions=50, count=count)
    got, _, _ = run_gate(made, [x], [words(rng, *x.shape)])
    assert (got == first_of_all(x, count)).all()


def test_several_places_of_many_are_refused_by_name() -> None:
    with pytest.raises(OpNotSupported, match="at most 64"):
        gate(65, 10, "balanced", count=2)


def test_groups_are_even() -> None:
    assert group_sizes(10, 10) == (10,)
    assert group_sizes(11, 10) == (6, 2)
    assert group_sizes(1000, 10) == (10, 10, 10)
    assert group_sizes(1000, 16) == (16, 16, 4)
    assert group_sizes(2, 16) == (2,)


@pytest.mark.parametrize("scores", ["equal", "first", "last"])
@pytest.mark.parametrize("candidates", [4, 12])
def test_what_is_seen_is_uniform_whatever_wins(scores: str, candidates: int) -> None:
    """In one level and in two, round by round; equal scores as extremes."""
    count, reach, rng = 2**14 // candidates, 2**12, np.random.default_rng(candidates)
    x = np.zeros((count, candidates), np.int64)
    x[:, 0 if scores == "first" else -1] = 0 if scores == "equal" else reach
    made = gate(candidates, reach, "balanced", positions=count)
    _, (one, two), rounds = run_gate(made, [x], [words(rng, *x.shape)])
    assert len(rounds) == len(made.payloads)
    for parts, sent in zip(made.payloads, rounds, strict=True):
        place = 0
        for elements, bits in parts:
            size = (elements * bits + 7) // 8
            first, second = (unpacked(d[place : place + size], elements, bits) for d in sent)
            place += size
            for values in (first, second):
                assert chi_square(values, bits) < 6
            opened = first ^ second, reduce(first + second, bits)  # one of these it was
            assert min(chi_square(each, bits) for each in opened) < 6
    for party in (one, two):
        assert chi_square(party.masked.reshape(-1), 64) < 6


def test_a_classifier_and_what_its_answer_costs() -> None:
    scores = graphs.mlp()
    graph = with_output(scores, "argmax")
    q = np.random.default_rng(0).integers(-128, 128, (16, *graph.input.shape)).astype(np.int8)
    got, _, _ = Pair(graph).infer(q)
    assert np.array_equal(got, reference.run_int(graph, q))
    end = scores.output
    real = reference.run_int(scores, q) * np.array(end.multiplier)
    assert np.array_equal(got.reshape(16, -1), first_of_all(real))
    before, after = (plan(each).cost() for each in (scores, graph))
    assert after.rounds == before.rounds + 6  # the scores are opened under a mask, then five
