"""Graphs <-> the public parts that a hash covers and that cross the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from secure_quant.errors import MalformedModel
from secure_quant.ir.codec import PublicParts, encode_nodes, joined, parse_nodes
from secure_quant.ir.graph import Graph
from secure_quant.ir.lookups import split_lookups

__all__ = ["check_canonical", "decode_public", "encode_public", "from_parts", "to_parts"]


def to_parts(graph: Graph) -> PublicParts:
    """The public half of a graph, byte for byte reproducible."""
    return encode_nodes(graph.nodes)


def from_parts(
    parts: PublicParts,
    *,
    parameters: Mapping[str, NDArray[Any]] | None = None,
    salt: bytes = b"",
    commitment: bytes = b"",
    lookups: bytes = b"",
) -> Graph:
    """Inverse of ``to_parts``; ``lookups``: the public tables, or none of them. Raises
    MalformedModel, UnsupportedVersion, InvalidGraph, OverflowRisk, HashMismatch."""
    nodes = parse_nodes(parts)
    tables = split_lookups(nodes, lookups)
    graph = Graph(nodes, parameters or {}, salt, commitment, tables)
    check_canonical(graph, parts)
    return graph


def check_canonical(graph: Graph, parts: PublicParts) -> None:
    """Raises MalformedModel unless ``parts`` are the very bytes that ``graph`` is written as: no
    name twice, no spare blank, no other spelling of a number."""
    if to_parts(graph) != parts:
        raise MalformedModel("public graph", got="another encoding", expected="the canonical one")


def encode_public(graph: Graph) -> bytes:
    """The three parts as one string of bytes."""
    return joined(to_parts(graph))


def decode_public(data: bytes, *, commitment: bytes, lookups: bytes = b"") -> Graph:
    """Inverse of ``encode_public``; the graph is public. Raises as ``from_parts``."""
    found: list[bytes] = []
    rest = memoryview(data)
    for _ in range(3):
        size = int.from_bytes(rest[:8], "little")
        if len(rest) < 8 or size > len(rest) - 8:
            raise MalformedModel("public graph", got=f"{len(data)} bytes", expected="more")
        found.append(bytes(rest[8 : 8 + size]))
        rest = rest[8 + size :]
    if len(rest):
        raise MalformedModel("public graph", got=f"{len(rest)} bytes too many", expected="none")
    return from_parts(PublicParts(*found), commitment=commitment, lookups=lookups)
