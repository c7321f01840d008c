"""The integers against torch's own simulation of them, one op at a time.

Each quantize node of the converted graph is computed from the integers that the reference has
before it, so that what one op rounds otherwise does not reach the next.
"""

from __future__ import annotations

import math
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
from secure_quant.reference.ports import quantize_packed

__all__ = ["held_at_once", "is_too_far", "largest_steps", "steps_off"]

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
ROUNDING = 2
"""Steps allowed beside the jump of a table from one bucket to the next: one of its own, and one of
the sum before it, whose factors and bias are rounded to integers."""
_SQUARES = 7
"""log2 of the part of a function of squares that their factors may take."""
_ALIKE = 1e-3
"""Of a step: scales have seven digits and torch computes in float32, so that what is two steps off
can read as a millionth more, on one sample and not on another."""
_OUTPUT = 1 / 64
"""Of the largest output, where the output is an accumulator: two int8 steps."""
_VALUES = 2**26
"""Integers held at a time, half a gigabyte, where one sample has no more."""


def held_at_once(graph: Graph) -> int:
    """Samples of which every node's value is held at a time, at least one."""
    return max(_VALUES // sum(math.prod(value.shape) for value in graph.values.values()), 1)


def steps_off(
    graph: Graph, converted: GraphModule, places: Mapping[str, str], x: NDArray[np.float32]
) -> str | None:
    """In words, the first node that is further off than one op may be; None if there is none.

    places  name of a node of ``converted`` -> the node of ``graph`` that it became.
    x       float32[n, *input shape].
    """
    for name, excess in largest_steps(graph, converted, places, x).items():
        if is_too_far(excess):
            return f"{name!r} is {excess:.3g} steps off torch's simulation of that op alone"
    return None


def is_too_far(steps: float) -> bool:
    """Whether a node that far off, of ``largest_steps``, is wrong: the one limit."""
    return not steps <= ROUNDING + _ALIKE


def largest_steps(
    graph: Graph, converted: GraphModule, places: Mapping[str, str], x: NDArray[np.float32],
    *, jumps: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Node of ``graph`` -> the most steps it is off, less what its table jumps there if ``jumps``;
    for an output that is an accumulator, a step is _OUTPUT of the largest value, over ROUNDING."""
    q = quantize_packed(graph, x)
    found: dict[str, float] = {}
    outputs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    size = captured_batch(converted)
    count = size or held_at_once(graph)
    for start in range(0, len(q), count):
        part = slice(start, start + count)
        values = reference.trace(graph, q[part])
        run = _Forced(graph, converted, places, values, jumps)
        real = in_batches(run.evaluate, torch.from_numpy(x[part]), size)
        for name, steps in run.steps.items():
            found[name] = max(found.get(name, 0.0), steps)
        outputs.append((values[graph.output.name], real.numpy()))
    integers, floats = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    made = reference.named(graph, reference.dequantize(graph, integers))
    want = reference.named(graph, floats)
    for port in graph.output_ports:
        step = _OUTPUT * np.abs(want[port.name]).max() + 1e-30
        off = np.abs(made[port.name] - want[port.name]).max() / step
        found[port.node] = max(found.get(port.node, 0.0), float(off) * ROUNDING)
    return found


class _Forced(Interpreter):
    """Runs the converted graph; every dequantize node gives the reference's own value, which may
    stand on another grid than torch's."""

    def __init__(
        self, graph: Graph, module: GraphModule, places: Mapping[str, str],
        values: dict[str, NDArray[Any]], jumps: bool,
    ) -> None:  # fmt: skip
        super().__init__(module)
        self._jumps = jumps
        self._graph, self._places, self._values = graph, places, values
        self._exact: dict[str, Tensor] = {}
        self.steps: dict[str, float] = {}

    def evaluate(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            made: Any = self.run(x.clone())
        while isinstance(made, tuple | list):
            (made,) = made
        return made  # type: ignore[no-any-return]

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        if n.target is _DEQUANTIZE and isinstance(n.args[0], Node):
            return self._exact.get(n.args[0].name, made)
        name = self._places.get(n.name)
        if n.target is _QUANTIZE and name in self._values:  # else nothing reads it any more
            scale, zero_point = (float(v) for v in self.fetch_args_kwargs_from_env(n)[0][1:3])
            self._compare(n.name, name, made, scale, zero_point)
        return made

    def _compare(self, node: str, name: str, made: Tensor, scale: float, zero_point: float) -> None:
        value, exact = self._graph.values[name], self._values[name]
        if exact.size % (made.numel() // len(made)):
            return
        real = (exact - value.zero_point) * float(value.scale)
        filled = np.resize(real, (len(made), *exact.shape[1:]))  # a last part is filled up
        simulated = (made.numpy().reshape(filled.shape).astype(np.float64) - zero_point) * scale
        off = np.abs(simulated - filled)[: len(exact)]
        if self._jumps:
            off = off - _jumps(self._graph, name, self._values) * float(value.scale)
        self.steps[name] = max(self.steps.get(name, 0.0), float(off.max()) / scale)
        self._exact[node] = torch.from_numpy(filled.astype(np.float32)).reshape(made.shape)


def _jumps(graph: Graph, name: str, values: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """How far the table of a Requantize jumps around each of its values; 0 for other nodes."""
    node: Any = graph.by_name[name]
    if isinstance(node, ops.Reshape):  # how the model sees what its table made
        seen = _jumps(graph, node.inputs[0], values)
        return seen.reshape(values[name].shape) if seen.size > 1 else seen
    if not isinstance(node, ops.Requantize):
        summed = _jumps_of_pieces(graph, name, values)
        return summed + (summed > 0)  # each table rounds
    (source,) = node.inputs
    acc = values[source] - graph.values[source].zero_point
    place = (acc * along(node.multiplier, node.axis, acc.ndim) + node.offset) >> node.shift
    steps = np.abs(np.diff(np.array(node.table, np.int64)))
    around = np.maximum(np.append(steps, 0), np.append(0, steps))
    made: NDArray[np.int64] = around[np.clip(place, 0, len(node.table) - 1)]
    if _is_of_squares(graph, source):  # whose factors by channel are off by a hundredth each
        made = made + (np.abs(values[name] - node.zero_point) >> _SQUARES)
    return made + (_jumps_of_pieces(graph, source, values) if (steps == 1).all() else 0)


def _is_of_squares(graph: Graph, name: str) -> bool:
    """True for D · Σ x² - (Σ x)²."""
    node: Any = graph.by_name[name]
    if not isinstance(node, ops.Add) or node.factors[1:] != (-1,):
        return False
    return all(isinstance(graph.by_name[n], ops.MatMul) for n in node.inputs)


def _jumps_of_pieces(graph: Graph, name: str, values: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Of the sum of several tables of one value, which a table that changes nothing may read."""
    node: Any = graph.by_name[name]
    if isinstance(node, ops.Requantize):
        return _jumps(graph, name, values)
    if not isinstance(node, ops.Add) or node.factors != (1, 1):
        return np.zeros(1, np.int64)
    kinds = [type(graph.by_name[n]) for n in node.inputs]
    if not all(kind in (ops.Requantize, ops.Add) for kind in kinds):
        return np.zeros(1, np.int64)
    first, second = (_jumps_of_pieces(graph, n, values) for n in node.inputs)
    return first + second
