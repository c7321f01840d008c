"""Where the batch stands in a value, and the value with it in front: see ``batch_first``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule, Node

from secure_quant.quantizer.passes.edit import Editor, shown
from secure_quant.quantizer.refuse import unsupported

__all__ = ["PLAIN", "Folded", "Folder", "Layout", "Made", "Walk", "hint"]

aten = torch.ops.aten


class Layout(NamedTuple):
    """Which axis of a value holds the batch, and how many rows stand outside and inside it."""

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def rows(self) -> int:
        """Rows of one sample."""
        return self.outer * self.inner


PLAIN = Layout()


class Folded(NamedTuple):
    """R of a value V of ``rank`` axes. R has no axis for a count of 1."""

    data: Node
    layout: Layout
    rank: int

    def place(self, dim: int) -> int | None:
        """The axis of R that is axis ``dim`` of V; None where that holds the batch."""
        if dim == self.layout.axis:
            return None
        behind = dim > self.layout.axis and self.layout.rows == 1
        return dim if behind else dim + 1


Made = Folded | list[Folded] | None
"""What a rule makes: R; several for an op with several results; None where it has no way."""


class Folder(Editor):
    """An Editor for one step of the pass, with what is known of the values before it."""

    def __init__(self, walk: Walk, node: Node) -> None:
        super().__init__(walk.module, node)
        self.node, self.walk = node, walk

    def is_data(self, x: Any) -> bool:
        return isinstance(x, Node) and x in self.walk.data

    def of(self, x: Any) -> Folded:
        """R of a value: the value itself where the batch is first and alone."""
        return self.walk.at.get(x) or Folded(x, PLAIN, len(x.meta["val"].shape))

    def shape(self, x: Any) -> list[int]:
        """The shape of a value in the captured run."""
        return [hint(n) for n in x.meta["val"].shape]

    def op(self, target: Any, args: Sequence[Any], kwargs: Any = None) -> Node:
        """``call`` with named arguments."""
        kwargs = kwargs or {}
        if not kwargs:
            return self.call(target, *args)
        with self.walk.module.graph.inserting_before(self.node):
            made = self.walk.module.graph.call_function(target, tuple(args), kwargs)
        for key in ("nn_module_stack", "stack_trace"):
            if key in self.node.meta:
                made.meta[key] = self.node.meta[key]
        made.meta["val"] = shown(target, tuple(args), kwargs)
        return made

    def rows(self, x: Node, sample: Sequence[int]) -> Node:
        """x as [batch, *sample]."""
        if self.shape(x)[1:] == list(sample):
            return x
        if 0 in sample:
            raise unsupported(
                self.node, "a size that depends on values", "give places as whole numbers"
            )
        return self.call(aten.reshape.default, x, [self.walk.size, *sample])

    def permuted(self, x: Node, order: Sequence[int]) -> Node:
        same = list(order) == list(range(len(order)))
        return x if same else self.call(aten.permute.default, x, list(order))

    def spread(self, shape: Sequence[int], layout: Layout) -> list[int]:
        """The axes of one sample of R for a V of this shape."""
        own = [layout.rows] if layout.rows > 1 else []
        return [*shape[: layout.axis], *own, *shape[layout.axis + 1 :]]


def hint(size: Any) -> int:
    """A size in the captured run, which has a number of samples that no shape has otherwise; 0 for
    one that the exporter does not know, behind places from a mask."""
    return size if isinstance(size, int) else int(size.node.hint or 0)


class Walk:
    """What is known of the values of a graph: which carry data, R of those whose batch is not
    first and alone (``at``), and of the several results of one step (``parts``)."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.source = next(n for n in module.graph.nodes if n.op == "placeholder")
        self.batch = hint(self.source.meta["val"].shape[0])
        self.data: set[Node] = {self.source}
        self.at: dict[Node, Folded] = {}
        self.parts: dict[Node, list[Folded]] = {}
        self._size: Node | None = None

    @property
    def size(self) -> Node:
        """The number of samples, as a node."""
        if self._size is None:
            graph = self.module.graph
            with graph.inserting_after(self.source):
                self._size = graph.call_function(aten.sym_size.int, (self.source, 0))
            self._size.meta["val"] = self.source.meta["val"].shape[0]
        return self._size
