"""Secret and shared randomness: AES-256-CTR, keyed by the operating system or by a seed."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from secure_quant.he.noise import ERROR_BOUND
from secure_quant.keystream import SEED_BYTES, Keystream

__all__ = ["Sampler", "Uniform", "fresh"]

U64 = NDArray[np.uint64]
Int = NDArray[np.int64]
_MASK = np.uint64((1 << ERROR_BOUND) - 1)


class Sampler(Keystream):
    """The distributions that CKKS draws from, read from a keystream."""

    def residues(self, count: int, limit: int) -> U64:
        """uint64[count], uniform below ``limit``: words cut to its bits, large ones skipped."""
        shift = np.uint64(64 - limit.bit_length())
        found = self.words(count) >> shift
        while True:
            found = found[found < limit]
            if len(found) == count:
                return found
            found = np.concatenate([found, self.words(count - len(found)) >> shift])

    def errors(self, shape: tuple[int, ...]) -> Int:
        """int64[shape], centred binomial: 21 bits less 21 other bits."""
        words = self.words(int(np.prod(shape)))
        ones = np.bitwise_count(words & _MASK).astype(np.int64)
        ones -= np.bitwise_count((words >> np.uint64(ERROR_BOUND)) & _MASK)
        made: Int = ones.reshape(shape)
        return made

    def ternary(self, shape: tuple[int, ...]) -> Int:
        """int64[shape], uniform in {-1, 0, 1}."""
        count = int(np.prod(shape))
        found = self.bytes(count)
        while True:
            found = found[found < 255]
            if len(found) == count:
                return (found % 3).astype(np.int64).reshape(shape) - 1
            found = np.concatenate([found, self.bytes(count - len(found))])

    def bits(self, shape: tuple[int, ...]) -> Int:
        """int64[shape], uniform in {0, 1}."""
        count = int(np.prod(shape))
        return (
            np.unpackbits(self.bytes(-(-count // 8)), count=count).astype(np.int64).reshape(shape)
        )

    def flood(self, shape: tuple[int, ...], bound: int) -> Int:
        """int64[shape], uniform in [-bound, bound); bound < 2**62."""
        words = self.residues(int(np.prod(shape)), 2 * bound)
        return words.astype(np.int64).reshape(shape) - bound


def fresh() -> Sampler:
    """A stream that nobody else can know."""
    return Sampler(secrets.token_bytes(SEED_BYTES))


class Uniform:
    """Uniform polynomials that both ends expand from one seed, in order, a stream per prime."""

    def __init__(self, seed: bytes, primes: tuple[int, ...], degree: int) -> None:
        self._streams = [Sampler(seed, lane) for lane in range(len(primes))]
        self._primes, self._degree = primes, degree

    def polynomials(self, count: int) -> U64:
        """The next ones, uint64[count, primes, degree]."""
        made = np.empty((count, len(self._primes), self._degree), np.uint64)
        for i, (stream, prime) in enumerate(zip(self._streams, self._primes, strict=True)):
            made[:, i] = stream.residues(count * self._degree, prime).reshape(count, -1)
        return made
