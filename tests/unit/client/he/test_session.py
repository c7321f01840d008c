"""The client's half: fresh keys, refused inputs, and nothing secret in what it sends."""

from __future__ import annotations

import numpy as np
import pytest
from unit.he.models import linear

from secure_quant.errors import (
    DtypeMismatch,
    MalformedMessage,
    ShapeMismatch,
    ValueOutOfRange,
)
from secure_quant.he.codec import pack, unpack
from secure_quant.he.evaluate import Evaluator
from secure_quant.he.plan import plan
from secure_quant.he.ring import ring
from secure_quant_client.he import ckks_key
from secure_quant_client.he.ckks import CkksKeys
from secure_quant_client.he.ckks_key import SecretKey

GRAPH = linear(60, 30)
PUBLIC, MADE = GRAPH.public(), plan(GRAPH)
X = np.random.default_rng(0).integers(-100, 100, (1, 60))


def test_requests_share_nothing() -> None:
    session = CkksKeys(PUBLIC, MADE)
    requests = [
        session.encrypt(0, X),
        session.encrypt(0, X),
        CkksKeys(PUBLIC, MADE).encrypt(0, X),
    ]
    octets = np.array([np.frombuffer(request, np.uint8) for request in requests])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(octets[i] == octets[j]) < 0.02


def test_each_session_has_its_own_key() -> None:
    session, other = CkksKeys(PUBLIC, MADE), CkksKeys(PUBLIC, MADE)
    response = Evaluator(GRAPH, MADE).evaluate(0, 1, session.encrypt(0, X))
    right, wrong = session.decrypt(0, 1, response), other.decrypt(0, 1, response)
    assert np.mean(right == wrong) < 0.2


def test_decryption_rounds_every_trace_of_the_key_and_the_noise_away() -> None:
    """Responses under many keys and errors give the same integers, which are all that the next
    request is made of; and decrypting changes nothing in the session."""
    evaluator = Evaluator(GRAPH, MADE)
    seen = set()
    for _ in range(5):
        session = CkksKeys(PUBLIC, MADE)
        request = session.encrypt(0, X)
        state = {name: repr(value) for name, value in vars(session).items()}
        for _ in range(3):
            seen.add(session.decrypt(0, 1, evaluator.evaluate(0, 1, request)).tobytes())
        assert state == {name: repr(value) for name, value in vars(session).items()}
    assert len(seen) == 1


def test_any_response_of_the_right_form_decrypts_in_silence() -> None:
    session, call = CkksKeys(PUBLIC, MADE), MADE.steps[0].call(1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        noise = rng.bytes(sum(call.response_sizes) - 8) + bytes(8)
        assert session.decrypt(0, 1, noise).shape == (1, 30)


@pytest.mark.parametrize("change", [-1, 1, -(10**3)])
def test_response_of_another_length_is_refused(change: int) -> None:
    size = sum(MADE.steps[0].call(1).response_sizes) + change
    with pytest.raises(MalformedMessage, match="bytes"):
        CkksKeys(PUBLIC, MADE).decrypt(0, 1, bytes(size))


def test_inputs_are_checked() -> None:
    session = CkksKeys(PUBLIC, MADE)
    with pytest.raises(DtypeMismatch):
        session.encrypt(0, X.astype(np.float64))
    with pytest.raises(ShapeMismatch):
        session.encrypt(0, X[:, :-1])
    with pytest.raises(ShapeMismatch):
        session.encrypt(0, X[0])
    with pytest.raises(ValueOutOfRange, match="activations"):
        session.encrypt(0, X * 2)
    with pytest.raises(ValueOutOfRange, match="batch"):
        session.encrypt(0, X[:0])


def test_prepared_halves_are_used_once() -> None:
    session = CkksKeys(PUBLIC, MADE)
    session.prepare(1)
    (pad,) = session._pads.values()
    first = session.encrypt(0, X)
    assert first.startswith(pad.head)
    assert not session._pads
    assert not session.encrypt(0, X).startswith(pad.head)


def test_prepared_or_not_the_layer_is_the_same() -> None:
    evaluator, session = Evaluator(GRAPH, MADE), CkksKeys(PUBLIC, MADE)
    plain = session.decrypt(0, 1, evaluator.evaluate(0, 1, session.encrypt(0, X)))
    session.prepare(1)
    evaluator.prepare(0, 1)
    stocked = session.decrypt(0, 1, evaluator.evaluate(0, 1, session.encrypt(0, X)))
    assert np.array_equal(plain, stocked)


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
@pytest.mark.parametrize("size", [(60, 30), (400, 120), (84, 1), (3000, 50)])
def test_few_coefficients_are_summed_as_the_transform_does(
    tier: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = plan(linear(*size), tier=tier).steps[0].call(1)
    prime, drop = call.ring.prime, call.scaling.drop_c1
    key = SecretKey.fresh(call.ring)
    rng = np.random.default_rng(3)
    c1 = rng.integers(0, prime, (call.ciphertexts_down, call.ring.degree), dtype=np.uint64)
    c1[0, :40] = prime - 1  # the topmost step, whose middle may lie beyond the prime

    def received() -> np.ndarray:
        return unpack(pack(c1, prime, drop), call.ring.degree, prime, drop)

    summed = key.times(call, received()).astype(object)
    monkeypatch.setattr(ckks_key, "_consecutive", lambda _: None)
    transformed = key.times(call, received()).astype(object)
    difference = (summed - transformed) % prime
    difference = np.minimum(difference, prime - difference)
    assert summed.max() < prime
    assert difference.max() <= 40 * 2**drop  # of the topmost step alone
    c1[0, :40] = 0
    transformed = key.times(call, received())
    monkeypatch.undo()
    assert np.array_equal(key.times(call, received()), transformed)


def test_a_key_is_ternary_and_the_same_in_all_its_forms() -> None:
    parameters = MADE.steps[0].layout(1).ring
    key = SecretKey.fresh(parameters)
    degree = parameters.degree
    assert set(np.unique(key.turned)) == {-1.0, 0.0, 1.0}
    forwards = key.turned[::-1]
    assert np.array_equal(forwards[: degree - 1], -forwards[degree:])
    field = ring(parameters)
    one = np.zeros((1, 1, degree), np.uint64)
    one[..., 0] = 1
    field.forward(one)
    field.multiply(one, key.request)
    field.inverse(one)
    signed = one[0, 0].astype(np.int64)
    assert np.array_equal(np.where(signed > 1, -1, signed), forwards[degree - 1 :])
