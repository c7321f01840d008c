"""Compiled loops of one-hots that are shared by addition: what a maximum by counting reads of them,
and what the dealer makes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import IN, ONES, OUT, I, flip, kernel, read

__all__ = ["deal_tallies", "tallied"]


@kernel(types.void(IN, IN, I, I, I, OUT))
def tallied(opened: Any, dealt: Any, place: int, width: int, ring: int, out: Any) -> None:
    """Own share mod 2^ring of [opened = ρ], from the one-hots of 2^width elements at ``place``."""
    for t in range(opened.shape[0]):
        out[t] = read(dealt, place + ((t << width) + np.int64(opened[t])) * ring, ring)


@kernel(types.void(IN, OUT, I, I, I))
def deal_tallies(rho: Any, dealt: Any, place: int, width: int, ring: int) -> None:
    """Party 0's stream in ``dealt`` becomes party 1's corrections for one-hots of ``rho``."""
    keep = ONES >> np.uint64(64 - ring)
    for t in range(rho.shape[0]):
        for v in range(1 << width):
            old = read(dealt, place, ring)
            hit = np.uint64(np.uint64(v) == rho[t])
            flip(dealt, place, ring, old ^ ((hit - old) & keep))
            place += ring
