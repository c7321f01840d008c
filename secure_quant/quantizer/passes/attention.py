"""Attention and softmax as matrix products, a maximum, tables and sums.

softmax(x) = e / Σ e with e = exp(x - max x): the maximum keeps e in (0, 1], where 8 bits have a
known scale; 1 / Σ e is one value a row and gets 12 bits. Scores so far below the maximum of every
row that they contribute nothing get no part of the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import HIDES
from secure_quant.quantizer.passes.edit import Editor, constant_of, sample_rank
from secure_quant.quantizer.passes.indexing import Mover, length
from secure_quant.quantizer.passes.input_masks import HUGE, depth_of, hide, unhidden
from secure_quant.quantizer.passes.masks import (
    Mask,
    Range,
    mask_by_input,
    mask_scores,
    peel,
    scaled_inside,
    score_ranges,
)
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_attention", "lower_softmax"]

aten = torch.ops.aten
RECIPROCAL_BITS = 12

_SOFTMAX = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}


def lower_attention(module: GraphModule) -> None:
    """scaled_dot_product_attention -> matmul, sum with the mask, softmax, matmul; softmax over
    another axis -> over the last."""
    for node in list(module.graph.nodes):
        if node.target in _SOFTMAX:
            _turn(node, Editor(module, node))
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        given: dict[str, Any] = dict(
            zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args,
                strict=False)
        ) | node.kwargs  # fmt: skip
        q, k, v = given["query"], given["key"], given["value"]
        scale = given.get("scale") or 1 / math.sqrt(q.meta["val"].shape[-1])
        edit = Mover(module, node)
        if given.get("enable_gqa"):  # each head of keys and values serves some of the queries'
            heads, own = length(q, -3), length(k, -3)
            order = [head * own // heads for head in range(heads)]
            k, v = (edit.gather(n, sample_rank(n) - 3, order) for n in (k, v))
        scores = edit.call(aten.matmul.default, q, edit.call(aten.transpose.int, k, -2, -1))
        scores = edit.call(aten.mul.Tensor, scores, scale)
        hides, kept, depth = given.get("attn_mask"), None, HUGE
        if isinstance(hides, Node) and hides.meta.get(HIDES):
            base = unhidden(hides)  # a constant that an input hides, or what is kept alone
            given["attn_mask"], kept = base if base is not None else (None, hides)
            depth = depth_of(hides) if base is not None else HUGE
        mask = _additive_mask(module, node, given, scores)
        if isinstance(mask, Node):
            scores = edit.call(aten.add.Tensor, scores, mask)
        elif mask is not None:
            if bool((mask == -math.inf).all(-1).any()):
                raise unsupported(
                    node, "a mask that hides every key from some query",
                    "let each query see one at least, itself for instance",
                )  # fmt: skip
            scores = edit.call(aten.add.Tensor, scores, edit.fixed(mask, "mask"))
        if kept is not None:
            scores = hide(edit, scores, kept, depth)
        weights = edit.call(aten.softmax.int, scores, -1)
        edit.replace(edit.call(aten.matmul.default, weights, v))


def _turn(node: Node, edit: Editor) -> None:
    """softmax over any one axis of the sample, as one over the last."""
    x: Any = node.args[0]
    last = sample_rank(x) - 1
    axis = node.args[1] % (last + 1)  # type: ignore[operator]
    if axis == 0:
        raise unsupported(node, "softmax over the batch", "use an axis of the sample")
    if axis != last:
        turned = edit.call(aten.transpose.int, x, axis, last)
        made = edit.call(aten.softmax.int, turned, -1)
        edit.replace(edit.call(aten.transpose.int, made, axis, last))


def _additive_mask(
    module: GraphModule, node: Node, given: dict[str, Any], scores: Node
) -> Tensor | Node | None:
    """What is added to the scores, -inf where a key is not looked at, or values computed of the
    input, such as relative positions'; None without a mask."""
    if given.get("is_causal"):
        rows, columns = scores.meta["val"].shape[-2:]
        return torch.full((int(rows), int(columns)), -math.inf).triu(1)
    if given.get("attn_mask") is None:
        return None
    added: Node = given["attn_mask"]
    mask = constant_of(module, added)
    if mask is None and added.meta["val"].dtype.is_floating_point:
        return added
    if mask is None:
        raise unsupported(
            node,
            "a mask that is no constant",
            "make it a buffer, one for every sample, or a boolean mask of an input of 0 and 1",
        )
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    return mask


def lower_softmax(module: GraphModule, batches: Sequence[Tensor]) -> None:
    """Every softmax, with the masks before it. ``batches`` show the range of what enters it."""
    found = [n for n in module.graph.nodes if n.target in _SOFTMAX]
    kept: dict[Node, Node] = {}
    peeled: dict[Node, tuple[Node, Mask | None]] = {}
    for node in found:
        scores: Any = node.args[0]
        hidden_by_input = unhidden(scores)
        if hidden_by_input is not None:
            scores, kept[node] = hidden_by_input
        peeled[node] = peel(module, node, scaled_inside(module, Editor(module, node), scores))
    masks: dict[Node, Mask | None] = {}
    for scores, mask in peeled.values():
        if scores in masks:
            raise unsupported(scores, "scores that two softmaxes read", "compute them twice")
        masks[scores] = mask
    shown = {peeled[node][0]: real for node, real in kept.items()}
    ranges, hidden = score_ranges(module, masks, shown, batches)
    both = _Both(module)
    for node in found:
        x, mask = peeled[node]
        edit, seen, threshold = Editor(module, node), ranges.get(x, Range()), 0.0
        hides = hidden.get(x)
        if mask is not None and hides is not None:
            shift = mask.shift(hides)
            if bool(shift.any()):
                x = edit.call(aten.add.Tensor, x, edit.fixed(shift[None].float(), "bias"))
        some = hides is not None and bool(hides.any())
        if node in kept:
            real = both.of(node, kept[node], hides) if hides is not None and some else kept[node]
            x, threshold = mask_by_input(edit, x, real, seen)
        elif hides is not None and some:
            x, threshold = mask_scores(edit, x, hides, seen)
        elif seen.floor > seen.low + (seen.high - seen.low) / 8:
            x = edit.call(aten.clamp.default, x, seen.floor)
        edit.replace(_softmax(edit, x, threshold))


class _Both:
    """Masks that are inputs, where constants hide scores too: one product for all layers."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._made: dict[tuple[Node, bytes], Node] = {}

    def of(self, node: Node, kept: Node, hides: Tensor) -> Node:
        """``kept`` times 0 where ``hides``, in front of ``node``."""
        shown = (~hides).float()
        if bool((shown == shown[:1]).all()):  # one for all heads
            shown = shown[:1]
        key = kept, shown.numpy().tobytes()
        if key not in self._made:
            edit = Editor(self._module, node)
            made = edit.call(aten.mul.Tensor, kept, edit.fixed(shown[None], "shown"))
            self._made[key] = made
        return self._made[key]


def _softmax(edit: Editor, x: Node, threshold: float) -> Node:
    """softmax over the last axis; an exp of at most ``threshold`` counts as 0."""
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.amax.default, x, [-1], True))
    exponentials = edit.call(aten.exp.default, centred)
    if threshold:
        exponentials = edit.call(aten.threshold.default, exponentials, threshold, 0.0)
    total = edit.call(aten.sum.dim_IntList, exponentials, [-1], True)
    inverse = edit.call(aten.reciprocal.default, total, bits=RECIPROCAL_BITS, positive=True)
    return edit.call(aten.mul.Tensor, exponentials, inverse)
