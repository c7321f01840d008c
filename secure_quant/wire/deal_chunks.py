"""Chunks of material as they lie on the wire, without the copies that a message object costs.

A chunk is a megabyte, and thousands a minute leave the dealer. Protobuf copies its bytes into a
message, and again into the encoding; here they are copied once. The result is the very encoding of
``DealResponse(chunk=DealChunk(...))``. Where it is received, the bytes stay where they came.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secure_quant.wire.gen.dealer_pb2 import DealChunk, DealResponse

__all__ = ["Chunk", "decode_response", "encode_chunk"]

_LENGTH_DELIMITED = 2  # wire type of a field that starts with its length


def encode_chunk(model_hash: str, index: int, offset: int, data: bytes | memoryview) -> bytes:
    """The encoded response. ``data`` is not empty."""
    head = DealChunk(model_hash=model_hash, index=index, offset=offset).SerializeToString()
    # The bytes are the chunk's last field, and the chunk is the response's only one.
    body = _opened(_DATA, len(data))
    return b"".join((_opened(_CHUNK, len(head) + len(body) + len(data)), head, body, data))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A DealChunk that was received."""

    model_hash: str
    index: int
    offset: int
    data: bytes | memoryview = field(repr=False)


def decode_response(encoded: bytes) -> DealResponse | Chunk:
    """As ``DealResponse.FromString``, but what is encoded as above is a Chunk, and not copied.
    Raises DecodeError."""
    place = _data_of(encoded)
    if place is not None:
        head, data = place
        chunk = DealChunk.FromString(encoded[head[0] : head[1]])
        return Chunk(chunk.model_hash, chunk.index, chunk.offset, memoryview(encoded)[data:])
    return DealResponse.FromString(encoded)


def _data_of(encoded: bytes) -> tuple[tuple[int, int], int] | None:
    """Where a chunk's other fields lie, and where its bytes begin, if these come last."""
    try:
        tag, place = _read(encoded, 0)
        length, first = _read(encoded, place)
        if tag != _CHUNK << 3 | _LENGTH_DELIMITED or first + length != len(encoded):
            return None
        place = first
        while True:
            tag, after = _read(encoded, place)
            value, begin = _read(encoded, after)
            if tag == _DATA << 3 | _LENGTH_DELIMITED:
                return ((first, place), begin) if begin + value == len(encoded) else None
            if tag & 7 not in (0, _LENGTH_DELIMITED):
                return None
            place = begin + (value if tag & 7 else 0)
    except IndexError:
        return None


def _read(encoded: bytes, place: int) -> tuple[int, int]:
    """A varint, and what is behind it. Raises IndexError beyond the end, or for one too long."""
    value = 0
    for number in range(10):
        byte = encoded[place + number]
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, place + number + 1
    raise IndexError


def _opened(field: int, length: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


_DATA = DealChunk.DESCRIPTOR.fields_by_name["data"].number
_CHUNK = DealResponse.DESCRIPTOR.fields_by_name["chunk"].number
