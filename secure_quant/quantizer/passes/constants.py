"""Sums, differences, products and quotients of data and constants, as ``x · scale + shift``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.errors import NotFinite
from secure_quant.quantizer.notes import BITS, CHANNELS, LARGEST
from secure_quant.quantizer.passes.affine import affine
from secure_quant.quantizer.passes.edit import constant_of
from secure_quant.quantizer.passes.indexing import Mover
from secure_quant.quantizer.refuse import module_path, unsupported

__all__ = ["lower_constants"]

aten = torch.ops.aten
_SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor}
_OPS = _SUMS | {aten.mul.Tensor, aten.div.Tensor}


class _Affine(NamedTuple):
    """data · scale + shift."""

    data: Node
    scale: Tensor
    shift: Tensor


def lower_constants(module: GraphModule) -> None:
    """Rewrite + − · / with a constant tensor of more than one element, in place.

    Raises UnsupportedModule for a constant that varies by sample, NotFinite.
    """
    for node in list(module.graph.nodes):
        if node.target not in _OPS or not isinstance(node.args[1], Node) or node.meta.get(CHANNELS):
            continue
        edit = Mover(module, node)
        shape = node.meta["val"].shape
        found = _operands(module, edit, node)
        if found is None:
            continue
        sample = [int(n) for n in shape[1:]]
        scale, shift = (edit.broadcast(v, sample)[0] for v in (found.scale, found.shift))
        if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
            name = str(node.target).removeprefix("aten.").split(".")[0]
            raise NotFinite(
                f"the constant of {name} in {module_path(node) or 'the model itself'}",
                got="NaN, infinity or a division by zero", expected="finite numbers",
            )  # fmt: skip
        made = affine(module, edit, edit.expand(found.data, shape), scale, shift)
        edit.replace(made)
        _note_maker(made)


def _note_maker(made: Node) -> None:
    """The bits that a reshaped value needs are those of what makes it."""
    maker: Any = made
    while maker.target is aten.reshape.default:
        maker = maker.args[0]
    for key in (BITS, LARGEST):
        if key in made.meta:
            maker.meta.setdefault(key, made.meta[key])


def _operands(module: GraphModule, edit: Mover, node: Node) -> _Affine | None:
    """The op as an affine function of its data; None where no constant tensor takes part."""
    a: Any = node.args[0]
    b: Any = node.args[1]
    left, right = constant_of(module, a), constant_of(module, b)
    value, data = (left, b) if right is None else (right, a)
    if value is None or not isinstance(data, Node) or value.numel() == 0:
        return None
    few = value.numel() == 1 and value.ndim < len(node.meta["val"].shape)
    if few and list(data.meta["val"].shape) == list(node.meta["val"].shape):
        return None  # a number, for the table behind
    value = value.double()
    one, zero = torch.ones(()), torch.zeros(())
    if node.target in _SUMS:
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        first, second = 1.0, alpha
        if node.target is aten.sub.Tensor:
            second = -alpha
        elif node.target is aten.rsub.Tensor:
            first, second = -alpha, 1.0
        mine, other = (first, second) if right is not None else (second, first)
        return _Affine(data, one * mine, value * other)
    if node.target is aten.mul.Tensor:
        return _Affine(data, value, zero)
    if right is None:
        if list(data.meta["val"].shape) != list(node.meta["val"].shape):
            raise unsupported(node, "a quotient that widens the data", "expand the divisor first")
        return _Affine(edit.call(aten.reciprocal.default, data), value, zero)
    return _Affine(data, 1 / value, zero)
