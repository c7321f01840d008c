"""Bundles of engines whose server holds the whole model: named parts in one safetensors file.

A server's has the model and the plan, a client's the public graph and the plan. Both say which
model they are of, and neither is taken for the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secure_quant.errors import HashMismatch, MalformedModel, MissingParameters, UnsupportedVersion
from secure_quant.ir.artifact import decode, encode, read_tensors, write_tensors
from secure_quant.ir.graph import Graph
from secure_quant.ir.lookups import join_lookups
from secure_quant.ir.public import decode_public, encode_public

__all__ = ["VERSION", "client_parts", "server_parts", "write_pair"]

VERSION = "1"
TABLES = "lookups"
"""The part with the rows of public tables."""


def write_pair(engine: str, graph: Graph, plan: Callable[[], bytes]) -> dict[str, bytes]:
    """The bundles "server" and "client", the client's with the public tables, if there are any.

    Raises MissingParameters on a public graph, before it is planned, and what ``plan`` raises.
    """
    if graph.is_public:
        raise MissingParameters("server bundle", got="a public graph", expected="a whole model")
    text = plan()
    public = {"graph": encode_public(graph), "plan": text}
    if graph.lookups:
        public[TABLES] = join_lookups(graph.nodes, graph.lookups)
    return {
        "server": _write(f"{engine}-server", graph, {"model": encode(graph), "plan": text}),
        "client": _write(f"{engine}-client", graph, public),
    }


def server_parts(engine: str, data: bytes) -> tuple[Graph, bytes]:
    """The graph, with parameters, and its plan. Raises MalformedModel and its kin, InvalidGraph."""
    parts, metadata = _read(f"{engine}-server", ("model", "plan"), data, ())
    graph = decode(parts["model"], expected_hash=metadata["hash"])
    if graph.is_public:
        raise MalformedModel("server bundle", got="a public graph", expected="a whole model")
    if metadata["commitment"] != graph.commitment.hex():
        raise HashMismatch("commitment", got="another", expected=graph.commitment.hex())
    return graph, parts["plan"]


def client_parts(engine: str, data: bytes) -> tuple[Graph, bytes]:
    """The public graph, with public tables if there are any, and its plan. Raises as
    ``server_parts``."""
    parts, metadata = _read(f"{engine}-client", ("graph", "plan"), data, (TABLES,))
    try:
        commitment = bytes.fromhex(metadata["commitment"])
    except ValueError as error:
        raise MalformedModel("commitment", got="no hexadecimal digits") from error
    lookups = parts.get(TABLES, b"")
    graph = decode_public(parts["graph"], commitment=commitment, lookups=lookups)
    if graph.hash != metadata["hash"]:
        raise HashMismatch("model", got=graph.hash, expected=metadata["hash"][:64])
    return graph, parts["plan"]


def _write(role: str, graph: Graph, parts: dict[str, bytes]) -> bytes:
    metadata = {
        "format": f"secure-quant-{role}/{VERSION}",
        "hash": graph.hash,
        "commitment": graph.commitment.hex(),
    }
    return write_tensors({k: np.frombuffer(v, np.uint8) for k, v in parts.items()}, metadata)


def _read(
    role: str, names: tuple[str, ...], data: bytes, maybe: tuple[str, ...]
) -> tuple[dict[str, bytes], dict[str, str]]:
    tensors, metadata = read_tensors(data)
    expected, got = f"secure-quant-{role}/{VERSION}", metadata.get("format", "nothing")
    if got != expected:
        known = got.startswith(f"secure-quant-{role}/")
        kind = UnsupportedVersion if known else MalformedModel
        model = got.split("/")[0] == "secure-quant"
        hint = "a whole model: split it first, into a bundle for each role" if model else None
        raise kind("bundle", got=ascii(got[:80]), expected=expected, hint=hint)
    own = set(tensors) - set(maybe) == set(names)
    whole = own and set(metadata) == {"format", "hash", "commitment"}
    if not whole or any(t.dtype != np.uint8 or t.ndim != 1 for t in tensors.values()):
        raise MalformedModel("bundle", got=sorted(tensors)[:8], expected=sorted(names))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata
