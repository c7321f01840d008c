"""Rows of a table that an input chooses: looked up by the client, in a table that it is shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import TABLE_RANGE
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.ports import INPUT_PORT, LOOKUP_PORT, Ported
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_lookups"]

_EMBEDDING = torch.ops.aten.embedding.default


def lower_lookups(module: GraphModule, model: nn.Module) -> None:
    """Make one port of an integer input and the table that it chooses rows of.

    Raises UnsupportedModule unless the owner has said that tables may be public, and where an input
    is used for anything else besides.
    """
    public = isinstance(model, Ported) and model.public_tables
    for node in list(module.graph.nodes):
        if node.target is not _EMBEDDING:
            continue
        weight, numbers = node.args[:2]
        if not isinstance(numbers, Node) or numbers.target is not INPUT_PORT:
            continue  # of constant numbers, or of numbers that are computed
        if not public:
            raise unsupported(node)
        table = constant_of(module, weight)
        if table is None:
            raise unsupported(node, "a table that is computed", "keep the table as one parameter")
        _check_alone(node, numbers)
        packed, name, dtype, start, shape = numbers.args[:5]
        if dtype != "int64":
            raise unsupported(node, f"rows chosen by {dtype}", "give row numbers as integers")
        edit = Editor(module, node)
        made = edit.call(LOOKUP_PORT, packed, weight, name, start, shape)
        made.meta[TABLE_RANGE] = min(float(table.min()), 0.0), max(float(table.max()), 0.0)
        edit.replace(made)
    module.graph.eliminate_dead_code()
    module.recompile()


def _check_alone(node: Node, numbers: Node) -> None:
    """The client sends rows, and nobody has their numbers any more."""
    others: list[Any] = [user for user in numbers.users if user is not node and _reads(user)]
    if others:
        what = str(others[0].target).removeprefix("aten.").split(".")[0]
        raise unsupported(
            node, f"row numbers that {what} reads too",
            "give what is made of them as an input of its own, as an attention mask is",
        )  # fmt: skip


def _reads(user: Node) -> bool:
    """False for what only asks for a size."""
    return user.target is not torch.ops.aten.sym_size.int
