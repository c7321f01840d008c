"""Integers of a fixed bit width <-> bytes: the whole wire format of ciphertexts.

A width is a multiple of 4. Each value's upper ``width // 8`` bytes stand little-endian, one value
after the other; where half a byte is left, the low 4 bits of all values follow, two to a byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage

__all__ = ["pack", "packed_size", "unpack", "width_of"]

U64 = NDArray[np.uint64]


def width_of(prime: int, drop: int) -> int:
    """Bits on the wire of a residue without its ``drop`` low bits."""
    return -(-(prime.bit_length() - drop) // 4) * 4


def packed_size(count: int, width: int) -> int:
    """Bytes of ``count`` values."""
    return count * (width // 8) + (-(-count // 2) if width % 8 else 0)


def pack(values: U64, prime: int, drop: int) -> bytes:
    """Residues of any shape -> ``packed_size(values.size, width_of(prime, drop))`` bytes."""
    width = width_of(prime, drop)
    flat = (values >> np.uint64(drop)).reshape(-1)
    upper = flat >> np.uint64(4) if width % 8 else flat
    octets = np.ascontiguousarray(upper).astype("<u8", copy=False).view(np.uint8)
    head = octets.reshape(-1, 8)[:, : width // 8].tobytes()
    if not width % 8:
        return head
    low = (flat & np.uint64(15)).astype(np.uint8)
    if len(low) % 2:
        low = np.append(low, np.uint8(0))
    return head + (low[0::2] | (low[1::2] << 4)).tobytes()


def unpack(data: memoryview, shape: tuple[int, ...], prime: int, drop: int) -> U64:
    """Inverse of ``pack``; a value stands for the middle of what its dropped bits could be.

    ``data`` must have the right length. Raises MalformedMessage for a value not below ``prime``.
    """
    width = width_of(prime, drop)
    count = int(np.prod(shape))
    upper = count * (width // 8)
    octets = np.zeros((count, 8), np.uint8)
    octets[:, : width // 8] = np.frombuffer(data[:upper], np.uint8).reshape(count, -1)
    values = octets.view("<u8").reshape(count)
    if width % 8:
        packed = np.frombuffer(data[upper:], np.uint8)
        low = np.stack([packed & 15, packed >> 4], 1).reshape(-1)
        if count % 2 and low[count]:
            raise MalformedMessage("padding of a ciphertext", got="not zero", expected="zero")
        values = (values << np.uint64(4)) | low[:count]
    values <<= np.uint64(drop)
    # Only the topmost step can reach past the prime: there the middle could lie outside.
    if values.max(initial=0) >= prime:
        raise MalformedMessage("ciphertext coefficient", got="too large", expected=f"< {prime}")
    if drop:
        values += np.uint64(1 << (drop - 1))
        np.minimum(values, np.uint64(prime - 1), out=values)
    return values.reshape(shape)
