"""Attention and softmax as matrix products, a maximum, tables and sums.

softmax(x) = e / Σ e with e = exp(x - max x): the maximum keeps e in (0, 1], where 8 bits have a
known scale; 1 / Σ e is one value a row and gets 12 bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor, sample_rank
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_attention", "lower_softmax"]

aten = torch.ops.aten
RECIPROCAL_BITS = 12

_SOFTMAX = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}


def lower_attention(module: GraphModule) -> None:
    """scaled_dot_product_attention -> matmul, softmax, matmul. Masks are refused."""
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        given: dict[str, Any] = dict(
            zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args,
                strict=False)
        ) | node.kwargs  # fmt: skip
        if given.get("attn_mask") is not None or given.get("is_causal"):
            raise unsupported(node, "an attention mask", "use sequences of one length, unmasked")
        if given.get("enable_gqa"):
            raise unsupported(node, "grouped queries", "repeat keys and values in the projection")
        q, k, v = given["query"], given["key"], given["value"]
        scale = given.get("scale") or 1 / math.sqrt(q.meta["val"].shape[-1])
        edit = Editor(module, node)
        scores = edit.call(aten.matmul.default, q, edit.call(aten.transpose.int, k, -2, -1))
        weights = _softmax(edit, edit.call(aten.mul.Tensor, scores, scale))
        edit.replace(edit.call(aten.matmul.default, weights, v))


def lower_softmax(module: GraphModule) -> None:
    """softmax over any one axis of the sample."""
    for node in list(module.graph.nodes):
        if node.target not in _SOFTMAX:
            continue
        x, dim = node.args[0], node.args[1]
        last = sample_rank(x) - 1
        axis = dim % (last + 1)
        if axis == 0:
            raise unsupported(node, "softmax over the batch", "use an axis of the sample")
        edit = Editor(module, node)
        if axis != last:
            x = edit.call(aten.transpose.int, x, axis, last)
        made = _softmax(edit, x)
        edit.replace(made if axis == last else edit.call(aten.transpose.int, made, axis, last))


def _softmax(edit: Editor, x: Node) -> Node:
    """softmax over the last axis."""
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.amax.default, x, [-1], True))
    exponentials = edit.call(aten.exp.default, centred)
    total = edit.call(aten.sum.dim_IntList, exponentials, [-1], True)
    inverse = edit.call(aten.reciprocal.default, total, bits=RECIPROCAL_BITS)
    return edit.call(aten.mul.Tensor, exponentials, inverse)
