"""Ops that are short forms of others, written out: glu, lerp, einsum, pixel_shuffle and their like.

Each rule takes the arguments of its op and gives what it means in ops that the later passes know.
What a rule cannot write out it leaves, for the lowering to refuse by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import find_roots
from secure_quant.quantizer.passes.einsum import einsum
from secure_quant.quantizer.passes.statistics import STATISTICS
from secure_quant.quantizer.passes.writer import RECIPROCAL_BITS, Rule, Writer

__all__ = ["lower_composites"]

aten = torch.ops.aten


def lower_composites(module: GraphModule) -> None:
    """Write out every op that has a rule, in place: in real numbers the same for any input."""
    roots = find_roots(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        rule = _RULES.get(node.target)
        if rule is None or node not in roots:
            continue
        arguments = [a.name for a in node.target._schema.arguments]
        given = dict(zip(arguments, node.args, strict=False)) | node.kwargs
        edit = Writer(module, node, roots)
        made = rule(edit, given)
        if made is not None:
            roots[made] = made
            edit.replace(made)
    module.graph.eliminate_dead_code()
    module.recompile()


def _hstack(edit: Writer, given: dict[str, Any]) -> Node | None:
    parts = given["tensors"]
    wide = all(part.meta["val"].ndim > 1 for part in parts)
    return edit.call(aten.cat.default, parts, 1) if wide else None


def _glu(edit: Writer, given: dict[str, Any]) -> Node:
    x = given["self"]
    dim = given.get("dim", -1) % x.meta["val"].ndim
    half = int(x.meta["val"].shape[dim]) // 2
    value = edit.call(aten.slice.Tensor, x, dim, 0, half)
    gate = edit.call(aten.slice.Tensor, x, dim, half, 2 * half)
    return edit.call(aten.mul.Tensor, value, edit.call(aten.sigmoid.default, gate))


def _addcmul(edit: Writer, given: dict[str, Any]) -> Node:
    product = edit.call(aten.mul.Tensor, given["tensor1"], given["tensor2"])
    return edit.call(aten.add.Tensor, given["self"], edit.scaled(product, given.get("value", 1)))


def _addcdiv(edit: Writer, given: dict[str, Any]) -> Node:
    a, b = given["tensor1"], given["tensor2"]
    ratio = _div(edit, {"self": a, "other": b}) or edit.call(aten.div.Tensor, a, b)
    return edit.call(aten.add.Tensor, given["self"], edit.scaled(ratio, given.get("value", 1)))


def _lerp(edit: Writer, given: dict[str, Any]) -> Node:
    """(1 - w) · a + w · b: of two values no difference is rounded."""
    a, b, weight = given["self"], given["end"], given["weight"]
    if isinstance(weight, Node):
        step = edit.call(aten.mul.Tensor, edit.call(aten.sub.Tensor, b, a), weight)
        return edit.call(aten.add.Tensor, a, step)
    return edit.call(aten.add.Tensor, edit.scaled(a, 1 - weight), edit.scaled(b, weight))


def _rsub(edit: Writer, given: dict[str, Any]) -> Node | None:
    a, b = given["self"], given["other"]
    if given.get("alpha", 1) == 1:
        return None
    return edit.call(aten.sub.Tensor, b, edit.scaled(a, given["alpha"]))


def _rrelu(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Not in training: the mean slope."""
    if given.get("training"):
        return None
    slope = (given.get("lower", 1 / 8) + given.get("upper", 1 / 3)) / 2
    return edit.call(aten.leaky_relu.default, given["self"], slope)


def _div(edit: Writer, given: dict[str, Any]) -> Node | None:
    """a / b of two values as a · (1 / b); of one value it is a function of it, and stays."""
    a, b = given["self"], given["other"]
    pair = [edit.roots.get(n) for n in (a, b) if isinstance(n, Node)]
    if len(pair) < 2 or None in pair or pair[0] is pair[1]:
        return None
    inverse = edit.call(aten.reciprocal.default, b, bits=RECIPROCAL_BITS)
    return edit.call(aten.mul.Tensor, a, inverse)


def _hypot(edit: Writer, given: dict[str, Any]) -> Node:
    squares = (edit.call(aten.square.default, given[name]) for name in ("self", "other"))
    return edit.call(aten.sqrt.default, edit.call(aten.add.Tensor, *squares))


def _logaddexp(edit: Writer, given: dict[str, Any]) -> Node | None:
    """a + log(1 + exp(b - a))."""
    a, b = given["self"], given["other"]
    if a.meta["val"].shape != b.meta["val"].shape:
        return None
    above = edit.call(aten.softplus.default, edit.call(aten.sub.Tensor, b, a))
    return edit.call(aten.add.Tensor, a, above)


def _diff(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Each value of an axis less the one before it."""
    x, once = given["self"], given.get("n", 1) == 1
    if not once or given.get("prepend") is not None or given.get("append") is not None:
        return None
    axis = given.get("dim", -1) % x.meta["val"].ndim
    size = int(x.meta["val"].shape[axis]) if axis else 0
    if size < 2:
        return None
    ends = ((1, size), (0, size - 1))
    return edit.call(aten.sub.Tensor, *(edit.call(aten.slice.Tensor, x, axis, *e) for e in ends))


def _tensordot(edit: Writer, given: dict[str, Any]) -> Node | None:
    """The last axis of data with the first of a matrix."""
    x, other = given["self"], given["other"]
    last = [d % x.meta["val"].ndim for d in given["dims_self"]] == [x.meta["val"].ndim - 1]
    first = [d % other.meta["val"].ndim for d in given["dims_other"]] == [0]
    if not last or not first or other.meta["val"].ndim != 2 or other in edit.roots:
        return None
    return edit.call(aten.matmul.default, x, other)


def _nearest(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Rows and columns repeated a whole number of times."""
    x, node = given["input"], edit.node
    n, c, h, w = edit.sizes(x)
    rows, columns = (int(size) for size in node.meta["val"].shape[2:])
    if rows % h or columns % w:
        return None
    up, across = rows // h, columns // w
    y = edit.call(aten.reshape.default, x, [n, c, h, 1, w, 1])
    y = edit.call(aten.expand.default, y, [n, c, h, up, w, across])
    return edit.call(aten.reshape.default, y, [n, c, rows, columns])


def _shuffle(edit: Writer, given: dict[str, Any]) -> Node:
    """Channels c·r·r into r x r pixels."""
    x, r = given["self"], given["upscale_factor"]
    n, c, h, w = edit.sizes(x)
    c //= r * r
    y = edit.call(aten.reshape.default, x, [n, c, r, r, h, w])
    y = edit.turned(y, [0, 1, 4, 2, 5, 3])
    return edit.call(aten.reshape.default, y, [n, c, h * r, w * r])


def _unshuffle(edit: Writer, given: dict[str, Any]) -> Node:
    x, r = given["self"], given["downscale_factor"]
    n, c, h, w = edit.sizes(x)
    y = edit.call(aten.reshape.default, x, [n, c, h // r, r, w // r, r])
    y = edit.turned(y, [0, 1, 3, 5, 2, 4])
    return edit.call(aten.reshape.default, y, [n, c * r * r, h // r, w // r])


def _channel_shuffle(edit: Writer, given: dict[str, Any]) -> Node:
    x, groups = given["self"], given["groups"]
    n, c, *rest = edit.sizes(x)
    y = edit.call(aten.reshape.default, x, [n, groups, c // groups, *rest])
    y = edit.call(aten.transpose.int, y, 1, 2)
    return edit.call(aten.reshape.default, y, [n, c, *rest])


def _bilinear(edit: Writer, given: dict[str, Any]) -> Node:
    """A linear layer on all products of two features."""
    x, y, weight = given["input1"], given["input2"], given["weight"]
    rows, columns = (int(n.meta["val"].shape[-1]) for n in (x, y))
    column = edit.call(aten.unsqueeze.default, x, -1)
    products = edit.call(aten.matmul.default, column, edit.call(aten.unsqueeze.default, y, -2))
    flat = edit.call(aten.reshape.default, products, [*edit.sizes(x)[:-1], rows * columns])
    matrix = edit.call(aten.flatten.using_ints, weight, 1)
    return edit.call(aten.linear.default, flat, matrix, given.get("bias"))


def _overlapping(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Fold with windows that overlap: a transposed convolution of each channel, all taps 1."""
    x, size = given["self"], given["output_size"]
    names = ("kernel_size", "dilation", "padding", "stride")
    kernel, dilation, padding, stride = (given[name] for name in names)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if x.meta["val"].ndim != 3 or all(s >= r for s, r in zip(stride, reach, strict=True)):
        return None  # a move, or without a batch
    room = [n + 2 * p - r for n, p, r in zip(size, padding, reach, strict=True)]
    places = [n // s + 1 for n, s in zip(room, stride, strict=True)]
    extra = [n % s for n, s in zip(room, stride, strict=True)]
    n, channels, _ = edit.sizes(x)
    wide = edit.call(aten.reshape.default, x, [n, channels, *places])
    taps = torch.eye(math.prod(kernel)).reshape(-1, 1, *kernel)
    groups = channels // len(taps)
    weight = edit.fixed(taps.repeat(groups, 1, 1, 1), "taps")
    return edit.call(
        aten.conv_transpose2d.input, wide, weight, None, stride, padding, extra, groups, dilation
    )


_RULES: Mapping[Any, Rule] = {
    **STATISTICS,
    aten.col2im.default: _overlapping,
    aten.hstack.default: _hstack,
    aten.glu.default: _glu,
    aten.addcmul.default: _addcmul,
    aten.addcdiv.default: _addcdiv,
    aten.diff.default: _diff,
    aten.hypot.default: _hypot,
    aten.logaddexp.default: _logaddexp,
    aten.tensordot.default: _tensordot,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.rsub.Tensor: _rsub,
    aten.rrelu.default: _rrelu,
    aten.div.Tensor: _div,
    aten.upsample_nearest2d.vec: _nearest,
    aten.pixel_shuffle.default: _shuffle,
    aten.pixel_unshuffle.default: _unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.bilinear.default: _bilinear,
    aten.einsum.default: einsum,
}
