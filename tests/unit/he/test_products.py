"""Sums of products against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from secure_quant.he.parameters import TIERS
from secure_quant.he.products import TERMS, Products, multiplied
from secure_quant.onehost.masked import WIDEST

CHAINS = sorted({ring.primes for rings in (*TIERS.values(), (WIDEST,)) for ring in rings})
DEGREE = 32


def residues(rng: np.random.Generator, primes: tuple[int, ...], *shape: int) -> np.ndarray:
    parts = [rng.integers(0, prime, (*shape, DEGREE), dtype=np.uint64) for prime in primes]
    return np.stack(parts, axis=-2)


@pytest.mark.parametrize("primes", CHAINS, ids=lambda primes: f"{len(primes)}x{primes[0]}")
@pytest.mark.parametrize("terms", [(1,), (3, 1), (TERMS - 1, 1), (TERMS, 1), (5 * TERMS + 3, 2)])
@pytest.mark.parametrize("extreme", [False, True])
def test_every_chain_and_length(
    primes: tuple[int, ...], terms: tuple[int, ...], extreme: bool
) -> None:
    rng, products = np.random.default_rng(len(terms)), Products(primes)
    moduli = np.array(primes, np.uint64)[:, None]
    pairs, expected = [], 0
    for count in terms:
        x, w = residues(rng, primes, count, 2), residues(rng, primes, count)
        if extreme:  # what makes sums and their roundings largest
            x[:], w[:] = moduli - np.uint64(1), moduli - np.uint64(1)
        pairs.append((products.factors(x), w))
        expected += (x.astype(object) * w[:, None].astype(object)).sum(axis=0)
    got = products.dot(pairs)
    assert got.dtype == np.uint64
    assert np.array_equal(got, expected % moduli.astype(object))


@pytest.mark.parametrize("primes", CHAINS, ids=lambda primes: f"{len(primes)}x{primes[0]}")
def test_sums_next_to_a_multiple_of_the_prime(primes: tuple[int, ...]) -> None:
    """Where the nearest integer to the quotient is least certain: half a prime, and zero."""
    products, rng = Products(primes), np.random.default_rng(1)
    moduli = np.array(primes, np.uint64)[:, None]
    x = residues(rng, primes, 1, 1)
    inverse = [
        [pow(max(int(v), 1), -1, q) for v in row] for row, q in zip(x[0, 0], primes, strict=True)
    ]
    for target in (0, 1, -1):
        for share in (1, 2):
            goal = (moduli.astype(object) // share + target) % moduli.astype(object)
            w = (np.array(inverse, object) * goal % moduli.astype(object)).astype(np.uint64)
            got = products.dot([(products.factors(np.maximum(x, 1)), w[None])])
            assert np.array_equal(got[0], np.broadcast_to(goal, got[0].shape))


def test_no_terms_but_the_key() -> None:
    """All weights of an answer zero: an empty pair beside one that is not."""
    primes = CHAINS[0]
    products, rng = Products(primes), np.random.default_rng(2)
    empty = products.factors(np.zeros((0, 2, len(primes), DEGREE), np.uint64))
    key, u = residues(rng, primes, 1, 2), residues(rng, primes, 1)
    nothing = np.zeros((0, len(primes), DEGREE), np.uint64)
    got = products.dot([(empty, nothing), (products.factors(key), u)])
    expected = key[0].astype(object) * u.astype(object) % np.array(primes, object)[:, None]
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("prime", [*{p for chain in CHAINS for p in chain if p < 2**56}, 2**56 - 5])
def test_multiples_modulo_a_prime(prime: int) -> None:
    rng = np.random.default_rng(prime % 1000)
    values = rng.integers(-(2**62), 2**62, 300)
    values[:4] = -(2**62), 2**62 - 1, prime - 1, 0
    more = rng.integers(-(2**60), 2**60, 300)
    for factor in (0, 1, prime - 1, -(2**90) - 1, int(rng.integers(prime))):
        exact = [(int(v) * factor + int(m)) % prime for v, m in zip(values, more, strict=True)]
        assert multiplied(values, factor, prime, more).tolist() == exact
        assert multiplied(values, factor, prime).tolist() == [
            int(v) * factor % prime for v in values
        ]
