"""Convolutions that are others, moved: transposed ones, over three axes, with uneven padding.

A transposed convolution of stride s makes s outputs of each place, every one by its own taps of the
kernel: an ordinary convolution whose channels are those phases, which are then put side by side.
One over three axes has the frames that a window covers as channels, one group for each window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.indexing import Mover, argument, length, rank_of
from secure_quant.quantizer.refuse import unsupported

__all__ = ["CONVOLUTIONS", "TRANSPOSED", "lower_convolutions"]

aten = torch.ops.aten

TRANSPOSED: dict[Any, int] = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
"""Op -> its axes. weight [in, out / groups, *kernel]."""
_PLAIN: dict[int, Any] = {
    1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default,
}  # fmt: skip
_BY_NAME: dict[Any, int] = {
    aten.conv1d.padding: 1, aten.conv2d.padding: 2, aten.conv3d.padding: 3,
}  # fmt: skip
CONVOLUTIONS = {*_PLAIN.values(), *_BY_NAME, *TRANSPOSED}
"""Every one that a module may have, with its weight in the second place."""


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution."""

    size: int
    kernel: int
    stride: int
    padding: int
    extra: int
    dilation: int

    @property
    def made(self) -> int:
        return (
            (self.size - 1) * self.stride - 2 * self.padding
            + self.dilation * (self.kernel - 1) + self.extra + 1
        )  # fmt: skip

    @property
    def reach(self) -> int:
        """Places before its own that an output reads, at most."""
        return self.dilation * (self.kernel - 1) // self.stride

    @property
    def edge(self) -> int:
        """Padding of the plain convolution on either side: outputs beyond the last tap too."""
        wanted = (self.padding + self.made - 1) // self.stride + 1
        return self.reach + max(wanted - self.size - self.reach, 0)

    def taps(self) -> list[tuple[int, int, int]]:
        """(tap of the kernel, phase, place in the kernel of that phase)."""
        made = []
        for tap in range(self.kernel):
            step, phase = divmod(tap * self.dilation, self.stride)
            made.append((tap, phase, self.reach - step))
        return made

    @property
    def start(self) -> int:
        """First output among all of the plain convolution's, phases in a row."""
        return (self.edge - self.reach) * self.stride + self.padding


def lower_convolutions(module: GraphModule) -> None:
    """Every convolution that is not over one or two axes with one padding, in place. Raises
    UnsupportedModule for weights that depend on the input."""
    for node in list(module.graph.nodes):
        made = node
        if node.target in TRANSPOSED:
            made = _transposed(Mover(module, node), node)
        elif node.target in _BY_NAME:
            _named_padding(Mover(module, node), node)
        if made.target is aten.conv3d.default:
            _frames(Mover(module, made), made)


def _parameters(edit: Mover, node: Node) -> tuple[Tensor, Tensor | None]:
    weight = edit.value(argument(node, 1, "weight"))
    given = argument(node, 2, "bias")
    bias = None if given is None else edit.value(given)
    if weight is None or (given is not None and bias is None):
        raise unsupported(node, "a weight that depends on the input", "use matmul for two values")
    return weight, bias


def _each(value: Any, axes: int) -> list[int]:
    items = [value] if isinstance(value, int) else list(value)
    return [int(items[i if len(items) > 1 else 0]) for i in range(axes)]


def _transposed(edit: Mover, node: Node) -> Node:
    """The plain convolution that makes all phases; ``node`` becomes their order side by side."""
    axes, x = TRANSPOSED[node.target], argument(node, 0, "input")
    if rank_of(x) != axes + 2:
        raise unsupported(node, f"data of {rank_of(x)} axes", "batch and channels first")
    weight, bias = _parameters(edit, node)
    groups = argument(node, 6, "groups", 1)
    given = [
        _each(argument(node, place, name, default), axes)
        for place, name, default in (
            (3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0), (7, "dilation", 1),
        )
    ]  # fmt: skip
    plan = [
        _Axis(length(x, place + 2), int(weight.shape[place + 2]), *(g[place] for g in given))
        for place in range(axes)
    ]
    stride = [axis.stride for axis in plan]
    phases = math.prod(stride)
    kernels = _phase_kernels(weight, plan, groups)
    args = [x, edit.parameter(kernels, "weight"), None]
    if bias is not None:
        args[2] = edit.parameter(bias.repeat_interleave(phases), "bias")
    made = edit.call(
        _PLAIN[axes], *args, [1] * axes, [axis.edge for axis in plan], [1] * axes, groups
    )
    wide = _side_by_side(edit, made, stride)
    for place, axis in enumerate(plan, 2):
        wide = edit.cut(wide, place, axis.start, axis.start + axis.made)
    edit.replace(wide)
    return made


def _phase_kernels(weight: Tensor, plan: Sequence[_Axis], groups: int) -> Tensor:
    """[out · phases, in / groups, *kernel] of weight [in, out / groups, *kernel]: the phases of an
    output in a row, taps turned round."""
    into, out = weight.shape[:2]
    stride, reach = [a.stride for a in plan], [a.reach + 1 for a in plan]
    rows = weight.reshape(groups, into // groups, out, *weight.shape[2:])
    rows = rows.transpose(1, 2).reshape(groups * out, into // groups, *weight.shape[2:])
    made = torch.zeros(groups * out, *stride, into // groups, *reach)
    for chosen in itertools.product(*(axis.taps() for axis in plan)):
        source: Any = (slice(None), slice(None), *(tap for tap, _, _ in chosen))
        phase, place_in = [p for _, p, _ in chosen], [p for _, _, p in chosen]
        target: Any = (slice(None), *phase, slice(None), *place_in)
        made[target] = rows[source]
    return made.reshape(groups * out * math.prod(stride), into // groups, *reach)


def _side_by_side(edit: Mover, x: Node, stride: Sequence[int]) -> Node:
    """[C · phases, *size] as [C, *(size · stride)]."""
    if all(s == 1 for s in stride):
        return x
    batch = edit.call(aten.sym_size.int, x, 0)
    phased, *size = [int(n) for n in x.meta["val"].shape[1:]]
    channels = phased // math.prod(stride)
    wide = [n * s for n, s in zip(size, stride, strict=True)]
    if len(stride) == 3:  # a value has six axes at most: the first of three for itself
        inner = math.prod(stride[1:])
        parted = [batch, channels, stride[0], inner, size[0], size[1] * size[2]]
        y = edit.call(aten.reshape.default, x, parted)
        y = edit.call(aten.permute.default, y, [0, 1, 3, 4, 2, 5])
        flat = [batch, channels * inner, wide[0] * size[1], size[2]]
        y = _side_by_side(edit, edit.call(aten.reshape.default, y, flat), stride[1:])
    else:
        y = edit.call(aten.reshape.default, x, [batch, channels, *stride, *size])
        order = [0, 1, 3, 2] if len(stride) == 1 else [0, 1, 4, 2, 5, 3]
        y = edit.call(aten.permute.default, y, order)
    return edit.call(aten.reshape.default, y, [batch, channels, *wide])


def _named_padding(edit: Mover, node: Node) -> None:
    """padding='same' where the two sides differ: a kernel with a first tap of 0 more."""
    axes = _BY_NAME[node.target]
    weight, _ = _parameters(edit, node)
    kernel, spread = list(weight.shape[2:]), _each(argument(node, 5, "dilation", 1), axes)
    same = argument(node, 4, "padding", "valid") == "same"
    spans = [d * (k - 1) if same else 0 for k, d in zip(kernel, spread, strict=True)]
    if any(span % 2 for span in spans):
        weight = _dense(weight, spread)
        for place, span in enumerate(spans):
            if span % 2:
                shape = list(weight.shape)
                shape[2 + place] = 1
                weight = torch.cat([weight.new_zeros(shape), weight], 2 + place)
        spread = [1] * axes
        node.update_arg(1, edit.parameter(weight, "weight"))
    x, w, bias, stride = (
        argument(node, place, name, default)
        for place, name, default in (
            (0, "input", None), (1, "weight", None), (2, "bias", None), (3, "stride", 1),
        )
    )  # fmt: skip
    groups = argument(node, 6, "groups", 1)
    padding = [(span + 1) // 2 for span in spans]
    node.target, node.kwargs = _PLAIN[axes], {}
    node.args = (x, w, bias, _each(stride, axes), padding, spread, groups)


def _dense(weight: Tensor, spread: Sequence[int]) -> Tensor:
    """A dilated kernel with its zeros."""
    for place, step in enumerate(spread):
        if step > 1:
            shape = list(weight.shape)
            shape[2 + place] = (shape[2 + place] - 1) * step + 1
            wide = weight.new_zeros(shape)
            wide[(*[slice(None)] * (2 + place), slice(None, None, step))] = weight
            weight = wide
    return weight


def _frames(edit: Mover, node: Node) -> None:
    """A convolution over D, H and W: of the frames of every window over H and W, one group for each
    window; where a window is one frame or one place of each, nothing is repeated."""
    x: Node = argument(node, 0, "input")
    if rank_of(x) != 5:
        raise unsupported(node, f"data of {rank_of(x)} axes", "[batch, channels, D, H, W]")
    weight, bias = _parameters(edit, node)
    stride, padding, spread = (
        _each(argument(node, place, name, default), 3)
        for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    groups = argument(node, 6, "groups", 1)
    shape = [int(n) for n in node.meta["val"].shape[1:]]
    batch = edit.call(aten.sym_size.int, x, 0)
    channels, depth, height, width = (length(x, axis) for axis in range(1, 5))
    if weight.shape[3:] == (1, 1) and stride[1:] == [1, 1] and padding[1:] == [0, 0]:
        flat = edit.call(aten.reshape.default, x, [batch, channels, depth, height * width])
        made = edit.call(
            aten.conv2d.default, flat, edit.parameter(weight[..., 0], "weight"),
            None if bias is None else edit.parameter(bias, "bias"),
            [stride[0], 1], [padding[0], 0], [spread[0], 1], groups,
        )  # fmt: skip
        edit.replace(edit.call(aten.reshape.default, made, [batch, *shape]))
        return
    taps, count = int(weight.shape[2]), shape[1]
    places = [i * stride[0] + j * spread[0] - padding[0] for i in range(count) for j in range(taps)]
    x = edit.gather(x, 2, [min(max(place, 0), depth - 1) for place in places])
    x = edit.call(aten.reshape.default, x, [batch, channels, count, taps, height, width])
    x = edit.call(aten.permute.default, x, [0, 2, 1, 3, 4, 5])
    x = edit.call(aten.reshape.default, x, [batch, count * channels * taps, height, width])
    inside = torch.tensor([0 <= place < depth for place in places]).view(count, 1, 1, taps, 1, 1)
    kernels = (weight * inside).flatten(0, 1).flatten(1, 2)  # any frame times 0 is padding
    made = edit.call(
        aten.conv2d.default, x, edit.parameter(kernels, "weight"),
        None if bias is None else edit.parameter(bias.repeat(count), "bias"),
        stride[1:], padding[1:], spread[1:], groups * count,
    )  # fmt: skip
    made = edit.call(aten.reshape.default, made, [batch, count, shape[0], *shape[2:]])
    edit.replace(edit.call(aten.transpose.int, made, 1, 2))
