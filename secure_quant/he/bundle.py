"""Role bundles: one safetensors file each, holding the least that its role needs."""

from __future__ import annotations

import numpy as np

from secure_quant.errors import HashMismatch, MalformedModel, MissingParameters, UnsupportedVersion
from secure_quant.he.evaluate import STOCK_MEMORY, Evaluator
from secure_quant.he.parameters import Tier
from secure_quant.he.plan import HePlan, plan
from secure_quant.he.search import Objective
from secure_quant.ir import Graph
from secure_quant.ir.artifact import decode, encode, read_tensors, write_tensors
from secure_quant.ir.lookups import join_lookups
from secure_quant.ir.public import decode_public, encode_public

__all__ = ["load_client", "load_server", "split"]

VERSION = "1"


def split(graph: Graph, objective: Objective = "latency", tier: Tier = "T1") -> dict[str, bytes]:
    """ "server": the whole model and the plan. "client": the public graph and the plan.

    Raises MissingParameters on a public graph, OpNotSupported.
    """
    if graph.is_public:
        raise MissingParameters("server bundle", got="a public graph", expected="a whole model")
    text = plan(graph, objective, tier).to_json()
    public = {"graph": encode_public(graph), "plan": text}
    if graph.lookups:
        public["lookups"] = join_lookups(graph.nodes, graph.lookups)
    return {
        "server": _write("he-server", graph, {"model": encode(graph), "plan": text}),
        "client": _write("he-client", graph, public),
    }


def load_server(data: bytes, *, stock_memory: int = STOCK_MEMORY) -> Evaluator:
    """stock_memory: see Evaluator. Raises MalformedModel and its kin, InvalidGraph,
    InsecureRefused."""
    parts, metadata = _read("he-server", ("model", "plan"), data)
    graph = decode(parts["model"], expected_hash=metadata["hash"])
    if graph.is_public:
        raise MalformedModel("server bundle", got="a public graph", expected="a whole model")
    if metadata["commitment"] != graph.commitment.hex():
        raise HashMismatch("commitment", got="another", expected=graph.commitment.hex())
    made = HePlan.from_json(parts["plan"], graph)
    return Evaluator(graph, made, stock_memory=stock_memory)


def load_client(data: bytes) -> tuple[Graph, HePlan]:
    """Raises as ``load_server``."""
    parts, metadata = _read("he-client", ("graph", "plan"), data, ("lookups",))
    try:
        commitment = bytes.fromhex(metadata["commitment"])
    except ValueError as error:
        raise MalformedModel("commitment", got="no hexadecimal digits") from error
    lookups = parts.get("lookups", b"")
    graph = decode_public(parts["graph"], commitment=commitment, lookups=lookups)
    if graph.hash != metadata["hash"]:
        raise HashMismatch("model", got=graph.hash, expected=metadata["hash"][:64])
    return graph, HePlan.from_json(parts["plan"], graph)


def _write(role: str, graph: Graph, parts: dict[str, bytes]) -> bytes:
    metadata = {
        "format": f"secure-quant-{role}/{VERSION}",
        "hash": graph.hash,
        "commitment": graph.commitment.hex(),
    }
    return write_tensors({k: np.frombuffer(v, np.uint8) for k, v in parts.items()}, metadata)


def _read(
    role: str, names: tuple[str, ...], data: bytes, maybe: tuple[str, ...] = ()
) -> tuple[dict[str, bytes], dict[str, str]]:
    tensors, metadata = read_tensors(data)
    expected, got = f"secure-quant-{role}/{VERSION}", metadata.get("format", "nothing")
    if got != expected:
        known = got.startswith(f"secure-quant-{role}/")
        kind = UnsupportedVersion if known else MalformedModel
        raise kind("bundle", got=got[:80], expected=expected)
    own = set(tensors) - set(maybe) == set(names)
    whole = own and set(metadata) == {"format", "hash", "commitment"}
    if not whole or any(t.dtype != np.uint8 or t.ndim != 1 for t in tensors.values()):
        raise MalformedModel("bundle", got=sorted(tensors)[:8], expected=sorted(names))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata
