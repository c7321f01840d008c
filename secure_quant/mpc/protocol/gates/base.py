"""What a gate is.

A gate is a frozen value that the plan makes from public facts. It knows how many words of material
a sample takes, deals them, turns a party's material into its mask share (offline), and runs online
as a generator that yields what it sends and is sent what the peer sent in the same round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.mpc import kernels
from secure_quant.mpc.protocol.cost import packed_bytes
from secure_quant.mpc.protocol.ring import Ring

__all__ = ["Dealing", "Gate", "Online", "Side", "Wire", "opening"]

Online = Generator[bytes, bytes, "Wire"]


@dataclass(frozen=True, repr=False)
class Wire:
    """A party's view of a wire, uint64[batch, *shape] each.

    masked: x + r mod 2^bits, public to both parties; of a gate that is ``xored`` x XOR r. mask: own
    share of r. share: own share of x mod 2^64, where x goes to the Output unopened. octets: what
    the client sent for the Input, uint8, an XOR share of the int8.
    """

    masked: Ring | None = None
    mask: Ring | None = None
    share: Ring | None = None
    octets: NDArray[np.uint8] | None = None

    @property
    def public(self) -> Ring:
        """The masked value. Raises MalformedMessage where the plan never opens it."""
        if self.masked is None:
            raise MalformedMessage("a wire that the plan does not open")
        return self.masked

    @property
    def own(self) -> Ring:
        if self.mask is None:
            raise MalformedMessage("a wire whose mask no party shares")
        return self.mask


@dataclass(frozen=True)
class Side:
    """A party's material of one gate for a batch. free: uint64[batch, words]. dealt: one vector of
    words per sample. parameters: secret arrays of the bundle."""

    party: int
    batch: int
    free: Ring = field(repr=False)
    dealt: Sequence[Ring] = field(repr=False)
    parameters: Any = field(default=None, repr=False)


@dataclass(frozen=True, repr=False)
class Dealing:
    """One sample at the dealer. free0, free1: both parties' free words. dealt: party 0's stream,
    which the gate turns into party 1's corrections in place."""

    free0: Ring
    free1: Ring
    dealt: Ring
    parameters: Any = None


@dataclass(frozen=True, kw_only=True)
class Gate(ABC):
    """name: of the value made. shape: per sample. bits: ring of the value's mask.
    free_words, dealt_words: per sample. payloads: (elements, bits) of every round, per sample."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    free_words: int = 0
    dealt_words: int = 0
    payloads: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def xored(self) -> bool:
        """Whether the value, a number of ``bits`` bits, is masked by XOR: only some gates read it,
        and no party has a share of the mask."""
        return False

    def describe(self) -> dict[str, Any]:
        """The gate's public choices, for the plan's JSON."""
        return {
            "gate": type(self).__name__,
            "name": self.name,
            "ring": self.bits,
            "free_words": self.free_words,
            "dealt_words": self.dealt_words,
            "payloads": [[list(part) for part in parts] for parts in self.payloads],
        }

    def payload_bytes(self, batch: int) -> tuple[int, ...]:
        """Bytes of every round."""
        return tuple(
            sum(packed_bytes(batch * count, bits) for count, bits in parts)
            for parts in self.payloads
        )

    @abstractmethod
    def deal(self, side: Dealing, masks: list[Ring]) -> Ring:
        """The mask r of the value, uint64[*shape], from the inputs' masks."""

    @abstractmethod
    def offline(self, side: Side, masks: list[Ring | None]) -> tuple[Any, Ring | None]:
        """(state for ``online``, own share of the value's mask) before any input is known."""

    @abstractmethod
    def online(self, side: Side, state: Any, mask: Ring | None, inputs: list[Wire]) -> Online:
        """The value. Raises MalformedMessage where the peer's payload has another length."""


def opening(values: Ring, bits: int, *, xor: bool = False) -> Generator[bytes, bytes, Ring]:
    """Exchange shares of ``bits`` bits; the sum mod 2^bits (or XOR) of both, in ``values``' shape.

    ``values`` below 2^bits; it is overwritten.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    peer = yield packed(flat, bits)
    expected = packed_bytes(flat.size, bits)
    if len(peer) != expected:
        raise MalformedMessage("bytes of a payload", got=len(peer), expected=expected)
    words = np.frombuffer(peer + bytes(-expected % 8), np.uint64)
    kernels.batched.unpack(words, bits, flat, xor=xor)
    return flat.reshape(values.shape)


def packed(flat: Ring, bits: int) -> bytes:
    """Elements below 2^bits end to end."""
    words = kernels.batched.pack(flat, bits)
    return words.view(np.uint8)[: packed_bytes(flat.size, bits)].tobytes()
