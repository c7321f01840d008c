"""SEAL's and TenSEAL's serialized forms, uncompressed, written from arrays that were checked.

A peer's bytes never get here: what SEAL's loader reads was written by this module, header by
header. Sources: SEAL 4.3 ``serialization.h``, ``ciphertext.cpp``, ``kswitchkeys.cpp``;
TenSEAL 0.3 ``tensors.proto``, ``tensealcontext.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ciphertext", "context", "resized", "switching_keys", "vector"]

U64 = NDArray[np.uint64]

_HEADER = struct.Struct("<HBBBBHQ")
"""Magic, size of this header, version (major, minor), compression, reserved, size of the whole."""
_MAGIC, _VERSION, _NONE = 0xA15E, (4, 3), 0
_BODY = struct.Struct("<?QQQdQ")
"""Transformed, polynomials, degree, primes, scale, correction factor (BGV's)."""
_U64, _F64 = struct.Struct("<Q"), struct.Struct("<d")
_PUBLIC = 2
_PUBLIC_KEY, _RELIN, _GALOIS = 1, 4, 5
"""Field numbers in TenSEAL's context."""


def ciphertext(level: Sequence[int], polynomials: U64, scale: float) -> bytes:
    """A transformed ciphertext uint64[size, primes, degree] at the level of that parms_id."""
    size, primes, degree = polynomials.shape
    data = _whole(_U64.pack(polynomials.size) + polynomials.astype("<u8", copy=False).tobytes())
    body = _BODY.pack(True, size, degree, primes, scale, 1)
    return _whole(struct.pack("<4Q", *level) + body + data)


def switching_keys(level: Sequence[int], slots: int, keys: Mapping[int, U64]) -> bytes:
    """SEAL's KSwitchKeys. keys: index below ``slots`` -> uint64[digits, 2, primes, degree]."""
    parts = [struct.pack("<4Q", *level), _U64.pack(slots)]
    place = 0
    for index, key in sorted(keys.items()):
        parts += [bytes(8 * (index - place)), _U64.pack(len(key))]
        parts += [ciphertext(level, digit, 1.0) for digit in key]
        place = index + 1
    parts.append(bytes(8 * (slots - place)))
    return _whole(b"".join(parts))


def context(template: bytes, public: bytes, relinearization: bytes, galois: bytes) -> bytes:
    """TenSEAL's public context with these keys. template: one serialized without any. Protobuf
    merges the two halves of its public part."""
    keys = _field(_PUBLIC_KEY, public) + _field(_RELIN, relinearization) + _field(_GALOIS, galois)
    return template + _field(_PUBLIC, keys)


def vector(size: int, data: bytes, scale: float) -> bytes:
    """TenSEAL's CKKSVector of one serialized ciphertext."""
    return _field(1, _varint(size)) + _field(2, data) + bytes([3 << 3 | 1]) + _F64.pack(scale)


def resized(serialized: bytes, old: int, new: int) -> bytes:
    """The same CKKSVector as if it had ``new`` entries: other slots count as its own or not."""
    head = _field(1, _varint(old))
    if not serialized.startswith(head):
        raise ValueError("not a CKKSVector of that size")
    return _field(1, _varint(new)) + serialized[len(head) :]


def _whole(body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _NONE, 0, length) + body


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
