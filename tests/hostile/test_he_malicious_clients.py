"""What a client gains that forges requests: SECURITY.md and docs/spec/ckks.md 6 say so much, and
these tests do it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from unit.he.models import linear

from secure_quant.he.blinds import Blind
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.plan import plan
from secure_quant.he.ring import ring
from secure_quant_client.he.ckks import CkksKeys

GRAPH = linear(60, 30)
MADE = plan(GRAPH)
CALL = MADE.steps[0].call(1)
FIELD, PRIME, UNIT = ring(CALL.ring), CALL.ring.prime, CALL.scaling.unit
WEIGHT = GRAPH.parameters["layer.weight"].astype(np.int64)


def request(session: CkksKeys, x: np.ndarray) -> bytes:
    """As ``CkksKeys.encrypt``, for integers of any size."""
    pad, geometry = session._pad(CALL), CALL.packing.geometry
    message = CALL.packing.input(geometry.arrange(x))[:, None].astype(object) * UNIT
    return pad.head + CALL.request_tail(((pad.c0 + message) % PRIME).astype(np.uint64))


def asked(x: np.ndarray) -> np.ndarray:
    session, evaluator = CkksKeys(GRAPH.public(), MADE), Evaluator(GRAPH, MADE)
    return session.decrypt(0, 1, evaluator.evaluate(0, 1, request(session, x)))[0]


def unit_vector(**values: int) -> np.ndarray:
    x = np.zeros((1, 60), np.int64)
    for place, value in values.items():
        x[0, int(place.removeprefix("x"))] = value
    return x


def test_values_out_of_range_put_two_weights_into_one_accumulator_and_not_three() -> None:
    bias = asked(unit_vector())
    y = asked(unit_vector(x3=1, x7=256)) - bias
    first = (y + 128) % 256 - 128
    assert np.array_equal(first, WEIGHT[:, 3])
    assert np.array_equal((y - first) // 256, WEIGHT[:, 7])
    # Whatever is asked, an accumulator is one of q/U values, which are fewer than three weights.
    values = PRIME / UNIT
    assert 2**16 < values < 2**24
    assert 17 <= math.log2(values) <= 21
    third = asked(unit_vector(x3=1, x7=256, x9=65536)) - bias
    true = WEIGHT[:, 3] + 256 * WEIGHT[:, 7] + 65536 * WEIGHT[:, 9]
    assert np.count_nonzero(third != true) > 20


def test_a_malformed_key_shows_the_servers_randomness_where_an_output_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, evaluator = CkksKeys(GRAPH.public(), MADE), Evaluator(GRAPH, MADE)
    bias, large = asked(unit_vector()), 4 * UNIT
    reader = CALL.read_request(request(session, unit_vector()))
    key = reader.key()
    key[0] = (int(key[0]) + large) % PRIME  # an error that is no error
    carried, spare = reader.take(1)
    forged = CALL.request_head(reader.seed, key, spare) + CALL.request_tail(carried)
    blinds, made = [], Blind.fresh
    monkeypatch.setattr(
        Blind, "fresh", lambda *arguments: blinds.append(made(*arguments)) or blinds[-1]
    )
    answer = evaluator.evaluate(0, 1, forged)
    raw = session._raw(CALL, answer).reshape(-1)
    seen = np.rint((raw - bias.astype(np.int64) * UNIT) / large).astype(np.int64)
    u = blinds[0].u.copy()
    FIELD.inverse(u)
    u = u[0, 0].astype(np.int64)
    u = np.where(u > PRIME // 2, u - PRIME, u)
    assert np.array_equal(seen, CALL.packing.output(CALL.packing.wanted(u[None])).reshape(-1))
    # A coefficient of the answer has room for a dozen of u's, so most of u stays hidden here.
    dozen = math.log2(PRIME / (2 * CALL.scaling.flood)) / math.log2(3)
    assert 10 < dozen < 14
    assert dozen * CALL.packing.outputs < CALL.ring.degree / 4
