"""What ``verify`` compares: an executor each, in this process and without a network. Those of the
engines are in ``engines``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import Graph
from secure_quant.ir.effort import effort

__all__ = ["Executor", "Run", "Seconds", "onnx_engine", "reference_engine", "work_of"]

Seconds = dict[str, float]


@dataclass(frozen=True)
class Run:
    """values: integers by node name, at least the Output's, int64[batch, *shape].
    rounds: exchanges of the parties, or trips to the server. sent: payload bytes by one party, or
    by client and server together. seconds: computing time by node name, where it can be told:
    party 0 online; the server. client_seconds: encryption and decryption by node name. online:
    CPU seconds that an answer waits for, with all made ahead that can be: of one party, or of both
    ends together."""

    values: dict[str, NDArray[np.int64]]
    rounds: int
    sent: int
    seconds: Seconds = field(default_factory=dict)
    client_seconds: Seconds = field(default_factory=dict)
    online: float = 0.0


def work_of(graph: Graph, batch: int) -> tuple[float, float, float]:
    """Products and lookups of so many samples, and the ops of the longest chain: what computing
    gate by gate is linear in."""
    work = effort(graph)
    return batch * work.products, batch * work.lookups, work.depth


Executor = Callable[[NDArray[np.int8]], Run]
"""int8[batch, *input shape] -> what came out."""


def reference_engine(graph: Graph) -> Executor:
    """The plaintext reference, node by node: ``reference.trace`` with a watch."""
    from secure_quant import reference

    def run(q: NDArray[np.int8]) -> Run:
        values: dict[str, NDArray[np.int64]] = {graph.input.name: q.astype(np.int64)}
        seconds: Seconds = {}
        for node in graph.nodes[1:]:
            start = perf_counter()
            inputs = [values[name] for name in node.inputs]
            values[node.name] = reference.evaluate(graph, node, inputs)
            seconds[node.name] = perf_counter() - start
        return Run(values, 0, 0, seconds)

    return run


def onnx_engine(graph: Graph) -> Executor:
    """onnxruntime on the export: a witness that shares no code with this library."""
    import onnxruntime

    from secure_quant.interop.onnx_export import feeds, packed, to_onnx

    data = to_onnx(graph, inner=True).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(q: NDArray[np.int8]) -> Run:
        made = dict(zip(names, session.run(None, feeds(graph, q)), strict=True))
        inner = [name for name in names if name.startswith("ir/")]
        values = {name.removeprefix("ir/"): made[name] for name in inner}
        return Run(values | {graph.output.name: packed(graph, made)}, 0, 0)

    return run
