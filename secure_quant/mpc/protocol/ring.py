"""Arithmetic in Z_2^k on uint64 arrays.

An element of Z_2^k is a uint64 below 2^k, for any k from 1 to 64; sums and products wrap mod 2^64
and are then reduced.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ring", "centred", "mask", "narrow_kind", "reduce", "to_ring"]

Ring = NDArray[np.uint64]


@cache
def mask(bits: int) -> np.uint64:
    """2^bits - 1."""
    return np.uint64((1 << bits) - 1)


def reduce(x: Ring, bits: int) -> Ring:
    """x mod 2^bits; a new array unless bits is 64."""
    return x if bits == 64 else x & mask(bits)


def to_ring(x: NDArray[Any] | int, bits: int) -> Ring:
    """Signed integers -> Z_2^bits."""
    return reduce(np.asarray(x, np.int64).astype(np.uint64), bits)


def centred(x: Ring, bits: int) -> NDArray[np.int64]:
    """The representative of x in [-2^(bits-1), 2^(bits-1))."""
    drop = 64 - bits
    made: NDArray[np.int64] = (x << np.uint64(drop)).view(np.int64) >> np.int64(drop)
    return made


def narrow_kind(bits: int) -> type[np.unsignedinteger[Any]]:
    """What elements of Z_2^bits are held in at rest."""
    return np.uint32 if bits <= 32 else np.uint64
