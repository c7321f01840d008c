"""Role bundles: one safetensors file per role, holding the least that the role needs.

Every bundle has the public graph, the commitment to the weights and the plan. A party's has the
masked weights D_W = W + r_W, the seed of its share of r_W and its share of each bias; the dealer's
has both seeds and no weight; the client's has nothing more. Public tables that clients take rows of
are in all but the dealer's.
"""

from __future__ import annotations

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
from secure_quant.ir.public import from_parts, to_parts
from secure_quant.keystream import SEED_BYTES, words_under
from secure_quant.mpc.protocol.deal import DealerProgram
from secure_quant.mpc.protocol.gates.linear import LinearGate, weight_shape
from secure_quant.mpc.protocol.party import PartyProgram
from secure_quant.mpc.protocol.plan import MpcPlan, Objective, plan
from secure_quant.mpc.protocol.ring import Ring, reduce, to_ring

__all__ = ["load_client", "load_dealer", "load_party", "split"]

FORMAT = "secure-quant-mpc/1"
Tensors = dict[str, NDArray[Any]]


def split(
    graph: Graph, objective: Objective = "balanced", *, streamed: bool | None = None
) -> dict[str, bytes]:
    """Bundles "party0", "party1", "dealer" and "client", under fresh seeds of the operating system.

    ``streamed``: as in ``plan``. Raises OpNotSupported, MissingParameters.
    """
    made = plan(graph, objective, streamed=streamed)
    seeds = [secrets.token_bytes(SEED_BYTES) for _ in range(2)]
    own = [_masks(made, seed) for seed in seeds]
    tensors: list[Tensors] = [{"seed": np.frombuffer(seed, np.uint8)} for seed in seeds]
    for gate in _linear(made):
        name = gate.name
        weight = to_ring(graph.weight(gate.node), gate.bits).reshape(weight_shape(gate.node))
        masked = reduce(weight + own[0][name] + own[1][name], gate.bits)
        bias = to_ring(graph.bias(gate.node), 64)
        first = np.frombuffer(secrets.token_bytes(8 * bias.size), np.uint64)
        for party, share in enumerate((first, bias - first)):
            tensors[party][f"{name}.masked"] = _narrow(masked, gate.bits)
            tensors[party][f"{name}.bias"] = share
    both = np.frombuffer(b"".join(seeds), np.uint8).reshape(2, SEED_BYTES)
    return {
        "party0": _write(made, "party0", tensors[0]),
        "party1": _write(made, "party1", tensors[1]),
        "dealer": _write(made, "dealer", {"seeds": both}),
        "client": _write(made, "client", {}),
    }


def load_party(data: bytes) -> PartyProgram:
    """Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    role, made, tensors = _read(data, ("party0", "party1"))
    party = 0 if role == "party0" else 1
    own = _masks(made, _take(tensors, "seed", np.uint8, (SEED_BYTES,)).tobytes())
    parameters = {}
    for gate in _linear(made):
        shape = weight_shape(gate.node)
        kind = np.int32 if gate.bits <= 32 else np.uint64
        masked = to_wide(_take(tensors, f"{gate.name}.masked", kind, shape), gate.bits)
        bias = _take(tensors, f"{gate.name}.bias", np.uint64, (shape[0] * shape[1],))
        parameters[gate.name] = gate.weights(masked, own[gate.name], bias, party)
    _nothing_left(tensors)
    return PartyProgram(party, made, parameters)


def load_dealer(data: bytes) -> DealerProgram:
    """Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    _, made, tensors = _read(data, ("dealer",))
    seeds = _take(tensors, "seeds", np.uint8, (2, SEED_BYTES))
    _nothing_left(tensors)
    first, second = (_masks(made, seed.tobytes()) for seed in seeds)
    return DealerProgram(
        made,
        {
            gate.name: gate.mask_limbs(reduce(first[gate.name] + second[gate.name], gate.bits))
            for gate in _linear(made)
        },
    )


def load_client(data: bytes) -> tuple[Graph, MpcPlan]:
    """Raises MalformedModel, HashMismatch, InvalidGraph, OpNotSupported."""
    _, made, tensors = _read(data, ("client",))
    _nothing_left(tensors)
    return made.graph, made


def _linear(made: MpcPlan) -> list[LinearGate]:
    return [gate for gate in made.gates if isinstance(gate, LinearGate)]


def _masks(made: MpcPlan, seed: bytes) -> dict[str, Ring]:
    """A share of every r_W, from the seed's stream, layer after layer."""
    gates = _linear(made)
    shapes = [weight_shape(gate.node) for gate in gates]
    words = words_under(seed, sum(int(np.prod(shape)) for shape in shapes))
    found, place = {}, 0
    for gate, shape in zip(gates, shapes, strict=True):
        size = int(np.prod(shape))
        found[gate.name] = reduce(words[place : place + size].reshape(shape), gate.bits)
        place += size
    return found


def _narrow(masked: Ring, bits: int) -> NDArray[Any]:
    return masked.astype(np.uint32).view(np.int32) if bits <= 32 else masked


def to_wide(stored: NDArray[Any], bits: int) -> Ring:
    """Inverse of the narrowing to 4 bytes. Raises MalformedModel for an element beyond the ring."""
    wide = stored.view(np.uint32).astype(np.uint64) if bits <= 32 else stored.astype(np.uint64)
    if (reduce(wide, bits) != wide).any():
        raise MalformedModel("masked weights", got="an element beyond", expected=f"Z_2^{bits}")
    return wide


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


def _read(data: bytes, roles: tuple[str, ...]) -> tuple[str, MpcPlan, Tensors]:
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
