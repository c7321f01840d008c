"""The stream under a seed: AES-256 in counter mode. What clients, parties, dealer and both sides of
homomorphic encryption expand from the same 32 bytes is defined here, once."""

from __future__ import annotations

import sys

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["SEED_BYTES", "Keystream", "words_under"]

SEED_BYTES = 32

_ZEROS = bytes(2**16)


class Keystream:
    """The stream under ``seed``, read once from its beginning. Not safe to share between threads.

    seed: 32 bytes. stretch: the upper half of the counter block, big-endian; streams of different
    stretches of one seed never overlap. The lower half counts blocks from zero.
    """

    def __init__(self, seed: bytes, stretch: int = 0) -> None:
        counter = stretch.to_bytes(8, "big") + bytes(8)
        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(counter)).encryptor()

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """The next uint8[count], read-only."""
        return np.frombuffer(self._encryptor.update(bytes(count)), np.uint8)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next uint64[count], from little-endian words."""
        return self.bytes(8 * count).view("<u8").astype(np.uint64, copy=False)

    def read(self, into: NDArray[np.uint64]) -> None:
        """Fill the contiguous ``into`` with the next words."""
        view = into.view(np.uint8).data
        for start in range(0, len(view), len(_ZEROS)):  # a block of zeros that stays in the cache
            part = view[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(part)], part)
        if sys.byteorder == "big":
            into.byteswap(inplace=True)


def words_under(seed: bytes, count: int) -> NDArray[np.uint64]:
    """The first ``count`` words of the stream under ``seed``, as a new array."""
    made = np.empty(count, np.uint64)
    if count:
        Keystream(seed).read(made)
    return made
