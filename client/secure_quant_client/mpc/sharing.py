"""The client's half of secret sharing: an int8 input in two XOR shares, an output out of two.

One share alone is uniform, whatever the value: a one-time pad. An input goes byte by byte, an
output comes mod 2^64. Source: docs/spec/mpc.md, "Input and output".
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch
from secure_quant.keystream import SEED_BYTES, Keystream

__all__ = ["join", "share", "share_seeded"]

Octets = NDArray[np.uint8]


def share(values: NDArray[np.int8]) -> tuple[Octets, Octets]:
    """int8[...] -> two uint8[...] whose XOR is ``values``, byte by byte.

    The first share is drawn from the operating system's generator. Raises DtypeMismatch.
    """
    octets = _octets(values)
    mask = np.frombuffer(secrets.token_bytes(octets.size), np.uint8).reshape(octets.shape)
    return mask, octets ^ mask


def share_seeded(values: NDArray[np.int8]) -> tuple[Octets, bytes]:
    """int8[...] -> (uint8[...] share, a seed whose stream is the other share).

    Half the bytes of ``share``. The share is a pad by AES-256 in counter mode; the seed, 32 fresh
    bytes of the operating system, says nothing of the value by itself. Raises DtypeMismatch.
    """
    octets = _octets(values)
    seed = secrets.token_bytes(SEED_BYTES)
    return octets ^ Keystream(seed).bytes(octets.size).reshape(octets.shape), seed


def join(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Two uint64[...] shares of an output -> int64[...], their sum mod 2^64 as a signed number.

    Raises DtypeMismatch, ShapeMismatch.
    """
    for part in (first, second):
        if part.dtype != np.uint64:
            raise DtypeMismatch("share", got=part.dtype, expected="uint64")
    if first.shape != second.shape:
        raise ShapeMismatch("the two shares", got=second.shape, expected=first.shape)
    return (first + second).view(np.int64)


def _octets(values: NDArray[np.int8]) -> Octets:
    if values.dtype != np.int8:
        raise DtypeMismatch("values to share", got=values.dtype, expected="int8")
    return values.view(np.uint8)
