"""einsum as turns, sums, products by element and matrix products, two operands at a time."""

from __future__ import annotations

import math
import string
from typing import Any

import torch
from torch.fx import Node

from secure_quant.quantizer.passes.writer import Writer

__all__ = ["einsum"]

aten = torch.ops.aten


def einsum(edit: Writer, given: dict[str, Any]) -> Node | None:
    """Operands from left to right, each with what is behind it."""
    operands: list[Node] = list(given["tensors"])
    letters, out = _letters(given["equation"], [int(n.meta["val"].ndim) for n in operands])
    if not out or any(len(set(t)) < len(t) for t in (*letters, out)):
        return None
    data = {n for n in operands if n in edit.roots}
    batch = next(t for t, n in zip(letters, operands, strict=True) if n in data)[:1]
    if out[0] != batch or any(
        batch in t and (t[0] != batch or n not in data)
        for t, n in zip(letters, operands, strict=True)
    ):
        return None
    x, a = operands[0], letters[0]
    for number, (y, b) in enumerate(zip(operands[1:], letters[1:], strict=True), 2):
        wanted = {*out, *"".join(letters[number:])}
        kept = "".join(c for c in dict.fromkeys(a + b) if c in wanted)
        kept = out if number == len(letters) else batch + kept.replace(batch, "")
        if x not in data and y not in data:
            return None
        x, a = _summed(edit, x, a, wanted | set(b))
        y, b = _summed(edit, y, b, wanted | set(a))
        data |= {n for n in (x, y) if n not in operands and n.op != "get_attr"}
        x = _pair(edit, (a, b), (x, y), kept, data)
        a, data = kept, data | {x}
    x, a = _summed(edit, x, a, set(out))
    return edit.turned(x, [a.index(c) for c in out]) if set(a) == set(out) else None


def _summed(edit: Writer, x: Node, a: str, wanted: set[str]) -> tuple[Node, str]:
    """x without the axes that nothing else has: their sum."""
    gone = [place for place, c in enumerate(a) if c not in wanted]
    if not gone:
        return x, a
    kept = "".join(c for c in a if c in wanted)
    return edit.call(aten.sum.dim_IntList, x, gone), kept


def _pair(
    edit: Writer, letters: tuple[str, str], operands: tuple[Node, Node], out: str, data: set[Node]
) -> Node:
    """Factors, element by element, or a contraction; the first operand is data."""
    if operands[0] not in data:
        letters, operands = letters[::-1], operands[::-1]
    (a, b), (x, y) = letters, operands
    if set(b) <= set(out) & set(a) and (y not in data or b[0] == a[0]):
        y = (
            _beside(edit, a, b, y)
            if y not in data or len(a) > len(b)
            else edit.turned(y, [b.index(c) for c in a])
        )
        made = edit.call(aten.mul.Tensor, x, y)
        return edit.turned(made, [a.index(c) for c in out])
    both = [c for c in out if c in a and c in b]
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


def _beside(edit: Writer, a: str, b: str, y: Node) -> Node:
    """y with its axes in the order and at the places of ``a``, of length 1 where it lacks them."""
    size: dict[str, Any] = dict(zip(b, y.meta["val"].shape, strict=True))
    if b[:1] == a[:1]:
        size[b[0]] = edit.call(aten.sym_size.int, y, 0)
    shape = [size.get(c, 1) for c in a]
    turned = edit.turned(y, [b.index(c) for c in a if c in b])
    return edit.call(aten.reshape.default, turned, shape)


def _product(
    edit: Writer, letters: tuple[str, str], operands: tuple[Node, Node], out: str, both: list[str]
) -> Node:
    """A matrix product over the letters that ``out`` lacks, for each of ``both``, the batch first;
    a second operand without a batch is a constant."""
    (a, b), (x, y) = letters, operands
    size: dict[str, Any] = dict(zip(b, y.meta["val"].shape, strict=True))
    size |= dict(zip(a, edit.sizes(x), strict=True))
    summed = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    fixed = b[:1] != a[:1]
    lead, inner = ([a[0], *both], rows[1:]) if fixed else (both, rows)
    front = [size[c] for c in lead]
    depth, width = _count(size, summed), _count(size, columns)
    left = edit.turned(x, [a.index(c) for c in [*lead, *inner, *summed]])
    left = edit.call(aten.reshape.default, left, [*front, _count(size, inner), depth])
    right = edit.turned(y, [b.index(c) for c in [*both, *summed, *columns]])
    right = edit.call(aten.reshape.default, right, [*front[fixed:], depth, width])
    made = edit.call(aten.matmul.default, left, right)
    order = [*lead, *inner, *columns]
    made = edit.call(aten.reshape.default, made, [size[c] for c in order])
    return edit.turned(made, [order.index(c) for c in out])


def _count(size: dict[str, Any], letters: list[str]) -> int:
    return math.prod(int(size[letter]) for letter in letters)
