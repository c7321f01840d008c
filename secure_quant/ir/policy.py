"""What a client may learn of the output: all of it, or the places of its largest alone."""

from __future__ import annotations

from dataclasses import replace

from secure_quant.errors import ConfigError, OpNotSupported
from secure_quant.ir import ops
from secure_quant.ir.graph import Graph

__all__ = ["with_output"]

_EXPECTED = "scores, argmax, or top-K with K a number"
_MOST = 4


def with_output(graph: Graph, output: str) -> Graph:
    """``graph`` with another end, under the same commitment.

    output  scores: as it is. argmax: the index of the largest score, of equal ones the lowest.
            top-K: those of the K largest, the largest first.

    Scores lie along the axis of the output's multipliers; where it has one for all, along the first
    of three axes, else along the last. Under secret sharing nothing else is opened; under
    homomorphic encryption the client takes this step itself, and it hides nothing.
    Raises ConfigError, and OpNotSupported for outputs that are no scores of one kind.
    """
    count = _count(output)
    if not count:
        return graph
    ends = graph.output_ports
    if len(ends) > 1:
        names = ", ".join(port.name for port in ends[:8])
        raise OpNotSupported(
            f"output {output}", got=f"{len(ends)} outputs: {names}", expected="one, of scores",
            hint="return the scores alone from forward",
        )  # fmt: skip
    (port,) = ends
    end = graph.by_name[port.node]
    (source,) = end.inputs
    shape = graph.values[source].shape
    axis = port.axis % len(shape) if len(port.multiplier) > 1 else 0 if len(shape) == 3 else -1
    if not count <= shape[axis] > 1:
        raise OpNotSupported(
            f"output {output}", got=f"{shape[axis]} scores", expected=f"at least {max(count, 2)}",
            hint="a single score is compared with 0: let forward return it beside a 0",
        )  # fmt: skip
    order = ops.TopK(
        name=_name(graph, "order"), inputs=(source,), multiplier=port.multiplier, axis=axis,
        count=count,
    )  # fmt: skip
    changed = replace(end, inputs=(order.name,), multiplier=(1,), axis=-1, scale=1.0)  # type: ignore[call-arg]
    nodes: list[ops.Node] = []
    for node in graph.nodes:
        nodes += [order, changed] if node is end else [node]
    return Graph(tuple(nodes), graph.parameters, graph.salt, graph.commitment, graph.lookups)


def _count(output: str) -> int:
    """Places; 0 for all scores. Raises ConfigError."""
    if output == "scores":
        return 0
    if output == "argmax":
        return 1
    kind, _, number = str(output).partition("-")
    if kind != "top" or not number.isdecimal() or len(number) > _MOST or int(number) < 1:
        raise ConfigError("output", got=ascii(output)[:40], expected=_EXPECTED)
    return int(number)


def _name(graph: Graph, wanted: str) -> str:
    made, number = wanted, 1
    while made in graph.by_name:
        number += 1
        made = f"{wanted}{number}"
    return made
