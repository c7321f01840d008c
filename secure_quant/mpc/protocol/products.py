"""Matrix products in Z_2^k: which places of a vector the right factor is read from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir.ops import Conv2d
from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.ring import Ring, narrow_kind, reduce

__all__ = ["Narrow", "Places", "matmul", "of_image", "of_rows", "padded"]

Narrow = NDArray[Any]
"""Elements of Z_2^k in ``narrow_kind(k)``."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """X_bg[p, c] of sample b and group g lies at b·per_sample + g·per_group + inner_at[p] +
    column_at[c]. columns: how many; column_at has a few more, for ``batched``."""

    inner_at: Ints
    column_at: Ints
    columns: int
    per_sample: int
    per_group: int

    @classmethod
    def of(cls, inner_at: Ints, column_at: Ints, per_sample: int, per_group: int) -> Places:
        """column_at: rising, one of each column."""
        padded = kernels.batched.columns_at(column_at)
        return cls(inner_at, padded, len(column_at), per_sample, per_group)

    def times(self, left: Narrow, data: Ring, batch: int, onto: Ring | None = None) -> Ring:
        """left[g] @ X_bg, and ``onto``, which is overwritten: uint64[batch, groups, rows, columns],
        right mod 2^32 for a left factor of uint32 and data below 2^32, else mod 2^64.

        left: [groups, rows, inner]."""
        shape = (batch, *left.shape[:2], self.columns)
        made = np.zeros(shape, np.uint64) if onto is None else onto.reshape(shape)
        kernels.batched.add_products(
            left, data.reshape(-1), self.inner_at, self.column_at, self.per_sample, self.per_group,
            made,
        )  # fmt: skip
        return made


@lru_cache(maxsize=256)
def of_rows(rows: int, inner: int) -> Places:
    """X's columns are the rows of [rows, inner]."""
    return Places.of(np.arange(inner), inner * np.arange(rows), 0, 0)


@lru_cache(maxsize=256)
def of_matrices(inner: int, columns: int) -> Places:
    """X_g of [groups, inner, columns]."""
    return Places.of(columns * np.arange(inner), np.arange(columns), 0, inner * columns)


@lru_cache(maxsize=1024)
def of_image(node: Conv2d, shape: tuple[int, ...]) -> Places:
    """What each output of a convolution sums, of what ``padded`` makes of [batch, *shape]."""
    channels = shape[0]
    height, width = (n + 2 * p for n, p in zip(shape[1:], node.padding, strict=True))
    plane, here = height * width, channels // node.groups

    def axis(size: int, place: int) -> tuple[Ints, Ints]:
        step, apart = node.stride[place], node.dilation[place]
        taps = apart * np.arange(node.kernel[place])
        return taps, np.arange(0, size - taps[-1], step)

    (down, top), (across, start) = axis(height, 0), axis(width, 1)
    inner = plane * np.arange(here)[:, None, None] + width * down[:, None] + across
    columns = width * top[:, None] + start
    return Places.of(inner.reshape(-1), columns.reshape(-1), plane * channels, plane * here)


def padded(x: Ring, zero: int, bits: int, padding: tuple[int, int]) -> Ring:
    """x - zero mod 2^bits with 0 around it, of [batch, channels, height, width]."""
    (ph, pw), (batch, channels, height, width) = padding, x.shape
    made = np.zeros((batch, channels, height + 2 * ph, width + 2 * pw), np.uint64)
    inside = made[:, :, ph : ph + height, pw : pw + width]
    np.subtract(x, np.uint64(zero % 2**64), out=inside)
    inside[...] = reduce(inside, bits)
    return made


def matmul(a: Ring, b: Ring, bits: int) -> Ring:
    """a @ b mod 2^bits over the last two axes; those before are the same. Below 2^bits."""
    (*lead, rows, inner), columns = a.shape, b.shape[-1]
    left = a.reshape(-1, rows, inner).astype(narrow_kind(bits), copy=False)
    made = of_matrices(inner, columns).times(np.ascontiguousarray(left), np.ascontiguousarray(b), 1)
    return reduce(made, bits).reshape(*lead, rows, columns)
