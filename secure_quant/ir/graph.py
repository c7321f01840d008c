"""The graph: public nodes in topological order, and the secret parameters beside them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import HashMismatch, InvalidGraph, MissingParameters
from secure_quant.ir.codec import encode_nodes, joined
from secure_quant.ir.lookups import checked_lookups
from secure_quant.ir.ops import Conv2d, Embedding, Input, Linear, Node, Output
from secure_quant.ir.ports import Port, input_ports, output_ports
from secure_quant.ir.values import Value
from secure_quant.ir.verify import needs_parameters, verify

__all__ = ["Graph"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A verified integer model.

    nodes       in topological order; the first is the only Input, the last the only Output.
    parameters  secret arrays by name, or empty in a public graph.
    salt        32 secret bytes that keep ``commitment`` from being guessed; none in a public graph.
    commitment  SHA-256 over salt and parameters: binds the weights without showing them.
    lookups     public tables of LookupPorts by node name, all or none: who quantizes inputs needs
                them.

    Raises InvalidGraph, OverflowRisk or HashMismatch on construction; a Graph that exists is valid.
    """

    nodes: tuple[Node, ...]
    parameters: Mapping[str, Array] = field(default_factory=dict)
    salt: bytes = b""
    commitment: bytes = b""
    lookups: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {name: _frozen(array) for name, array in sorted(self.parameters.items())}
        object.__setattr__(self, "parameters", MappingProxyType(frozen))
        # `values` is filled by the verifier's own inference, once.
        object.__setattr__(self, "_values", MappingProxyType(verify(self.nodes, frozen)))
        object.__setattr__(self, "lookups", checked_lookups(self.nodes, self.lookups))
        if len(self.salt) not in (0, 32) or len(self.commitment) not in (0, 32):
            got = (len(self.salt), len(self.commitment))
            raise InvalidGraph("bytes of salt and commitment", got=got, expected="32 or none")
        if self.is_public and (self.salt or not self.commitment):
            raise InvalidGraph("a graph without parameters", expected="a commitment and no salt")
        if frozen or self.salt or not self.commitment:
            salt = self.salt or secrets.token_bytes(32)
            digest = _commit(salt, frozen)
            if self.commitment and digest != self.commitment:
                raise HashMismatch(
                    "the parameters do not open the commitment",
                    got=digest.hex(), expected=self.commitment.hex(),
                )  # fmt: skip
            object.__setattr__(self, "salt", salt)
            object.__setattr__(self, "commitment", digest)

    @property
    def input(self) -> Input:
        node = self.nodes[0]
        if not isinstance(node, Input):
            raise InvalidGraph("first node", got=type(node).__name__, expected="Input")
        return node

    @property
    def output(self) -> Output:
        node = self.nodes[-1]
        if not isinstance(node, Output):
            raise InvalidGraph("last node", got=type(node).__name__, expected="Output")
        return node

    @property
    def is_public(self) -> bool:
        """True if the secret parameters are not here although the nodes need them."""
        return needs_parameters(self.nodes) and not self.parameters

    @property
    def values(self) -> Mapping[str, Value]:
        """What each node makes: shape, range, zero point, kind."""
        values: Mapping[str, Value] = self._values  # type: ignore[attr-defined]
        return values

    def __repr__(self) -> str:
        """Inputs -> outputs, size and hash. Neither weights nor salt: whatever an object's text is
        ends up in somebody's log."""
        ends = [
            ", ".join(f"{port.name}: {port.dtype}{list(port.asked)}" for port in ports)
            for ports in (self.input_ports, self.output_ports)
        ]
        inside = "public" if self.is_public else f"{_count(self.parameters)} parameters"
        return (f"<Graph {ends[0]} -> {ends[1]}; {len(self.nodes)} nodes, {inside}, "
                f"hash {self.hash[:12]}>")  # fmt: skip

    def __copy__(self) -> Graph:
        return self

    def __deepcopy__(self, memo: Mapping[int, object]) -> Graph:
        """Itself: nothing in it changes."""
        return self

    def __reduce__(self) -> NoReturn:
        """A pickle is a program to whoever loads it. Raises TypeError."""
        raise TypeError("a Graph is not pickled: secure_quant.save writes it, load reads it")

    @cached_property
    def input_ports(self) -> tuple[Port, ...]:
        """The arrays that the Input is packed of, in order; the Input itself if it has no ports."""
        return input_ports(self.nodes, self.values)

    @cached_property
    def output_ports(self) -> tuple[Port, ...]:
        """The arrays in the Output, in order; the Output itself if it has no ports."""
        return output_ports(self.nodes, self.values)

    @property
    def has_ports(self) -> bool:
        """Whether inputs or outputs are named arrays, packed; else both are one array each."""
        return any(
            port.node not in (self.input.name, self.output.name)
            for port in (*self.input_ports, *self.output_ports)
        )

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return MappingProxyType({node.name: node for node in self.nodes})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Value name -> the nodes that read it, in order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return MappingProxyType({name: tuple(nodes) for name, nodes in found.items()})

    def weight(self, node: Linear | Conv2d | Embedding) -> Array:
        """int8 weight of a node, or its table. Raises MissingParameters on a public graph."""
        return self._parameter(f"{node.name}.weight")

    def bias(self, node: Linear | Conv2d) -> Array:
        """int32[out] bias of a node, zeros where it has none. Raises MissingParameters."""
        if node.bias:
            return self._parameter(f"{node.name}.bias")
        out = node.out_features if isinstance(node, Linear) else node.out_channels
        return np.zeros(out, np.int32)

    def lookup(self, name: str) -> Array:
        """int8[rows, width] of a LookupPort. Raises MissingParameters where they are not here."""
        if name not in self.lookups:
            raise MissingParameters("the public table of an input", got=f"none of {name!r}")
        return self.lookups[name]

    def public(self) -> Graph:
        """The same graph without parameters and salt: what a client, party or dealer may see."""
        return replace(self, parameters={}, salt=b"")

    @cached_property
    def hash(self) -> str:
        """64 hex digits that name the model: SHA-256 over the public graph and the commitment."""
        digest = hashlib.sha256(b"secure_quant model v1\0")
        digest.update(hashlib.sha256(joined(encode_nodes(self.nodes))).digest())
        digest.update(self.commitment)
        return digest.hexdigest()

    def _parameter(self, name: str) -> Array:
        if self.is_public:
            raise MissingParameters(
                f"{name} of a public graph", expected="the model with its weights"
            )
        return self.parameters[name]


def _frozen(array: Array) -> Array:
    """A read-only, contiguous, little-endian copy."""
    copy = np.array(array, order="C", dtype=np.asarray(array).dtype.newbyteorder("<"))
    copy.flags.writeable = False
    return copy


def _count(parameters: Mapping[str, Array]) -> int:
    return sum(array.size for array in parameters.values())


def _commit(salt: bytes, parameters: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256(b"secure_quant parameters v1\0" + salt)
    for name, array in sorted(parameters.items()):
        head = f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        digest.update(array.nbytes.to_bytes(8, "little") + array.tobytes())
    return digest.digest()
