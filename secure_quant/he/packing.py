"""Coefficient packing: which coefficient holds what.

With S = th·tw elements in a spatial tile (tw wide), Ct input and Ot output channels and Bt rows,
Bt·Ot·Ct·S <= degree:

    x[b, c, h, w]    at  Ot·(b·Ct·S + c·S + h·tw + w)
    K[o, c, a, d]    at  o + Ot·(C - c·S - a·tw - d)      C = (Ct-1)·S + tw·(kh-1) + kw-1
    y[b, o, h, w]    at  o + Ot·(b·Ct·S + C + h·tw + w)

In the product, terms that are not wanted land on other coefficients, and those that wrap around
(with a minus sign) land below Ot·C, where nothing is wanted. After Cheetah (Huang, Lu, Hong, Ding,
2022), but with the output channels next to each other: so the coefficients of a ciphertext that
any wanted one of the product depends on are the first Bt·Ot·Ct·S and the last Ot-1, and the others
need not be sent. ``docs/spec/ckks.md`` has the proofs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from secure_quant.he.geometry import Geometry

__all__ = ["Packing", "Tile"]

Int = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tile:
    """What one polynomial holds: ``rows`` rows, ``cin`` and ``cout`` channels of ``merge`` groups
    joined into one, and ``height`` x ``width`` elements of input."""

    rows: int
    merge: int
    cin: int
    cout: int
    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def coefficients(self) -> int:
        return self.rows * self.cin * self.cout * self.area


@dataclass(frozen=True)
class Packing:
    """A layer's integers for ``batch`` samples <-> polynomials of ``degree`` coefficients."""

    geometry: Geometry
    tile: Tile
    degree: int
    batch: int

    @cached_property
    def grid(self) -> tuple[int, int, int, int]:
        """Chunks of rows, of groups, of tile rows, of tile columns."""
        g, t = self.geometry, self.tile
        return (
            -(-self.batch * g.rows // t.rows),
            -(-g.groups // t.merge),
            -(-g.out_height // self._out_tile[0]),
            -(-g.out_width // self._out_tile[1]),
        )

    @cached_property
    def n_in(self) -> int:
        return -(-self.geometry.cin * self.tile.merge // self.tile.cin)

    @cached_property
    def n_out(self) -> int:
        return -(-self.geometry.cout * self.tile.merge // self.tile.cout)

    @cached_property
    def cells(self) -> int:
        """Independent blocks, each of ``n_in`` polynomials up and ``n_out`` down."""
        rows, groups, high, wide = self.grid
        return rows * groups * high * wide

    @cached_property
    def outputs(self) -> int:
        """Wanted coefficients."""
        return self.batch * self.geometry.outputs

    @cached_property
    def wanted_shape(self) -> tuple[int, int, int, int]:
        """Shape of what ``wanted`` takes from one polynomial."""
        return self.tile.rows, self.tile.cout, *self._out_tile

    @property
    def _out_tile(self) -> tuple[int, int]:
        return self.tile.height - self.geometry.kh + 1, self.tile.width - self.geometry.kw + 1

    @cached_property
    def carried(self) -> int:
        """Coefficients of a ciphertext that hold an input."""
        return self.tile.coefficients // self.tile.cout

    @cached_property
    def spare(self) -> int:
        """Coefficients that hold none, yet wanted ones of the product depend on them."""
        return min(self.degree, self.tile.coefficients + self.tile.cout - 1) - self.carried

    def group_of(self, cell: int) -> int:
        """Which chunk of groups, hence which weights, a cell uses."""
        _, groups, high, wide = self.grid
        return cell // (high * wide) % groups

    def input(self, x: Int) -> Int:
        """int64[batch·rows, groups, cin, height, width] -> what the polynomials carry,
        int64[cells·n_in, carried]."""
        g, t = self.geometry, self.tile
        rows, groups, high, wide = self.grid
        oh, ow = self._out_tile
        x = _extend(x, 0, rows * t.rows)
        x = _extend(x, 1, groups * t.merge)
        x = x.reshape(rows * t.rows, groups, t.merge * g.cin, *x.shape[3:])
        x = _extend(x, 2, self.n_in * t.cin)
        x = _extend(x, 3, high * oh + g.kh - 1)
        x = _extend(x, 4, wide * ow + g.kw - 1)
        cut = sliding_window_view(x, (t.height, t.width), axis=(3, 4))[:, :, :, ::oh, ::ow]
        cut = cut.reshape(rows, t.rows, groups, self.n_in, t.cin, high, wide, t.height, t.width)
        cut = cut.transpose(0, 2, 5, 6, 3, 1, 4, 7, 8)
        return cut.reshape(self.cells * self.n_in, self.carried)

    def divide(self, polynomials: Array) -> tuple[Array, Array]:
        """[..., degree] -> (what carries an input [..., carried], the rest that is needed
        [..., spare])."""
        used = self._used(polynomials)
        lead = polynomials.shape[:-1]
        filler = used[..., 1:].reshape(*lead, self.spare - self._tail)
        tail = polynomials[..., self.degree - self._tail :]
        return used[..., 0], np.concatenate([filler, tail], axis=-1)

    def unite(self, carried: Array, spare: Array) -> Array:
        """Inverse of ``divide``, with zeros where nothing is needed."""
        made = np.zeros((*carried.shape[:-1], self.degree), carried.dtype)
        used, cut = self._used(made), self.spare - self._tail
        used[..., 0] = carried
        used[..., 1:] = spare[..., :cut].reshape(*used.shape[:-1], self.tile.cout - 1)
        made[..., self.degree - self._tail :] = spare[..., cut:]
        return made

    def _used(self, polynomials: Array) -> Array:
        """View [..., carried, cout] of the tile's coefficients."""
        used = polynomials[..., : self.tile.coefficients]
        return used.reshape(*polynomials.shape[:-1], self.carried, self.tile.cout)

    @property
    def _tail(self) -> int:
        return self.carried + self.spare - self.tile.coefficients

    def taps(self, weight: Array, group: int) -> NDArray[np.int8]:
        """int8[groups, cout, cin, kh, kw] -> the coefficients that are not always zero of the
        polynomials of one chunk of groups, int8[n_out, n_in, taps]; ``places`` says where."""
        g, t = self.geometry, self.tile
        chosen = weight[group * t.merge : (group + 1) * t.merge]
        whole = np.zeros((self.n_out * t.cout, self.n_in * t.cin, g.kh, g.kw), np.int8)
        for i, one in enumerate(chosen):  # merged groups: a block diagonal of channels
            whole[i * g.cout : (i + 1) * g.cout, i * g.cin : (i + 1) * g.cin] = one
        split = whole.reshape(self.n_out, t.cout, self.n_in, t.cin * g.kh * g.kw)
        return split.transpose(0, 2, 1, 3).reshape(self.n_out, self.n_in, -1)

    @cached_property
    def places(self) -> Int:
        """int64[taps]: the power of X that each of ``taps`` belongs to, all different."""
        g, t = self.geometry, self.tile
        o, c, a, d = np.ogrid[: t.cout, : t.cin, : g.kh, : g.kw]
        top = (t.cin - 1) * t.area + t.width * (g.kh - 1) + g.kw - 1
        places: Int = o + t.cout * (top - c * t.area - a * t.width - d)
        return places.reshape(-1)

    def weight(self, weight: Array, group: int) -> Iterator[Int]:
        """As ``taps``, for each input chunk as polynomials int64[n_out, degree]."""
        for chunk in self.taps(weight, group).transpose(1, 0, 2):
            made = np.zeros((self.n_out, self.degree), np.int64)
            made[:, self.places] = chunk
            yield made

    def wanted(self, polynomials: Array) -> Array:
        """[n, degree] -> view [n, rows, cout, out tile height, out tile width]."""
        g, t = self.geometry, self.tile
        used = polynomials[:, : t.coefficients]
        cube = used.reshape(-1, t.rows, t.cin, t.height, t.width, t.cout)
        return cube[:, :, -1, g.kh - 1 :, g.kw - 1 :].transpose(0, 1, 4, 2, 3)

    def output(self, wanted: Array) -> Array:
        """``wanted`` of all cells·n_out polynomials -> [batch·rows, groups, cout, out_height,
        out_width]; what lies beyond the layer's result is left out."""
        g, t = self.geometry, self.tile
        rows, groups, high, wide = self.grid
        oh, ow = self._out_tile
        cube = wanted.reshape(rows, groups, high, wide, self.n_out, t.rows, t.cout, oh, ow)
        cube = cube.transpose(0, 5, 1, 4, 6, 2, 7, 3, 8)
        whole = cube.reshape(rows * t.rows, groups, self.n_out * t.cout, high * oh, wide * ow)
        whole = whole[: self.batch * g.rows, :, : t.merge * g.cout, : g.out_height, : g.out_width]
        shape = (len(whole), groups * t.merge, g.cout, g.out_height, g.out_width)
        return whole.reshape(shape)[:, : g.groups]


def _extend(x: Array, axis: int, size: int) -> Array:
    """``x`` with zeros after its end, so that ``axis`` has ``size`` elements."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    return np.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
