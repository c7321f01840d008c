"""Ring arithmetic and samplers; SEAL's own code is the independent check."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal
from unit.he.models import linear

from secure_quant.he.codec import unpack
from secure_quant.he.parameters import TIERS, Parameters
from secure_quant.he.plan import plan
from secure_quant.he.ring import _PLAINTEXT, _buffer, ring
from secure_quant.he.sampling import Sampler, Uniform, fresh
from secure_quant.onehost import masked
from secure_quant_client.he.ckks import CkksKeys

SERVED = {p for tier in TIERS.values() for p in tier} | {*masked.RINGS, masked.WIDEST}
RINGS = sorted(SERVED, key=repr)


@pytest.mark.parametrize("parameters", RINGS, ids=repr)
def test_primes_are_seals(parameters: Parameters) -> None:
    bits = [prime.bit_length() for prime in parameters.chain]
    theirs = [modulus.value() for modulus in seal.CoeffModulus.Create(parameters.degree, bits)]
    assert theirs == list(parameters.chain)
    limit = seal.CoeffModulus.MaxBitCount(parameters.degree, seal.SEC_LEVEL_TYPE.TC128)
    assert sum(bits) <= limit


@pytest.mark.parametrize("parameters", RINGS, ids=repr)
def test_products_are_negacyclic(parameters: Parameters) -> None:
    field, rng = ring(parameters), np.random.default_rng(0)
    degree = parameters.degree
    x = np.stack(
        [rng.integers(0, prime, (20, degree), dtype=np.uint64) for prime in field.primes], 1
    )
    x[3] = 0
    power = 5  # multiply by -3·X^5: an integer shift that wraps with a sign
    factor = np.zeros((1, degree), np.int64)
    factor[0, power] = -3
    y = field.residues(factor)
    before = x.copy()
    field.forward(x)
    field.forward(y)
    field.multiply(x, field.plaintext(y[0]))
    field.inverse(x)
    for i, prime in enumerate(field.primes):
        rolled = np.roll(before[:, i].astype(object), power, axis=1) * -3
        rolled[:, :power] *= -1
        assert np.array_equal(x[:, i].astype(object), rolled % prime)


def test_sum_of_residues() -> None:
    field = ring(TIERS["T1-strict"][0])
    top = field.moduli - np.uint64(1)
    assert np.array_equal(field.add(top, top), field.moduli - np.uint64(2))
    assert not field.add(top, np.ones_like(top)).any()


def test_seal_decrypts_our_ciphertexts() -> None:
    """A request is a SEAL ciphertext in all but its bytes: SEAL's decryptor reads it."""
    graph = linear(60, 30)
    made = plan(graph)
    call, parameters = made.steps[0].call(1), made.steps[0].layout(1).ring
    field = ring(parameters)
    session = CkksKeys(graph.public(), made)
    kept = []
    original = field.secret_key
    field.secret_key = lambda: kept.append(original()) or kept[-1]  # type: ignore[method-assign]
    try:
        x = np.random.default_rng(0).integers(-100, 100, (1, 60))
        request = np.frombuffer(session.encrypt(0, x), np.uint8)
    finally:
        del field.secret_key
    packing, drop = call.packing, call.scaling.drop_up
    seed, _, spare, carried = np.split(request, np.cumsum(call.request_sizes)[:-1])
    c0 = packing.unite(
        unpack(carried[None], packing.carried, parameters.prime, drop),
        unpack(spare[None], packing.spare, parameters.prime, drop),
    )[:, None]
    field.forward(c0)
    a = Uniform(seed.tobytes(), field.primes, field.degree).polynomials(2)[1]
    plain = seal.Plaintext()
    seal.Decryptor(field.context, kept[0][0]).decrypt(field.ciphertext(c0[0], a), plain)
    message = _buffer(plain, _PLAINTEXT, field.degree).reshape(1, 1, -1).copy()
    field.inverse(message)
    centred = message[0, 0].astype(np.int64)
    centred = np.where(centred > parameters.prime // 2, centred - parameters.prime, centred)
    decoded = (centred + call.scaling.unit // 2) // call.scaling.unit
    inputs, rest = packing.divide(decoded)
    assert np.array_equal(inputs, packing.input(packing.geometry.arrange(x))[0])
    assert not rest.any()


def test_errors_are_centred_binomial() -> None:
    errors = fresh().errors((200_000,))
    assert np.abs(errors).max() <= 21
    assert abs(errors.mean()) < 0.05
    assert abs(errors.var() / 10.5 - 1) < 0.03


def test_ternary_bits_and_flood_are_uniform() -> None:
    stream = fresh()
    values, counts = np.unique(stream.ternary((90_000,)), return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert np.abs(counts / 30_000 - 1).max() < 0.05
    assert abs(stream.bits((40_000,)).mean() - 0.5) < 0.02
    flood = stream.flood((50_000,), 1000)
    assert (flood.min(), flood.max()) == (-1000, 999)
    assert abs(flood.mean()) < 15


def test_residues_skip_what_is_too_large() -> None:
    found = Sampler(bytes(32)).residues(100_000, 5)
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4]
    assert np.abs(counts / 20_000 - 1).max() < 0.05


def test_uniform_polynomials_do_not_depend_on_how_they_are_taken() -> None:
    primes, degree = TIERS["T1-strict"][0].primes, 4096
    whole = Uniform(b"k" * 32, primes, degree).polynomials(3)
    parts = Uniform(b"k" * 32, primes, degree)
    assert np.array_equal(whole, np.concatenate([parts.polynomials(1), parts.polynomials(2)]))
    assert not np.array_equal(whole[:, 0], whole[:, 1])
    assert not np.array_equal(whole, Uniform(b"l" * 32, primes, degree).polynomials(3))


def test_seed_expansion_is_frozen() -> None:
    """Both ends must expand alike for ever: AES-256-CTR from zero, upper 53 bits of each word."""
    first = Uniform(bytes(32), TIERS["T1"][0].primes, 2048).polynomials(1)[0, 0, 0]
    keystream = bytes.fromhex("dc95c078a2408989")  # AES-256 of the zero block under a zero key
    assert int(first) == int.from_bytes(keystream, "little") >> 11
