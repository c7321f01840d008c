"""Masks of attention that are inputs: which keys of a sample count.

In the module they are booleans made of an integer or bool input, or sums and fills with numbers
far below every score. Here each becomes a real number, 1 where a key counts and 0 where it does
not, and hides scores by a huge negative sum, which softmax takes for nothing; ``lower_softmax``
then finds it and multiplies instead (``masks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import HIDES
from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.passes.fold import constants_for
from secure_quant.quantizer.passes.mask_sums import Sums, lower_fills
from secure_quant.quantizer.passes.truths import (
    Truths,
    all_true,
    is_of_masks,
    name_of,
    one_port_each,
)
from secure_quant.quantizer.refuse import unsupported

__all__ = ["HUGE", "depth_of", "hide", "lower_batch_index", "lower_input_masks", "unhidden"]

aten = torch.ops.aten

HUGE = 1e30
_SOFTMAX = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}


def lower_batch_index(module: GraphModule, batch: int) -> None:
    """``mask[b, k]`` with b each sample's own number, as Hugging Face writes it, as a choice along
    the sample's axis. ``batch``: samples in the example that the graph was captured with."""
    found = [n for n in module.graph.nodes if n.target is aten.index.Tensor]
    if not found:
        return
    sizes = (batch, batch + 1)
    runs = [constants_for(module, size) for size in sizes]
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    for node in found:
        x, index = cast("tuple[Node, list[Any]]", node.args[:2])
        if len(index) != 2 or int(x.meta["val"].ndim) != 2 or None in index:
            continue
        own, places = zip(*([run.get(i) for i in index] for run in runs), strict=True)
        mine = all(_own_number(value, size) for value, size in zip(own, sizes, strict=True))
        if not mine or not _one_row(places):
            continue
        edit, chosen = Editor(module, node), places[0].flatten()
        if not torch.equal(chosen, torch.arange(int(x.meta["val"].shape[1]))):
            x = edit.call(aten.index_select.default, x, 1, edit.constant(chosen))
        size = edit.call(aten.sym_size.int, source, 0)
        edit.replace(edit.call(aten.reshape.default, x, [size, *places[0].shape[1:]]))
    module.graph.eliminate_dead_code()
    module.recompile()


def _one_row(places: Sequence[Any]) -> bool:
    """True for constant places of a sample, whatever the number of samples."""
    first, second = places
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    return tensors and len(first) == 1 and torch.equal(first, second)


def _own_number(value: Any, size: int) -> bool:
    """True for 0, 1, ... along the batch."""
    if not isinstance(value, Tensor) or value.shape[:1] != (size,) or value.numel() != size:
        return False
    return torch.equal(value.flatten(), torch.arange(size))


def lower_input_masks(module: GraphModule) -> None:
    """The mask of every attention that depends on an input, and what else is chosen by one. Raises
    UnsupportedModule for a mask of scaled_dot_product_attention that cannot be followed."""
    known: dict[Node, Node] = {}
    masks = is_of_masks(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default:
            _mask_of_attention(module, node, masks, known)
        elif node.target in _SOFTMAX:
            _mask_of_softmax(module, node, masks, known)
    module.graph.eliminate_dead_code()
    lower_fills(module, masks)
    one_port_each(module)
    module.graph.eliminate_dead_code()
    module.recompile()


def _mask_of_attention(
    module: GraphModule, node: Node, masks: set[Node], known: dict[Node, Node]
) -> None:
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if not isinstance(mask, Node):
        return
    truths = Truths(module, node, known)
    if mask.meta["val"].dtype is not torch.bool:
        sums = Sums(module, node, masks, truths)
        made = sums.of(mask) if mask in masks else sums.under(mask)
        if made is None and mask not in masks:
            return
        if made is None:
            raise unsupported(
                node, f"a mask made by {name_of(mask)}",
                "add a number below -1000 where a key is hidden, by an input of 0 and 1",
            )  # fmt: skip
        kept: Node | None = made.kept
        if made.base is not None:
            kept = hide(Editor(module, node), made.base, made.kept, made.depth)
    elif mask.op == "get_attr" and not all_true(module, mask):
        return
    else:
        kept = None if mask.op == "get_attr" else truths.of(mask)
    if kept is not None:
        kept.meta[HIDES] = True
    if len(node.args) > 3:
        node.update_arg(3, kept)
    else:
        node.update_kwarg("attn_mask", kept)


def _mask_of_softmax(
    module: GraphModule, node: Node, masks: set[Node], known: dict[Node, Node]
) -> None:
    """Scores first, then what hides them, however deep it stands."""
    x, axis = cast("tuple[Node, int]", node.args[:2])
    if axis % int(x.meta["val"].ndim) != int(x.meta["val"].ndim) - 1:
        return
    made = Sums(module, node, masks, Truths(module, node, known)).under(x)
    if made is not None:
        node.update_arg(0, hide(Editor(module, node), made.base, made.kept, made.depth))


def hide(edit: Editor, scores: Node, kept: Node, depth: float = HUGE) -> Node:
    """``scores`` where ``kept`` is 1, and ``depth`` below where it is 0."""
    hidden = edit.call(aten.sub.Tensor, kept, 1.0)
    made = edit.call(aten.add.Tensor, scores, edit.call(aten.mul.Tensor, hidden, depth))
    made.meta[HIDES] = True
    return made


def unhidden(node: Node) -> tuple[Node, Node] | None:
    """(scores, kept) of what ``hide`` made; None for other nodes."""
    if not node.meta.get(HIDES) or node.target is not aten.add.Tensor:
        return None
    scores, product = node.args
    return scores, product.args[0].args[0]  # type: ignore[union-attr, return-value]


def depth_of(node: Node) -> float:
    """Of what ``hide`` made."""
    product: Any = node.args[1]
    return float(product.args[1])
