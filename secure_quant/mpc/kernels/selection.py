"""Products of bit vectors and a table over GF(2): the XOR of the rows that are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import IN2, ONE, ZERO, U, kernel

__all__ = ["chosen"]

OUT2 = types.Array(U, 2, "C")


@kernel(types.void(IN2, IN2, OUT2))
def chosen(table: Any, bits: Any, made: Any) -> None:
    """made[t] ^= XOR of the rows table[j] where bit j of bits[t] is 1. table: uint64[rows, words],
    bits: uint64[n, words of rows]. Every row is read for every t, so time tells nothing of bits."""
    for j in range(table.shape[0]):
        word, place = j >> 6, np.uint64(j & 63)
        for t in range(bits.shape[0]):
            keep = ZERO - ((bits[t, word] >> place) & ONE)
            for w in range(table.shape[1]):
                made[t, w] ^= table[j, w] & keep
