"""What a curious client can compute from a response's c1, whose ``a`` it knows."""

from __future__ import annotations

import numpy as np
import pytest
from unit.he.models import linear

from secure_quant.he.blinds import Blind
from secure_quant.he.evaluate import Evaluator, _blocks
from secure_quant.he.noise import HIDING_BITS, weight_noise
from secure_quant.he.parameters import TIERS
from secure_quant.he.plan import plan
from secure_quant.he.request import Request
from secure_quant.he.ring import ring
from secure_quant.he.sampling import Uniform
from secure_quant.he.search import layer_of
from secure_quant.he.weights import Taps, Transformed, Weights
from secure_quant_client.he.ckks import CkksKeys

GRAPH = linear(60, 30)
MADE = plan(GRAPH)
CALL = MADE.steps[0].call(1)
FIELD = ring(CALL.ring)
PRIME = CALL.ring.prime


def one_request() -> bytes:
    assert (CALL.ciphertexts_up, CALL.ciphertexts_down) == (1, 1)
    x = np.random.default_rng(0).integers(-100, 100, (1, 60))
    return CkksKeys(GRAPH.public(), MADE).encrypt(0, x)


ARRANGED = CALL.packing.geometry.arrange_weight(GRAPH.parameters["layer.weight"])
TRANSFORMED = Transformed.of(CALL.packing, FIELD, ARRANGED, skip_zeros=True)


def weight_polynomial() -> np.ndarray:
    return next(iter(CALL.packing.weight(ARRANGED, 0)))[0]


def divided_by_a(c1: np.ndarray, seed: bytes) -> np.ndarray:
    """The attack: c1 / a in the ring, as centred coefficients."""
    a = Uniform(seed, FIELD.primes, FIELD.degree).polynomials(2)[1, 0]
    inverse = np.array([pow(int(v), -1, PRIME) for v in a], object)
    quotient = (c1.astype(object) * inverse % PRIME).astype(np.uint64).reshape(1, 1, -1)
    FIELD.inverse(quotient)
    found = quotient.reshape(-1).astype(np.int64)
    return np.where(found > PRIME // 2, found - PRIME, found)


def test_the_attack_recovers_every_weight_of_an_unprotected_answer() -> None:
    data = one_request()
    request = Request(CALL, FIELD, memoryview(data))
    (row,) = TRANSFORMED.rows[0]
    inputs = request.transformed(1)
    c1 = FIELD.products.dot([(inputs, row.values)])[1, 0]
    assert np.array_equal(divided_by_a(c1, data[:32]), weight_polynomial())


@pytest.mark.parametrize("weights", [None, TRANSFORMED, Taps.of(CALL.packing, ARRANGED)])
def test_the_attack_fails_on_our_answers(weights: Weights | None) -> None:
    data = one_request()
    if weights is None:  # as they are sent, rounded
        session = Evaluator(GRAPH, MADE).evaluate(0, 1, data)
        from secure_quant.he.codec import unpack

        octets = np.frombuffer(session, np.uint8)[None, : CALL.response_sizes[0]]
        c1 = unpack(octets, FIELD.degree, PRIME, CALL.scaling.drop_c1)[:, None]
    else:  # even without the bits that rounding takes away
        request = Request(CALL, FIELD, memoryview(data))
        (cells,) = _blocks(CALL)
        blind = Blind.fresh(CALL, FIELD, 1)
        c1 = weights.answer(CALL, FIELD, request, cells, blind)[0][:, None]
    FIELD.forward(c1)
    found = divided_by_a(c1[0, 0], data[:32])
    # Uniform residues: none is small, and none agrees with a weight but by chance.
    assert np.median(np.abs(found)) > PRIME / 8
    assert np.count_nonzero(found == weight_polynomial()) == 0


def test_answers_to_one_request_differ_in_every_part() -> None:
    evaluator, data = Evaluator(GRAPH, MADE), one_request()
    first, second = (np.frombuffer(evaluator.evaluate(0, 1, data), np.uint8) for _ in range(2))
    split = CALL.response_sizes[0]
    for part in (slice(None, split), slice(split, None)):
        assert np.count_nonzero(first[part] != second[part]) > 0.9 * len(first[part])


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
@pytest.mark.parametrize("size", [(40, 10), (400, 120), (3000, 50)])
def test_the_flood_outweighs_all_that_depends_on_the_weights(
    tier: str, size: tuple[int, int]
) -> None:
    step = plan(linear(*size), tier=tier).steps[0]
    for layout in step.layouts:
        hidden = weight_noise(layer_of(step.geometry, layout.tile), layout.scaling.drop_up)
        assert layout.scaling.flood * layout.ring.dropped >= 2 ** HIDING_BITS[tier] * hidden
        assert layout.ring in TIERS[tier]


def test_only_wanted_coefficients_of_c0_are_sent() -> None:
    from secure_quant.he.codec import packed_size, width_of

    width = width_of(PRIME, CALL.scaling.drop_c0)
    assert CALL.response_sizes[1] == packed_size(30, width)
