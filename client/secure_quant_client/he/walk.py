"""The client's walk through a public graph under homomorphic encryption, without any network.

A linear layer is a request to the server; every other node is the reference's own integer step.
Linear layers that do not wait for each other are requested together.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secure_quant import reference
from secure_quant.ir import Graph
from secure_quant.ir.ops import Conv2d, Linear, Node

if TYPE_CHECKING:
    from secure_quant.he.plan import HePlan
    from secure_quant_client.he.ckks import CkksKeys

__all__ = ["Request", "Values", "Walk", "largest_batch", "walk"]

Values = dict[str, NDArray[np.int64]]


class Request(NamedTuple):
    """One EvaluateLinear call."""

    step: int
    batch: int
    ciphertexts: bytes


Walk = Generator[list[Request], list[bytes], Values]
"""Yields the requests that may go out now, is sent their answers in order, returns every value."""


def walk(graph: Graph, session: CkksKeys, q: NDArray[np.int64]) -> Walk:
    """int64[batch, *input shape] holding int8 -> every node's value, int64[batch, *shape].

    ``session`` holds a secret key that no other inference has used; nothing that depends on it is
    sent but fresh encryptions of rounded integers, and nothing is sent twice.
    Raises MalformedMessage if the server's answer is not what the plan promises.
    """
    plan, batch = session.plan, len(q)
    values: Values = {graph.input.name: q}
    left = list(graph.nodes[1:])
    while left:
        left, linear = _advance(graph, left, values)
        if not linear:
            break
        steps = [plan.step_of[node.name] for node in linear]
        requests = [
            Request(step, batch, session.encrypt(step, _centred(graph, node, values)))
            for step, node in zip(steps, linear, strict=True)
        ]
        answers = yield requests
        for step, node, answer in zip(steps, linear, answers, strict=True):
            values[node.name] = session.decrypt(step, batch, answer)
    return values


def largest_batch(plan: HePlan, message_bytes: int) -> int:
    """Samples in one walk such that every message stays below the limit: a power of two, or 1."""
    from secure_quant.he.plan import MAX_BATCH

    batch = 1
    while 2 * batch <= MAX_BATCH and _largest_message(plan, 2 * batch) <= message_bytes:
        batch *= 2
    return batch


def _largest_message(plan: HePlan, batch: int) -> int:
    costs = [step.call(batch).cost for step in plan.steps]
    # What protobuf adds around the ciphertexts is well below a kilobyte.
    return 1024 + max((max(cost.bytes_up, cost.bytes_down) for cost in costs), default=0)


def _advance(
    graph: Graph, nodes: list[Node], values: Values
) -> tuple[list[Node], list[Linear | Conv2d]]:
    """Compute every node that needs no server; (nodes that wait, linear nodes ready to go)."""
    waiting: list[Node] = []
    ready: list[Linear | Conv2d] = []
    for node in nodes:
        if not all(name in values for name in node.inputs):
            waiting.append(node)
        elif isinstance(node, Linear | Conv2d):
            ready.append(node)
        else:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = reference.evaluate(graph, node, inputs)
    return waiting, ready


def _centred(graph: Graph, node: Linear | Conv2d, values: Values) -> NDArray[np.int64]:
    """x̂ = q - zero point of the node's input."""
    (name,) = node.inputs
    zero_point = graph.values[name].zero_point
    return values[name] - zero_point if zero_point else values[name]
