"""Sums of products modulo primes, in numpy and exact.

For S = Σ x·w and the nearest integer k to S/q, S - k·q is small, so it can be computed modulo
2**64: the products wrap around, and floating point finds k, up to an error E that leaves |S - k·q|
below (E + 1)·q < 2**63. With n terms and residues below q < 2**53

    E <= (5·n + n²)·q / 2**53

five roundings for each quotient x·w/q < q and one for each of n sums of at most n·q. Larger primes
have w cut into two halves, so that quotients stay below 2**30 and E below 1. One 64-bit and one
floating multiplication each are what processors do several of at once; SEAL's products take five
times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TERMS", "Factors", "Products", "multiplied"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]
Float = NDArray[np.float64]

TERMS = 16
"""Products in one sum before it is reduced: (5·16 + 16² + 1)·2**53 < 2**63."""
_DIRECT = 2**53
_HALF = 30


def multiplied(values: Int, factor: int, prime: int, more: Int | None = None) -> Int:
    """values·factor + more modulo ``prime``, in [0, prime). values, more: int64, more within 2**60.
    prime: below 2**56, for which the nearest quotient in float64 is 24 off at most."""
    factor, reduced = factor % prime, values % np.int64(prime)
    quotient = np.rint(reduced * (factor / prime)).astype(np.int64)
    small = reduced * np.int64(factor) - quotient * np.int64(prime)  # modulo 2**64
    made: Int = (small if more is None else small + more) % np.int64(prime)
    return made


@dataclass(frozen=True, repr=False)
class Factors:
    """values: residues uint64[n, parts, primes, degree]. ratios: values over their primes."""

    values: U64
    ratios: Float

    def __getitem__(self, key: slice | Int) -> Factors:
        return Factors(self.values[key], self.ratios[key])

    def __len__(self) -> int:
        return len(self.values)


Pair = tuple[Factors, U64]
"""Factors of n terms, and what they are multiplied with, uint64[n, primes, degree]."""


class Products:
    """Arithmetic modulo ``primes``, each below 2**60."""

    def __init__(self, primes: tuple[int, ...]) -> None:
        self._moduli: Int = np.array(primes, np.int64)[:, None]
        self._inverses: Float = 1 / self._moduli
        self._direct = max(primes) < _DIRECT

    def factors(self, values: U64) -> Factors:
        """uint64[n, parts, primes, degree], ready to be multiplied."""
        return Factors(values, values.view(np.int64) * self._inverses)

    def dot(self, pairs: Iterable[Pair]) -> U64:
        """Σ x·w over all terms of at least one pair, uint64[parts, primes, degree]."""
        chunks = [chunk for pair in pairs for chunk in _chunks(*pair)]
        if self._direct:
            return self._sum(chunks).view(np.uint64)
        upper = self._sum([(x, w >> np.uint64(_HALF)) for x, w in chunks])
        lower = self._sum([(x, w & np.uint64((1 << _HALF) - 1)) for x, w in chunks])
        return self.shifted(upper, _HALF, lower)

    def shifted(self, values: Int, bits: int, more: Int) -> U64:
        """Residues of values·2**bits + more, |values| and |more| < 2**61 and |values·2**bits| <
        2**92."""
        whole = ((values << bits) + more).view(np.uint64)
        quotient = values * (self._inverses * 2.0**bits) + more * self._inverses
        return self._reduced(whole, quotient).view(np.uint64)

    def _sum(self, chunks: list[Pair]) -> Int:
        parts = [self._reduced(*self._accumulated(group)) for group in _groups(chunks)]
        total = parts[0]
        for part in parts[1:]:
            total = self._normal(total + part)
        return total

    @staticmethod
    def _accumulated(group: list[Pair]) -> tuple[U64, Float]:
        """Sums of at most TERMS products modulo 2**64, and over the primes."""
        rule = "jcpk,jpk->cpk"
        whole = sum(np.einsum(rule, x.values, w) for x, w in group)
        quotient = sum(
            np.einsum(rule, x.ratios, w.view(np.int64).astype(np.float64)) for x, w in group
        )
        return whole, quotient

    def _reduced(self, whole: U64, quotient: Float) -> Int:
        """Residues of sums known modulo 2**64 and over their primes."""
        small = whole.view(np.int64) - np.rint(quotient).astype(np.int64) * self._moduli
        return self._normal(small)

    def _normal(self, values: Int) -> Int:
        """int64 -> residues in [0, prime)."""
        values = values - np.rint(values * self._inverses).astype(np.int64) * self._moduli
        return values + ((values >> 63) & self._moduli)


def _chunks(x: Factors, w: U64) -> Iterator[Pair]:
    for start in range(0, len(w), TERMS):
        yield x[start : start + TERMS], w[start : start + TERMS]


def _groups(chunks: list[Pair]) -> Iterator[list[Pair]]:
    """As many at a time as go into one sum."""
    group: list[Pair] = []
    for x, w in chunks:
        if sum(len(held) for held, _ in group) + len(x) > TERMS:
            yield group
            group = []
        group.append((x, w))
    yield group
