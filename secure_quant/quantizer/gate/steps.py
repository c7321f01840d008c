"""The integers against torch's own simulation of them, one op at a time.

Each quantize node of the converted graph is computed from the integers that the reference has
before it, so that what one op rounds otherwise does not reach the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from secure_quant import reference
from secure_quant.ir import Graph, ops
from secure_quant.quantizer.gate.floatgraph import captured_batch, in_batches
from secure_quant.reference.kernels import along

__all__ = ["largest_steps", "steps_off"]

ROUNDING = 2
"""Steps allowed beside the jump of a table from one bucket to the next: one of its own, and one of
the sum before it, whose factors and bias are rounded to integers."""
_OUTPUT = 1 / 64
"""Of the largest output, where the output is an accumulator: two int8 steps."""


def steps_off(
    graph: Graph, converted: GraphModule, places: Mapping[str, str], x: NDArray[np.float32]
) -> str | None:
    """In words, the first node that is further off than one op may be; None if there is none.

    places  name of a node of ``converted`` -> the node of ``graph`` that it became.
    x       float32[n, *input shape].
    """
    for name, excess in largest_steps(graph, converted, places, x).items():
        if excess > ROUNDING:
            return f"{name!r} is {excess:.3g} steps off torch's simulation of that op alone"
    return None


def largest_steps(
    graph: Graph, converted: GraphModule, places: Mapping[str, str], x: NDArray[np.float32]
) -> dict[str, float]:
    """Node of ``graph`` -> the most steps it is off, less what its table jumps there; for an output
    that is an accumulator, a step is _OUTPUT of the largest value, over ROUNDING."""
    q = reference.quantize_input(graph, x)
    found: dict[str, float] = {}
    size = captured_batch(converted)
    for start in range(0, len(q), size or len(q)):
        part = slice(start, start + (size or len(q)))
        values = reference.trace(graph, q[part])
        run = _Forced(graph, converted, places, values)
        real = in_batches(run.evaluate, torch.from_numpy(x[part]), size)
        for name, steps in run.steps.items():
            found[name] = max(found.get(name, 0.0), steps)
        name = graph.output.name
        made = reference.dequantize(graph, values[name]).reshape(real.shape)
        off = np.abs(made - real.numpy()).max() / (_OUTPUT * np.abs(real.numpy()).max() + 1e-30)
        found[name] = max(found.get(name, 0.0), float(off) * ROUNDING)
    return found


class _Forced(Interpreter):
    """Runs the converted graph; every quantize node passes on the reference's integers."""

    def __init__(
        self, graph: Graph, module: GraphModule, places: Mapping[str, str],
        values: dict[str, NDArray[Any]],
    ) -> None:  # fmt: skip
        super().__init__(module)
        self._graph, self._places, self._values = graph, places, values
        self.steps: dict[str, float] = {}

    def evaluate(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            made: Any = self.run(x.clone())
        while isinstance(made, tuple | list):
            (made,) = made
        return made  # type: ignore[no-any-return]

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        name = self._places.get(n.name)
        if "quantize_per_tensor.default" not in str(n.target) or "dequantize" in str(n.target):
            return made
        if name not in self._values:  # not in the graph any more: nothing reads it
            return made
        count = made.numel() // len(made)
        exact = self._values[name]
        if exact.size % count:
            return made
        filled = np.resize(exact, (len(made), *exact.shape[1:]))  # a last part is filled up
        off = np.abs(made.numpy().reshape(filled.shape).astype(np.int64) - filled)
        rows = len(exact)
        excess = float((off[:rows] - _jumps(self._graph, name, self._values)).max())
        self.steps[name] = max(self.steps.get(name, 0.0), excess)
        return torch.from_numpy(filled).to(made.dtype).reshape(made.shape)


def _jumps(graph: Graph, name: str, values: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """How far the table of a Requantize jumps around each of its values; 0 for other nodes."""
    node: Any = graph.by_name[name]
    if not isinstance(node, ops.Requantize):
        return np.zeros(1, np.int64)
    (source,) = node.inputs
    acc = values[source] - graph.values[source].zero_point
    place = (acc * along(node.multiplier, node.axis, acc.ndim) + node.offset) >> node.shift
    steps = np.abs(np.diff(np.array(node.table, np.int64)))
    around = np.maximum(np.append(steps, 0), np.append(0, steps))
    made: NDArray[np.int64] = around[np.clip(place, 0, len(node.table) - 1)]
    return made
