"""Role bundles: one safetensors file each, holding the least that its role needs."""

from __future__ import annotations

from secure_quant.ir import Graph
from secure_quant.ir.bundle import client_parts, server_parts, write_pair
from secure_quant.onehost.plan import OneHostPlan, plan
from secure_quant.onehost.sources import Objective

__all__ = ["load_client", "load_server", "split"]


def split(
    graph: Graph, objective: Objective = "latency", calls: int | None = None
) -> dict[str, bytes]:
    """ "server": the whole model and the plan. "client": the public graph and the plan. calls:
    samples of one client that it is good for, by default as ``plan`` says.

    Raises MissingParameters on a public graph, OpNotSupported.
    """
    return write_pair("onehost", graph, lambda: plan(graph, calls, objective).to_json())


def load_server(data: bytes) -> tuple[Graph, OneHostPlan]:
    """The graph, with parameters. Raises MalformedModel and its kin, InvalidGraph,
    OpNotSupported."""
    graph, text = server_parts("onehost", data)
    return graph, OneHostPlan.from_json(text, graph)


def load_client(data: bytes) -> OneHostPlan:
    """Raises as ``load_server``."""
    graph, text = client_parts("onehost", data)
    return OneHostPlan.from_json(text, graph)
