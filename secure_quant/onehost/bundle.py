"""Role bundles: one safetensors file each, holding the least that its role needs."""

from __future__ import annotations

import numpy as np

from secure_quant.errors import HashMismatch, MalformedModel, MissingParameters, UnsupportedVersion
from secure_quant.ir import Graph
from secure_quant.ir.artifact import decode, encode, read_tensors, write_tensors
from secure_quant.ir.public import decode_public, encode_public
from secure_quant.onehost.plan import OneHostPlan, plan

__all__ = ["load_client", "load_server", "split"]

VERSION = "1"


def split(graph: Graph) -> dict[str, bytes]:
    """ "server": the whole model and the plan. "client": the public graph and the plan.

    Raises MissingParameters on a public graph, OpNotSupported.
    """
    if graph.is_public:
        raise MissingParameters("server bundle", got="a public graph", expected="a whole model")
    text = plan(graph).to_json()
    return {
        "server": _write("onehost-server", graph, {"model": encode(graph), "plan": text}),
        "client": _write("onehost-client", graph, {"graph": encode_public(graph), "plan": text}),
    }


def load_server(data: bytes) -> tuple[Graph, OneHostPlan]:
    """The graph, with parameters. Raises MalformedModel and its kin, InvalidGraph,
    OpNotSupported."""
    parts, metadata = _read("onehost-server", ("model", "plan"), data)
    graph = decode(parts["model"], expected_hash=metadata["hash"])
    if graph.is_public:
        raise MalformedModel("server bundle", got="a public graph", expected="a whole model")
    if metadata["commitment"] != graph.commitment.hex():
        raise HashMismatch("commitment", got="another", expected=graph.commitment.hex())
    return graph, OneHostPlan.from_json(parts["plan"], graph)


def load_client(data: bytes) -> OneHostPlan:
    """Raises as ``load_server``."""
    parts, metadata = _read("onehost-client", ("graph", "plan"), data)
    try:
        commitment = bytes.fromhex(metadata["commitment"])
    except ValueError as error:
        raise MalformedModel("commitment", got="no hexadecimal digits") from error
    graph = decode_public(parts["graph"], commitment=commitment)
    if graph.hash != metadata["hash"]:
        raise HashMismatch("model", got=graph.hash, expected=metadata["hash"][:64])
    return OneHostPlan.from_json(parts["plan"], graph)


def _write(role: str, graph: Graph, parts: dict[str, bytes]) -> bytes:
    metadata = {
        "format": f"secure-quant-{role}/{VERSION}",
        "hash": graph.hash,
        "commitment": graph.commitment.hex(),
    }
    return write_tensors({k: np.frombuffer(v, np.uint8) for k, v in parts.items()}, metadata)


def _read(
    role: str, names: tuple[str, ...], data: bytes
) -> tuple[dict[str, bytes], dict[str, str]]:
    tensors, metadata = read_tensors(data)
    expected, got = f"secure-quant-{role}/{VERSION}", metadata.get("format", "nothing")
    if got != expected:
        known = got.startswith(f"secure-quant-{role}/")
        kind = UnsupportedVersion if known else MalformedModel
        raise kind("bundle", got=ascii(got[:80]), expected=expected)
    whole = set(tensors) == set(names) and set(metadata) == {"format", "hash", "commitment"}
    if not whole or any(t.dtype != np.uint8 or t.ndim != 1 for t in tensors.values()):
        raise MalformedModel("bundle", got=sorted(tensors)[:8], expected=sorted(names))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata
