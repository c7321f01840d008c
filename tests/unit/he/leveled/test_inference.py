"""Encrypted inferences against the meaning: errors below the bound, nothing secret on the way."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from unit.he.leveled.models import extremes, random_model

from secure_quant.errors import MalformedMessage
from secure_quant.he.leveled import LeveledModel, plan
from secure_quant.he.leveled.bound import input_error, output_error
from secure_quant.he.leveled.evaluate import LeveledEvaluator
from secure_quant.he.leveled.wire import (
    key_bytes,
    pack_response,
    request_bytes,
    response_bytes,
    unpack_keys,
    unpack_request,
)
from secure_quant_client.leveled.keys import LeveledKeys

ts = pytest.importorskip("tenseal")

MODEL = random_model((6, 5, 3), seed=4)
PLAN = plan(MODEL)
EVALUATOR = LeveledEvaluator(MODEL, PLAN)


def errors(model: LeveledModel, x: np.ndarray) -> tuple[np.ndarray, float]:
    made = plan(model)
    keys = LeveledKeys(made)
    session = LeveledEvaluator(model, made).open(keys.evaluation_keys())
    y = [keys.decrypt(session.evaluate(request)) for request in keys.encrypt(x)]
    return np.abs(np.stack(y) - model.reference(x)), made.error_bound


@pytest.mark.parametrize(
    ("widths", "bound"),
    [((6, 5, 3), 1.0), ((16, 16, 16), 0.5), ((3, 7, 9), 4.0), ((1, 1, 1), 1.0), ((12, 4), 2.0)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_stay_below_the_bound(widths: tuple[int, ...], bound: float, seed: int) -> None:
    model = random_model(widths, seed, bound)
    found, promised = errors(model, extremes(model, seed))
    assert 0 < found.max() <= promised
    assert promised < 1e-4  # and the bound says something


def test_three_layers() -> None:
    model = random_model((4, 3, 3, 2), seed=2)
    found, promised = errors(model, extremes(model)[2:5])
    assert 0 < found.max() <= promised < 1e-3


def test_zero_rows_and_columns() -> None:
    layers = [
        (np.diag([1, 0, 3, 0]).astype(np.int8), np.full(4, 0.25), np.array([0.0, 1.0, 0.0, -1.0])),
        (np.array([[1, 2, 0, 0]], np.int8), np.ones(1), np.zeros(1)),
    ]
    model = LeveledModel.of(layers, 1.0)
    found, promised = errors(model, extremes(model))
    assert found.max() <= promised


def test_many_keys_on_one_model() -> None:
    x, worst = extremes(MODEL)[3:5], 0.0
    for _ in range(6):
        keys = LeveledKeys(PLAN)
        session = EVALUATOR.open(keys.evaluation_keys())
        y = np.stack([keys.decrypt(session.evaluate(request)) for request in keys.encrypt(x)])
        worst = max(worst, float(np.abs(y - MODEL.reference(x)).max()))
    assert PLAN.error_bound / 1e4 < worst <= PLAN.error_bound


def test_a_fresh_encryption_errs_as_predicted() -> None:
    """The model of noise, where it can be seen alone: variance, not just a bound."""
    keys = LeveledKeys(PLAN)
    degree, prime = PLAN.degree, PLAN.primes[0]
    field, secret = keys._rings[0], keys._secret[0]
    squares = []
    for request in keys.encrypt(np.zeros((24, 6))):
        b, a = unpack_request(PLAN, request)[:, :1]
        product = a[None].copy()
        field.multiply(product, secret)
        message = field.add(product, b[None])
        field.inverse(message)
        raw = message.reshape(-1).astype(np.int64)
        squares.append(np.where(raw > prime // 2, raw - prime, raw) ** 2)
    assert np.mean(squares) == pytest.approx(10.5, rel=0.02)
    assert input_error(1.0, degree, PLAN.scale_bits) < 1e-8


def test_the_bound_grows_with_what_makes_errors() -> None:
    wide = random_model((6, 5, 3), seed=4, bound=2.0)
    bits = (60, 38, 38, 38, 38)
    base = output_error(MODEL, 8192, tuple((1 << b) - 1 for b in bits), 38)
    assert output_error(wide, 8192, tuple((1 << b) - 1 for b in bits), 38) > base
    assert output_error(MODEL, 8192, tuple((1 << b) - 1 for b in bits), 30) > 100 * base


def test_stock_products_with_a_bias_between_are_wrong_and_ours_are_right() -> None:
    """mm -> + bias -> mm: stock TenSEAL adds the bias to the first copy of the vector only, and
    the second mm reads the others too."""
    rng = np.random.default_rng(5)
    first, second, bias = rng.normal(size=(4, 4)), rng.normal(size=(4, 2)), np.full(4, 3.0)
    x = rng.uniform(-1, 1, 4)
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[58, 40, 40, 40])
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    hidden = ts.ckks_vector(context, x.tolist()).mm(first.tolist())
    without = np.array(hidden.mm(second.tolist()).decrypt())
    assert without == pytest.approx(x @ first @ second, abs=1e-3)
    shifted = hidden + bias.tolist()
    assert np.array(shifted.decrypt()) == pytest.approx(x @ first + bias, abs=1e-3)
    wrong = np.array(shifted.mm(second.tolist()).decrypt())
    assert np.abs(wrong - (x @ first + bias) @ second).max() > 0.5
    # The same shape here, with a square between, at every width that needs padding or none.
    for widths in ((4, 4, 2), (5, 3, 2)):
        model = random_model(widths, seed=6)
        found, promised = errors(model, extremes(model)[3:])
        assert found.max() <= promised


def test_an_answer_holds_copies_of_the_outputs_and_nothing_else() -> None:
    from secure_quant.he.leveled.slots import all_slots
    from secure_quant.he.leveled.wire import unpack_response

    keys = LeveledKeys(PLAN)
    x = extremes(MODEL)[4:5]
    answer = EVALUATOR.open(keys.evaluation_keys()).evaluate(keys.encrypt(x)[0])
    b, a = unpack_response(PLAN, answer)
    field, prime = keys._rings[0], PLAN.primes[0]
    product = a[None, None].copy()
    field.multiply(product, keys._secret[0])
    message = field.add(product, b[None, None])
    field.inverse(message)
    raw = message.reshape(-1).astype(np.int64)
    raw = np.where(raw > prime // 2, raw - prime, raw)
    slots = all_slots(raw.astype(np.float64)) / PLAN.scale
    copies = np.resize(MODEL.reference(x)[0], PLAN.degree // 2)
    assert np.abs(slots - copies).max() <= PLAN.error_bound


def test_the_server_gets_no_secret_key() -> None:
    keys = LeveledKeys(PLAN)
    data = keys.evaluation_keys()
    context = EVALUATOR.open(data)._context
    assert context.is_public()
    assert not context.has_secret_key()
    vector = ts.ckks_vector(context, [1.0])
    with pytest.raises(ValueError):
        vector.decrypt()
    # No polynomial that travels is the secret, its square or its rotations, in any residue: all
    # pass for uniform, which anything ternary or a multiple of it would not.
    b, a = unpack_keys(PLAN, data)
    for i, prime in enumerate(PLAN.primes):
        secret = keys._transformed(keys._ternary[None])[i].reshape(-1)
        assert not (b[:, i] == secret).all(axis=1).any()
        for half in (a, b):
            mean = half[:, i].astype(np.float64).mean() / prime
            assert abs(mean - 0.5) < 0.01


def test_keys_and_requests_are_fresh_and_of_promised_length() -> None:
    first, second = LeveledKeys(PLAN), LeveledKeys(PLAN)
    x = np.zeros((2, 6))
    made = [*first.encrypt(x), *second.encrypt(x)]
    assert len(set(made)) == 4
    assert {len(request) for request in made} == {request_bytes(PLAN)}
    data = first.evaluation_keys()
    assert data != second.evaluation_keys()
    assert len(data) == key_bytes(PLAN)
    answer = EVALUATOR.open(data).evaluate(made[0])
    assert len(answer) == response_bytes(PLAN)
    with pytest.raises(MalformedMessage):
        first.decrypt(answer[:-1])
    with pytest.raises(MalformedMessage):
        first.decrypt(b"\xff" * len(answer))
    zero = pack_response(PLAN, np.zeros((2, 1, PLAN.degree), np.uint64))
    assert first.decrypt(zero).tolist() == [0.0] * 3


def test_a_huge_claim_takes_no_memory() -> None:
    """Lengths are checked first, so a message that is a byte off never gets unpacked."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedMessage):
        EVALUATOR.open(bytes(key_bytes(PLAN) + 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
