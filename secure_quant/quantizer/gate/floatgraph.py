"""The captured graph before any rounding, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase

from secure_quant.quantizer.passes.edit import FREE

__all__ = ["FloatGraph", "captured_batch", "in_batches", "of_samples"]

Watch = Callable[[Node, Tensor], None]


def captured_batch(module: GraphModule) -> int | None:
    """The number of samples that a graph is bound to; None if it takes any."""
    node = next(n for n in module.graph.nodes if n.op == "placeholder")
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) and not node.meta.get(FREE) else None


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int | None) -> Tensor:
    """``function`` on [n, ...], ``size`` samples at a time where that is all it takes; the last
    part is filled up with its first sample."""
    if size is None or len(x) == size:
        return function(x)
    made = []
    for part in torch.split(x, size):
        filled = torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])])
        made.append(function(filled)[: len(part)])
    return torch.cat(made)


def of_samples(made: Tensor, samples: int) -> Tensor:
    """An output with its batch axis: of one sample ``squeeze()`` takes that off, too."""
    return made.reshape(1) if made.ndim == 0 and samples == 1 else made


class FloatGraph(Interpreter):
    """Runs a prepared graph without its observers and without rounding.

    watch: called with every node and the tensor it makes, as it makes it. node: the last that was
    begun, which after an error is the one that failed.
    """

    def __init__(
        self, module: GraphModule, dtype: torch.dtype = torch.float64, watch: Watch | None = None
    ) -> None:
        super().__init__(module)
        self._batch = captured_batch(module)
        self._dtype, self._watch = dtype, watch
        self._constants: dict[str, Any] = {}
        self.node: Node | None = None

    def evaluate(self, x: Tensor) -> Tensor:
        """float[n, *input shape] -> the one output."""
        return in_batches(self._once, x, self._batch)

    def _once(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            made: Any = self.run(x.to(self._dtype, copy=True))
        (made,) = (leaf for leaf in tree_leaves(made) if leaf is not None)
        return of_samples(made, len(x)).clone()

    def fetch_attr(self, target: str) -> Any:
        """A parameter or constant in this run's dtype."""
        if target not in self._constants:
            self._constants[target] = self._cast(super().fetch_attr(target))
        return self._constants[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Observers and fake quantization pass values on unseen."""
        if isinstance(self.module.get_submodule(target), ObserverBase | FakeQuantizeBase):
            return args[0]
        return super().call_module(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        self.node = n
        made = self._cast(super().run_node(n))
        if self._watch is not None and isinstance(made, Tensor):
            self._watch(n, made)
        return made

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(self._dtype)
        return value
