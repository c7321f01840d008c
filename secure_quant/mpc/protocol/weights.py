"""Weights at rest: elements of Z_2^k in 4 bytes, drawn from the parties' streams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.products import Narrow
from secure_quant.mpc.protocol.ring import Ring, narrow_kind, reduce

__all__ = ["sums"]

BLOCK = 2**19
"""Words that are drawn at once."""


def sums(
    shape: tuple[int, ...], bits: int, streams: list[Keystream],
    onto: Callable[[Ring, int], Ring] | None = None,
) -> Narrow:  # fmt: skip
    """The sum of the streams' next words mod 2^bits, or what ``onto`` makes of it and of the place
    of its first element; a chunk at a time."""
    made = np.empty(shape, narrow_kind(bits))
    flat = made.reshape(-1)
    words = np.empty((2, min(BLOCK, flat.size)), np.uint64)
    for at in range(0, flat.size, BLOCK):
        total, more = words[:, : flat.size - at]
        streams[0].read(total)
        for stream in streams[1:]:
            stream.read(more)
            total += more
        flat[at : at + len(total)] = reduce(onto(total, at) if onto else total, bits)
    made.flags.writeable = False
    return made
