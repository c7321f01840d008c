"""A linear layer as a plain convolution: stride 1, dilation 1, no padding.

The client pads and splits the input into stride phases (space to depth), the server rearranges
its kernels the same way once, and a dense layer is the case of 1x1 images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import Graph, Value
from secure_quant.ir.ops import Conv2d, Linear

__all__ = ["Geometry"]

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One spatial axis. Tap a of the kernel reads position ``a·dilation`` of a window, which is
    place ``(a·dilation) // stride`` of phase ``(a·dilation) % stride``."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def phases(self) -> list[int]:
        return sorted({tap * self.dilation % self.stride for tap in range(self.kernel)})

    @property
    def taps(self) -> Iterator[tuple[int, int, int]]:
        """(tap, index of its phase, place in that phase)."""
        for tap in range(self.kernel):
            place, phase = divmod(tap * self.dilation, self.stride)
            yield tap, self.phases.index(phase), place

    @property
    def places(self) -> int:
        return (self.kernel - 1) * self.dilation // self.stride + 1

    @property
    def out(self) -> int:
        span = (self.kernel - 1) * self.dilation
        return (self.size + 2 * self.padding - span - 1) // self.stride + 1

    def index(self) -> tuple[Int, NDArray[np.bool_]]:
        """Source index [phases, out + places - 1] into the axis, and where it lies inside."""
        steps = np.arange(self.out + self.places - 1) * self.stride
        source = np.array(self.phases)[:, None] + steps - self.padding
        inside = (source >= 0) & (source < self.size)
        return np.where(inside, source, 0), inside


@dataclass(frozen=True, slots=True)
class Geometry:
    """What both sides know of a layer: all sizes, no weights.

    rows           products per sample: the leading axes of a Linear, 1 for a Conv2d.
    groups         independent convolutions.
    cin, cout      channels of one group after the split into phases.
    height, width  of the rearranged, padded input.
    kh, kw         of the rearranged kernel.
    bound          largest accumulator.
    row_l1         public bound on Σ|w| of one output channel.
    magnitude      largest |x̂|.
    """

    rows: int
    groups: int
    cin: int
    cout: int
    height: int
    width: int
    kh: int
    kw: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    bound: int
    row_l1: int
    magnitude: int
    _axes: tuple[_Axis, ...] = ()

    @classmethod
    def of(cls, graph: Graph, node: Linear | Conv2d) -> Geometry:
        """Of a node of a graph, public or not."""
        x, y = graph.values[node.inputs[0]], graph.values[node.name]
        if isinstance(node, Linear):
            rows = prod(x.shape[:-1])
            sizes = (rows, 1, node.in_features, node.out_features, 1, 1, 1, 1)
            return cls(*sizes, x.shape, y.shape, *_public(x, node, node.in_features))
        axes = tuple(
            _Axis(*sizes)
            for sizes in zip(
                x.shape[1:], node.kernel, node.stride, node.padding, node.dilation, strict=True
            )
        )
        high, wide = axes
        channels = node.in_channels // node.groups
        return cls(
            1, node.groups, channels * len(high.phases) * len(wide.phases),
            node.out_channels // node.groups,
            high.out + high.places - 1, wide.out + wide.places - 1, high.places, wide.places,
            x.shape, y.shape, *_public(x, node, channels * prod(node.kernel)), axes,
        )  # fmt: skip

    @property
    def out_height(self) -> int:
        return self.height - self.kh + 1

    @property
    def out_width(self) -> int:
        return self.width - self.kw + 1

    @property
    def outputs(self) -> int:
        """Elements of one sample's result."""
        return prod(self.out_shape)

    def arrange(self, x: Int) -> Int:
        """x̂ int64[batch, *in_shape] -> int64[batch·rows, groups, cin, height, width]."""
        if not self._axes:
            return x.reshape(-1, 1, self.cin, 1, 1)
        (hi, h_in), (wi, w_in) = (axis.index() for axis in self._axes)
        taken = x[:, :, hi[:, None, :, None], wi[None, :, None, :]]
        taken = taken * (h_in[:, None, :, None] & w_in[None, :, None, :])
        return taken.reshape(len(x), self.groups, self.cin, self.height, self.width)

    def arrange_weight(self, weight: NDArray[Any]) -> NDArray[Any]:
        """int8[out, in / groups, *kernel] -> int8[groups, cout, cin, kh, kw]."""
        if not self._axes:
            return weight.reshape(1, self.cout, self.cin, 1, 1)
        high, wide = self._axes
        channels = weight.shape[1]
        shape = (len(weight), channels, len(high.phases), len(wide.phases), self.kh, self.kw)
        made = np.zeros(shape, weight.dtype)
        for a, ai, ap in high.taps:
            for b, bi, bp in wide.taps:
                made[:, :, ai, bi, ap, bp] = weight[:, :, a, b]
        return made.reshape(self.groups, self.cout, self.cin, self.kh, self.kw)

    def restore(self, y: Int) -> Int:
        """int64[batch·rows, groups, cout, out_height, out_width] -> int64[batch, *out_shape]."""
        return y.reshape(-1, *self.out_shape)


def _public(x: Value, node: Linear | Conv2d, fan_in: int) -> tuple[int, int, int]:
    """(bound, row_l1, magnitude) of a node.

    The two ends of channel o's range differ by Σ|w|·(hi - lo), and both lie within the bound, so
    Σ|w| <= 2·bound / (hi - lo). Nothing of the weights enters a plan but that bound.
    """
    low, high = min(x.centred.lo, 0), max(x.centred.hi, 0)
    l1 = 2 * node.bound // max(high - low, 1)
    return node.bound, max(min(l1, 128 * fan_in), 1), x.centred.magnitude
