"""Attention and softmax as matrix products, a maximum, tables and sums.

softmax(x) = e / Σ e with e = exp(x - max x): the maximum keeps e in (0, 1], where 8 bits have a
known scale; 1 / Σ e is one value a row and gets 12 bits. Scores so far below the maximum of every
row that they contribute nothing get no part of the scale.

Any number of a row may stand for its maximum, as long as it is near. So of many scores it is found
in some 32 to 64 steps from the least to the largest maximum of a row that was seen. A mask that is
an input multiplies these steps, and e, by 0 or 1. And where nothing but a product with values reads
a softmax of so many scores, that product comes first and the division after, two rounds less. Of
few scores that costs MiniLM's worst sentence more than it spares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
STEPS = 63
"""Of a maximum, and half as many where they are twice those of the scores: it is found to within a
63rd of their range."""
LEAST_STEP = 0.25
"""exp changes by less than 8 bits' worth in between, for a maximum that is off by half."""
ROOM = 6
"""Part of the range of maxima that is added below it, for rows that calibration has not seen."""
MANY = 32
"""Scores of a row of which the maximum is found in steps, and which are divided by their sum only
behind the product with values."""

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


def lower_softmax(module: GraphModule, batches: Sequence[Tensor], *, steps: bool = False) -> None:
    """Every softmax, with the masks before it. ``batches`` show the range of what enters it.
    ``steps``: the maximum of many scores in steps."""
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
    both, truths = _Both(module), _Truths(module)
    for node in found:
        x, mask = peeled[node]
        edit, seen, threshold = Editor(module, node), ranges.get(x, Range()), 0.0
        hides = hidden.get(x)
        if mask is not None and hides is not None:
            shift = mask.shift(hides)
            if bool(shift.any()):
                x = edit.call(aten.add.Tensor, x, edit.fixed(shift[None].float(), "bias"))
        some = hides is not None and bool(hides.any())
        plain = steps and not some and length(x, -1) >= MANY and seen.high > seen.row
        if plain and (node not in kept or _is_product(module, x)):
            truth = truths.of(node, kept[node]) if node in kept else None
            _divide(module, node, *_in_steps(module, edit, x, seen, truth))
            continue
        if node in kept:
            real = both.of(node, kept[node], hides) if hides is not None and some else kept[node]
            x, threshold = mask_by_input(edit, x, real, seen)
        elif hides is not None and some:
            x, threshold = mask_scores(edit, x, hides, seen)
        elif seen.floor > seen.low + (seen.high - seen.low) / 8:
            x = edit.call(aten.clamp.default, x, seen.floor)
        _divide(module, node, *_softmax(edit, x, threshold))


class _Truths:
    """Masks that are inputs, which any int8 may be, as numbers that are 0 or 1."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._made: dict[Node, Node] = {}

    def of(self, node: Node, kept: Node) -> Node:
        """``kept``, in front of ``node``; one for all layers."""
        if kept not in self._made:
            edit = Editor(self._module, node)
            self._made[kept] = edit.call(aten.clamp.default, kept, 0.0, 1.0, steps=1)
        return self._made[kept]


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


def _is_product(module: GraphModule, x: Node) -> bool:
    """True for a product of two values, and for one number times it."""
    while x.target in (aten.mul.Tensor, aten.div.Tensor) and not x.kwargs:
        first, second = x.args[:2]
        value = constant_of(module, second)
        number = isinstance(second, int | float) or (value is not None and value.numel() == 1)
        if not number or not isinstance(first, Node):
            return False
        x = first
    return x.target in (aten.matmul.default, aten.bmm.default)


def _in_steps(
    module: GraphModule, edit: Editor, x: Node, seen: Range, shown: Node | None
) -> tuple[Node, Node]:
    """As ``_softmax``; the maximum in steps, of the scores that are ``shown``."""
    seen = replace(seen, row=max(seen.floor, seen.row - (seen.high - seen.row) / ROOM))
    scores = x
    if _is_product(module, x):  # else it is rounded already
        scores = edit.call(aten.clamp.default, x, -HUGE, cut=(seen.floor, seen.high))
    width = seen.high - seen.row
    above = edit.call(aten.sub.Tensor, x, seen.row)
    count = max(min(STEPS, math.ceil(width / LEAST_STEP)), 1)
    if shown is None:
        coarse = edit.call(aten.clamp.default, above, 0.0, steps=count)
    else:
        coarse = edit.call(aten.clamp.default, above, 0.0, exact=True)
        coarse = edit.call(aten.mul.Tensor, coarse, shown, shown=True, steps=count)
    most = edit.call(aten.amax.default, coarse, [-1], True)
    centred = edit.call(aten.sub.Tensor, scores, most)
    centred = edit.call(aten.sub.Tensor, centred, seen.row)
    off = math.exp(width / count)
    exponentials = edit.call(
        aten.exp.default, centred, exact=shown is not None, table_range=(0.0, off)
    )
    if shown is not None:
        exponentials = edit.call(
            aten.mul.Tensor, exponentials, shown, shown=True, table_range=(0.0, off)
        )
    return exponentials, _inverse(edit, exponentials, off)


def _inverse(edit: Editor, exponentials: Node, off: float = 1.0) -> Node:
    """``off``: by how much the exponentials may be larger or smaller than those of the module."""
    total = edit.call(aten.sum.dim_IntList, exponentials, [-1], True)
    return edit.call(aten.reciprocal.default, total, bits=RECIPROCAL_BITS, positive=off)


def _divide(module: GraphModule, node: Node, exponentials: Node, inverse: Node) -> None:
    """The quotient in place of the softmax ``node``, or, of many scores, behind a product with
    values that alone reads it."""
    (reader, *others) = node.users
    values = reader.args[1] if len(reader.args) == 2 else None
    few = length(exponentials, -1) < MANY
    if few or others or reader.target is not aten.matmul.default or reader.args[0] is not node or (
        values is node or not isinstance(values, Node) or values.op == "get_attr"
    ):  # fmt: skip
        edit = Editor(module, node)
        edit.replace(edit.call(aten.mul.Tensor, exponentials, inverse))
        return
    edit = Editor(module, reader)
    made = edit.call(aten.matmul.default, exponentials, values, exact=True)
    edit.replace(edit.call(aten.mul.Tensor, made, inverse))


def _softmax(edit: Editor, x: Node, threshold: float) -> tuple[Node, Node]:
    """exp(x - max x) over the last axis, at most ``threshold`` counting as 0, and 1 / its sum."""
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.amax.default, x, [-1], True))
    exponentials = edit.call(aten.exp.default, centred)
    if threshold:
        exponentials = edit.call(aten.threshold.default, exponentials, threshold, 0.0)
    return exponentials, _inverse(edit, exponentials)
