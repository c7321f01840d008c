"""Weights of a layer at rest: elements of Z_2^k in 4 bytes, widened when they are used.

A product needs float64 limbs, 8 bytes each. Large models hold none: a block of rows at a time is
widened, multiplied and forgotten, which costs a few percent of the product. Small ones keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.ring import Limbs, Ring, product, reduce, split

__all__ = ["KEPT", "Weights", "narrow_kind", "sums"]

KEPT = 2**20
"""Weights of a model whose limbs are kept: 16 to 64 MB at a party."""
BLOCK = 2**19
"""Weights that are widened at once, but one row at least."""

Narrow = NDArray[Any]


def narrow_kind(bits: int) -> type[np.unsignedinteger[Any]]:
    """What elements of Z_2^bits are held in."""
    return np.uint32 if bits <= 32 else np.uint64


@dataclass(frozen=True, eq=False)
class Weights:
    """data: ``narrow_kind(bits)`` [groups, rows, inner], read-only. limbs: of a product with them.
    kept: whether their limbs are."""

    data: Narrow = field(repr=False)
    bits: int
    limbs: int
    kept: bool

    @cached_property
    def _whole(self) -> Limbs:
        return split(self.data, self.bits, self.limbs)

    def times(self, right: Limbs) -> Ring:
        """data @ right mod 2^bits for right [..., groups, inner, columns], or where there is but
        one group [..., inner, columns] without its axis."""
        if self.kept:
            return product(self._whole, right, self.bits)
        groups, rows, inner = self.data.shape
        step = max(1, BLOCK // (groups * inner))
        parts = [
            product(split(self.data[:, at : at + step], self.bits, self.limbs), right, self.bits)
            for at in range(0, rows, step)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


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
