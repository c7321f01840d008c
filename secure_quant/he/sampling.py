"""Secret and shared randomness: AES-256-CTR, keyed by the operating system or by a seed."""

from __future__ import annotations

import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secure_quant.he.noise import ERROR_BOUND

__all__ = ["SEED_BYTES", "Stream", "Uniform", "fresh"]

SEED_BYTES = 32
U64 = NDArray[np.uint64]
Int = NDArray[np.int64]
_MASK = np.uint64((1 << ERROR_BOUND) - 1)


class Stream:
    """A keystream, every bit of which is used once. Not safe to share between threads.

    key: 32 bytes. lane: separates the streams of one key; it is the upper half of the counter.
    """

    def __init__(self, key: bytes, lane: int = 0) -> None:
        counter = lane.to_bytes(8, "big") + bytes(8)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """uint8[count], uniform."""
        return np.frombuffer(self._cipher.update(bytes(count)), np.uint8)

    def words(self, count: int) -> U64:
        """uint64[count], uniform."""
        return self.bytes(8 * count).view("<u8").astype(np.uint64, copy=False)

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


def fresh() -> Stream:
    """A stream that nobody else can know."""
    return Stream(secrets.token_bytes(32))


class Uniform:
    """Uniform polynomials that both ends expand from one seed, in order, a stream per prime."""

    def __init__(self, seed: bytes, primes: tuple[int, ...], degree: int) -> None:
        self._streams = [Stream(seed, lane) for lane in range(len(primes))]
        self._primes, self._degree = primes, degree

    def polynomials(self, count: int) -> U64:
        """The next ones, uint64[count, primes, degree]."""
        made = np.empty((count, len(self._primes), self._degree), np.uint64)
        for i, (stream, prime) in enumerate(zip(self._streams, self._primes, strict=True)):
            made[:, i] = stream.residues(count * self._degree, prime).reshape(count, -1)
        return made
