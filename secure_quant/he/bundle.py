"""Role bundles: one safetensors file each, holding the least that its role needs."""

from __future__ import annotations

from secure_quant.he.evaluate import STOCK_MEMORY, Evaluator
from secure_quant.he.parameters import Tier
from secure_quant.he.plan import HePlan, plan
from secure_quant.he.search import Objective
from secure_quant.ir import Graph
from secure_quant.ir.bundle import client_parts, server_parts, write_pair
from secure_quant.ir.policy import with_output

__all__ = ["load_client", "load_server", "split"]


def split(
    graph: Graph, objective: Objective = "latency", tier: Tier = "T1", *, output: str = "scores"
) -> dict[str, bytes]:
    """ "server": the whole model and the plan. "client": the public graph and the plan.

    ``output``: as ``with_output`` has it; the client takes that step itself, and it hides nothing.
    Raises MissingParameters on a public graph, OpNotSupported, ConfigError.
    """
    graph = with_output(graph, output)
    return write_pair("he", graph, lambda: plan(graph, objective, tier).to_json())


def load_server(data: bytes, *, stock_memory: int = STOCK_MEMORY) -> Evaluator:
    """stock_memory: see Evaluator. Raises MalformedModel and its kin, InvalidGraph,
    InsecureRefused."""
    graph, text = server_parts("he", data)
    return Evaluator(graph, HePlan.from_json(text, graph), stock_memory=stock_memory)


def load_client(data: bytes) -> tuple[Graph, HePlan]:
    """Raises as ``load_server``."""
    graph, text = client_parts("he", data)
    return graph, HePlan.from_json(text, graph)
