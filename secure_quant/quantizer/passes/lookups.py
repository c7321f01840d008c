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
