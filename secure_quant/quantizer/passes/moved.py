"""Moves of values, whatever the op: what it does to labels tells what it does to places.

The op is run on two samples of labels, numbers that each stand for one place. Where every element
of its result is a label of its own sample, or the same constant whatever the labels are, the op is
a list of places, and nothing else needs to be known about it.
"""

from __future__ import annotations

import operator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.indexing import Mover, argument
from secure_quant.quantizer.refuse import PLACES, unsupported

__all__ = ["lower_moves"]

aten = torch.ops.aten

_SAMPLES, _RUNS = 2, 2
_FIRST = 2**30 + 0.5
"""Labels count from here, where hardly a constant is."""
_MOVED = {
    aten.fliplr.default, aten.flipud.default, aten.rot90.default, aten.gather.default,
    aten.take_along_dim.default, aten.tril.default,
    aten.repeat_interleave.self_Tensor,
    aten.triu.default, aten.diag_embed.default, aten.narrow.default, aten.kron.default,
    aten.scatter.src, aten.scatter.value, aten.col2im.default, aten.index_add.default,
    aten.column_stack.default, aten.dstack.default,
    aten.concat.default, aten.concatenate.default, aten.reshape_as.default, aten.view_as.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec,
    aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec, aten.hsplit.int, aten.hsplit.array, aten.vsplit.int,
    aten.vsplit.array, aten.dsplit.int, aten.dsplit.array, aten.tensor_split.sections,
    aten.tensor_split.indices, aten.unsafe_chunk.default, aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
}  # fmt: skip
"""Ops that have no other rule."""


_SIZED = {aten.index.Tensor, aten.repeat_interleave.self_Tensor}
"""Those whose result has a size that depends on constants."""


class _Moved(NamedTuple):
    """places: int64[*sample of the result], in the operands' elements end to end, and behind them
    in ``constants``."""

    places: NDArray[np.int64]
    constants: list[float]


def lower_moves(module: GraphModule) -> None:
    """Rewrite moves that no other pass knows, in place. Raises UnsupportedModule for those that
    mix samples or whose places depend on the input."""
    for node in list(module.graph.nodes):
        edit = Mover(module, node)
        _size_anew(node)
        if not _is_moved(edit, node):
            continue
        operands = [n for n in node.all_input_nodes if _is_data(edit, n)]
        if not operands:
            continue
        made = _outcomes(edit, node, operands)
        parts = [n for n in node.users if n.target is operator.getitem]
        if len(parts) != len(node.users) or not isinstance(node.meta["val"], tuple | list):
            edit.replace(_emitted(edit, operands, _traced(node, operands, [m[0] for m in made])))
            continue
        for part in parts:
            place: Any = part.args[1]
            own = Mover(module, part)
            chosen = _traced(node, operands, [m[place] for m in made])
            own.replace(_emitted(own, operands, chosen))
        module.graph.erase_node(node)
    module.recompile()


def _is_moved(edit: Mover, node: Node) -> bool:
    if node.target in (aten.index.Tensor, aten.index_put.default):
        given: Any = node.args[1]
        found = [index for index in given if index is not None]
        lone = found[0].meta["val"]
        chosen = lone.dtype is torch.bool and edit.value(found[0]) is None
        if chosen and node.target is aten.index_put.default:
            return False  # where values decide: ``lower_choices`` knows
        return len(found) > 1 or len(lone.shape) != 1 or lone.dtype is torch.bool
    if node.target is aten.pad.default:
        widths: Any = node.args[1]
        return bool(argument(node, 2, "mode", "constant") != "constant" and min(widths) < 0)
    return node.target in _MOVED


def _size_anew(node: Node) -> None:
    """Sizes that the exporter did not know, now that the places before them are constants."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else ()
    if not any(isinstance(n, torch.SymInt) and n.node.hint is None for n in sizes):
        return
    if node.target in _SIZED:
        return
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    target: Any = node.target
    node.meta["val"] = target(*args, **kwargs)


def _is_data(edit: Mover, node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and edit.value(node) is None


def _sample(node: Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def _outcomes(edit: Mover, node: Node, operands: list[Node]) -> list[list[Tensor]]:
    """What the op makes of labels, one list of results for each run."""
    made = []
    for run in range(_RUNS):
        labels = dict(zip(operands, _labels(operands, run), strict=True))
        for rows in (1, _SAMPLES):  # constants of one row, as they are and for each sample
            try:
                results = _run(edit, node, labels, rows)
            except (RuntimeError, IndexError, ValueError, TypeError):
                results = []
            if results and all(r.ndim and len(r) == _SAMPLES for r in results):
                break
        else:
            raise _refused(node)
        made.append(results)
    return made


def _order(operands: list[Node], run: int) -> NDArray[np.int64]:
    """Label of each place of two samples, less the first label."""
    total = _SAMPLES * sum(prod(_sample(n)) for n in operands)
    return np.random.default_rng(run).permutation(total)


def _labels(operands: list[Node], run: int) -> list[Tensor]:
    values = torch.from_numpy(_order(operands, run)).double().reshape(_SAMPLES, -1) + _FIRST
    sizes = [prod(_sample(n)) for n in operands]
    parts = torch.split(values, sizes, 1)
    return [p.reshape(_SAMPLES, *_sample(n)) for p, n in zip(parts, operands, strict=True)]


def _run(edit: Mover, node: Node, labels: dict[Node, Tensor], rows: int) -> list[Tensor]:
    def value(n: Node) -> Any:
        if n in labels:
            return labels[n]
        found = edit.value(n)
        if found is None:
            return _number(n)
        if found.dtype.is_floating_point:
            found = found.double()
        lone = found.ndim > 1 and len(found) == 1
        return found.expand(rows, *found.shape[1:]) if lone else found

    target: Any = node.target
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
    made = target(*args, **kwargs)
    return list(made) if isinstance(made, tuple | list) else [made]


def _number(node: Node) -> Any:
    """A size, for two samples."""
    if node.target is aten.sym_size.int:
        source: Any = node.args[0]
        dim: Any = node.args[1]
        return _SAMPLES if dim == 0 else int(source.meta["val"].shape[dim])
    target: Any = node.target
    return target(*torch.fx.map_arg(node.args, _number))


def _traced(node: Node, operands: list[Node], results: list[Tensor]) -> _Moved:
    """One result of every run, as places. Raises UnsupportedModule where it is none."""
    found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for run, result in enumerate(results):
        order = _order(operands, run)
        total = len(order) // _SAMPLES
        values = result.double().numpy()
        label = values - _FIRST
        known = (label >= 0) & (label < len(order)) & (label == np.floor(label))
        slot = np.argsort(order)[np.where(known, label, 0).astype(np.int64)]
        row, place = slot // total, slot % total
        samples = np.arange(_SAMPLES).reshape(-1, *[1] * (values.ndim - 1))
        if bool((known & (row != samples)).any()):
            raise unsupported(
                node, "a move of values between samples", "leave the batch axis alone"
            )
        own = np.where(known, place, -1), np.where(known, 0.0, values)
        found += zip(*own, strict=True)
    places, constants = found[0]
    if any(not (np.array_equal(p, places) and np.array_equal(c, constants)) for p, c in found):
        raise _refused(node)
    fixed = np.unique(constants[places < 0])
    places = np.where(places < 0, total + np.searchsorted(fixed, constants), places)
    return _Moved(places, fixed.tolist())


def _refused(node: Node) -> Exception:
    return unsupported(
        node, "places that depend on the input, or several values at one place",
        PLACES,
    )  # fmt: skip


def _emitted(edit: Mover, operands: list[Node], moved: _Moved) -> Node:
    """The moves as steps that the lowering knows."""
    places, shape = moved.places, moved.places.shape
    size = edit.call(aten.sym_size.int, operands[0], 0)
    if len(operands) == 1 and not moved.constants:
        x, sample = operands[0], _sample(operands[0])
        axes = _by_axis(places, sample)
        if axes is not None:
            for axis, own in enumerate(axes, 1):
                x = edit.pick(x, axis, own)
            return x
    flat = [edit.call(aten.reshape.default, x, [size, prod(_sample(x))]) for x in operands]
    if moved.constants:
        flat.append(edit.constant(torch.tensor([moved.constants])))
    if not places.size:
        raise unsupported(edit.node, "a result without elements")
    made = edit.pick(edit.join(flat, 1), 1, places.reshape(-1).tolist())
    return edit.call(aten.reshape.default, made, [size, *shape])


def _by_axis(places: NDArray[np.int64], sample: tuple[int, ...]) -> list[list[int]] | None:
    """Places along each axis, where they are independent of each other; None elsewhere."""
    if places.ndim != len(sample) or not places.size:
        return None
    where = np.unravel_index(places, sample)
    axes = []
    for axis, own in enumerate(where):
        line = np.moveaxis(own, axis, -1).reshape(-1, own.shape[axis])
        if not bool((line == line[0]).all()):
            return None
        axes.append(line[0].tolist())
    return axes
