"""Pooling in the forms that have an integer meaning: over two axes, whole windows only.

Other windows: those of a mean are a matrix along each axis (``axes``), those of a maximum are taken
along one axis after the other, each as the maximum of so many orders of the same values.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.axes import averaged, window_means
from secure_quant.quantizer.passes.choices import negated_maximum
from secure_quant.quantizer.passes.edit import sample_rank
from secure_quant.quantizer.passes.indexing import Mover, argument, length
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_pools"]

aten = torch.ops.aten

_ON_ONE_AXIS: dict[Any, Any] = {
    aten.max_pool1d.default: aten.max_pool2d.default,
    aten.avg_pool1d.default: aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default: aten.adaptive_avg_pool2d.default,
}
_MAXIMA: dict[Any, int] = {aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
_MEANS: dict[Any, int] = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
"""Pool -> its axes."""
_WITH_PLACES: dict[Any, Any] = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
    aten.max.dim: aten.amax.default,
    aten.min.dim: negated_maximum,
    aten.adaptive_max_pool1d.default: 1,
    aten.adaptive_max_pool2d.default: 2,
    aten.adaptive_max_pool3d.default: 3,
}
"""Op that returns places too -> the op that returns the values, or the axes of an adaptive pool."""


@dataclass(frozen=True)
class _Windows:
    """Along one axis of ``size``: ``count`` windows."""

    size: int
    count: int
    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    def starts(self) -> list[int]:
        return [i * self.stride - self.padding for i in range(self.count)]

    def places(self) -> list[list[int]]:
        """Of each window those inside the axis."""
        reach = range(0, self.kernel * self.dilation, self.dilation)
        return [[s + j for j in reach if 0 <= s + j < self.size] for s in self.starts()]

    @property
    def beyond(self) -> int:
        """How far the last window reaches over the padded end."""
        end = (self.count - 1) * self.stride + self.dilation * (self.kernel - 1) + 1
        return max(end - self.size - 2 * self.padding, 0)

    def means(self, divisor: int, *, padded: bool) -> list[tuple[int, int, float]]:
        """(start, stop, what the sum is divided by); ``divisor`` 0: by its places, those of the
        padding too if ``padded``."""
        made = []
        for start in self.starts():
            stop = min(start + self.kernel, self.size + self.padding)
            inside = min(stop, self.size) - max(start, 0)
            made.append((start, stop, float(divisor or (stop - start if padded else inside))))
        return made


def lower_pools(module: GraphModule) -> None:
    """Every pool in place; ``max(dim)`` and its like, of which only the values are read, as
    ``amax``. Raises UnsupportedModule."""
    for node in list(module.graph.nodes):
        if node.target in _WITH_PLACES:
            for made in _values_only(module, node):
                _lower(module, made)
        else:
            _lower(module, node)


def _lower(module: GraphModule, node: Node) -> None:
    edit = Mover(module, node)
    if node.target in _ON_ONE_AXIS:
        node = _two_axes(edit, node)
        edit = Mover(module, node)
    if node.target in _MAXIMA:
        _maximum(edit, node)
    elif node.target in _MEANS:
        _mean(edit, node)


def _two_axes(edit: Mover, node: Node) -> Node:
    x: Any = node.args[0]
    if sample_rank(x) != 3:
        raise unsupported(node, f"data of {sample_rank(x)} axes", "[batch, channels, length]")
    rest: list[Any] = []
    fill = {0: 1, 1: 1, 2: 0, 3: 1}  # of the axis that is added: kernel, stride, padding, dilation
    for place, value in enumerate(node.args[1:]):
        if isinstance(value, bool) or place not in fill:
            rest.append(value)
        else:
            given = [value] if isinstance(value, int) else list(value)  # type: ignore[arg-type]
            rest.append([fill[place], *given] if given else [])
    wide = edit.call(aten.unsqueeze.default, x, 2)
    made = edit.call(_ON_ONE_AXIS[node.target], wide, *rest)
    edit.replace(edit.call(aten.squeeze.dim, made, 2))
    return made


def _windows(node: Node, axes: int, dilation: Any = 1) -> list[_Windows]:
    """Of a pool over the last ``axes`` axes."""
    x: Any = node.args[0]
    if sample_rank(x) != axes + 2:
        names = ("H, W", "D, H, W")[axes - 2]
        raise unsupported(node, f"data of {sample_rank(x)} axes", f"[batch, channels, {names}]")
    kernel = _each(argument(node, 1, "kernel_size"), axes)
    stride = _each(argument(node, 2, "stride") or kernel, axes)
    padding, spread = _each(argument(node, 3, "padding", 0), axes), _each(dilation, axes)
    return [
        _Windows(length(x, axis), length(node, axis), *each)
        for axis, *each in zip(range(2, axes + 2), kernel, stride, padding, spread, strict=True)
    ]


def _each(value: Any, axes: int) -> list[int]:
    items = [value] if isinstance(value, int) else list(value)
    return [int(items[i if len(items) > 1 else 0]) for i in range(axes)]


def _maximum(edit: Mover, node: Node) -> None:
    """Over windows without dilation the op itself, on an edge that is repeated where one reaches
    over it; three axes as two and one."""
    axes = _MAXIMA[node.target]
    windows = _windows(node, axes, argument(node, 4, "dilation", 1))
    x: Any = node.args[0]
    if any(w.dilation > 1 and w.kernel > 1 for w in windows):
        for axis, window in enumerate(windows, 2):
            x = _largest(edit, x, axis, window.places())
        edit.replace(x)
        return
    for axis, window in enumerate(windows, 2):
        if window.beyond:
            last = window.size - 1
            x = edit.gather(x, axis, [*range(last + 1), *[last] * window.beyond])
    args = [[getattr(w, name) for w in windows] for name in ("kernel", "stride", "padding")]
    if axes == 3:
        edit.replace(_over_three(edit, x, aten.max_pool2d.default, args, node))
    elif x is not node.args[0] or argument(node, 5, "ceil_mode", False):
        node.args = (x, *args)


def _over_three(edit: Mover, x: Node, pool: Any, args: list[list[int]], node: Node) -> Node:
    """A pool over D, H and W: over the last two of [C · D, H, W], then over the first."""
    batch = edit.call(aten.sym_size.int, x, 0)
    channels, *spatial = [int(n) for n in x.meta["val"].shape[1:]]
    flat = edit.call(aten.reshape.default, x, [batch, channels * spatial[0], *spatial[1:]])
    flat = edit.call(pool, flat, *(a[1:] for a in args))
    deep = edit.call(aten.reshape.default, flat, [batch, channels, spatial[0], -1])
    fill = (1, 1, 0)
    deep = edit.call(pool, deep, *([a[0], f] for a, f in zip(args, fill, strict=True)))
    made = [int(n) for n in node.meta["val"].shape[1:]]
    return edit.call(aten.reshape.default, deep, [batch, *made])


def _largest(edit: Mover, x: Node, axis: int, windows: Sequence[Sequence[int]]) -> Node:
    """The maximum over each window of places along one axis."""
    most = max(len(window) for window in windows)
    parts = []
    for number in range(most):
        order = [window[min(number, len(window) - 1)] for window in windows]
        part = edit.gather(x, axis, order)
        parts.append(edit.call(aten.unsqueeze.default, part, -1))
    if most == 1:
        return edit.call(aten.squeeze.dim, parts[0], -1)
    return edit.call(aten.amax.default, edit.call(aten.cat.default, parts, -1), [-1])


def _mean(edit: Mover, node: Node) -> None:
    """Windows that are all divided by one number stay a sum; others are a matrix on each axis."""
    axes = _MEANS[node.target]
    windows = _windows(node, axes)
    padded = bool(argument(node, 5, "count_include_pad", True))
    divisor = argument(node, 6, "divisor_override") or 0
    x: Any = node.args[0]
    whole = not any(w.beyond for w in windows)
    if whole and (padded or divisor or not any(w.padding for w in windows)):
        args = [[getattr(w, name) for w in windows] for name in ("kernel", "stride", "padding")]
        if axes == 3:
            made = _over_three(edit, x, aten.avg_pool2d.default, args, node)
            count = windows[0].kernel * windows[1].kernel * windows[2].kernel
            edit.replace(edit.call(aten.mul.Tensor, made, count / divisor) if divisor else made)
        elif argument(node, 4, "ceil_mode", False) or not padded:
            node.args = (x, *args, False, True, *([divisor] if divisor else []))
        return
    matrices = [window_means(w.size, w.means(1 if divisor else 0, padded=padded)) for w in windows]
    made = averaged(edit, x, matrices)
    edit.replace(edit.call(aten.mul.Tensor, made, 1 / divisor) if divisor else made)


def _values_only(module: GraphModule, node: Node) -> list[Node]:
    """The values of an op that returns places too, for each of its readers."""
    readers = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in readers):
        raise unsupported(
            node, "the places of maxima", "read the values only; choose places at the client"
        )
    target = _WITH_PLACES[node.target]
    found: list[Node] = []
    for user in readers:
        edit = Mover(module, user)
        if isinstance(target, int):
            made = _adaptive(edit, user, node, target)
        elif target in _MAXIMA:
            made = edit.call(target, *node.args)
        else:
            x, dim, *keep = node.args
            least = target is negated_maximum
            made = target(edit, x, [dim], *keep) if least else edit.call(target, x, [dim], *keep)
        found.append(made)
        edit.replace(made)
    module.graph.erase_node(node)
    return found


def _adaptive(edit: Mover, user: Node, node: Node, axes: int) -> Node:
    """Windows from i · n / m to (i + 1) · n / m, rounded outwards."""
    x: Any = node.args[0]
    first = sample_rank(x) - axes
    sizes = [(length(x, axis), length(user, axis)) for axis in range(first, first + axes)]
    even = all(before % after == 0 for before, after in sizes)
    if even and axes > 1:
        kernel = [before // after for before, after in sizes]
        pool = aten.max_pool2d.default if axes == 2 else aten.max_pool3d.default
        return edit.call(pool, x, kernel, kernel)
    for axis, (before, after) in enumerate(sizes, first):
        ends = [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]
        x = _largest(edit, x, axis, [range(a, b) for a, b in ends])
    return x  # type: ignore[no-any-return]
