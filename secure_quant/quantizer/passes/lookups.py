"""Rows of a table that an input chooses: looked up by the client, in a table that it is shown, or
under encryption, in one that it is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import TABLE_RANGE
from secure_quant.quantizer.opset import CASTS, COPIES, SHAPING, find_roots
from secure_quant.quantizer.passes.columns import lower_columns
from secure_quant.quantizer.passes.edit import Editor, constant_of, shown
from secure_quant.quantizer.ports import COLUMN, INPUT_PORT, LOOKUP_PORT, Ported
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_lookups"]

aten = torch.ops.aten

_EMBEDDING = aten.embedding.default
_LIKE = {
    aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.full_like.default: 0,
}  # fmt: skip
_ROWS = {aten.index_select.default, aten.gather.default}
_KEEPING = CASTS | COPIES | {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.slice.Tensor,
}  # fmt: skip
"""Ops that may leave row numbers as they are."""
_MOVING = SHAPING | COPIES | {aten.view.default}
_AS_INPUT = "give what is made of them as an input of its own, as an attention mask is"


def lower_lookups(module: GraphModule, model: nn.Module, batch: int) -> None:
    """Make one port of an integer input and the table that it chooses rows of.

    Raises UnsupportedModule unless the owner has said who may know tables, and where an input is
    used for anything else besides. ``batch``: samples in the example of the capture.
    """
    _write_shapes(module)
    _write_tables(module)
    tables = model.tables if isinstance(model, Ported) else None
    private = tables == "private"
    if tables is not None:
        _write_one_hots(module)
        lower_columns(module, batch, private)
    roots = find_roots(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        if node.target is not _EMBEDDING:
            continue
        weight, given = node.args[:2]
        edit = Editor(module, node)
        if given not in roots:
            continue  # constant numbers
        if tables is None:
            raise unsupported(node)
        numbers, first = _behind(given)
        if numbers.target is not INPUT_PORT:
            raise unsupported(
                node, f"row numbers that {_name(numbers)} computes of an input", _AS_INPUT
            )
        table = constant_of(module, weight)
        if table is None:
            raise unsupported(node, "a table that is computed", "keep the table as one parameter")
        if first:
            weight, table = edit.constant(table[first:]), table[first:]
        _check_alone(node, numbers, private)
        packed, name, dtype, start, shape = numbers.args[:5]
        if dtype != "int64":
            raise unsupported(node, f"rows chosen by {dtype}", "give row numbers as integers")
        single = private and not shape  # digits have an axis of their own
        given = [1] if single else shape
        made = edit.call(LOOKUP_PORT, packed, weight, name, start, given, private)
        limits = min(float(table.min()), 0.0), max(float(table.max()), 0.0)
        made.meta[TABLE_RANGE] = node.meta.get(TABLE_RANGE, limits)
        if COLUMN in numbers.meta:
            made.meta[COLUMN] = numbers.meta[COLUMN]
        edit.replace(edit.call(aten.select.int, made, 1, 0) if single else made)
    module.graph.eliminate_dead_code()
    module.recompile()


def _write_shapes(module: GraphModule) -> None:
    """What is asked of an integer input's shape alone, by that shape: ``zeros_like(ids)``,
    ``x.expand_as(ids)``."""
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    for node in list(module.graph.nodes):
        args: Any = node.args
        if node.target in _LIKE:
            like, filled = args[0], args[1] if len(args) > 1 else _LIKE[node.target]
        elif node.target is aten.expand_as.default:
            like, filled = args[1], None
        else:
            continue
        held = like.meta["val"]
        if like.target is not INPUT_PORT or held.dtype.is_floating_point:
            continue
        edit = Editor(module, node)
        shape = [edit.call(aten.sym_size.int, source, 0), *map(int, held.shape[1:])]
        whole = args[0]
        if filled is not None:
            sample = [1, *held.shape[1:]]
            whole = edit.constant(torch.full(sample, filled, dtype=node.meta["val"].dtype))
        edit.replace(edit.call(aten.expand.default, whole, shape))
    module.graph.eliminate_dead_code()


def _write_tables(module: GraphModule) -> None:
    """``table[ids]`` of a constant as an embedding of its rows."""
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    roots = find_roots(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        args: Any = node.args
        if node.target is aten.index.Tensor and len(args[1]) == 1:
            ids = args[1][0]
        elif node.target in _ROWS and args[1] == 0:
            ids = args[2]
        else:
            continue
        if node.target is aten.gather.default and args[0].meta["val"].ndim != 1:
            continue
        table = constant_of(module, args[0])
        if table is None or not table.ndim or ids not in roots or not table.is_floating_point():
            continue
        if ids.meta["val"].dtype not in (torch.int64, torch.int32):
            continue
        edit, shape = Editor(module, node), node.meta["val"].shape
        rows = edit.fixed(table.reshape(len(table), -1), "rows")
        made = edit.call(_EMBEDDING, rows, ids)
        if table.ndim != 2:
            size = edit.call(aten.sym_size.int, source, 0)
            made = edit.call(aten.reshape.default, made, [size, *map(int, shape[1:])])
        edit.replace(made)
    module.graph.eliminate_dead_code()


def _write_one_hots(module: GraphModule) -> None:
    """``one_hot`` of an input as rows of the unit matrix, which are real from there on."""
    roots = find_roots(list(module.graph.nodes))
    for node in list(module.graph.nodes):
        if node.target is not aten.one_hot.default or node not in roots:
            continue
        count: Any = node.args[1]
        edit = Editor(module, node)
        made = edit.call(_EMBEDDING, edit.fixed(torch.eye(count), "classes"), node.args[0])
        edit.replace(made)
        _real_from(made)
    module.graph.eliminate_dead_code()


def _real_from(node: Node) -> None:
    """Note that what only moves ``node`` is as real as it is."""
    for user in node.users:
        if user.target in _MOVING and not user.meta["val"].dtype.is_floating_point:
            user.meta["val"] = shown(user.target, user.args, user.kwargs)
            _real_from(user)


def _behind(node: Any) -> tuple[Node, int]:
    """The numbers behind moves that leave every one in its place, and what is added to all."""
    first = 0
    while True:
        added = node.args[1] if node.target is aten.add.Tensor and not node.kwargs else None
        if isinstance(added, int) and added >= 0:
            first += added
        elif node.target not in _KEEPING or _moves(node):
            return node, first
        node = node.args[0]


def _moves(node: Node) -> bool:
    source: Any = node.args[0]
    return bool(source.meta["val"].shape != node.meta["val"].shape)


def _check_alone(node: Node, numbers: Node, private: bool) -> None:
    """The client sends rows, and nobody has their numbers any more; or numbers, which choose rows
    of secret tables and nothing else."""
    for user in numbers.users:
        plain = user.target in _KEEPING and not _moves(user)
        if plain or (user.target is aten.add.Tensor and isinstance(user.args[1], int)):
            _check_alone(node, user, private)
        elif private and user.target is _EMBEDDING:
            continue
        elif user is not node and user.target is not aten.sym_size.int:
            raise unsupported(node, f"row numbers that {_name(user)} reads too", _AS_INPUT)


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
