"""Cuts, repeats and joins along one axis of the sample: what every move of values is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import NotFinite
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.ports import first_data
from secure_quant.quantizer.refuse import module_path, unsupported

__all__ = ["UNWRITTEN", "Mover", "argument", "is_whole", "length", "rank_of"]

aten = torch.ops.aten
UNWRITTEN = "secure_quant_unwritten"
"""Key in ``node.meta``: true for values of memory that nobody wrote."""
_PIECES = 8
"""Slices that one gather may take; more are one step with a list of places."""


class Mover(Editor):
    """An Editor that also moves values. Operands may be data [batch, ...] or constants [1, ...];
    axes count the batch, which is never moved."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        super().__init__(module, node)
        self.module, self.node = module, node

    def value(self, x: Node) -> Tensor | None:
        """The constant behind a node, None for data."""
        return constant_of(self.module, x)

    def axis(self, dim: int, rank: int) -> int:
        """A torch dim as an axis of the sample. Raises UnsupportedModule for the batch."""
        axis = dim % rank
        if axis == 0:
            raise unsupported(
                self.node, "a step that moves or cuts the batch axis",
                "keep the batch axis first and alone",
            )  # fmt: skip
        return axis

    def cut(self, x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
        """x[..., start:stop:step, ...]; of a join only the parts that are needed."""
        size = length(x, axis)
        if (start, stop, step) == (0, size, 1):
            return x
        value = self.value(x)
        if value is not None:
            index = [slice(None)] * value.ndim
            index[axis] = slice(start, stop, step)
            return self.constant(value[tuple(index)])
        if x.target is aten.cat.default and step == 1 and _cat_axis(x) == axis:
            return self._cut_of_join(x, axis, start, stop)
        return self.call(aten.slice.Tensor, x, axis, start, stop, step)

    def _cut_of_join(self, x: Node, axis: int, start: int, stop: int) -> Node:
        parts, place = [], 0
        operands: Any = x.args[0]
        for part in operands:
            size = length(part, axis)
            low, high = max(start - place, 0), min(stop - place, size)
            if low < high:
                parts.append(self.cut(part, axis, low, high))
            place += size
        return self.join(parts, axis)

    def join(self, parts: Sequence[Node], axis: int) -> Node:
        """The parts in a row; empty ones vanish, constants become data beside data."""
        kept = [part for part in parts if length(part, axis)]
        if len(kept) == 1:
            return kept[0]
        values = [self.value(part) for part in kept]
        if all(value is not None for value in values):
            return self.constant(torch.cat([v.float() for v in values], axis))  # type: ignore[union-attr]
        kept = [self.data(part) for part in kept]
        return self.call(aten.cat.default, kept, axis)

    def data(self, x: Node) -> Node:
        """A constant [1, ...] as a value of each sample; data as it stands."""
        value = self.value(x)
        if value is None:
            return x
        value = value.float()
        unwritten = bool(torch.isnan(value).all())
        if not unwritten and not bool(torch.isfinite(value).all()):
            raise NotFinite(
                f"a constant of {str(self.node.target).removeprefix('aten.').split('.')[0]} in "
                f"{module_path(self.node) or 'the model itself'}",
                got="NaN or infinity", expected="finite numbers",
            )  # fmt: skip
        source = first_data(self.module)
        batch = self.call(aten.sym_size.int, source, 0)
        flat = self.call(aten.reshape.default, source, [batch, -1])
        lone = self.call(aten.slice.Tensor, flat, 1, 0, 1)
        first = float(value.reshape(-1)[0])
        if unwritten or bool((value == first).all()):
            lone = self.call(aten.mul.Tensor, lone, 0.0)
            lone = self.call(aten.add.Tensor, lone, first) if first else lone
            lone.meta[UNWRITTEN] = unwritten
            made = self.call(aten.reshape.default, lone, [batch, *[1] * (value.ndim - 1)])
            return self.expand(made, [batch, *value.shape[1:]])
        zeros = self.parameter(torch.zeros(value.numel(), 1), "nothing", trained=False)
        bias = self.parameter(value.reshape(-1), "constant")
        made = self.call(aten.linear.default, lone, zeros, bias)
        return self.call(aten.reshape.default, made, [batch, *value.shape[1:]])

    def gather(self, x: Node, axis: int, indices: Sequence[int]) -> Node:
        """x[..., indices, ...], as slices where there are few even runs of indices."""
        size, value = length(x, axis), self.value(x)
        if value is not None:
            return self.constant(value.index_select(axis, torch.tensor(list(indices)) % size))
        if len(set(indices)) == 1 and len(indices) > 1:
            return self.repeat(self.cut(x, axis, indices[0], indices[0] + 1), axis, len(indices))
        runs = _runs([i % size for i in indices])
        if not runs:
            raise unsupported(self.node, "a result without elements")
        if len(runs) > _PIECES:
            return self.pick(x, axis, [i % size for i in indices])
        return self.join([self.cut(x, axis, *run) for run in runs], axis)

    def pick(self, x: Node, axis: int, places: Sequence[int]) -> Node:
        """x at ``places`` along an axis, none negative, in one step."""
        runs = _runs(places)
        if not runs:
            raise unsupported(self.node, "a result without elements")
        if len(runs) == 1:
            return self.cut(x, axis, *runs[0])
        index = self.constant(torch.tensor(list(places)))
        return self.call(aten.index_select.default, x, axis, index)

    def repeat(self, x: Node, axis: int, count: int) -> Node:
        """``count`` copies of x in a row."""
        value = self.value(x)
        if value is not None:
            return self.constant(torch.cat([value] * count, axis))
        made: list[Node] = []
        power = x
        while count:
            if count & 1:
                made.append(power)
            count >>= 1
            if count:
                power = self.call(aten.cat.default, [power, power], axis)
        return self.join(made, axis)

    def expand(self, x: Node, shape: Sequence[Any]) -> Node:
        """x broadcast to [batch, *sample]; ``shape`` is that with or without a size of batch."""
        value = self.value(x)
        sample = [int(n) for n in shape[1:]]
        if value is not None:
            return self.constant(self.broadcast(value, sample))
        rank = len(x.meta["val"].shape)
        if rank > len(shape):
            raise unsupported(self.node, f"{rank} axes broadcast to {len(shape)}")
        if rank < len(shape):
            batch = self.call(aten.sym_size.int, x, 0)
            own = [int(n) for n in x.meta["val"].shape[1:]]
            ones = [1] * (len(shape) - rank)
            x = self.call(aten.reshape.default, x, [batch, *ones, *own])
        for axis, size in enumerate(sample, 1):
            if length(x, axis) == 1 and size != 1:
                x = self.repeat(x, axis, size)
        return x

    def broadcast(self, value: Tensor, sample: Sequence[int]) -> Tensor:
        """A constant as float32[1, *sample]. Raises UnsupportedModule if it varies by sample."""
        value = value.float()
        if value.ndim == len(sample) + 1 and len(value) > 1 and bool((value == value[:1]).all()):
            value = value[:1]  # captured with a fixed batch: one row for each sample
        try:
            return torch.broadcast_to(value, (1, *sample))
        except RuntimeError:
            raise unsupported(
                self.node, f"a constant of shape {list(value.shape)} for [batch, "
                f"{', '.join(map(str, sample))}]", "give it the shape of one sample",
            ) from None  # fmt: skip


def length(x: Node, axis: int) -> int:
    """Size of an axis of the sample."""
    return int(x.meta["val"].shape[axis])


def is_whole(start: Any, stop: Any, size: Any) -> bool:
    """True if start:stop takes all of an axis (the batch: of unknown size)."""
    stop = stop.meta["val"] if isinstance(stop, Node) else stop
    ends = stop is None or (isinstance(stop, int) and stop >= 2**31) or str(stop) == str(size)
    return start in (0, None) and ends


def _cat_axis(node: Node) -> int:
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(dim) % len(node.meta["val"].shape)


def _runs(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, step) of slices that take ``indices`` in order."""
    runs: list[tuple[int, int, int]] = []
    place = 0
    while place < len(indices):
        end, step = place + 1, 1
        if end < len(indices) and indices[end] > indices[place]:
            step = indices[end] - indices[place]
            while end < len(indices) and indices[end] - indices[end - 1] == step:
                end += 1
        runs.append((indices[place], indices[end - 1] + 1, step if end - place > 1 else 1))
        place = end
    return runs


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """A positional or named argument of an fx call."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def rank_of(node: Node) -> int:
    """Number of axes, batch included."""
    return len(node.meta["val"].shape)
