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
        if node.target is aten.addmm.default:
            edit.replace(_addmm(module, edit, node))
        elif node.target in _PRODUCTS:
            a, b = node.args[:2]
            left, right = constant_of(module, a), constant_of(module, b)
            if right is not None and (right.ndim < 3 or (right.ndim == 3 and len(right) == 1)):
                edit.replace(_right(edit, node, a, right, None))
            elif left is not None and (left.ndim == 2 or (left.ndim == 3 and len(left) == 1)):
                edit.replace(_left(edit, node, left, b))


def _addmm(module: GraphModule, edit: Editor, node: Node) -> Node:
    bias, a, b = node.args[:3]
    shift, weight = constant_of(module, bias), constant_of(module, b)
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
    weight = weight.float()
    if weight.ndim == 3 and len(weight) == 1:
        weight = weight[0]
    if sample_rank(x) < 2:
        raise unsupported(node, "a product that sums over the batch", "keep the batch axis first")
    vector = weight.ndim == 1
    rows = weight[None] if vector else weight.t().contiguous()
    args = (x, edit.parameter(rows, "weight"), *([] if bias is None else [bias]))
    made = edit.call(aten.linear.default, *args)
    return edit.call(aten.squeeze.dim, made, -1) if vector else made


def _left(edit: Editor, node: Node, weight: Tensor, x: Any) -> Node:
    """weight [out, in] @ x[batch, ..., in, d]."""
    weight = weight.float()
    if weight.ndim == 3 and len(weight) == 1:
        weight = weight[0]
    if sample_rank(x) < 3:
        raise unsupported(
            node, f"a constant of shape {list(weight.shape)} times data of {sample_rank(x)} axes",
            "a matrix times [batch, in, d], or data times a matrix",
        )  # fmt: skip
    turned = edit.call(aten.transpose.int, x, -2, -1)
    made = edit.call(aten.linear.default, turned, edit.parameter(weight, "weight"))
    return edit.call(aten.transpose.int, made, -2, -1)
