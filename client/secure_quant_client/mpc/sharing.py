"""Additive sharing mod 2^64: the client's half of secret sharing.

One share alone is uniform over the ring, whatever the value: a one-time pad.
Source: docs/spec/mpc.md, "Input and output".
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DtypeMismatch, ShapeMismatch
from secure_quant.keystream import SEED_BYTES, words_under

__all__ = ["join", "share", "share_seeded"]


def share(values: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Signed integers [...] -> two uint64[...] whose sum mod 2^64 is ``values``.

    The first share is drawn from the operating system's generator, eight fresh bytes an element.
    Raises DtypeMismatch for anything but signed integers.
    """
    if values.dtype.kind != "i":
        raise DtypeMismatch("values to share", got=values.dtype, expected="signed integers")
    mask = np.frombuffer(secrets.token_bytes(8 * values.size), "<u8").reshape(values.shape)
    return mask, values.astype(np.int64).view(np.uint64) - mask


def share_seeded(values: NDArray[Any]) -> tuple[NDArray[np.uint64], bytes]:
    """Signed integers [...] -> (uint64[...] share, a seed whose stream is the other share).

    Half the bytes of ``share``. The share is a pad by AES-256 in counter mode; the seed, 32 fresh
    bytes of the operating system, says nothing of the value by itself. Raises DtypeMismatch.
    """
    if values.dtype.kind != "i":
        raise DtypeMismatch("values to share", got=values.dtype, expected="signed integers")
    seed = secrets.token_bytes(SEED_BYTES)
    mask = words_under(seed, values.size).reshape(values.shape)
    return values.astype(np.int64).view(np.uint64) - mask, seed


def join(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Two uint64[...] shares -> int64[...], their sum mod 2^64 as a signed number.

    Raises DtypeMismatch, ShapeMismatch.
    """
    for part in (first, second):
        if part.dtype != np.uint64:
            raise DtypeMismatch("share", got=part.dtype, expected="uint64")
    if first.shape != second.shape:
        raise ShapeMismatch("the two shares", got=second.shape, expected=first.shape)
    return (first + second).view(np.int64)
