"""Public tables that a client takes rows of: bound to the graph by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import HashMismatch, InvalidGraph, MalformedModel
from secure_quant.ir import ops

__all__ = ["checked_lookups", "digest_of", "join_lookups", "split_lookups"]

Array = NDArray[Any]


def digest_of(table: Array) -> str:
    """SHA-256 of an int8 table's bytes in row-major order, 64 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()


def checked_lookups(nodes: Sequence[ops.Node], lookups: Mapping[str, Array]) -> Mapping[str, Array]:
    """Read-only copies of the tables of all LookupPorts, or of none. Raises InvalidGraph,
    HashMismatch."""
    ports = {node.name: node for node in nodes if isinstance(node, ops.LookupPort)}
    if not lookups:
        return MappingProxyType({})
    if set(lookups) != set(ports):
        raise InvalidGraph("public tables", got=sorted(lookups)[:4], expected=sorted(ports)[:4])
    made: dict[str, Array] = {}
    for name, node in ports.items():
        table, shape = lookups[name], (node.rows, node.shape[-1])
        if table.dtype != np.int8 or table.shape != shape:
            got = f"{table.dtype}{list(table.shape)}"
            raise InvalidGraph(f"public table {name!r}", got=got, expected=f"int8{list(shape)}")
        if digest_of(table) != node.digest:
            raise HashMismatch(f"public table {name!r}", got="other bytes", expected=node.digest)
        made[name] = np.array(table, order="C")
        made[name].flags.writeable = False
    return MappingProxyType(made)


def join_lookups(nodes: Sequence[ops.Node], lookups: Mapping[str, Array]) -> bytes:
    """All tables end to end, in node order; nothing where they are not there."""
    return b"".join(lookups[node.name].tobytes() for node in nodes if node.name in lookups)


def split_lookups(nodes: Sequence[ops.Node], data: bytes) -> dict[str, Array]:
    """Inverse of ``join_lookups``. Raises MalformedModel unless ``data`` are just the tables."""
    made: dict[str, Array] = {}
    place = 0
    ports = [node for node in nodes if isinstance(node, ops.LookupPort)]
    if not data:
        return made
    fits = all(node.shape and min(node.rows, node.shape[-1]) > 0 for node in ports)
    if not fits or len(data) != sum(node.rows * node.shape[-1] for node in ports):
        raise MalformedModel("public tables", got=f"{len(data)} bytes", expected="all of them")
    for node in ports:
        size = node.rows * node.shape[-1]
        table = np.frombuffer(data, np.int8, size, place)
        made[node.name] = table.reshape(node.rows, node.shape[-1])
        place += size
    return made
