"""Masks of attention that are inputs: which keys of a sample count.

In the module they are booleans made of an integer or bool input. Here each becomes a real number, 1
where a key counts and 0 where it does not, and hides scores by a huge negative sum, which softmax
takes for nothing; ``lower_softmax`` then finds it and multiplies instead (``masks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import HIDES
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.passes.fold import constants_for
from secure_quant.quantizer.ports import INPUT_PORT
from secure_quant.quantizer.refuse import unsupported

__all__ = ["hide", "lower_batch_index", "lower_input_masks", "unhidden"]

aten = torch.ops.aten

_HUGE = 1e30
_TO_BOOL = {aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default}
_NONZERO = {(aten.ne.Scalar, 0), (aten.gt.Scalar, 0), (aten.eq.Scalar, 1), (aten.ge.Scalar, 1)}
_ZERO = {(aten.eq.Scalar, 0), (aten.ne.Scalar, 1), (aten.lt.Scalar, 1)}
_NOT = {aten.logical_not.default, aten.bitwise_not.default}
_AND = {aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default}
_MOVES = {
    aten.unsqueeze.default, aten.slice.Tensor, aten.reshape.default, aten.view.default,
    aten.squeeze.dim, aten.contiguous.default, aten.clone.default, aten.alias.default,
    aten.select.int, aten.index_select.default,
}  # fmt: skip


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
    """The mask of every scaled_dot_product_attention that depends on an input. Raises
    UnsupportedModule for one that cannot be followed."""
    known: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, Node) or mask.meta["val"].dtype is not torch.bool:
            continue
        if mask.op == "get_attr" and not _all_true(module, mask):
            continue
        kept = None if mask.op == "get_attr" else _Reals(module, node, known).of(mask)
        if kept is not None:
            kept.meta[HIDES] = True
        if len(node.args) > 3:
            node.update_arg(3, kept)
        else:
            node.update_kwarg("attn_mask", kept)
    module.graph.eliminate_dead_code()
    module.recompile()


def hide(edit: Editor, scores: Node, kept: Node) -> Node:
    """``scores`` where ``kept`` is 1, and what softmax takes for nothing where it is 0."""
    hidden = edit.call(aten.sub.Tensor, kept, 1.0)
    made = edit.call(aten.add.Tensor, scores, edit.call(aten.mul.Tensor, hidden, _HUGE))
    made.meta[HIDES] = True
    return made


def unhidden(node: Node) -> tuple[Node, Node] | None:
    """(scores, kept) of what ``hide`` made; None for other nodes."""
    if not node.meta.get(HIDES) or node.target is not aten.add.Tensor:
        return None
    scores, product = node.args
    return scores, product.args[0].args[0]  # type: ignore[union-attr, return-value]


class _Reals:
    """Booleans as real numbers, in front of ``where``. known: those that stand there already."""

    def __init__(self, module: GraphModule, where: Node, known: dict[Node, Node]) -> None:
        self._module, self._where, self._edit = module, where, Editor(module, where)
        self._known = known

    def of(self, node: Node) -> Node:
        """1.0 where ``node`` is true, 0.0 elsewhere; what it meets broadcasts it."""
        if node not in self._known:
            self._known[node] = self._made(node)
        return self._known[node]

    def _made(self, node: Node) -> Node:
        args: Any = node.args
        value = constant_of(self._module, node)
        if value is not None:
            return self._edit.constant(value.float())
        if node.target is INPUT_PORT:
            return self._edit.call(INPUT_PORT, args[0], args[1], "bool", *args[3:5], True)
        if node.target in _MOVES:
            return self._edit.call(node.target, self.of(args[0]), *args[1:])
        same_rank = node.target is aten.expand.default and _rank(args[0]) == _rank(node)
        compared = (node.target, args[1]) if len(args) == 2 else None
        if same_rank or node.target in _TO_BOOL or compared in _NONZERO:
            return self.of(args[0])
        if node.target in _NOT or compared in _ZERO:
            return self._edit.call(aten.rsub.Scalar, self.of(args[0]), 1.0)
        if node.target in _AND:
            parts = [self.of(n) for n in args if not _all_true(self._module, n)]
            return parts[0] if len(parts) == 1 else self._edit.call(aten.mul.Tensor, *parts)
        raise unsupported(
            self._where, f"a mask made by {str(node.target).removeprefix('aten.').split('.')[0]}",
            "give the mask itself as an input: 1 where a key counts, 0 where it does not",
        )  # fmt: skip


def _all_true(module: GraphModule, node: Node) -> bool:
    value = constant_of(module, node)
    return value is not None and bool((value != 0).all())


def _rank(node: Node) -> int:
    return int(node.meta["val"].ndim)
