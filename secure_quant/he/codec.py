"""Integers of a fixed bit width <-> bytes: the whole wire format of ciphertexts.

A record holds n values. The upper ``width // 8`` bytes of each stand little-endian, one value
after the other; then the low ``r = width % 8`` bits of all, eight values to r bytes, the first
value lowest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage

__all__ = ["pack", "packed_size", "unpack", "width_of"]

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]


def width_of(prime: int, drop: int) -> int:
    """Bits on the wire of a residue without its ``drop`` low bits."""
    return prime.bit_length() - drop


def packed_size(count: int, width: int) -> int:
    """Bytes of a record of ``count`` values."""
    return count * (width // 8) + -(-count // 8) * (width % 8)


def pack(values: U64, prime: int, drop: int) -> U8:
    """Residues uint64[records, n] -> uint8[records, packed_size(n, width_of(prime, drop))]."""
    whole, rest = divmod(width_of(prime, drop), 8)
    records, count = values.shape
    made = np.empty((records, packed_size(count, width_of(prime, drop))), np.uint8)
    if whole:
        words = (values >> np.uint64(drop + rest)).astype("<u8", copy=False)
        upper = np.ndarray((records, count), f"V{whole}", words, strides=words.strides)
        made[:, : count * whole].view(f"V{whole}")[...] = upper
    if rest:
        low = np.zeros((records, -(-count // 8) * 8), np.uint64)
        low[:, :count] = (values >> np.uint64(drop)) & np.uint64((1 << rest) - 1)
        joined = np.bitwise_or.reduce(low.reshape(records, -1, 8) << _shifts(rest), axis=2)
        octets = joined.astype("<u8", copy=False).view(np.uint8).reshape(records, -1, 8)
        made[:, count * whole :] = octets[:, :, :rest].reshape(records, -1)
    return made


def unpack(octets: U8, count: int, prime: int, drop: int) -> U64:
    """Inverse of ``pack``: uint8[records, size] -> uint64[records, count].

    The records must have the right size. A value stands for the middle of what its dropped bits
    could be. Raises MalformedMessage for a value not below ``prime`` or padding that is not zero.
    """
    whole, rest = divmod(width_of(prime, drop), 8)
    values = _widen(octets[:, : count * whole], count, whole)
    if rest:
        joined = _widen(octets[:, count * whole :], -(-count // 8), rest)
        low = (joined[:, :, None] >> _shifts(rest)) & np.uint64((1 << rest) - 1)
        low = low.reshape(len(low), -1)
        if low[:, count:].any():
            raise MalformedMessage("padding of a ciphertext", got="not zero", expected="zero")
        values = (values << np.uint64(rest)) | low[:, :count]
    values <<= np.uint64(drop)
    if values.max(initial=0) >= prime:
        raise MalformedMessage("ciphertext coefficient", got="too large", expected=f"< {prime}")
    if drop:
        values += np.uint64(1 << (drop - 1))
        # Only in the topmost step can the middle lie beyond the prime.
        np.minimum(values, np.uint64(prime - 1), out=values)
    return values


def _shifts(rest: int) -> U64:
    return np.arange(0, 8 * rest, rest, dtype=np.uint64)


def _widen(octets: U8, count: int, size: int) -> U64:
    """uint64[records, count] of little-endian numbers of ``size`` bytes."""
    # Whole words are read at every number's place; the last one ends in the padding.
    padded = np.zeros((len(octets), count * size + 8), np.uint8)
    padded[:, : count * size] = octets
    words = np.ndarray((len(octets), count), "<u8", padded, strides=(padded.strides[0], size))
    made: U64 = (words & np.uint64((1 << 8 * size) - 1)).astype(np.uint64, copy=False)
    return made
