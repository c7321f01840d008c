"""Graph <-> PublicModel and ModelInfo. What comes from a peer is believed only as far as the hash
goes."""

from __future__ import annotations

from dataclasses import dataclass

from secure_quant.errors import HashMismatch, MalformedMessage
from secure_quant.ir import Graph
from secure_quant.ir.codec import PublicParts
from secure_quant.ir.lookups import join_lookups
from secure_quant.ir.public import from_parts, to_parts
from secure_quant.wire.gen.model_pb2 import ModelInfo, PublicModel

__all__ = [
    "ReceivedModel",
    "graph_from_proto",
    "graph_to_proto",
    "info_from_proto",
    "info_to_proto",
]

MAX_PLAN = 64 * 2**20


@dataclass(frozen=True)
class ReceivedModel:
    """graph: public, its hash recomputed. plan: the engine's public plan, not covered by the hash;
    the engine checks it against the graph."""

    graph: Graph
    plan: bytes


def graph_to_proto(graph: Graph) -> PublicModel:
    """The public half of a graph; weights and salt stay behind."""
    parts = to_parts(graph)
    return PublicModel(
        graph=parts.graph,
        tables=parts.tables,
        multipliers=parts.multipliers,
        commitment=graph.commitment,
        lookups=join_lookups(graph.nodes, graph.lookups),
    )


def graph_from_proto(message: PublicModel) -> Graph:
    """Inverse of ``graph_to_proto``. Raises MalformedModel, UnsupportedVersion, InvalidGraph,
    OverflowRisk, MalformedMessage."""
    if len(message.commitment) != 32:
        got = f"{len(message.commitment)} bytes"
        raise MalformedMessage("commitment", got=got, expected="32 bytes")
    parts = PublicParts(message.graph, message.tables, message.multipliers)
    return from_parts(parts, commitment=message.commitment, lookups=message.lookups)


def info_to_proto(graph: Graph, plan: bytes) -> ModelInfo:
    """What a server tells every client about a model."""
    return ModelInfo(model_hash=graph.hash, model=graph_to_proto(graph), plan=plan)


def info_from_proto(message: ModelInfo, *, expected_hash: str | None = None) -> ReceivedModel:
    """The model of an answer, every byte of the graph checked against its hash.

    Raises HashMismatch if the content does not hash to its name or the name is not
    ``expected_hash``; ModelError and MalformedMessage as ``graph_from_proto``.
    """
    if expected_hash is not None and message.model_hash != expected_hash:
        raise HashMismatch(
            "the server offers another model", got=message.model_hash[:64], expected=expected_hash
        )
    if not message.HasField("model"):
        raise MalformedMessage("model information", expected="a public model")
    if len(message.plan) > MAX_PLAN:
        raise MalformedMessage("plan", got=f"{len(message.plan)} bytes", expected=f"<= {MAX_PLAN}")
    graph = graph_from_proto(message.model)
    if graph.hash != message.model_hash:
        raise HashMismatch("public model", got=graph.hash, expected=message.model_hash[:64])
    return ReceivedModel(graph, message.plan)
