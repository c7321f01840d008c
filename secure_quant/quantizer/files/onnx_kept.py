"""QuantizeLinear and DequantizeLinear: where a quantized ONNX model rounds.

A value between the two is held as the real number that its integer stands for, so that whatever
moves integers moves these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from secure_quant.quantizer.files.onnx_node import NodeView, Value
from secure_quant.quantizer.kept import ON_GRID, KeptScales

__all__ = ["KEPT", "Grid", "Rounded", "evenly_padded"]

Grid = tuple[float, int, str]
"""scale, zero point, dtype."""
_ENDS = {"int8": (-128, 127), "uint8": (0, 255)}
_MOVES = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather",
    "MaxPool", "GlobalMaxPool", "ReduceMax", "Split", "DepthToSpace", "SpaceToDepth", "Expand",
    "Tile", "Dropout",
}  # fmt: skip
"""Operators that give some of their integers on."""


class Rounded:
    """What is known of the integers in a graph while it is read.

    scales  of int8 and uint8 constants.
    grids   of values by name.
    """

    def __init__(self) -> None:
        self.scales = KeptScales()
        self.grids: dict[str, Grid] = {}

    def constant(self, view: NodeView, given: Sequence[NDArray[Any] | None]) -> None:
        """Note the scales of a DequantizeLinear of a constant."""
        x, scale = (*given, None, None)[:2]
        if view.kind == "DequantizeLinear" and x is not None and scale is not None:
            if view.get("block_size", 0):
                raise view.refused("scales of blocks", "one for each output channel, or for all")
            if x.dtype.name in _ENDS:
                self.scales.add(np.asarray(scale, np.float64).reshape(-1).tolist())

    def follow(
        self, view: NodeView, node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]
    ) -> None:
        """Know the grid of what a node makes, and refuse a DequantizeLinear of another."""
        source = node.input[0] if node.input else ""
        if view.kind in KEPT:
            grid = _grid(view, node, constants)
            if view.kind == "QuantizeLinear":
                self.grids[node.output[0]] = grid
            elif self.grids.get(source) != grid:
                raise view.refused(
                    f"scale {grid[0]:.7g}, zero point {grid[1]}",
                    f"those that {source!r} was quantized with: {self.grids.get(source)}",
                )
        elif view.kind in _MOVES and source in self.grids:
            self.grids.update(dict.fromkeys(node.output, self.grids[source]))
        elif any(name in self.grids for name in node.input):
            raise view.refused("integers of a QuantizeLinear", "a DequantizeLinear before it")


def _grid(view: NodeView, node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> Grid:
    names = (*node.input, "", "")
    scale, zero_point = (constants.get(name) for name in names[1:3])
    if scale is None or (names[2] and zero_point is None):
        raise view.refused("a scale or zero point computed from the input", "constants")
    if scale.size != 1:
        raise view.refused(f"{scale.size} scales of an activation", "one")
    kind = "uint8" if zero_point is None else zero_point.dtype.name
    if kind not in _ENDS:
        raise view.refused(f"activations in {kind}", "int8 or uint8")
    return float(scale.reshape(())), 0 if zero_point is None else int(zero_point.reshape(())), kind


def _quantize(node: NodeView, x: Tensor, scale: Value, *more: Value) -> Tensor:
    zero_point = more[0] if more else None
    kind = "uint8" if zero_point is None else node.known(zero_point, "zero point").dtype.name
    zero = 0 if zero_point is None else int(node.known(zero_point, "zero point").reshape(()))
    real = float(node.known(scale, "scale").reshape(()))
    made: Tensor = ON_GRID(x, real, zero, *_ENDS[kind])
    return made


def _dequantize(node: NodeView, x: Value, *more: Value) -> Value:
    return x


KEPT: dict[str, Callable[..., Any]] = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}


def evenly_padded(
    weight: Tensor, begins: list[int], finals: list[int], dilations: Sequence[int]
) -> tuple[Tensor, list[int]] | None:
    """A kernel with taps of 0 more, and the padding on both sides that gives what uneven padding
    gave; None where its spread leaves no room for them."""
    most = [max(pair) for pair in zip(begins, finals, strict=True)]
    pairs = []
    for p, first, last, d in zip(most, begins, finals, dilations, strict=True):
        if (p - first) % d or (p - last) % d:
            return None
        pairs.append(((p - first) // d, (p - last) // d))
    flat = [n for pair in reversed(pairs) for n in pair]
    return functional.pad(weight, flat), most
