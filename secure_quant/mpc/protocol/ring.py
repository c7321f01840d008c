"""Arithmetic in Z_2^k on uint64 arrays, and exact matrix products there by float64 BLAS.

An element of Z_2^k is a uint64 below 2^k, for any k from 1 to 64; sums and products wrap mod 2^64
and are then reduced. A matrix product splits its operands into limbs so small that every partial
sum is an integer below 2^53, which float64 holds; BLAS then rounds nothing in any order of adding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secure_quant.ir.ops import Conv2d, Pair

__all__ = ["Limbs", "Ring", "centred", "columns", "mask", "product", "reduce", "split", "to_ring"]

Ring = NDArray[np.uint64]
Float = NDArray[np.float64]


def mask(bits: int) -> np.uint64:
    """2^bits - 1."""
    return np.uint64((1 << bits) - 1)


def reduce(x: Ring, bits: int) -> Ring:
    """x mod 2^bits; a new array unless bits is 64."""
    return x if bits == 64 else x & mask(bits)


def to_ring(x: NDArray[Any] | int, bits: int) -> Ring:
    """Signed integers -> Z_2^bits."""
    return reduce(np.asarray(x, np.int64).astype(np.uint64), bits)


def centred(x: NDArray[Any], bits: int) -> NDArray[Any]:
    """The representative of x, uint64 or uint32, in [-2^(bits-1), 2^(bits-1)): signed integers."""
    kind, signed = x.dtype.type, np.int32 if x.dtype.itemsize == 4 else np.int64
    drop = 8 * x.dtype.itemsize - bits
    made: NDArray[Any] = (x << kind(drop)).view(signed) >> signed(drop)
    return made


@dataclass(frozen=True)
class Limbs:
    """x = Σ parts[i] · 2^(width·i) mod 2^bits. One part is centred, several are not negative."""

    parts: tuple[Float, ...]
    width: int

    def map(self, move: Any) -> Limbs:
        """The same move of elements (reshape, transpose, gather, pad with 0) in every limb."""
        return Limbs(tuple(move(part) for part in self.parts), self.width)


def split(x: NDArray[Any], bits: int, count: int) -> Limbs:
    """x in Z_2^bits, uint64 or uint32 -> ``count`` float64 limbs."""
    if count == 1:
        return Limbs((centred(x, bits).astype(np.float64),), bits)
    width, kind = -(-bits // count), x.dtype.type
    parts = (x >> kind(width * i) & kind((1 << width) - 1) for i in range(count))
    return Limbs(tuple(part.astype(np.float64) for part in parts), width)


@lru_cache(maxsize=4096)
def limb_counts(bits: int, inner: int) -> Pair:
    """Limbs of the left and of the right operand for an exact sum of ``inner`` products.

    The fewest products first, then the fewest limbs on the right.
    """

    def size(count: int) -> int:
        return bits - 1 if count == 1 else -(-bits // count)

    room = 53 - (inner - 1).bit_length()
    choices = [
        (a * b, b, a) for a in range(1, 17) for b in range(1, 17) if size(a) + size(b) <= room
    ]
    _, right, left = min(choices)
    return left, right


def product(left: Limbs, right: Limbs, bits: int) -> Ring:
    """left @ right mod 2^bits, with as many limbs as ``limb_counts`` asks for."""
    made: Ring | None = None
    for i, a in enumerate(left.parts):
        for j, b in enumerate(right.parts):
            shift = left.width * i + right.width * j
            if shift < bits:
                part = (a @ b).astype(np.int64).view(np.uint64)
                if shift:
                    part <<= np.uint64(shift)
                made = part if made is None else np.add(made, part, out=made)
    if made is None:
        raise ValueError("a product without limbs")
    return reduce(made, bits)


def matmul(a: Ring, b: Ring, bits: int) -> Ring:
    """a @ b mod 2^bits over the last two axes."""
    left, right = limb_counts(bits, a.shape[-1])
    return product(split(a, bits, left), split(b, bits, right), bits)


def columns(x: Float, node: Conv2d) -> Float:
    """[batch, C, H, W] -> [batch, groups, C/groups·kh·kw, H'·W'], padded with 0."""
    (ph, pw), (batch, channels, height, width) = node.padding, x.shape
    if ph or pw:
        padded = np.zeros((batch, channels, height + 2 * ph, width + 2 * pw), x.dtype)
        padded[:, :, ph : ph + height, pw : pw + width] = x
        x = padded
    span = tuple((k - 1) * d + 1 for k, d in zip(node.kernel, node.dilation, strict=True))
    view = sliding_window_view(x, span, axis=(2, 3))
    view = view[
        :, :, :: node.stride[0], :: node.stride[1], :: node.dilation[0], :: node.dilation[1]
    ]
    rows, cols = view.shape[2:4]
    made = view.transpose(0, 1, 4, 5, 2, 3)
    return made.reshape(batch, node.groups, -1, rows * cols)
