"""Keys and ciphertexts as fixed-length bytes. Whatever a seed can give is not sent: of each pair
(b, a) only b travels. All polynomials are transformed (SEAL's order); residues are packed to
their bits, prime after prime.

evaluation keys   seed, then b of every key (relinearization first, then the rotations ascending),
                  a record per digit of the decomposition, and of the public key, for each prime
                  of the whole chain
request           seed, then b for each prime but the special one
response          both polynomials for the first prime
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant.he.codec import pack, packed_size, unpack, width_of
from secure_quant.he.leveled.plan import LeveledPlan
from secure_quant.he.sampling import Uniform
from secure_quant.keystream import SEED_BYTES

__all__ = [
    "key_bytes",
    "key_records",
    "pack_keys",
    "pack_request",
    "pack_response",
    "request_bytes",
    "response_bytes",
    "unpack_keys",
    "unpack_request",
    "unpack_response",
]

U64 = NDArray[np.uint64]
Bytes = bytes | memoryview


def key_records(plan: LeveledPlan) -> int:
    """Pairs (b, a) in the evaluation keys; the last is the public key."""
    return (1 + len(plan.steps)) * (len(plan.primes) - 1) + 1


def key_bytes(plan: LeveledPlan) -> int:
    """Exact length of a client's evaluation keys."""
    return SEED_BYTES + key_records(plan) * _size(plan.degree, plan.primes)


def request_bytes(plan: LeveledPlan) -> int:
    """Exact length of one sample's request."""
    return SEED_BYTES + _size(plan.degree, plan.primes[:-1])


def response_bytes(plan: LeveledPlan) -> int:
    """Exact length of one sample's response."""
    return 2 * _size(plan.degree, plan.primes[:1])


def pack_keys(plan: LeveledPlan, seed: bytes, b: U64) -> bytes:
    """b: uint64[key_records, primes, degree]."""
    return seed + _pack(b, plan.primes)


def unpack_keys(plan: LeveledPlan, data: Bytes) -> tuple[U64, U64]:
    """(b, a), each uint64[key_records, primes, degree]. Raises MalformedMessage."""
    _check("evaluation keys", data, key_bytes(plan))
    return _seeded(plan.degree, plan.primes, data, key_records(plan))


def pack_request(plan: LeveledPlan, seed: bytes, b: U64) -> bytes:
    """b: uint64[primes but the special one, degree]."""
    return seed + _pack(b[None], plan.primes[:-1])


def unpack_request(plan: LeveledPlan, data: Bytes) -> U64:
    """uint64[2, primes but the special one, degree]. Raises MalformedMessage."""
    _check("request", data, request_bytes(plan))
    b, a = _seeded(plan.degree, plan.primes[:-1], data, 1)
    return np.concatenate([b, a])


def pack_response(plan: LeveledPlan, polynomials: U64) -> bytes:
    """polynomials: uint64[2, 1, degree] modulo the first prime."""
    return _pack(polynomials, plan.primes[:1])


def unpack_response(plan: LeveledPlan, data: Bytes) -> U64:
    """uint64[2, degree]. Raises MalformedMessage."""
    _check("response", data, response_bytes(plan))
    return _unpack(plan.degree, plan.primes[:1], data, 2)[:, 0]


def _seeded(degree: int, primes: Sequence[int], data: Bytes, records: int) -> tuple[U64, U64]:
    b = _unpack(degree, primes, memoryview(data)[SEED_BYTES:], records)
    seed = bytes(memoryview(data)[:SEED_BYTES])
    return b, Uniform(seed, tuple(primes), degree).polynomials(records)


def _pack(values: U64, primes: Sequence[int]) -> bytes:
    return b"".join(pack(values[:, i], prime, 0).tobytes() for i, prime in enumerate(primes))


def _unpack(degree: int, primes: Sequence[int], data: Bytes, records: int) -> U64:
    octets, place = np.frombuffer(data, np.uint8), 0
    made = np.empty((records, len(primes), degree), np.uint64)
    for i, prime in enumerate(primes):
        size = packed_size(degree, width_of(prime, 0))
        block = octets[place : place + records * size].reshape(records, size)
        made[:, i] = unpack(block, degree, prime, 0)
        place += records * size
    return made


def _size(degree: int, primes: Sequence[int]) -> int:
    return sum(packed_size(degree, width_of(prime, 0)) for prime in primes)


def _check(what: str, data: Bytes, expected: int) -> None:
    if len(data) != expected:
        raise MalformedMessage(what, got=f"{len(data)} bytes", expected=f"{expected}")
