"""Places that are counted: position embeddings of models that number the tokens which count.

RoBERTa's kind numbers those that are no padding, by the ids; OPT those that a mask shows; BLOOM
adds such a number to scores. In the module these are whole numbers that choose rows of a table.
Here each truth is 0 or 1, a count is a sum of them, exact to the last bit, and a table's row is
chosen by a one-hot of the count: as many comparisons as there are places, and a layer. What is
asked of ids, as ``ids != pad``, is one more column of the table that they choose rows of: whoever
looks a row up gets the answer with it, and nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from secure_quant.quantizer.notes import COUNT, TRUTH
from secure_quant.quantizer.opset import CASTS, COPIES
from secure_quant.quantizer.passes.edit import Editor, constant_of
from secure_quant.quantizer.passes.fold import constants_for
from secure_quant.quantizer.ports import INPUT_PORT
from secure_quant.quantizer.refuse import unsupported

__all__ = ["lower_positions"]

aten = torch.ops.aten

LONGEST = 2000
"""Places that are counted, at most: their comparisons grow with the square."""
_CASTS = CASTS | COPIES | {aten.type_as.default, aten.lift_fresh_copy.default}
_MOVES = {aten.slice.Tensor, aten.view.default, aten.reshape.default}
_QUESTIONS = {aten.ne.Scalar, aten.eq.Scalar}
_AXES = {aten.unsqueeze.default}


@dataclass(frozen=True)
class _Count:
    """node: whole numbers as reals. low, high: what they can be, whatever the input."""

    node: Node
    low: int
    high: int


def lower_positions(module: GraphModule, batch: int) -> None:
    """Rows of constant tables, and real numbers, by counts of tokens; in place. ``batch``: samples
    in the example that the graph was captured with.

    Raises UnsupportedModule for more than LONGEST places.
    """
    counts = _Counts(module)
    if not any(n.target is aten.cumsum.default for n in module.graph.nodes):
        counts.answer()
        return
    for node in list(module.graph.nodes):
        if node.target is aten.gather.default:
            _drop_gather(module, node, batch)
    for node in list(module.graph.nodes):
        if node.target is aten.embedding.default:
            counts.choose(node)
        elif _is_real(node) and node.target in {aten.mul.Tensor, aten.to.dtype}:
            counts.make_real(node)
    module.graph.eliminate_dead_code()
    counts.answer()
    module.recompile()


def _drop_gather(module: GraphModule, node: Node, batch: int) -> None:
    """Elements of a constant that are all the same one, wherever they are taken."""
    source, places = node.args[0], node.args[2]
    value = constants_for(module, batch).get(source)  # type: ignore[arg-type]
    if not isinstance(value, Tensor) or bool((value != value.flatten()[0]).any()):
        return
    edit = Editor(module, node)
    one = edit.constant(value.flatten()[:1].reshape([1] * value.ndim))
    shown: Any = places.meta["val"].shape  # type: ignore[union-attr]
    packed = next(n for n in module.graph.nodes if n.op == "placeholder")
    sizes = [edit.call(aten.sym_size.int, packed, 0), *(int(n) for n in shown[1:])]
    edit.replace(edit.call(aten.expand.default, one, sizes))


class _Counts:
    """What is counted in a graph."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._known: dict[Node, _Count | None] = {}
        self._asked: dict[tuple[Node, Any, int], Node] = {}

    def choose(self, node: Node) -> None:
        """An embedding by a count as a one-hot and a layer."""
        table, given = constant_of(self._module, node.args[0]), node.args[1]
        count = self._of(given) if isinstance(given, Node) else None
        if count is None or table is None:
            return
        rows = count.high - count.low + 1
        if count.low < 0 or count.high >= len(table) or rows > LONGEST:
            raise unsupported(
                node, f"rows {count.low} to {count.high} of {len(table)}, counted from a mask",
                f"pad to fewer tokens: as many as there are rows, and at most {LONGEST}",
            )  # fmt: skip
        edit = Editor(self._module, node)
        axis = int(count.node.meta["val"].ndim)
        wide = edit.call(aten.unsqueeze.default, count.node, axis)
        places = -torch.arange(count.low, count.high + 1).float()
        ones = edit.fixed(torch.ones(rows, 1), "count")
        off = edit.call(aten.linear.default, wide, ones, edit.fixed(places, "places"))
        near = edit.call(aten.rsub.Scalar, edit.call(aten.abs.default, off), 1.5, 2)
        hot = edit.call(aten.clamp.default, near, 0.0, 1.0)
        chosen = table[count.low : count.high + 1].float()
        made = edit.call(aten.linear.default, hot, edit.constant(chosen.t().contiguous()))
        edit.replace(made)

    def make_real(self, node: Node) -> None:
        """Give ``node``, which is real, the real value of a count that it reads."""
        for source in list(node.all_input_nodes):
            count = None if _is_real(source) else self._of(source)
            if count is not None:
                node.replace_input_with(source, count.node)

    def answer(self) -> None:
        """What is asked of ids that choose rows, by the row."""
        for node in list(self._module.graph.nodes):
            if node.target in _QUESTIONS and node.args[0].target is INPUT_PORT:
                truth = self._truth(node)
                if truth is not None:
                    made = Editor(self._module, node).call(aten.gt.Scalar, truth, 0.5)
                    made.meta[TRUTH] = True
                    node.replace_all_uses_with(made)
        self._module.graph.eliminate_dead_code()
        self._module.recompile()

    def _of(self, node: Node) -> _Count | None:
        if node not in self._known:
            self._known[node] = self._counted(node)
        return self._known[node]

    def _counted(self, node: Node) -> _Count | None:
        args: Any = node.args
        if node.target is aten.cumsum.default:
            return self._sum(node)
        if node.target in _CASTS or (node.target in _MOVES and _same_shape(node)):
            return self._of(args[0]) if isinstance(args[0], Node) and not _is_real(node) else None
        if node.target in _AXES:
            inner = self._of(args[0])
            if inner is None:
                return None
            made = Editor(self._module, node).call(node.target, inner.node, *args[1:])
            return _Count(made, inner.low, inner.high)
        if node.target in (aten.add.Tensor, aten.sub.Tensor) and isinstance(args[1], int):
            return self._shifted(node, args[1] if node.target is aten.add.Tensor else -args[1])
        if node.target is aten.mul.Tensor and all(isinstance(n, Node) for n in args):
            return self._hidden(node, *args) or self._hidden(node, args[1], args[0])
        return None

    def _sum(self, node: Node) -> _Count | None:
        """Of truths, along the tokens."""
        x: Any = node.args[0]
        if x.meta["val"].ndim != 2 or node.args[1] not in (1, -1):
            return None
        truth = self._truth(x)
        if truth is None:
            return None
        length = int(x.meta["val"].shape[1])
        edit = Editor(self._module, node)
        matrix = edit.fixed(torch.ones(length, length).tril(), "count")
        return self._noted(edit, edit.call(aten.linear.default, truth, matrix), 0, length)

    def _shifted(self, node: Node, by: int) -> _Count | None:
        inner = self._of(node.args[0])  # type: ignore[arg-type]
        if inner is None or by == 0:
            return inner
        edit = Editor(self._module, node)
        made = edit.call(aten.add.Tensor, inner.node, float(by))
        return self._noted(edit, made, inner.low + by, inner.high + by)

    def _hidden(self, node: Node, a: Node, b: Node) -> _Count | None:
        """A count where something is true, and 0 elsewhere."""
        count = self._of(a)
        truth = None if count is None else self._truth(b)
        if count is None or truth is None:
            return None
        edit = Editor(self._module, node)
        made = edit.call(aten.mul.Tensor, count.node, truth)
        return self._noted(edit, made, min(count.low, 0), max(count.high, 0))

    def _noted(self, edit: Editor, node: Node, low: int, high: int) -> _Count:
        """Inside its limits, which say how many entries its table has."""
        made = edit.call(aten.clamp.default, node, float(low), float(high))
        made.meta[COUNT] = (float(low), float(high))
        return _Count(made, low, high)

    def _truth(self, x: Node) -> Node | None:
        """1.0 where ``x``, a mask or a question asked of ids, is true, and 0.0 elsewhere."""
        while x.target in _CASTS and not _is_real(x):
            x = x.args[0]  # type: ignore[assignment]
        if x.target is INPUT_PORT:
            args: Any = x.args
            edit = Editor(self._module, x)
            return edit.call(INPUT_PORT, args[0], args[1], "bool", *args[3:5], True)
        if x.target in _QUESTIONS:
            return self._column(x)
        return None

    def _column(self, question: Node) -> Node | None:
        """The answer beside the row that the same ids choose."""
        asked: Any = question.args
        ids, number = asked
        key = (ids, question.target, number)
        if key not in self._asked:
            found = self._embedding(ids)
            if found is None:
                return None
            table = constant_of(self._module, found.args[0])
            if table is None:
                return None
            answer = torch.eq(torch.arange(len(table)), number)
            answer = answer if question.target is aten.eq.Scalar else ~answer
            self._asked[key] = self._beside(question, found, table, answer)
        return self._asked[key]

    def _embedding(self, ids: Any) -> Node | None:
        """What chooses rows by these ids, and nothing else of them."""
        users = [u for u in ids.users if u.target is aten.embedding.default and u.args[1] is ids]
        return users[0] if ids.target is INPUT_PORT and users else None

    def _beside(self, question: Node, found: Node, table: Tensor, answer: Tensor) -> Node:
        """One more column, as large as the largest of the others, so that their grid stays."""
        size = max(float(table.abs().max()), 1e-3)
        column = answer.to(table.dtype)[:, None] * size
        first = min((found, question), key=list(self._module.graph.nodes).index)
        edit = Editor(self._module, first)
        wide = edit.constant(torch.cat([table, column], 1))
        made = edit.call(aten.embedding.default, wide, found.args[1])
        width = table.shape[1]
        own = edit.call(aten.slice.Tensor, made, 2, 0, width)
        said = edit.call(aten.select.int, made, 2, width)
        scaled = edit.call(aten.mul.Tensor, said, 2 / size)
        truth = edit.call(aten.clamp.default, edit.call(aten.sub.Tensor, scaled, 0.5), 0.0, 1.0)
        found.replace_all_uses_with(own)
        self._module.graph.erase_node(found)
        return truth


def _same_shape(node: Node) -> bool:
    source: Any = node.args[0]
    return bool(source.meta["val"].shape == node.meta["val"].shape)


def _is_real(node: Node) -> bool:
    dtype = getattr(node.meta.get("val"), "dtype", None)
    return dtype is not None and bool(dtype.is_floating_point)
