"""Integers of a fixed bit width <-> bytes: the whole wire format of ciphertexts.

Each value's upper ``width // 8`` bytes stand little-endian, one value after the other. The low
``r = width % 8`` bits of all values follow, eight values to r bytes, the first value lowest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage

__all__ = ["pack", "packed_size", "unpack", "width_of"]

U64 = NDArray[np.uint64]


def width_of(prime: int, drop: int) -> int:
    """Bits on the wire of a residue without its ``drop`` low bits."""
    return prime.bit_length() - drop


def packed_size(count: int, width: int) -> int:
    """Bytes of ``count`` values."""
    return count * (width // 8) + -(-count // 8) * (width % 8)


def pack(values: U64, prime: int, drop: int) -> bytes:
    """Residues of any shape -> ``packed_size(values.size, width_of(prime, drop))`` bytes."""
    whole, rest = divmod(width_of(prime, drop), 8)
    flat = values.reshape(-1) >> np.uint64(drop)
    octets = (flat >> np.uint64(rest)).astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    head = octets[:, :whole].tobytes()
    if not rest:
        return head
    low = np.zeros((-(-len(flat) // 8), 8), np.uint64)
    low.reshape(-1)[: len(flat)] = flat & np.uint64((1 << rest) - 1)
    joined = np.bitwise_or.reduce(low << _shifts(rest), axis=1)
    octets = joined.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    return head + octets[:, :rest].tobytes()


def unpack(data: memoryview, shape: tuple[int, ...], prime: int, drop: int) -> U64:
    """Inverse of ``pack``; a value stands for the middle of what its dropped bits could be.

    ``data`` must have the right length. Raises MalformedMessage for a value not below ``prime``
    or for padding that is not zero.
    """
    whole, rest = divmod(width_of(prime, drop), 8)
    count = int(np.prod(shape))
    values = _widen(data[: count * whole], count, whole)
    if rest:
        joined = _widen(data[count * whole :], -(-count // 8), rest)[:, None]
        low = ((joined >> _shifts(rest)) & np.uint64((1 << rest) - 1)).reshape(-1)
        if low[count:].any():
            raise MalformedMessage("padding of a ciphertext", got="not zero", expected="zero")
        values = (values << np.uint64(rest)) | low[:count]
    values <<= np.uint64(drop)
    if values.max(initial=0) >= prime:
        raise MalformedMessage("ciphertext coefficient", got="too large", expected=f"< {prime}")
    if drop:
        values += np.uint64(1 << (drop - 1))
        # Only in the topmost step can the middle lie beyond the prime.
        np.minimum(values, np.uint64(prime - 1), out=values)
    return values.reshape(shape)


def _shifts(rest: int) -> U64:
    return np.arange(0, 8 * rest, rest, dtype=np.uint64)


def _widen(data: memoryview, count: int, size: int) -> U64:
    """uint64[count] of little-endian numbers of ``size`` bytes."""
    octets = np.zeros((count, 8), np.uint8)
    octets[:, :size] = np.frombuffer(data, np.uint8).reshape(count, size)
    return octets.view("<u8").reshape(count).astype(np.uint64, copy=False)
