"""Masks of an attention: constants that are added to scores.

A mask so large that exp gives 0 is not added to the scores, or it would take the whole of their
scale. The scores are shifted so that the least of what counts is SPAN, and multiplied by 0 where
the mask is: by the factors of a sum, without weights. There they are SPAN below everything else,
and exp of that is 0 by definition. What is masked contributes nothing, exactly, for any input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.refuse import unsupported

__all__ = [
    "Mask",
    "Range",
    "mask_by_input",
    "mask_scores",
    "peel",
    "scaled_inside",
    "score_ranges",
]

aten = torch.ops.aten
SPAN = 14.0
"""exp(-SPAN) is far below half a step of exp's grid, of 8 bits or of 12, and below what the float
graph may differ by from the model."""
BEYOND = 20.0
"""How far below the others, beside the range of the scores themselves, a constant makes a score
nothing: exp(-20) is less than float32's own rounding of the sum."""
REPLACES = -1e30
"""A constant in whose sum with a score the score is lost in float32."""


@dataclass(frozen=True)
class Mask:
    """added: float64[*sample], a constant that is added to scores [batch, *sample] whose softmax is
    over the last axis."""

    added: Tensor

    @property
    def relative(self) -> Tensor:
        """``added`` less the largest of its row, which softmax does not feel."""
        return self.added - self.added.amax(-1, keepdim=True)

    def hidden(self, width: float) -> Tensor:
        """bool[*sample]: what contributes nothing among scores that differ by up to ``width``; all
        of a row in which every score is lost, whose softmax is uniform."""
        lost = (self.added <= REPLACES).all(-1, keepdim=True)
        return (self.relative < -(width + BEYOND)) | lost

    def shift(self, hidden: Tensor) -> Tensor:
        """What is left to add."""
        return self.relative.masked_fill(hidden, 0.0)


@dataclass(frozen=True)
class Range:
    """Of the scores that count: the least and largest, and the least maximum of a row."""

    low: float = 0.0
    high: float = 0.0
    row: float = 0.0

    @property
    def floor(self) -> float:
        """What is below contributes nothing in any row seen."""
        return max(self.low, self.row - SPAN)


def peel(module: GraphModule, node: Node, scores: Node) -> tuple[Node, Mask | None]:
    """What stands behind the constants that are added to ``scores``, of a softmax ``node`` over the
    last axis, and the mask that these make. Raises UnsupportedModule for a row that has no
    softmax."""
    shape = tuple(int(n) for n in scores.meta["val"].shape[1:])
    added: Tensor | None = None
    while True:
        step = _behind(module, scores, shape, any_span=added is not None)
        if step is None:
            break
        scores, constant = step
        added = constant if added is None else added + constant
    if added is None:
        return scores, None
    if bool(torch.isneginf(added).all(-1).any()):
        raise unsupported(
            node, "a mask with a row that hides everything",
            "leave each row one key, say its own: a softmax of nothing is not a number",
        )  # fmt: skip
    return scores, Mask(added)


def scaled_inside(module: GraphModule, edit: Editor, scores: Node) -> Node:
    """(scores + mask) · c, as some divide by the root of the width, as scores · c + mask · c."""
    made = scores.target in (aten.mul.Tensor, aten.div.Tensor) and not scores.kwargs
    given: Any = scores.args[:2]
    if made and scores.target is aten.mul.Tensor and not isinstance(given[0], Node):
        given = given[::-1]
    factor = _number(module, given[1]) if made else None
    if factor is None or factor <= 0 or not isinstance(given[0], Node):
        return scores
    shape = tuple(int(n) for n in scores.meta["val"].shape[1:])
    step = _behind(module, scaled_inside(module, edit, given[0]), shape, any_span=False)
    if step is None:
        return scores
    scaled = edit.call(scores.target, step[0], factor)
    added = step[1] * factor if scores.target is aten.mul.Tensor else step[1] / factor
    return edit.call(aten.add.Tensor, scaled, edit.fixed(added[None].float(), "mask"))


def _number(module: GraphModule, x: Any) -> float | None:
    if isinstance(x, int | float):
        return float(x)
    value = constant_of(module, x)
    return float(value) if value is not None and value.numel() == 1 else None


def _behind(
    module: GraphModule, x: Node, shape: tuple[int, ...], *, any_span: bool
) -> tuple[Node, Tensor] | None:
    """(scores, what is added) of x = scores ± constant, with a span that scores do not have unless
    ``any_span``; None for other nodes."""
    if x.target not in (aten.add.Tensor, aten.sub.Tensor) or x.kwargs or len(x.args) != 2:
        return None
    a, b = x.args
    sign = 1.0 if x.target is aten.add.Tensor else -1.0
    constant = constant_of(module, b)
    if constant is None and sign > 0:
        constant, a = constant_of(module, a), b
    value = _per_sample(constant, shape)
    if value is None or not isinstance(a, Node) or a.meta["val"].shape != x.meta["val"].shape:
        return None
    value = sign * value.double()
    below = value.amax(-1, keepdim=True) - value
    wide = any_span or bool((below > BEYOND).any() or (value <= REPLACES).any())
    return (a, value) if wide else None


def _per_sample(value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A constant as one sample's, of its full shape; None if it differs between samples."""
    if value is None or value.ndim > len(shape) + 1:
        return None
    if value.ndim == len(shape) + 1:
        if len(value) != 1:
            return None
        value = value[0]
    try:
        return torch.broadcast_to(value, shape)
    except RuntimeError:
        return None


class _Watch(Interpreter):
    """Runs the float module and widens a Range for each of the ``wanted`` scores; their masks tell
    which count, constants and those that are inputs (``kept``)."""

    def __init__(
        self,
        module: GraphModule,
        wanted: Mapping[Node, tuple[Tensor, Tensor] | None],
        kept: Mapping[Node, Node],
    ) -> None:
        super().__init__(module)
        self._wanted, self._kept, self._masks = wanted, kept, set(kept.values())
        self._values: dict[Node, Tensor] = {}
        self.ranges: dict[Node, Range] = {}

    def once(self, x: Tensor) -> Tensor:
        """Look at the scores of some samples, which come back."""
        self._values = {}
        self.run(x)
        return x

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted and n not in self._kept:
            self._see(n, value.detach().double(), None)
        elif n in self._wanted or n in self._masks:
            self._values[n] = value.detach()
            for scores, kept in self._kept.items():
                if n in (scores, kept) and scores in self._values and kept in self._values:
                    self._see(scores, self._values.pop(scores).double(), self._values[kept])
        return value

    def _see(self, node: Node, scores: Tensor, kept: Tensor | None) -> None:
        mask = self._wanted[node]
        hidden = torch.zeros((), dtype=torch.bool) if kept is None else kept == 0
        if mask is not None:
            hidden, scores = hidden | mask[0], scores + mask[1]
        low, high = scores.masked_fill(hidden, math.inf), scores.masked_fill(hidden, -math.inf)
        rows = high.amax(-1)
        rows = rows[~torch.isneginf(rows)]
        if not rows.numel():
            return
        seen = Range(float(low.min()), float(rows.max()), float(rows.min()))
        old = self.ranges.get(node, seen)
        self.ranges[node] = Range(
            min(old.low, seen.low), max(old.high, seen.high), min(old.row, seen.row)
        )


def score_ranges(
    module: GraphModule,
    masks: Mapping[Node, Mask | None],
    kept: Mapping[Node, Node],
    batches: Sequence[Tensor],
) -> tuple[dict[Node, Range], dict[Node, Tensor]]:
    """By scores: the range of those that count, and bool[*sample], which do not whatever the input.
    ``kept``: by scores, a mask that is an input."""
    watch = _run(module, dict.fromkeys(masks), kept, batches)
    widths = {node: seen.high - seen.low for node, seen in watch.items()}
    hidden = {
        node: mask.hidden(widths.get(node, 0.0)) for node, mask in masks.items() if mask is not None
    }
    if not hidden:
        return watch, hidden
    shifts = {node: (hides, _given(masks[node]).shift(hides)) for node, hides in hidden.items()}
    return watch | _run(module, shifts, kept, batches), hidden


def _given(mask: Mask | None) -> Mask:
    if mask is None:
        raise TypeError("no mask")
    return mask


def _run(
    module: GraphModule,
    wanted: Mapping[Node, Any],
    kept: Mapping[Node, Node],
    batches: Sequence[Tensor],
) -> dict[Node, Range]:
    watch = _Watch(module, wanted, {n: kept[n] for n in wanted if n in kept})
    with torch.no_grad():
        for batch in batches if wanted else ():
            in_batches(watch.once, batch.clone(), captured_batch(module))
    return watch.ranges


def mask_by_input(edit: Editor, scores: Node, kept: Node, seen: Range) -> tuple[Node, float]:
    """As ``mask_scores``, with ``kept`` an input: 1 where a score counts, 0 where it is hidden."""
    span = max(SPAN, (seen.high - seen.floor) / 50)
    low = edit.call(aten.sub.Tensor, scores, seen.floor - span)
    made = edit.call(aten.mul.Tensor, edit.call(aten.clamp.default, low, span), kept)
    step = (seen.high - seen.floor + span) / 255
    return made, math.exp(-span + step)


def mask_scores(edit: Editor, scores: Node, hidden: Tensor, seen: Range) -> tuple[Node, float]:
    """(scores from SPAN up, and 0 where ``hidden``; the largest exp of a difference by SPAN)."""
    span = max(SPAN, (seen.high - seen.floor) / 50)  # some steps of 8 bits at least
    low = edit.call(aten.sub.Tensor, scores, seen.floor - span)
    risen = edit.call(aten.clamp.default, low, span)
    shape = [int(n) for n in scores.meta["val"].shape[1:]]
    rows = hidden.reshape(-1, *hidden.shape[-2:])
    shared = bool((rows == rows[0]).all())  # one mask for all heads
    kept = (~(rows[0] if shared else hidden)).reshape(-1).float()
    lead = shape[:-2] if shared else []
    batch = edit.call(aten.sym_size.int, scores, 0)
    flat = edit.call(aten.reshape.default, risen, [batch, *lead, len(kept)])
    masked = edit.call(aten.mul.Tensor, flat, edit.fixed(kept, "kept"), channels=True)
    made = edit.call(aten.reshape.default, masked, [batch, *shape])
    step = (seen.high - seen.floor + span) / 255
    return made, math.exp(-span + step)
