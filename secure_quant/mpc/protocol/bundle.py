"""Role bundles: one safetensors file per role, holding the least that the role needs.

Every bundle has the public graph, the commitment to the weights and the plan. A party's has the
masked weights D_W = W + r_W, masked secret tables D_T = T ^ r_T, the seed of its share of r_W and
r_T, and its share of each bias; the dealer's has both seeds and no weight; the client's has nothing
more. Public tables that clients take rows of are in all but the dealer's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import HashMismatch, MalformedModel
from secure_quant.ir import Graph
from secure_quant.ir.artifact import read_tensors, write_tensors
from secure_quant.ir.codec import PublicParts
from secure_quant.ir.lookups import join_lookups
from secure_quant.ir.policy import with_output
from secure_quant.ir.public import from_parts, to_parts
from secure_quant.keystream import SEED_BYTES, Keystream
from secure_quant.mpc.protocol.deal import DealerProgram
from secure_quant.mpc.protocol.gates.embedding import EmbeddingGate, TableShares, as_rows
from secure_quant.mpc.protocol.gates.linear import LinearGate, PartyWeights, weight_shape
from secure_quant.mpc.protocol.party import PartyProgram
from secure_quant.mpc.protocol.plan import MpcPlan, Objective, plan
from secure_quant.mpc.protocol.ring import Ring, narrow_kind, to_ring
from secure_quant.mpc.protocol.weights import sums

__all__ = ["load_client", "load_dealer", "load_party", "split"]

FORMAT = "secure-quant-mpc/1"
Tensors = dict[str, NDArray[Any]]


def split(
    graph: Graph, objective: Objective = "balanced", *, streamed: bool | None = None,
    output: str = "scores",
) -> dict[str, bytes]:  # fmt: skip
    """Bundles "party0", "party1", "dealer" and "client", under fresh seeds of the operating system.

    ``streamed``: as in ``plan``. ``output``: what clients learn, as ``with_output`` has it. Raises
    OpNotSupported, MissingParameters, ConfigError.
    """
    graph = with_output(graph, output)
    made = plan(graph, objective, streamed=streamed)
    seeds = [secrets.token_bytes(SEED_BYTES) for _ in range(2)]
    streams = [Keystream(seed) for seed in seeds]
    tensors: list[Tensors] = [{"seed": np.frombuffer(seed, np.uint8)} for seed in seeds]
    for gate in _linear(made):
        name, shape = gate.name, weight_shape(gate.node)
        weight = graph.weight(gate.node).reshape(-1)

        def masked(words: Ring, at: int, weight: NDArray[Any] = weight) -> Ring:
            return words + to_ring(weight[at : at + len(words)], 64)

        stored = sums(shape, gate.bits, streams, masked)
        bias = to_ring(graph.bias(gate.node), 64)
        first = np.frombuffer(secrets.token_bytes(8 * bias.size), np.uint64)
        for party, share in enumerate((first, bias - first)):
            tensors[party][f"{name}.masked"] = stored.view(np.int32) if gate.bits <= 32 else stored
            tensors[party][f"{name}.bias"] = share
    for table in _tables(made):
        hidden = graph.parameters[f"{table.name}.weight"].view(np.uint8)
        for stream in streams:
            hidden = hidden ^ _drawn(table, stream)
        for party in range(2):
            tensors[party][f"{table.name}.masked"] = hidden
    both = np.frombuffer(b"".join(seeds), np.uint8).reshape(2, SEED_BYTES)
    return {
        "party0": _write(made, "party0", tensors[0]),
        "party1": _write(made, "party1", tensors[1]),
        "dealer": _write(made, "dealer", {"seeds": both}),
        "client": _write(made, "client", {}),
    }


def load_party(data: bytes | memoryview, *, weights: bool = True) -> PartyProgram:
    """``weights``: False for one that knows the plan alone and runs nothing. What is loaded keeps
    ``data``, of which its weights are a part.

    Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    role, made, tensors = _read(data, ("party0", "party1"))
    party = 0 if role == "party0" else 1
    seed = _take(tensors, "seed", np.uint8, (SEED_BYTES,)).tobytes()
    stream = Keystream(seed)
    parameters: dict[str, Any] = {}
    for gate in _linear(made):
        shape = weight_shape(gate.node)
        masked = _masked(tensors, gate)
        bias = _take(tensors, f"{gate.name}.bias", np.uint64, (shape[0] * shape[1],))
        if not weights:
            continue
        flat = masked.reshape(-1) if party == 0 else None

        def less(words: Ring, at: int, flat: NDArray[Any] | None = flat) -> Ring:
            return (0 if flat is None else flat[at : at + len(words)].astype(np.uint64)) - words

        factor = sums(shape, gate.bits, [stream], less)
        parameters[gate.name] = PartyWeights(masked, factor, bias)
    for table in _tables(made):
        stored = _take(tensors, f"{table.name}.masked", np.uint8, (table.rows, table.width))
        mask = _drawn(table, stream)
        if weights:
            own = stored ^ mask if party == 0 else mask
            parameters[table.name] = TableShares(as_rows(stored), as_rows(own))
    _nothing_left(tensors)
    return PartyProgram(party, made, parameters, _known_by(seed))


def load_dealer(data: bytes) -> DealerProgram:
    """Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    _, made, tensors = _read(data, ("dealer",))
    seeds = _take(tensors, "seeds", np.uint8, (2, SEED_BYTES))
    _nothing_left(tensors)
    streams = [Keystream(seed.tobytes()) for seed in seeds]
    known = (_known_by(seeds[0].tobytes()), _known_by(seeds[1].tobytes()))
    parameters: dict[str, Any] = {}
    for gate in _linear(made):
        parameters[gate.name] = sums(weight_shape(gate.node), gate.bits, streams)
    for table in _tables(made):
        mask = _drawn(table, streams[0]) ^ _drawn(table, streams[1])
        parameters[table.name] = as_rows(mask)
    return DealerProgram(made, parameters, known)


def load_client(data: bytes) -> tuple[Graph, MpcPlan]:
    """Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    _, made, tensors = _read(data, ("client",))
    _nothing_left(tensors)
    return made.graph, made


def _known_by(seed: bytes) -> bytes:
    """What a party's bundle is told apart by from that of another split; it says nothing else."""
    return hashlib.sha256(b"secure-quant split" + seed).digest()


def _linear(made: MpcPlan) -> list[LinearGate]:
    return [gate for gate in made.gates if isinstance(gate, LinearGate)]


def _tables(made: MpcPlan) -> list[EmbeddingGate]:
    return [gate for gate in made.gates if isinstance(gate, EmbeddingGate)]


def _drawn(table: EmbeddingGate, stream: Keystream) -> NDArray[np.uint8]:
    """A share of r_T: what follows in the stream that the layers' masks are read from, a byte an
    element, in whole words."""
    size = table.rows * table.width
    octets = stream.words(-(-size // 8)).astype("<u8").view(np.uint8)
    return octets[:size].reshape(table.rows, table.width)


def _masked(tensors: Tensors, gate: LinearGate) -> NDArray[Any]:
    """D_W as it is stored, without a copy. Raises MalformedModel for an element beyond the ring."""
    kind = narrow_kind(gate.bits)
    stored = _take(
        tensors, f"{gate.name}.masked", np.int32 if kind is np.uint32 else np.uint64,
        weight_shape(gate.node),
    ).view(kind)  # fmt: skip
    if stored.size and int(stored.max()) >> gate.bits:
        raise MalformedModel("masked weights", got="an element beyond", expected=f"Z_2^{gate.bits}")
    return stored


def _write(made: MpcPlan, role: str, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    parts = to_parts(made.graph)
    metadata = {
        "format": FORMAT, "role": role, "graph": parts.graph.decode(),
        "plan": made.to_json().decode(), "commitment": made.graph.commitment.hex(),
        "hash": made.graph.hash,
    }  # fmt: skip
    public = {
        "public.tables": np.frombuffer(parts.tables, "<i2"),
        "public.multipliers": np.frombuffer(parts.multipliers, np.uint8),
    }
    lookups = {}
    if role != "dealer" and made.graph.lookups:
        rows = join_lookups(made.graph.nodes, made.graph.lookups)
        lookups["public.lookups"] = np.frombuffer(rows, np.int8)
    return write_tensors(public | lookups | dict(tensors), metadata)


def _read(data: bytes | memoryview, roles: tuple[str, ...]) -> tuple[str, MpcPlan, Tensors]:
    tensors, metadata = read_tensors(data)
    names = {"format", "role", "graph", "plan", "commitment", "hash"}
    if set(metadata) != names or metadata["format"] != FORMAT or metadata["role"] not in roles:
        got = ascii(metadata.get("role", "none")[:20])
        raise MalformedModel("bundle's role", got=got, expected=" or ".join(roles))
    try:
        commitment = bytes.fromhex(metadata["commitment"])
        text, plan_text = metadata["graph"].encode(), metadata["plan"].encode()
    except ValueError as error:
        what = "commitment, graph or plan"
        raise MalformedModel(what, got="not hexadecimal, or not UTF-8") from error
    parts = PublicParts(
        text,
        _take(tensors, "public.tables", np.int16).tobytes(),
        _take(tensors, "public.multipliers", np.uint8).tobytes(),
    )
    lookups = b""
    if "public.lookups" in tensors:
        lookups = _take(tensors, "public.lookups", np.int8).tobytes()
    graph = from_parts(parts, commitment=commitment, lookups=lookups)
    if graph.hash != metadata["hash"]:
        raise HashMismatch("bundle", got=graph.hash, expected=ascii(metadata["hash"][:64]))
    return metadata["role"], MpcPlan.from_json(plan_text, graph), tensors


def _take(
    tensors: Tensors, name: str, kind: type[np.generic], shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """The array ``name``, which leaves ``tensors``; any vector if no shape is asked for."""
    array = tensors.pop(name, None)
    if array is None or array.dtype != kind or (array.shape != shape if shape else array.ndim != 1):
        got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise MalformedModel(f"tensor {name[:80]!r}", got=got, expected=f"{kind.__name__}{shape}")
    return array


def _nothing_left(tensors: Tensors) -> None:
    if tensors:
        raise MalformedModel("tensors", got=sorted(tensors)[:4], expected="none besides")
