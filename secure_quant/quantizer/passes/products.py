"""Matrix products with a constant are linear layers, however they are written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor, constant_of, sample_rank
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_products"]

aten = torch.ops.aten
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default}


def lower_products(module: GraphModule) -> None:
    """x @ W, W @ x, addmm and baddbmm with constants, in place. Raises UnsupportedModule for a
    layer whose weight depends on the input."""
    for node in list(module.graph.nodes):
        edit = Editor(module, node)
        if node.target in (aten.addmm.default, aten.baddbmm.default):
            edit.replace(_addmm(module, edit, node))
        elif node.target in _PRODUCTS:
            a, b = node.args[:2]
            left, right = (_of_a_sample(module, n, node) for n in (a, b))
            if right is not None:
                made = _right if right.ndim < 3 else _grouped
                edit.replace(made(edit, node, a, right, None))
            elif left is not None and left.ndim > 1:
                edit.replace(_left(edit, node, left, b))
            elif left is not None:
                raise unsupported(node, "a vector times data", "the data first, or a matrix")


def _of_a_sample(module: GraphModule, given: Any, node: Node) -> Tensor | None:
    """The constant of a product without leading axes of 1, if it has no axis for the batch."""
    value = constant_of(module, given)
    other: Any = next(n for n in node.args[:2] if n is not given)
    if value is None:
        return None
    if value.ndim > 2 and value.ndim == sample_rank(other):
        if len(value) > 1:
            return None
        value = value[0]
    while value.ndim > 2 and len(value) == 1:
        value = value[0]
    return value.float()


def _grouped(edit: Editor, node: Node, x: Any, weight: Tensor, bias: None) -> Node:
    """x[batch, *groups, n, in] @ weight[*groups, in, out]: a convolution of one tap a group."""
    lead, (into, out) = weight.shape[:-2], weight.shape[-2:]
    if tuple(x.meta["val"].shape[1:-2]) != tuple(lead):
        raise unsupported(
            node, f"a constant of shape {list(weight.shape)} times data of shape "
            f"{['batch', *map(int, x.meta['val'].shape[1:])]}", "expand one of them first",
        )  # fmt: skip
    rows, groups = int(x.meta["val"].shape[-2]), lead.numel()
    batch = edit.call(aten.sym_size.int, x, 0)
    turned = edit.call(aten.transpose.int, x, -2, -1)
    flat = edit.call(aten.reshape.default, turned, [batch, groups * into, rows])
    kernels = weight.transpose(-2, -1).reshape(groups * out, into, 1)
    made = edit.call(
        aten.conv1d.default, flat, edit.parameter(kernels, "weight"), bias, [1], [0], [1], groups
    )
    wide = edit.call(aten.reshape.default, made, [batch, *lead, out, rows])
    return edit.call(aten.transpose.int, wide, -2, -1)


def _addmm(module: GraphModule, edit: Editor, node: Node) -> Node:
    bias, a, b = node.args[:3]
    shift, weight = constant_of(module, bias), constant_of(module, b)
    weight = None if weight is not None and weight.ndim != 2 else weight
    plain = node.kwargs.get("beta", 1) == 1 and node.kwargs.get("alpha", 1) == 1
    if weight is not None and shift is not None and shift.ndim == 1 and plain:
        return _right(edit, node, a, weight, edit.parameter(shift.float(), "bias"))
    made = edit.call(aten.matmul.default, a, b)
    if weight is not None:
        made = _right(edit, node, a, weight, None)
    alpha: Any = node.kwargs.get("alpha", 1)
    beta: Any = node.kwargs.get("beta", 1)
    made = made if alpha == 1 else edit.call(aten.mul.Tensor, made, alpha)
    if beta != 1:
        scaled = None if shift is None else edit.constant(shift * beta)
        bias = scaled or edit.call(aten.mul.Tensor, bias, beta)
    return edit.call(aten.add.Tensor, made, bias)


def _right(edit: Editor, node: Node, x: Any, weight: Tensor, bias: Node | None) -> Node:
    """x @ weight, weight [in] or [in, out]."""
    if sample_rank(x) < 2:
        raise unsupported(node, "a product that sums over the batch", "keep the batch axis first")
    vector = weight.ndim == 1
    rows = weight[None] if vector else weight.t().contiguous()
    args = (x, edit.parameter(rows, "weight"), *([] if bias is None else [bias]))
    made = edit.call(aten.linear.default, *args)
    return edit.call(aten.squeeze.dim, made, -1) if vector else made


def _left(edit: Editor, node: Node, weight: Tensor, x: Any) -> Node:
    """weight [out, in] @ x[batch, ..., in, d]; or one such matrix for each group of x."""
    if sample_rank(x) < 3:
        raise unsupported(
            node, f"a constant of shape {list(weight.shape)} times data of {sample_rank(x)} axes",
            "a matrix times [batch, in, d], or data times a matrix",
        )  # fmt: skip
    turned = edit.call(aten.transpose.int, x, -2, -1)
    if weight.ndim > 2:
        made = _grouped(edit, node, turned, weight.transpose(-2, -1), None)
    else:
        made = edit.call(aten.linear.default, turned, edit.parameter(weight, "weight"))
    return edit.call(aten.transpose.int, made, -2, -1)
