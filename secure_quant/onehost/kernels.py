"""Compiled loops over blocks of bits: the extension's sums and transposes, and wide elements.

Like ``secure_quant.mpc.kernels``, whose ``kernel`` fixes the signatures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import ONES, OUT, ZERO, I, kernel, read

__all__ = ["cut", "fold", "join", "transpose"]

U = types.uint64
IN = types.Array(U, 1, "C", readonly=True)
IN2 = types.Array(U, 2, "C", readonly=True)
OUT2 = types.Array(U, 2, "C")


@kernel(types.void(OUT2, OUT, OUT2))
def fold(streams: Any, total: Any, weighted: Any) -> None:
    """streams: [2^depth leaves, words], overwritten. total: XOR of all. weighted: [depth, words],
    XOR of those with bit b of their number."""
    half, words = streams.shape[0] >> 1, streams.shape[1]
    for row in range(weighted.shape[0] - 1, -1, -1):
        for w in range(words):
            weighted[row, w] = ZERO
        for x in range(half):
            for w in range(words):
                top = streams[half + x, w]
                weighted[row, w] ^= top
                streams[x, w] ^= top
        half >>= 1
    for w in range(words):
        total[w] = streams[0, w]


@kernel(types.void(IN2, OUT2))
def transpose(columns: Any, rows: Any) -> None:
    """columns: [128, words], bit i of column j becomes bit j of row i in rows: [64 · words, 2]."""
    block = np.empty(64, np.uint64)
    for w in range(columns.shape[1]):
        for half in range(2):
            for i in range(64):
                block[i] = columns[64 * half + i, w]
            step, keep = 32, np.uint64(0xFFFFFFFF)
            while step:
                by = np.uint64(step)
                k = 0
                while k < 64:
                    moved = ((block[k] >> by) ^ block[k + step]) & keep
                    block[k] ^= moved << by
                    block[k + step] ^= moved
                    k = (k + step + 1) & ~step
                step >>= 1
                keep ^= keep << np.uint64(step)
            for i in range(64):
                rows[64 * w + i, half] = block[i]


@kernel(types.void(IN2, I, OUT))
def join(values: Any, bits: Any, words: Any) -> None:
    """values: [n, ceil(bits / 64)], lowest word first and zero above ``bits``, end to end into
    zeroed ``words``."""
    for i in range(values.shape[0]):
        place, left = i * bits, bits
        for v in range(values.shape[1]):
            w, s = place >> 6, np.uint64(place & 63)
            words[w] |= values[i, v] << s
            size = min(left, 64)
            if (place & 63) + size > 64:
                words[w + 1] |= values[i, v] >> (np.uint64(64) - s)
            place += 64
            left -= 64


@kernel(types.void(IN, I, OUT2))
def cut(words: Any, bits: Any, values: Any) -> None:
    """The reverse of ``join``."""
    for i in range(values.shape[0]):
        place, left = i * bits, bits
        for v in range(values.shape[1]):
            size = min(left, 64)
            values[i, v] = read(words, place, size) & (ONES >> np.uint64(64 - size))
            place += 64
            left -= 64
