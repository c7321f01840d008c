"""Booleans that are made of an input, as real numbers: 1 where they are true, 0 elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import TRUTH
from secure_quant.quantizer.opset import CASTS, COPIES
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.ports import INPUT_PORT
from secure_quant.quantizer.refuse import unsupported

__all__ = ["MOVES", "Truths", "all_true", "is_of_masks", "name_of", "one_port_each"]

aten = torch.ops.aten

_TRUE = {
    (aten.ne.Scalar, 0), (aten.gt.Scalar, 0), (aten.eq.Scalar, 1), (aten.ge.Scalar, 1),
    (aten.gt.Scalar, 0.5), (aten.ge.Scalar, 0.5),
}  # fmt: skip
_FALSE = {
    (aten.eq.Scalar, 0), (aten.ne.Scalar, 1), (aten.lt.Scalar, 1), (aten.lt.Scalar, 0.5),
    (aten.le.Scalar, 0), (aten.le.Scalar, 0.5), (aten.rsub.Scalar, 1),
}  # fmt: skip
_NOT = {aten.logical_not.default, aten.bitwise_not.default}
_AND = {
    aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default, aten.mul.Tensor,
}  # fmt: skip
_WHERE = {
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
}  # fmt: skip
_OR = {aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default}
MOVES = COPIES | {
    aten.unsqueeze.default, aten.slice.Tensor, aten.reshape.default, aten.view.default,
    aten.squeeze.dim, aten.select.int, aten.index_select.default, aten.transpose.int,
    aten.permute.default,
}  # fmt: skip


class Truths:
    """Makes them in front of ``where``. known: those that stand in the graph already."""

    def __init__(self, module: GraphModule, where: Node, known: dict[Node, Node]) -> None:
        self._module, self._where, self._edit = module, where, Editor(module, where)
        self._known = known

    def of(self, node: Node) -> Node:
        """1.0 where ``node`` is true, or 1, and 0.0 elsewhere; what it meets broadcasts it. Raises
        UnsupportedModule for what is made otherwise than by logic and moves."""
        if node not in self._known:
            self._known[node] = self._made(node)
        return self._known[node]

    def inverse(self, node: Node) -> Node:
        """1.0 where ``node`` is false."""
        return self._inverted(self.of(node))

    def both(self, a: Node, b: Node) -> Node:
        return self._edit.call(aten.mul.Tensor, a, b)

    def _inverted(self, real: Node) -> Node:
        if real.target is aten.rsub.Scalar and real.args[1] == 1:
            made: Any = real.args[0]
            return made  # type: ignore[no-any-return]
        value = constant_of(self._module, real)
        if value is not None:
            return self._edit.constant(1.0 - value)
        return self._edit.call(aten.rsub.Scalar, real, 1.0)

    def _made(self, node: Node) -> Node:
        args: Any = node.args
        value = constant_of(self._module, node)
        if value is not None:
            return self._edit.constant(value.float())
        if TRUTH in node.meta:
            return args[0]  # type: ignore[no-any-return]
        if node.target is INPUT_PORT:
            return self._edit.call(INPUT_PORT, args[0], args[1], "bool", *args[3:5], True)
        if _compares_reals(node):
            return self._edit.call(aten.to.dtype, node, torch.float32)  # ``lower_choices`` has it
        if node.target in MOVES:
            return self._edit.call(node.target, self.of(args[0]), *args[1:])
        same_rank = node.target is aten.expand.default and _rank(args[0]) == _rank(node)
        compared = (node.target, args[1]) if len(args) == 2 else None
        if same_rank or node.target in CASTS or compared in _TRUE:
            return self.of(args[0])
        if node.target in _NOT or compared in _FALSE:
            return self.inverse(args[0])
        if node.target in _AND and isinstance(args[1], Node):
            parts = [self.of(n) for n in args if not all_true(self._module, n)]
            return parts[0] if len(parts) == 1 else self.both(*parts)
        if node.target is aten.mul.Tensor and self._counts(args[1]):
            return self.of(args[0])  # any other number than 0 is true
        if node.target in _WHERE and {self._counts(n) for n in args[1:]} == {True, False}:
            return self.of(args[0]) if self._counts(args[1]) else self.inverse(args[0])
        if node.target in _OR:
            return self._inverted(self.both(*(self.inverse(n) for n in args)))
        raise unsupported(
            self._where, f"a mask made by {name_of(node)}",
            "give the mask itself as an input: 1 where a key counts, 0 where it does not",
        )  # fmt: skip

    def _counts(self, x: Any) -> bool | None:
        """Whether a constant is not 0, throughout; None for what is neither."""
        if isinstance(x, int | float):
            return bool(x)
        value = constant_of(self._module, x)
        if value is None or bool((value != 0).any()) != bool((value != 0).all()):
            return None
        return bool((value != 0).any())


def _compares_reals(node: Node) -> bool:
    """Whether ``real_ports`` made it of whole numbers, as of places and lengths."""
    source = node.args[0] if node.args else None
    real = isinstance(source, Node) and source.meta["val"].dtype.is_floating_point
    return (
        real
        and node.meta["val"].dtype is torch.bool
        and len(node.args) == 2
        and (node.target in (aten.lt.Scalar, aten.gt.Scalar))
    )


def is_of_masks(nodes: list[Node]) -> set[Node]:
    """The nodes that depend on integer and bool inputs, and on no other data."""
    found: set[Node] = set()
    data: set[Node] = set()
    for node in nodes:
        if TRUTH in node.meta:
            found.add(node)
        elif node.target is INPUT_PORT:
            (data if node.args[2] == "float32" else found).add(node)
        elif node.op == "placeholder" or node.target is aten.sym_size.int:
            continue
        elif any(n in data or n.op == "placeholder" for n in node.all_input_nodes):
            data.add(node)
        elif any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def one_port_each(module: GraphModule) -> None:
    """An input that is a mask somewhere is one everywhere: a single port of 0 and 1."""
    ports = [n for n in module.graph.nodes if n.target is INPUT_PORT]
    masks = {n.args[1] for n in ports if n.args[2] == "bool" and n.args[5]}
    first: dict[Any, Node] = {}
    for node in ports:
        name = node.args[1]
        if name not in masks or not node.args[5]:
            continue
        if name in first:
            node.replace_all_uses_with(first[name])
            module.graph.erase_node(node)
            continue
        source = next(n for n in ports if n.args[1] == name)
        if node is not source:
            source.append(node)
        node.update_arg(2, "bool")
        first[name] = node


def all_true(module: GraphModule, node: Node) -> bool:
    """True for a constant without a 0."""
    value = constant_of(module, node)
    return value is not None and bool((value != 0).all())


def name_of(node: Node) -> str:
    """An op's own name."""
    return str(node.target).removeprefix("aten.").split(".")[0]


def _rank(node: Node) -> int:
    return int(node.meta["val"].ndim)
