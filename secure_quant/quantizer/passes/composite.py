"""Ops that are short forms of others, written out: glu, lerp, einsum, pixel_shuffle and their like.

Each rule takes the arguments of its op and gives what it means in ops that the later passes know.
What a rule cannot write out it leaves, for the lowering to refuse by name.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.opset import find_roots
from secure_quant.quantizer.passes.edit import Editor

__all__ = ["lower_composites"]

aten = torch.ops.aten
RECIPROCAL_BITS = 12


class _Writer(Editor):
    """An Editor with the arithmetic that the rules share."""

    def __init__(self, module: GraphModule, node: Node, roots: Mapping[Node, Node]) -> None:
        super().__init__(module, node)
        self.node, self.roots = node, roots

    def sizes(self, x: Node) -> list[Any]:
        """The shape of x, with a node for the size of the batch."""
        return [self.call(aten.sym_size.int, x, 0), *map(int, x.meta["val"].shape[1:])]

    def turned(self, x: Node, order: Sequence[int]) -> Node:
        """x with its axes in ``order``."""
        same = list(order) == list(range(len(order)))
        return x if same else self.call(aten.permute.default, x, list(order))

    def scaled(self, x: Node, factor: float) -> Node:
        """factor · x."""
        return x if factor == 1 else self.call(aten.mul.Tensor, x, factor)


def lower_composites(module: GraphModule) -> None:
    """Write out every op that has a rule, in place: in real numbers the same for any input."""
    roots = find_roots(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        rule = _RULES.get(node.target)
        if rule is None or node not in roots:
            continue
        arguments = [a.name for a in node.target._schema.arguments]
        given = dict(zip(arguments, node.args, strict=False)) | node.kwargs
        edit = _Writer(module, node, roots)
        made = rule(edit, given)
        if made is not None:
            roots[made] = made
            edit.replace(made)
    module.graph.eliminate_dead_code()
    module.recompile()


def _hstack(edit: _Writer, given: dict[str, Any]) -> Node | None:
    parts = given["tensors"]
    wide = all(part.meta["val"].ndim > 1 for part in parts)
    return edit.call(aten.cat.default, parts, 1) if wide else None


def _glu(edit: _Writer, given: dict[str, Any]) -> Node:
    x = given["self"]
    dim = given.get("dim", -1) % x.meta["val"].ndim
    half = int(x.meta["val"].shape[dim]) // 2
    value = edit.call(aten.slice.Tensor, x, dim, 0, half)
    gate = edit.call(aten.slice.Tensor, x, dim, half, 2 * half)
    return edit.call(aten.mul.Tensor, value, edit.call(aten.sigmoid.default, gate))


def _addcmul(edit: _Writer, given: dict[str, Any]) -> Node:
    product = edit.call(aten.mul.Tensor, given["tensor1"], given["tensor2"])
    return edit.call(aten.add.Tensor, given["self"], edit.scaled(product, given.get("value", 1)))


def _lerp(edit: _Writer, given: dict[str, Any]) -> Node:
    """(1 - w) · a + w · b: of two values no difference is rounded."""
    a, b, weight = given["self"], given["end"], given["weight"]
    if isinstance(weight, Node):
        step = edit.call(aten.mul.Tensor, edit.call(aten.sub.Tensor, b, a), weight)
        return edit.call(aten.add.Tensor, a, step)
    return edit.call(aten.add.Tensor, edit.scaled(a, 1 - weight), edit.scaled(b, weight))


def _rsub(edit: _Writer, given: dict[str, Any]) -> Node | None:
    a, b = given["self"], given["other"]
    if given.get("alpha", 1) == 1:
        return None
    return edit.call(aten.sub.Tensor, b, edit.scaled(a, given["alpha"]))


def _rrelu(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """Not in training: the mean slope."""
    if given.get("training"):
        return None
    slope = (given.get("lower", 1 / 8) + given.get("upper", 1 / 3)) / 2
    return edit.call(aten.leaky_relu.default, given["self"], slope)


def _div(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """a / b of two values as a · (1 / b); of one value it is a function of it, and stays."""
    a, b = given["self"], given["other"]
    pair = [edit.roots.get(n) for n in (a, b) if isinstance(n, Node)]
    if len(pair) < 2 or None in pair or pair[0] is pair[1]:
        return None
    inverse = edit.call(aten.reciprocal.default, b, bits=RECIPROCAL_BITS)
    return edit.call(aten.mul.Tensor, a, inverse)


def _var(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """The mean square of the differences from the mean, over axes of the sample."""
    x, dims = given["self"], given.get("dim")
    rank = x.meta["val"].ndim
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims or [0])]
    if 0 in axes:
        return None
    correction = given.get("correction", int(given.get("unbiased", True)))
    count = math.prod(int(x.meta["val"].shape[a]) for a in axes)
    left = count - (1 if correction is None else correction)
    if left <= 0:
        return None
    apart = edit.call(aten.sub.Tensor, x, edit.call(aten.mean.dim, x, axes, True))
    squares = edit.call(aten.square.default, apart)
    mean = edit.call(aten.mean.dim, squares, axes, bool(given.get("keepdim")))
    return edit.scaled(mean, count / left)


def _std(edit: _Writer, given: dict[str, Any]) -> Node | None:
    variance = _var(edit, given)
    return None if variance is None else edit.call(aten.sqrt.default, variance)


def _vector_norm(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """The Euclidean and the sum norm, over axes of the sample."""
    x, dims, order = given["self"], given.get("dim"), given.get("ord", 2)
    rank = x.meta["val"].ndim
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims or [0])]
    if 0 in axes or order not in (1, 2):
        return None
    of = aten.square.default if order == 2 else aten.abs.default
    total = edit.call(aten.sum.dim_IntList, edit.call(of, x), axes, bool(given.get("keepdim")))
    return edit.call(aten.sqrt.default, total) if order == 2 else total


def _cosine(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """The sum of products of two values of length 1 each."""
    parts, eps = [given["x1"], given["x2"]], given.get("eps", 1e-8)
    rank = max(part.meta["val"].ndim for part in parts)
    axis = given.get("dim", 1) % rank
    if axis == 0 or any(part.meta["val"].ndim != rank for part in parts):
        return None
    units = []
    for part in parts:
        squares = edit.call(aten.square.default, part)
        length = edit.call(
            aten.sqrt.default, edit.call(aten.sum.dim_IntList, squares, [axis], True)
        )
        above = edit.call(aten.clamp_min.default, length, eps)
        inverse = edit.call(aten.reciprocal.default, above, bits=RECIPROCAL_BITS)
        units.append(edit.call(aten.mul.Tensor, part, inverse))
    return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, *units), [axis])


def _nearest(edit: _Writer, given: dict[str, Any]) -> Node | None:
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


def _shuffle(edit: _Writer, given: dict[str, Any]) -> Node:
    """Channels c·r·r into r x r pixels."""
    x, r = given["self"], given["upscale_factor"]
    n, c, h, w = edit.sizes(x)
    c //= r * r
    y = edit.call(aten.reshape.default, x, [n, c, r, r, h, w])
    y = edit.turned(y, [0, 1, 4, 2, 5, 3])
    return edit.call(aten.reshape.default, y, [n, c, h * r, w * r])


def _unshuffle(edit: _Writer, given: dict[str, Any]) -> Node:
    x, r = given["self"], given["downscale_factor"]
    n, c, h, w = edit.sizes(x)
    y = edit.call(aten.reshape.default, x, [n, c, h // r, r, w // r, r])
    y = edit.turned(y, [0, 1, 3, 5, 2, 4])
    return edit.call(aten.reshape.default, y, [n, c * r * r, h // r, w // r])


def _channel_shuffle(edit: _Writer, given: dict[str, Any]) -> Node:
    x, groups = given["self"], given["groups"]
    n, c, *rest = edit.sizes(x)
    y = edit.call(aten.reshape.default, x, [n, groups, c // groups, *rest])
    y = edit.call(aten.transpose.int, y, 1, 2)
    return edit.call(aten.reshape.default, y, [n, c, *rest])


def _einsum(edit: _Writer, given: dict[str, Any]) -> Node | None:
    """One operand turned, a factor for axes of the data, or a contraction of two operands."""
    operands: Any = given["tensors"]
    letters, out = _letters(given["equation"], [int(n.meta["val"].ndim) for n in operands])
    if len(operands) > 2 or any(len(set(t)) < len(t) for t in (*letters, out)):
        return None
    if len(operands) == 1:
        a = letters[0]
        return edit.turned(operands[0], [a.index(c) for c in out]) if len(a) == len(out) else None
    if operands[0] not in edit.roots:
        letters, operands = letters[::-1], operands[::-1]
    (a, b), (x, y) = letters, operands
    if (set(a) ^ set(b)) - set(out) or not out or out[0] != a[0]:
        return None
    if y not in edit.roots and set(b) <= set(out) & set(a):
        made = edit.call(aten.mul.Tensor, x, _beside(edit, a, b, y))
        return edit.turned(made, [a.index(c) for c in out])
    both = [c for c in out if c in a and c in b]
    if both and (y not in edit.roots or b[0] != a[0]):
        return None
    return _product(edit, (a, b), (x, y), out, both)


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; those of an ellipsis are capitals unused."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    free = [c for c in string.ascii_uppercase if c not in terms]
    counts = [r - len(t) + 3 for t, r in zip(letters, ranks, strict=True) if "..." in t]
    most = max(counts, default=0)
    if not arrow:
        own = sorted(c for c in set(terms) - set(",.") if terms.count(c) == 1)
        out = ("..." if counts else "") + "".join(own)
    names = "".join(free[:most])
    filled = []
    for text, rank in zip(letters, ranks, strict=True):
        count = rank - len(text) + 3
        filled.append(text.replace("...", names[most - count :] if count else ""))
    return filled, out.replace("...", names)


def _beside(edit: _Writer, a: str, b: str, y: Node) -> Node:
    """The constant y with its axes in the order and at the places of ``a``."""
    shape = [int(y.meta["val"].shape[b.index(c)]) if c in b else 1 for c in a]
    turned = edit.turned(y, [b.index(c) for c in a if c in b])
    return edit.call(aten.reshape.default, turned, shape)


def _product(
    edit: _Writer, letters: tuple[str, str], operands: tuple[Node, Node], out: str, both: list[str]
) -> Node:
    """A matrix product over the letters that ``out`` lacks, for each of ``both``, the batch first;
    without them the second operand is a constant."""
    (a, b), (x, y) = letters, operands
    size: dict[str, Any] = dict(zip(b, y.meta["val"].shape, strict=True))
    size |= dict(zip(a, edit.sizes(x), strict=True))
    summed = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    lead, inner = (both, rows) if both else (rows[:1], rows[1:])
    front = [size[c] for c in lead]
    depth, width = _count(size, summed), _count(size, columns)
    left = edit.turned(x, [a.index(c) for c in [*lead, *inner, *summed]])
    left = edit.call(aten.reshape.default, left, [*front, _count(size, inner), depth])
    right = edit.turned(y, [b.index(c) for c in [*both, *summed, *columns]])
    right = edit.call(aten.reshape.default, right, [*(front if both else []), depth, width])
    made = edit.call(aten.matmul.default, left, right)
    order = [*lead, *inner, *columns]
    made = edit.call(aten.reshape.default, made, [size[c] for c in order])
    return edit.turned(made, [order.index(c) for c in out])


def _count(size: dict[str, Any], letters: list[str]) -> int:
    return math.prod(int(size[letter]) for letter in letters)


_RULES: Mapping[Any, Callable[[_Writer, dict[str, Any]], Node | None]] = {
    aten.hstack.default: _hstack,
    aten.glu.default: _glu,
    aten.addcmul.default: _addcmul,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.rsub.Tensor: _rsub,
    aten.rrelu.default: _rrelu,
    aten.div.Tensor: _div,
    aten.var.dim: _var,
    aten.var.correction: _var,
    aten.std.dim: _std,
    aten.std.correction: _std,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.cosine_similarity.default: _cosine,
    aten.upsample_nearest2d.vec: _nearest,
    aten.pixel_shuffle.default: _shuffle,
    aten.pixel_unshuffle.default: _unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.einsum.default: _einsum,
}
