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

from secure_quant.errors import MalformedMessage, MaterialReused
from secure_quant.keystream import SEED_BYTES
from secure_quant.mpc.protocol.ring import Ring

__all__ = ["Item", "as_words"]


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
