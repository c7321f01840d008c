"""Compiled matrix products mod 2^64, or mod 2^52 of numbers below 2^32.

Integers wrap as a ring does, so that nothing is cut into limbs and no bound is to be proven. The
right factor is read where it lies: columns of a convolution are never made.

Source of the loops' order: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM TOMS 34 (3), 2008.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from secure_quant.mpc.kernels.bits import IN, INT, OUT, I, U, kernel
from secure_quant.mpc.kernels.simd import LANES, tiles

__all__ = ["COLUMNS", "add_products"]

COLUMNS = LANES
"""Places of columns come in multiples of so many; the last is repeated."""
DEPTH, ROWS, WIDE, HIGH = 256, 512, 2 * LANES, 8
"""Of a block of the left factor, which stays in the second cache (1 MiB), and of a tile."""
FEW = 4
"""Columns that are worth no tiles."""

OUT4 = types.Array(U, 4, "C")
NARROW, WHOLE = (types.Array(each, 3, "C", readonly=True) for each in (types.uint32, U))

whole_tile, half_tile, whole_row, half_row = (tiles(r, v) for r in (HIGH, 1) for v in (2, 1))


@kernel([types.void(each, I, I, I, I, I, OUT) for each in (NARROW, WHOLE)])
def lay_rows(
    left: Any, group: int, row: int, height: int, first: int, depth: int, out: Any
) -> None:
    """left[group, row : row + height, first : first + depth], ``HIGH`` rows at a time column by
    column, and those that are left one by one."""
    t, whole = 0, height - height % HIGH
    for r in range(row, row + whole, HIGH):
        for p in range(first, first + depth):
            for k in range(HIGH):
                out[t + k] = left[group, r + k, p]
            t += HIGH
    for r in range(row + whole, row + height):
        for p in range(first, first + depth):
            out[t] = left[group, r, p]
            t += 1


@kernel(types.void(IN, I, INT, I, I, INT, I, I, OUT))
def lay_columns(
    data: Any, base: int, inner_at: Any, first: int, depth: int, column_at: Any, column: int,
    width: int, out: Any,
) -> None:  # fmt: skip
    """data[base + inner_at + column_at] of ``depth`` rows and ``width`` columns, row by row."""
    for v in range(0, width, LANES):
        at = column_at[column + v : column + v + LANES]
        # Side by side: they rise, and where the last is repeated they end alike.
        if at[LANES - 1] - at[0] == LANES - 1 and at[LANES - 1] > at[LANES - 2]:
            for p in range(depth):
                source, t = base + inner_at[first + p] + at[0], p * width + v
                for k in range(LANES):
                    out[t + k] = data[source + k]
        else:
            for p in range(depth):
                source, t = base + inner_at[first + p], p * width + v
                for k in range(LANES):
                    out[t + k] = data[source + at[k]]


@kernel([types.void(each, OUT, I, OUT, I, I, OUT, I, I) for each in (NARROW, WHOLE)])
def add_strip(
    left: Any, block: Any, height: int, strip: Any, depth: int, width: int, sums: Any, place: int,
    stride: int,
) -> None:  # fmt: skip
    """The products of a block and a strip, of ``WIDE`` columns or half as many, onto ``sums`` from
    ``place`` on. left: for its type."""
    whole = height - height % HIGH
    if width == WIDE:
        for r in range(0, whole, HIGH):
            whole_tile(left, block, r * depth, strip, depth, sums, place + r * stride, stride)
        for r in range(whole, height):
            whole_row(left, block, r * depth, strip, depth, sums, place + r * stride, stride)
    else:
        for r in range(0, whole, HIGH):
            half_tile(left, block, r * depth, strip, depth, sums, place + r * stride, stride)
        for r in range(whole, height):
            half_row(left, block, r * depth, strip, depth, sums, place + r * stride, stride)


@kernel([types.void(each, OUT, I, OUT, I, OUT, OUT, I, I, I) for each in (NARROW, WHOLE)])
def add_edge(
    left: Any, block: Any, height: int, strip: Any, depth: int, edge: Any, sums: Any, place: int,
    stride: int, columns: int,
) -> None:  # fmt: skip
    """As ``add_strip`` of fewer than ``LANES`` columns, by way of ``edge``."""
    for first in range(0, height, HIGH):
        rows = min(HIGH, height - first)
        edge[:] = 0
        if rows == HIGH:
            half_tile(left, block, first * depth, strip, depth, edge, 0, LANES)
        else:
            for r in range(rows):
                at = (first + r) * depth
                half_row(left, block, at, strip, depth, edge, r * LANES, LANES)
        for r in range(rows):
            for c in range(columns):
                sums[place + (first + r) * stride + c] += edge[r * LANES + c]


@kernel([types.void(each, IN, INT, INT, I, I, OUT4) for each in (NARROW, WHOLE)])
def add_few(
    left: Any, data: Any, inner_at: Any, column_at: Any, per_sample: int, per_group: int, out: Any
) -> None:
    """``add_products``, a column at a time."""
    groups, rows, inner = left.shape
    column = np.empty(inner, left.dtype)
    for b in range(out.shape[0]):
        for g in range(groups):
            for c in range(out.shape[3]):
                base = b * per_sample + g * per_group + column_at[c]
                for p in range(inner):
                    column[p] = data[base + inner_at[p]]
                for r in range(rows):
                    total = np.uint64(0)
                    for p in range(inner):
                        total += np.uint64(left[g, r, p]) * np.uint64(column[p])
                    out[b, g, r, c] += total


@kernel([types.void(each, IN, INT, INT, I, I, OUT4) for each in (NARROW, WHOLE)])
def add_products(
    left: Any, data: Any, inner_at: Any, column_at: Any, per_sample: int, per_group: int, out: Any
) -> None:
    """out[b, g] += left[g] @ X_bg mod 2^64, X_bg[p, c] = data[b·per_sample + g·per_group +
    inner_at[p] + column_at[c]]; mod 2^52 for a ``left`` of uint32, where data is below 2^32.

    left: [groups, rows, inner]. out: uint64[batch, groups, rows, columns]. column_at: of the
    columns, rising, its last repeated up to a multiple of ``COLUMNS``."""
    groups, rows, inner = left.shape
    batch, columns = out.shape[0], out.shape[3]
    if columns < FEW:
        add_few(left, data, inner_at, column_at, per_sample, per_group, out)
        return
    sums = out.reshape(-1)
    block = np.empty(min(ROWS, rows) * min(DEPTH, inner), np.uint64)
    strip, edge = np.empty(min(DEPTH, inner) * WIDE, np.uint64), np.empty(HIGH * LANES, np.uint64)
    for g in range(groups):
        for first in range(0, inner, DEPTH):
            depth = min(DEPTH, inner - first)
            for row in range(0, rows, ROWS):
                height = min(ROWS, rows - row)
                lay_rows(left, g, row, height, first, depth, block)
                for b in range(batch):
                    base = b * per_sample + g * per_group
                    place, c = ((b * groups + g) * rows + row) * columns, 0
                    while c < columns:
                        width = WIDE if columns - c >= WIDE else LANES
                        lay_columns(data, base, inner_at, first, depth, column_at, c, width, strip)
                        if columns - c >= LANES:
                            add_strip(
                                left, block, height, strip, depth, width, sums, place + c, columns
                            )
                        else:
                            add_edge(
                                left, block, height, strip, depth, edge, sums, place + c, columns,
                                columns - c,
                            )  # fmt: skip
                        c += width
