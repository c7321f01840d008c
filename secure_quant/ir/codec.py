"""Nodes <-> their public encoding: canonical JSON for the nodes, an array for the tables and one
for the multipliers.

The three parts together are what a public graph's hash covers and what crosses the wire, so their
bytes are frozen: another encoding of the same graph is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedModel, UnsupportedVersion
from secure_quant.ir.container import unique_keys
from secure_quant.ir.ops import (
    OPS,
    Add,
    Embedding,
    Gather,
    IdPort,
    InputPort,
    Node,
    OutputPort,
    TopK,
    is_kind,
)
from secure_quant.ir.sums import layer_sums
from secure_quant.ir.verify import MAX_NODES, MAX_TABLE

__all__ = ["VERSIONS", "PublicParts", "encode_nodes", "joined", "parse_nodes", "version_of"]

VERSIONS = (1, 2, 3, 4)
"""2 is 1 with ports and Gather; 3 is 2 with secret tables and TopK; 4 is 3 with an Add of layers'
accumulators, or along another axis than the last."""
_THIRD = (IdPort, Embedding, TopK)
_UNWRITTEN: dict[tuple[type[Node], str], Any] = {(Add, "axis"): -1}
"""Field -> the value that stands in no file: it came with a later version."""
MAX_JSON = 4 * 2**20


@dataclass(frozen=True)
class PublicParts:
    """graph: canonical JSON, UTF-8. tables: int16 little-endian, every table in node order.
    multipliers: uint8, likewise."""

    graph: bytes
    tables: bytes
    multipliers: bytes


def version_of(nodes: Sequence[Node]) -> int:
    """The least version of the format that has all these ops."""
    if any(isinstance(node, Add) and node.axis != -1 for node in nodes) or layer_sums(nodes):
        return 4
    kinds = {type(node) for node in nodes}
    if kinds & set(_THIRD):
        return 3
    return 2 if any(issubclass(kind, InputPort | OutputPort | Gather) for kind in kinds) else 1


def encode_nodes(nodes: Sequence[Node]) -> PublicParts:
    """The public half of a graph, byte for byte reproducible."""
    tables: list[int] = []
    multipliers: list[int] = []
    records = []
    for node in nodes:
        record: dict[str, Any] = {"op": type(node).__name__}
        for f in fields(node):
            value = getattr(node, f.name)
            if _UNWRITTEN.get((type(node), f.name)) == value:
                continue
            if f.name == "table":
                tables.extend(value)
                value = len(value)
            elif f.name == "multiplier":
                multipliers.extend(value)
                value = len(value)
            record[f.name] = value
        records.append(record)
    document = {"nodes": records, "version": version_of(nodes)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return PublicParts(
        text.encode(), np.array(tables, "<i2").tobytes(), np.array(multipliers, np.uint8).tobytes()
    )


def parse_nodes(parts: PublicParts) -> tuple[Node, ...]:
    """The nodes alone, well-formed but not yet verified.

    Raises MalformedModel, UnsupportedVersion.
    """
    document = _json(parts.graph)
    if len(parts.tables) % 2:
        raise MalformedModel("tables", got=f"{len(parts.tables)} bytes", expected="an even number")
    pools = {
        "table": _Pool(np.frombuffer(parts.tables, "<i2"), MAX_TABLE),
        "multiplier": _Pool(np.frombuffer(parts.multipliers, np.uint8), len(parts.multipliers)),
    }
    nodes = tuple(_node(record, pools) for record in document)
    for name, pool in pools.items():
        if pool.left:
            raise MalformedModel(f"{name} entries", got=f"{pool.left} left over", expected="none")
    return nodes


def joined(parts: PublicParts) -> bytes:
    """The three parts, each behind its length in 8 bytes: the input of the model hash."""
    return b"".join(
        len(part).to_bytes(8, "little") + part
        for part in (parts.graph, parts.tables, parts.multipliers)
    )


class _Pool:
    """Entries handed out in order."""

    def __init__(self, entries: NDArray[Any], limit: int) -> None:
        self._entries, self._limit, self._next = entries, limit, 0

    @property
    def left(self) -> int:
        return len(self._entries) - self._next

    def take(self, count: object) -> tuple[int, ...]:
        limit = min(self._limit, self.left)
        if type(count) is not int or not 1 <= count <= limit:
            raise MalformedModel("entries of a node", expected=f"a number from 1 to {limit}")
        start, self._next = self._next, self._next + count
        return tuple(self._entries[start : self._next].tolist())


def _json(text: bytes) -> list[Any]:
    if len(text) > MAX_JSON:
        raise MalformedModel("graph JSON", got=f"{len(text)} bytes", expected=f"<= {MAX_JSON}")
    try:
        document = json.loads(text.decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MalformedModel("graph is not JSON") from error
    if not isinstance(document, dict) or set(document) != {"version", "nodes"}:
        raise MalformedModel("graph JSON", expected="an object with version and nodes")
    version, nodes = document["version"], document["nodes"]
    if type(version) is not int or not isinstance(nodes, list):
        raise MalformedModel("graph JSON", expected="a version number and a list of nodes")
    if version not in VERSIONS:
        raise UnsupportedVersion("format", got="another version", expected=VERSIONS)
    if len(nodes) > MAX_NODES:
        raise MalformedModel("number of nodes", got=len(nodes), expected=f"<= {MAX_NODES}")
    return nodes


def _node(record: Any, pools: Mapping[str, _Pool]) -> Node:
    name = record.get("op") if isinstance(record, dict) else None
    if not isinstance(name, str) or name not in OPS:
        got = ascii(name[:80]) if isinstance(name, str) else "no op"
        raise MalformedModel("op", got=got, expected=f"one of {', '.join(OPS)}")
    kinds = {f.name: str(f.type) for f in fields(OPS[name])}
    for kind, field in _UNWRITTEN:
        if kind is OPS[name] and field not in record:
            del kinds[field]
    if set(record) != {"op", *kinds}:
        odd = sorted(ascii(key[:80]) for key in set(record) ^ {"op", *kinds})[:4]
        raise MalformedModel(f"fields of {name}", got=odd, expected=sorted(kinds))
    arguments: dict[str, Any] = {
        field: pools[field].take(record[field])
        if field in pools
        else _field(f"{name}.{field}", record[field], kind)
        for field, kind in kinds.items()
    }
    return OPS[name](**arguments)


def _field(where: str, value: Any, kind: str) -> Any:
    """``value`` as the field's annotation says, or MalformedModel."""
    if isinstance(value, list) and (kind == "Pair" or kind.startswith("tuple")):
        value = tuple(value)
    if not is_kind(value, kind):
        raise MalformedModel(where, got=type(value).__name__, expected=kind)
    return value
