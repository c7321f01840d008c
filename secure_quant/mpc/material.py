"""One-time material of one sample: a seed, and for party 1 the dealer's corrections.

A party's stream is AES-256-CTR under its seed (zero counter block first), read as little-endian
64-bit words. Gate by gate in the plan's order, party 0 reads the gate's free words and then its
share of the gate's dealt words; party 1 reads the free words alone and gets its dealt words as
corrections.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_quant.errors import MalformedMessage, MaterialReused
from secure_quant.mpc.cost import SEED_BYTES
from secure_quant.mpc.ring import Ring

__all__ = ["Item", "Stream", "as_words", "stream"]

_ZEROS = bytes(2**16)


class Stream:
    """The stream under ``seed``, read once from its beginning."""

    def __init__(self, seed: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def read(self, into: Ring) -> None:
        """Fill the contiguous ``into`` with the next words."""
        view = into.view(np.uint8).data
        for start in range(0, len(view), len(_ZEROS)):  # a block of zeros that stays in the cache
            part = view[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(part)], part)
        if sys.byteorder == "big":
            into.byteswap(inplace=True)


def stream(seed: bytes, words: int) -> Ring:
    """The first ``words`` words of the stream under ``seed``, as a new array."""
    made = np.empty(words, np.uint64)
    if words:
        Stream(seed).read(made)
    return made


def as_words(corrections: bytes | memoryview) -> Ring:
    """Little-endian words of received corrections, read-only."""
    made = np.frombuffer(corrections, "<u8")
    return made if made.flags.aligned and sys.byteorder == "little" else made.astype(np.uint64)


@dataclass(eq=False)
class Item:
    """One sample's material for one party. ``take`` hands it out once.

    Raises MalformedMessage for a seed of another length or corrections at party 0.
    """

    party: int
    seed: bytes = field(repr=False)
    corrections: bytes | memoryview = field(default=b"", repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise MalformedMessage("bytes of a seed", got=len(self.seed), expected=SEED_BYTES)
        if self.party == 0 and len(self.corrections):
            raise MalformedMessage("corrections", got="some at party 0", expected="none")

    def take(self) -> tuple[bytes, bytes | memoryview]:
        """(seed, corrections); forgets both. Raises MaterialReused the second time."""
        with self._lock:
            if not self.seed:
                raise MaterialReused("an item of one-time material", got="a second use")
            made = (self.seed, self.corrections)
            self.seed, self.corrections = b"", b""
        return made
