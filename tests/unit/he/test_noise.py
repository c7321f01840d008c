"""Measured errors against the derivation's standard deviation and its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from unit.he.models import centred, linear, random_input
from unit.he.walk import with_scaling

from secure_quant import reference
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.noise import (
    Layer,
    answer_noise,
    choose,
    key_noise,
    margin,
    weight_noise,
)
from secure_quant.he.parameters import TIERS
from secure_quant.he.plan import HePlan, plan
from secure_quant.he.search import layer_of
from secure_quant.ir import Graph
from secure_quant.protect.ckks import CkksSession

GRAPH = linear(400, 60)
KEYS = 12


def errors(graph: Graph, made: HePlan, keys: int = KEYS) -> np.ndarray:
    """Errors of all outputs under ``keys`` fresh keys, in units of the response's modulus."""
    evaluator, call = Evaluator(graph, made), made.steps[0].call(1)
    found = []
    for seed in range(keys):
        q = random_input(graph, 1, seed)
        session = CkksSession(graph.public(), made)
        response = evaluator.evaluate(0, 1, session.encrypt(0, centred(graph, "x", q)))
        exact = reference.trace(graph, q)["layer"]
        raw = session._raw(call, response).reshape(exact.shape)
        found.append(raw - (exact << call.scaling.scale))
    return np.concatenate(found).ravel()


def rounding(drop: int) -> float:
    return 4.0**drop / 12 if drop else 0.0


def expected_variance(graph: Graph, made: HePlan) -> float:
    """Variance by the derivation with the true weights and a third of zeros in s and u."""
    layout = made.steps[0].layout(1)
    scaling, degree, small = layout.scaling, layout.ring.degree, layout.ring.degree * 2 / 3
    squares = (graph.parameters["layer.weight"].astype(float) ** 2).sum()
    squares *= layout.tile.cout / len(graph.parameters["layer.weight"])  # of one response
    up = (10.5 + rounding(scaling.drop_up) + (0.25 if scaling.drop_up else 0)) * squares
    key = (10.5 + rounding(scaling.drop_key)) * small + 10.5 + 10.5 * small
    down = rounding(scaling.drop_c1) * small + rounding(scaling.drop_c0)
    assert degree == 2048
    return up + key + down + scaling.flood**2 / 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flood": 1, "drop_c1": 0, "drop_c0": 0, "drop_key": 0},
        {"flood": 1, "drop_c1": 0, "drop_c0": 0, "drop_up": 0},
        {"flood": 1, "drop_c0": 0, "drop_up": 0, "drop_key": 0},
        {"flood": 1, "drop_c1": 0, "drop_c0": 0, "drop_up": 0, "drop_key": 0},
    ],
    ids=["whole", "upward", "key", "c1", "smallest"],
)
def test_standard_deviation_is_the_predicted_one(changes: dict[str, int]) -> None:
    made = with_scaling(plan(GRAPH), **changes)
    found, expected = errors(GRAPH, made), math.sqrt(expected_variance(GRAPH, made))
    # 720 correlated samples: the deviation of their deviation is a few per cent.
    assert 0.85 < found.std() / expected < 1.15
    assert abs(found.mean()) < 0.3 * expected


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
def test_errors_stay_within_the_bound(tier: str) -> None:
    made = plan(GRAPH, tier=tier)
    layout = made.steps[0].layout(1)
    room, hiding = margin(
        layer_of(made.steps[0].geometry, layout.tile), layout.ring, tier, layout.scaling
    )
    assert room > 0
    assert hiding >= 1
    largest = np.abs(errors(GRAPH, made)).max()
    assert largest < 2 ** (layout.scaling.scale - 1) - room
    assert largest > layout.scaling.flood * 0.98  # the bound is not idle: the flood is there


def test_bounds_grow_with_what_is_dropped() -> None:
    layer, ring = Layer(10**6, 10**6, 10**4, 20), TIERS["T1"][0]
    for noise in (
        lambda drop: weight_noise(layer, drop),
        lambda drop: key_noise(layer, ring, drop),
        lambda drop: answer_noise(layer, ring, drop, 0),
        lambda drop: answer_noise(layer, ring, 0, drop),
    ):
        values = [noise(drop) for drop in range(30)]
        assert values == sorted(values)


def test_tail_leaves_less_than_2_to_the_minus_40() -> None:
    for outputs in (1, 1000, 2**28):
        r = Layer(outputs, 1, 1, 1).tail
        assert 4 * 2 * outputs * math.exp(-(r**2) / 2) <= 2**-40


def test_a_layer_that_does_not_fit_is_refused() -> None:
    ring = TIERS["T1"][0]
    assert choose(Layer(10**6, 2**24, 2**17, 100), ring, "T1", (1, 1, 1, 1)) is None
    assert choose(Layer(10**6, 2**31, 2**24, 1), ring, "T1", (1, 1, 1, 1)) is None
    assert choose(Layer(10**6, 2**31, 2**24, 1), TIERS["T1"][-1], "T1", (1, 1, 1, 1)) is not None
