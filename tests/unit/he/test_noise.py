"""Measured errors against the derivation's standard deviation and its bound."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from unit.he.models import centred, linear, random_input
from unit.he.walk import with_scaling

from secure_quant import reference
from secure_quant.he.codec import unpack
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.noise import (
    BLINDING,
    Layer,
    answer_noise,
    choose,
    key_variance,
    margin,
    weight_noise,
)
from secure_quant.he.parameters import TIERS, Parameters
from secure_quant.he.plan import HePlan, plan
from secure_quant.he.ring import ring
from secure_quant.he.sampling import Uniform, fresh
from secure_quant.he.search import layer_of
from secure_quant.ir import Graph
from secure_quant_client.he.ckks import CkksKeys

GRAPH = linear(400, 60)
KEYS = 12


def errors(graph: Graph, made: HePlan, keys: int = KEYS) -> np.ndarray:
    """Errors of all outputs under ``keys`` fresh keys, in units of the response's modulus."""
    evaluator, call = Evaluator(graph, made), made.steps[0].call(1)
    found = []
    for seed in range(keys):
        q = random_input(graph, 1, seed)
        session = CkksKeys(graph.public(), made)
        response = evaluator.evaluate(0, 1, session.encrypt(0, centred(graph, "x", q)))
        exact = reference.trace(graph, q)["layer"]
        raw = session._raw(call, response).reshape(exact.shape)
        found.append(raw - exact * call.scaling.unit)
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
    assert largest < layout.scaling.unit / 2 - room
    assert largest > layout.scaling.flood * 0.98  # the bound is not idle: the flood is there


def test_keys_and_blinds_keep_to_the_bound_on_their_weight() -> None:
    """Nonzero coefficients are a binomial count, whose mean and spread the bound is made of."""
    degree = 2048
    weights = np.count_nonzero(fresh().ternary((2000, degree)), axis=1)
    keys = [np.count_nonzero(secret(TIERS["T1"][0])) for _ in range(100)]
    for found in (weights, np.array(keys)):
        assert abs(found.mean() - 2 / 3 * degree) < 6 * math.sqrt(degree * 2 / 9 / len(found))
        assert found.max() < Layer(1, 1, 1, 1).weight(degree) < 0.8 * degree
    assert weights.std() == pytest.approx(math.sqrt(degree * 2 / 9), rel=0.1)


def secret(parameters: Parameters) -> np.ndarray:
    """Coefficients of a fresh secret key."""
    field = ring(parameters)
    owner, values = field.secret_key()
    made = values[None].copy()
    field.inverse(made)
    del values, owner
    return made[0, 0]


def test_the_flood_outweighs_what_the_client_knows_of_the_blinding() -> None:
    """(e + ρ)·u, whose first factor the client knows, must say next to nothing of u."""
    for tier in ("T1", "T1-strict"):
        (step,) = plan(GRAPH, tier=tier).steps
        for layout in step.layouts:
            layer = layer_of(step.geometry, layout.tile)
            known = key_variance(layer, layout.ring, layout.scaling.drop_key)
            flood = layout.scaling.flood * layout.ring.dropped
            assert flood**2 / 3 >= BLINDING * known
            _, hiding = margin(layer, layout.ring, tier, layout.scaling)
            assert hiding >= 1


def test_the_errors_that_are_sent_follow_the_law_of_the_derivation() -> None:
    """The key's is centred binomial; a ciphertext's has one random bit taken off."""
    made = with_scaling(plan(GRAPH), drop_key=0)
    call = made.steps[0].call(1)
    field, drop = ring(call.ring), call.scaling.drop_up
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for _ in range(KEYS):
        session = CkksKeys(GRAPH.public(), made)
        pad = session._pad(call)
        octets, ends = np.frombuffer(pad.head, np.uint8), np.cumsum(call.request_sizes)
        seed, key = octets[: ends[0]], octets[ends[0] : ends[1]]
        product = Uniform(seed.tobytes(), field.primes, field.degree).polynomials(2)
        field.multiply(product, session._key(call.ring).request)
        field.inverse(product)
        p0 = unpack(key[None], field.degree, call.ring.prime, 0)
        carried, _ = call.packing.divide(product[1:])
        for kept, part, own in ((found[0], p0, product[0]), (found[1], pad.c0[0], carried[0])):
            error = field.add(part, own).astype(np.int64)
            kept.append(np.where(error > call.ring.prime // 2, error - call.ring.prime, error))
    assert drop > 0
    for kept, mean, variance in ((found[0], 0, 10.5), (found[1], -0.5, 10.75)):
        errors = np.concatenate(kept, axis=None)
        assert np.abs(errors).max() <= 22
        assert abs(errors.mean() - mean) < 6 * math.sqrt(variance / errors.size)
        assert errors.var() == pytest.approx(variance, rel=0.15)


def test_a_key_rounded_too_far_is_refused() -> None:
    (step,) = plan(GRAPH).steps
    layout = step.layouts[0]
    layer = layer_of(step.geometry, layout.tile)
    coarse = replace(layout.scaling, drop_key=layout.scaling.drop_key + 4)
    assert margin(layer, layout.ring, "T1", coarse)[1] < 1


def test_bounds_grow_with_what_is_dropped() -> None:
    layer, ring = Layer(10**6, 10**6, 10**4, 20), TIERS["T1"][0]
    for noise in (
        lambda drop: weight_noise(layer, drop),
        lambda drop: key_variance(layer, ring, drop),
        lambda drop: answer_noise(layer, ring, drop, 0, 0),
        lambda drop: answer_noise(layer, ring, 0, drop, 0),
        lambda drop: answer_noise(layer, ring, 0, 0, drop),
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
