"""The batch axis back in front and alone, wherever a forward moves it or merges it with others.

Windows of an image as rows of a larger batch, ``x.view(b * windows, n, c)``, sequences with the
batch second, ``qkv.permute(2, 0, 3, 1, 4)``: each is a value V with an axis that holds
outer · batch · inner rows in row-major order. In its place stands R, [batch, axes of V] with
outer · inner in place of that axis, the rows of one sample in their own order. A reshape of V is
the same reshape of R then, a permutation the same permutation, and a step on the other axes the
same step. Where the batch is first and alone again, V is R.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.batch_layout import PLAIN, Folded, Folder, Walk, hint
from secure_quant.quantizer.passes.batch_rules import MOVING, rule_of
from secure_quant.quantizer.passes.edit import Editor
from secure_quant.quantizer.refuse import unsupported

__all__ = ["keep_batch_first"]

aten = torch.ops.aten

_OF_SHAPE = {
    aten.sym_size.int, aten.sym_numel.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.empty_like.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, aten.new_empty.default,
}  # fmt: skip
"""Ops that look at the shape of their input only."""
_MERGED = "values whose batch axis is merged with others, or not the first"
_HINT = "bring the batch axis back before this step, first and alone"


class _Pass(Walk):
    def visit(self, node: Node) -> None:
        read = [n for n in node.all_input_nodes if n in self.data]
        if node.target in _OF_SHAPE:
            self._sized(node)
            return
        if not read:
            return
        self.data.add(node)
        if node.target is operator.getitem:
            source: Any = node.args[0]
            place: Any = node.args[1]
            if source in self.parts:
                self._settle(node, self.parts[source][place])
            return
        folded = any(n in self.at or n in self.parts for n in read)
        if not (folded or node.target in MOVING):
            return
        rule = rule_of(node)
        made = rule(Folder(self, node), node) if rule is not None else None
        if isinstance(made, list):
            self.parts[node] = made
        elif made is not None:
            self._settle(node, made)
        elif folded:
            raise unsupported(node, _MERGED, _HINT)

    def _settle(self, node: Node, made: Folded) -> None:
        self.data.add(made.data)
        if made.layout != PLAIN:
            self.at[node] = made
        elif made.data is not node:
            Editor(self.module, node).replace(made.data)

    def _sized(self, node: Node) -> None:
        """The size of an axis of a V, without V."""
        x: Any = node.args[0]
        if node.target is not aten.sym_size.int or x not in self.at:
            return
        given: Any = node.args[1]
        layout, dim = self.at[x].layout, given % self.at[x].rank
        if dim == layout.axis:
            edit = Editor(self.module, node)
            edit.replace(edit.call(operator.mul, self.size, layout.rows))
        else:
            size = hint(x.meta["val"].shape[dim])
            swap: dict[Node, Any] = {node: size}
            for user in list(node.users):
                user.args = torch.fx.map_arg(user.args, lambda n: swap.get(n, n))


def keep_batch_first(module: GraphModule) -> None:
    """Bring the batch axis to the front of every value, in place; no value of the output changes.

    Raises UnsupportedModule for a step that has no meaning for one sample."""
    walk = _Pass(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            walk.visit(node)
    output = next(node for node in module.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        if node in walk.at:
            raise unsupported(node, _MERGED, _HINT)
    for node in reversed(list(module.graph.nodes)):
        if not node.users and (node in walk.at or node in walk.parts):
            module.graph.erase_node(node)  # also where torch keeps it for its random numbers
    module.graph.eliminate_dead_code()
    module.recompile()
