"""The messages of one call, a linear layer for one batch: their bytes are laid out, sized, written
and read here and nowhere else. The planner sizes, the client writes requests and reads responses,
the server the reverse.

request    seed, 32 bytes
           the public key: one record of all its coefficients modulo the first prime
           per ciphertext, per prime: one record of the needed coefficients that carry no input
           per ciphertext, per prime: one record of those that carry one
response   per answer: one record of all coefficients of c1
           one record of all wanted coefficients of c0

A record is ``codec``'s. There are no headers: a call fixes every length.
Source: docs/spec/ckks.md 4.1. Leveled models have messages of their own, ``leveled/wire.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.he.codec import pack, packed_size, unpack, width_of
from secure_quant.he.noise import Scaling
from secure_quant.he.packing import Packing
from secure_quant.he.parameters import Parameters
from secure_quant.keystream import SEED_BYTES

__all__ = ["Call", "HeCost", "RequestReader"]

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Bytes = bytes | memoryview


@dataclass(frozen=True, slots=True)
class HeCost:
    """Exact cost of one inference. Ciphertexts are those of activations and results; the bytes
    also count seeds and public keys: everything but the framing of the transport."""

    ciphertexts_up: int
    ciphertexts_down: int
    bytes_up: int
    bytes_down: int

    def __add__(self, other: HeCost) -> HeCost:
        return HeCost(
            self.ciphertexts_up + other.ciphertexts_up,
            self.ciphertexts_down + other.ciphertexts_down,
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
        )


@dataclass(frozen=True)
class Call:
    """One call for one batch: all that both ends must agree on."""

    packing: Packing
    ring: Parameters
    scaling: Scaling

    @cached_property
    def ciphertexts_up(self) -> int:
        return self.packing.cells * self.packing.n_in

    @cached_property
    def ciphertexts_down(self) -> int:
        return self.packing.cells * self.packing.n_out

    @cached_property
    def request_sizes(self) -> tuple[int, int, int, int]:
        """Bytes of the seed, the public key, and of what carries no input and what does in the
        ciphertexts' c0."""
        key = packed_size(self.ring.degree, width_of(self.ring.prime, self.scaling.drop_key))
        spare, carried = (
            self.ciphertexts_up * _size(count, self.ring.primes, self.scaling.drop_up)
            for count in (self.packing.spare, self.packing.carried)
        )
        return SEED_BYTES, key, spare, carried

    @cached_property
    def response_sizes(self) -> tuple[int, int]:
        """Bytes of c1 and of the wanted coefficients of c0."""
        primes = self.ring.primes[:1]
        c1 = self.ciphertexts_down * _size(self.ring.degree, primes, self.scaling.drop_c1)
        return c1, _size(self.packing.outputs, primes, self.scaling.drop_c0)

    @property
    def cost(self) -> HeCost:
        return HeCost(
            self.ciphertexts_up, self.ciphertexts_down,
            sum(self.request_sizes), sum(self.response_sizes),
        )  # fmt: skip

    @property
    def c1_bits(self) -> int:
        """Bits that a response keeps of each coefficient of c1."""
        return width_of(self.ring.prime, self.scaling.drop_c1)

    def request_head(self, seed: bytes, key: U64, spare: U64) -> bytes:
        """All of a request but its last part, independent of the input.

        key: residues modulo the first prime, uint64[degree], with two primes those of a multiple
        of the second. spare: what carries no input, uint64[ciphertexts, primes, spare].
        """
        packed = pack(key[None], self.ring.prime, self.scaling.drop_key).tobytes()
        return seed + packed + self.request_tail(spare)

    def request_tail(self, c0: U64) -> bytes:
        """Residues uint64[ciphertexts, primes, n] as a request holds them: its last part, of
        what carries an input."""
        drop = self.scaling.drop_up
        parts = [pack(c0[:, i], prime, drop) for i, prime in enumerate(self.ring.primes)]
        return np.concatenate(parts, axis=1).tobytes()

    def read_request(self, data: Bytes) -> RequestReader:
        """Raises MalformedMessage for a wrong length, before anything is allocated."""
        return RequestReader(self, data)

    def response_c1(self, c1: U64) -> bytes:
        """The next answers' c1, uint64[n, degree], as a response begins with them."""
        return pack(c1, self.ring.prime, self.scaling.drop_c1).tobytes()

    def response_c0(self, c0: U64) -> bytes:
        """All wanted coefficients in order, uint64[...], as a response ends with them."""
        return pack(c0.reshape(1, -1), self.ring.prime, self.scaling.drop_c0).tobytes()

    def read_response(self, data: Bytes) -> tuple[U64, U64]:
        """(c1 uint64[answers, degree], wanted coefficients of c0 uint64[outputs]).

        Raises MalformedMessage for a wrong length, a value not below the prime or padding.
        """
        _check("response", data, self.response_sizes)
        octets, prime, scaling = np.frombuffer(data, np.uint8), self.ring.prime, self.scaling
        cut = self.response_sizes[0]
        c1 = octets[:cut].reshape(self.ciphertexts_down, -1)
        return (
            unpack(c1, self.ring.degree, prime, scaling.drop_c1),
            unpack(octets[None, cut:], self.packing.outputs, prime, scaling.drop_c0)[0],
        )


class RequestReader:
    """A request of the right length, its ciphertexts read in order, a few at a time, so that
    memory stays near the message's."""

    def __init__(self, call: Call, data: Bytes) -> None:
        _check("ciphertexts", data, call.request_sizes)
        self._call = call
        octets, ends = np.frombuffer(data, np.uint8), np.cumsum(call.request_sizes)[:-1]
        seed, self._key, spare, carried = np.split(octets, ends)
        self.seed = seed.tobytes()
        self._spare = spare.reshape(call.ciphertexts_up, -1)
        self._carried = carried.reshape(call.ciphertexts_up, -1)

    def key(self) -> U64:
        """See ``Call.request_head``: uint64[degree]. Raises MalformedMessage as ``take``."""
        ring, drop = self._call.ring, self._call.scaling.drop_key
        key: U64 = unpack(self._key[None], ring.degree, ring.prime, drop)[0]
        return key

    def take(self, count: int) -> tuple[U64, U64]:
        """Of the next ``count`` ciphertexts what carries an input and what does not,
        uint64[count, primes, ...] each.

        Raises MalformedMessage for a value not below its prime or padding that is not zero.
        """
        carried, self._carried = self._carried[:count], self._carried[count:]
        spare, self._spare = self._spare[:count], self._spare[count:]
        packing = self._call.packing
        return self._residues(carried, packing.carried), self._residues(spare, packing.spare)

    def _residues(self, octets: U8, count: int) -> U64:
        """uint8[n, size] -> uint64[n, primes, count]."""
        primes, drop = self._call.ring.primes, self._call.scaling.drop_up
        ends = np.cumsum([_size(count, (prime,), drop) for prime in primes])[:-1]
        parts = np.split(octets, ends, axis=1)
        made = np.empty((len(octets), len(primes), count), np.uint64)
        for i, (part, prime) in enumerate(zip(parts, primes, strict=True)):
            made[:, i] = unpack(part, count, prime, drop)
        return made


def _size(count: int, primes: Sequence[int], drop: int) -> int:
    """Bytes of ``count`` residues, a record per prime."""
    return sum(packed_size(count, width_of(prime, drop)) for prime in primes)


def _check(what: str, data: Bytes, sizes: Sequence[int]) -> None:
    if len(data) != sum(sizes):
        raise MalformedMessage(what, got=f"{len(data)} bytes", expected=f"{sum(sizes)}")
