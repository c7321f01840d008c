"""What a lowering may ask of the walk over the converted graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from secure_quant.ir.build import Builder
from secure_quant.ir.terms import Term, Weight

__all__ = ["Rule", "Walk"]


class Walk(Protocol):
    """One walk: the graph under construction, and what each fx node became. An ``argument`` is one
    of an fx call: a node, or a Python value."""

    @property
    def builder(self) -> Builder:
        """Grows the integer graph."""
        ...

    @property
    def kept(self) -> Tensor | None:
        """float64[n]: scales of the weights of a model that is quantized already; else None."""
        ...

    def weight(self, node: Node) -> Weight | None:
        """What a layer's weight became; None where it is no parameter."""
        ...

    def value(self, argument: Any) -> Any:
        """What an argument became: a Term, a list of them, a Weight, or a constant, that is a
        detached tensor or a Python value."""
        ...

    def term(self, argument: Any, node: Node) -> Term:
        """The Term of an argument of ``node``. Raises UnsupportedModule if it is a constant."""
        ...

    def activation(self, argument: Any, node: Node) -> Term:
        """The same, of an integer activation. Raises UnsupportedModule if it is none."""
        ...

    def layer_input(self, node: Node) -> Term:
        """What enters a layer with weights: int8, with a scale of its own in dynamic mode."""
        ...

    def shape(self, node: Node) -> tuple[int, ...]:
        """Per-sample shape of what ``node`` makes. Raises UnsupportedModule if it mixes samples."""
        ...

    def name(self, node: Node) -> str:
        """A free name: the module's path if a module made the node, else the op and its place."""
        ...

    def label(self, node: Node) -> str:
        """The same, taken or not."""
        ...


Rule = Callable[[Walk, Node], Term | list[Term]]
"""The lowering of an op: what its node becomes; a list where it makes several values."""
